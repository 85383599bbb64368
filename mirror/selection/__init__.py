"""Selects repositories and tags: locations, patterns, tag rules."""
