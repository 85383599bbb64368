"""Copies blobs between stores: schedules the calls, and shares each copy among all images that need it."""
