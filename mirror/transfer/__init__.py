"""Blobs between stores: what runs when, once for all who ask for it. Knows stores only by their protocols."""
