"""The check function of the demonstration, and the error that it raises."""

from __future__ import annotations


class CheckFailed(Exception):
    """The error for a failed check or command of the demonstration. The message says which one failed."""


def check(condition: bool, claim: str) -> None:
    """Print `claim` if `condition` is true, otherwise raise CheckFailed."""
    if not condition:
        raise CheckFailed(f"check failed: {claim}")
    print(f"  ok: {claim}", flush=True)
