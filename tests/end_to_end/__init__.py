"""Tests of the whole program between registries, as users run it: one file for each guarantee."""
