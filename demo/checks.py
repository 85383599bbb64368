"""Checks of the demonstration, and the error that ends it."""

from __future__ import annotations


class CheckFailed(Exception):
    """A check or a command of the demonstration failed. The message says which."""


def check(condition: bool, claim: str) -> None:
    """Print `claim` if `condition` is true; otherwise raise Wrong."""
    if not condition:
        raise CheckFailed(f"check failed: {claim}")
    print(f"  ok: {claim}", flush=True)
