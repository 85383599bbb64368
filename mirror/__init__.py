"""mirror: keeps container image repositories on one set of registries equal to those on another."""

__version__ = "0.1.0"
