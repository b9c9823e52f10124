"""The version of this package, importable without Paddle."""

VERSION = "0.3.0"
