"""Authorization for registries: challenges, credentials and token services."""
