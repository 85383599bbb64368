"""What the registries were asked, and how many bytes went which way: from their access logs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tests.registries.access import Seen

_COMMITS = ("PUT upload", "PUT manifest")


@dataclass(frozen=True, slots=True)
class Traffic:
    """One side of one run. kinds: `HEAD manifest` -> how many. refused: answers of 429 and 503, which are among them.

    sent: bytes of the bodies of the registries' answers. taken: bytes of what they accepted, blobs and manifests; what
    was sent in vain (an upload that broke, or that somebody else had finished) is not in their logs."""

    kinds: Mapping[str, int] = field(default_factory=dict)
    refused: int = 0
    sent: int = 0
    taken: int = 0

    @property
    def requests(self) -> int:
        return sum(self.kinds.values())


@dataclass(frozen=True, slots=True)
class Content:
    """What a source holds. tags: (repository, tag) -> digest. sizes: digest of a blob or manifest -> bytes."""

    tags: Mapping[tuple[str, str], str]
    sizes: Mapping[str, int]

    @property
    def repositories(self) -> list[str]:
        return sorted({repository for repository, _ in self.tags})


def traffic(requests: Iterable[Seen], content: Content) -> Traffic:
    """Add up what one or several registries were asked."""
    kinds: Counter[str] = Counter()
    refused = sent = taken = 0
    for seen in requests:
        kinds[seen.kind] += 1
        refused += seen.status in (429, 503)
        sent += seen.size if seen.method != "HEAD" else 0
        if seen.kind in _COMMITS and seen.status == 201:
            digest = content.tags.get((seen.repository, seen.reference), seen.reference)
            taken += content.sizes.get(digest, 0)
    return Traffic(dict(sorted(kinds.items())), refused, sent, taken)
