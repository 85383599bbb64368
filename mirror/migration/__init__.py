"""Converts the configurations of other tools to ours."""
