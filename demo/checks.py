"""What the demonstration stops with."""

from __future__ import annotations


class Wrong(Exception):
    """Something is not as it should be: the demonstration ends, and says what."""


def check(condition: bool, claim: str) -> None:
    """Say that `claim` holds; raises Wrong if it does not."""
    if not condition:
        raise Wrong(f"this does not hold: {claim}")
    print(f"  ok: {claim}", flush=True)
