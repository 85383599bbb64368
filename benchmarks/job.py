"""The job of a tool, independent of the tool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Job:
    """Copy repositories from one registry to others, under the same names.

    source, targets: `host:port`, plain http on loopback. images: the wanted tags by repository. pattern: a regular
    expression that selects them; a tool that supports selection gets only this, and must read the tag list. Empty: the
    wanted tags are all tags."""

    source: str
    targets: Sequence[str]
    images: Mapping[str, Sequence[str]]
    pattern: str = ""
