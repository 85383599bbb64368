"""Counts the requests to registries, and the bytes they sent and accepted, from their access logs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tests.registries.access import Seen

_COMMITS = ("PUT upload", "PUT manifest")


@dataclass(frozen=True, slots=True)
class Traffic:
    """The traffic of the source, or of all targets together, in one run.

    kinds: the number of requests by kind, such as `HEAD manifest`. refused: the number of responses with status 429 or
    503, whose requests are included in `kinds`. sent: bytes of response bodies. accepted: bytes of accepted blobs and
    manifests. Access logs do not show bytes of uploads that were not completed, so these are not included."""

    kinds: Mapping[str, int] = field(default_factory=dict)
    refused: int = 0
    sent: int = 0
    accepted: int = 0

    @property
    def requests(self) -> int:
        """The total number of requests."""
        return sum(self.kinds.values())


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a source.

    tags: the digest of each (repository, tag). sizes: the size in bytes of each blob and manifest, by digest."""

    tags: Mapping[tuple[str, str], str]
    sizes: Mapping[str, int]

    @property
    def repositories(self) -> list[str]:
        """The names of all repositories, sorted."""
        return sorted({repository for repository, _ in self.tags})


def traffic(requests: Iterable[Seen], content: Content) -> Traffic:
    """Return the traffic of the given requests, which may have been received by several registries."""
    kinds: Counter[str] = Counter()
    refused = sent = accepted = 0
    for seen in requests:
        kinds[seen.kind] += 1
        refused += seen.status in (429, 503)
        sent += seen.size if seen.method != "HEAD" else 0
        if seen.kind in _COMMITS and seen.status == 201:
            digest = content.tags.get((seen.repository, seen.reference), seen.reference)
            accepted += content.sizes.get(digest, 0)
    return Traffic(dict(sorted(kinds.items())), refused, sent, accepted)
