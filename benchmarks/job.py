"""What a tool is asked to do, in no tool's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Job:
    """Bring repositories from one registry to others, under their own names.

    source, targets: `host:port`, plain http on loopback. images: repository -> tags that are wanted. pattern: "": these
    are all the tags there are; else the regular expression that selects them, out of many more: a tool that can select
    is told just that, and has to read the listing."""

    source: str
    targets: Sequence[str]
    images: Mapping[str, Sequence[str]]
    pattern: str = ""
