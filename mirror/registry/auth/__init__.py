"""Authorization at registries: challenges, credentials, token services."""
