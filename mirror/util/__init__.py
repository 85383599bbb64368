"""Small modules that do not know about registries: files, cancellation, retries, single-flight, signals."""
