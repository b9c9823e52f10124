"""The version of this package, importable without Paddle."""

VERSION = "0.4.0"
