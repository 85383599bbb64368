"""What became of each image, and what the run cost: plain values, and their form in report.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

from mirror.errors import MirrorError, printable
from mirror.util.structs import Struct, field

Result = Literal["copied", "up-to-date", "failed", "skipped", "conflict"]
RESULTS: tuple[Result, ...] = ("copied", "up-to-date", "failed", "skipped", "conflict")
OUTCOMES = ("copied", "mounted", "exists", "failed", "interrupted")  # of blobs
WAYS = ("read", "sent", "mounted")  # of their bytes


class Failure(Struct, frozen=True):
    """Why an image failed. code: one of docs/operations.md, "Error codes"; status: of HTTP;
    retryable: a later run may succeed without anybody changing anything."""

    code: str
    message: str
    hint: str = ""
    status: int | None = None
    retryable: bool = False

    @classmethod
    def of(cls, error: MirrorError) -> Failure:
        return cls(error.code, error.what, error.hint, error.status, error.passing)


class ImageEntry(Struct, frozen=True):
    """What became of one reference on one target. Where a listing failed, source and target are repositories.

    digest: the target's; source_digest, v1_id: the source's, where that differs. blobs: counts by OUTCOMES; bytes:
    of blobs, by WAYS. seconds: from its start to its end; attempts: of the image or, at most, of one of its blobs."""

    source: str
    target: str
    result: Result
    digest: str | None = None
    protocol: str = "v2"
    blobs: Mapping[str, int] = field(default_factory=dict)
    bytes: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    attempts: int = 1
    error: Failure | None = None
    source_digest: str | None = None
    v1_id: str | None = None


class Effort(Struct, frozen=True):
    """What a run cost. requests: by host, then by method and kind. seconds: of a clock that does not jump;
    waited: seconds before retries, summed over all that waited, at the same time too; longest_wait: the longest of
    them; retry_after: a wait, in seconds, that a server asked for and we did not take."""

    requests: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    retries: int = 0
    waited: float = 0.0
    longest_wait: float = 0.0
    retry_after: float | None = None
    seconds: float = 0.0


class Told(Struct, frozen=True):
    """An image of which the summary speaks."""

    source: str
    target: str
    result: Result
    message: str
    hint: str


class Totals(Struct):
    """Sums over the entries so far. sources: hashes of their references, to count them; hosts: of targets."""

    images: Counter[str] = field(default_factory=Counter)
    blobs: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    sources: set[int] = field(default_factory=set)
    hosts: set[str] = field(default_factory=set)

    def add(self, entry: ImageEntry) -> None:
        self.images[entry.result] += 1
        self.blobs.update(entry.blobs)
        self.bytes.update(entry.bytes)
        self.sources.add(hash(entry.source))
        self.hosts.add(entry.target.partition("/")[0])


def as_json(entry: ImageEntry, message: str) -> dict[str, object]:
    """An element of `images` (design §4.4). message: of its error."""
    told: dict[str, object] = {
        "source": printable(entry.source, 2000),
        "target": printable(entry.target, 2000),
        "digest": entry.digest,
        "result": entry.result,
        "protocol": entry.protocol,
        "blobs": {outcome: entry.blobs.get(outcome, 0) for outcome in OUTCOMES},
        "bytes": {way: entry.bytes.get(way, 0) for way in WAYS},
        "seconds": round(entry.seconds, 3),
        "attempts": entry.attempts,
    }
    if entry.source_digest is not None:
        told["source_digest"] = entry.source_digest
    if entry.v1_id is not None:
        told["v1_id"] = entry.v1_id
    if entry.error is not None:
        error = entry.error
        told["error"] = {
            "code": error.code,
            "status": error.status,
            "retryable": error.retryable,
            "message": message,
        }
    return told
