"""Bundles: a layout in one tar file, with an inventory first."""
