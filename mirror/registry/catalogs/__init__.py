"""Catalogs of registries that do not list their repositories over the v2 API: one module for each product."""
