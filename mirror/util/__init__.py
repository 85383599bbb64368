"""Small modules that have nothing to do with registries: files, cancellation, retries, single-flight, signals."""
