"""The requests and bytes of registries, from their access logs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tests.registries.access import Seen

_COMMITS = ("PUT upload", "PUT manifest")


@dataclass(frozen=True, slots=True)
class Traffic:
    """The traffic of one side in one run.

    kinds: the number of requests by kind (`HEAD manifest`). refused: responses 429 and 503, included in `kinds`. sent:
    bytes of response bodies. accepted: bytes of accepted blobs and manifests; their logs do not show bytes sent in
    vain, such as those of interrupted uploads."""

    kinds: Mapping[str, int] = field(default_factory=dict)
    refused: int = 0
    sent: int = 0
    accepted: int = 0

    @property
    def requests(self) -> int:
        return sum(self.kinds.values())


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a source. tags: (repository, tag) -> digest. sizes: digest of a blob or manifest -> bytes."""

    tags: Mapping[tuple[str, str], str]
    sizes: Mapping[str, int]

    @property
    def repositories(self) -> list[str]:
        return sorted({repository for repository, _ in self.tags})


def traffic(requests: Iterable[Seen], content: Content) -> Traffic:
    """Return the traffic of the requests that one or several registries received."""
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
