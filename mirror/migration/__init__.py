"""Converts the configurations of other tools to configurations of `mirror`."""
