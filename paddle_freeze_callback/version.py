"""The version of this package, importable without Paddle."""

VERSION = "0.1.0"
