"""Checks of the demonstration, and the error that ends it."""

from __future__ import annotations


class Wrong(Exception):
    """A check failed, or a command did. The message says which."""


def check(condition: bool, claim: str) -> None:
    """Print `claim` if `condition` is true; otherwise raise Wrong."""
    if not condition:
        raise Wrong(f"check failed: {claim}")
    print(f"  ok: {claim}", flush=True)
