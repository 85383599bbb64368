"""Stores that are registries, and everything that speaks HTTP."""
