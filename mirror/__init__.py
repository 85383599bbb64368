"""Copies container image repositories from one set of registries to another and keeps them equal."""

__version__ = "0.1.0"
