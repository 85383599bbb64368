"""Catalogs for registries that do not list their repositories over the v2 API. Each product has its own module."""
