"""Stores on disk: OCI image layouts in directories, and bundles (a layout in one tar file)."""
