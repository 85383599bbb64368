"""Describes what a tool has to copy, independently of the tool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Job:
    """Images to copy from one registry to others, under the same repository names.

    source, targets: `host:port` of registries on loopback, over plain http. images: the tags to copy, by repository.
    pattern: a regular expression that selects these tags. A tool that supports selection gets only the pattern, so it
    must read the tag list. If `pattern` is empty, all tags of the repositories are copied."""

    source: str
    targets: Sequence[str]
    images: Mapping[str, Sequence[str]]
    pattern: str = ""
