"""Small modules that know nothing of registries: files, cancellation, retries, single-flight, signals."""
