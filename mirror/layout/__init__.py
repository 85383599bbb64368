"""Stores on disk: OCI image layouts as directories, and bundles, which are the same in one tar."""
