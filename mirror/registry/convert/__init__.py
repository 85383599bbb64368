"""Conversion of schema 1 manifests and v1 images to schema 2 images."""
