"""Registries that support Docker's v1 protocol, and the choice between v1 and v2."""
