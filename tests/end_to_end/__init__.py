"""The whole program, as its users run it, between registries: a file for each promise."""
