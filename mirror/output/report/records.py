"""The values that a report consists of (results of images, cost of the run), and their form in report.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

from mirror.errors import MirrorError, printable
from mirror.util.structs import Struct, field

Result = Literal["copied", "up-to-date", "failed", "skipped", "conflict", "deleted", "kept"]
RESULTS: tuple[Result, ...] = ("copied", "up-to-date", "failed", "skipped", "conflict")
PRUNE_RESULTS: tuple[Result, ...] = ("deleted", "up-to-date", "kept", "failed", "skipped")
OUTCOMES = ("copied", "mounted", "exists", "failed", "interrupted")  # what can happen to a blob
BYTE_COUNTS = ("read", "sent", "mounted")  # the counters of bytes


class Failure(Struct, frozen=True):
    """The error that caused an image or mirror to fail.

    code: one of the error codes in docs/operations.md. status: the HTTP status, if there was a response. retryable:
    whether a later run may succeed without any change. request_id: the id of the HTTP request in the log and in the
    trace, if requests were logged."""

    code: str
    message: str
    hint: str = ""
    status: int | None = None
    retryable: bool = False
    request_id: int | None = None

    @classmethod
    def from_error(cls, error: MirrorError) -> Failure:
        """Convert an exception to a Failure."""
        return cls(error.code, error.what, error.hint, error.status, error.is_transient, error.request_id)


class ImageEntry(Struct, frozen=True):
    """The result for one reference on one target, or for a whole mirror that could not be planned.

    source, target: the names of the image or, for a mirror, the source repository and the target repositories.
    digest: the digest that the image has on the target.
    source_digest, v1_id: the digest or the v1 image ID at the source, if it is not equal to `digest`.
    blobs: the number of blobs by outcome (OUTCOMES). bytes: the number of bytes by kind (BYTE_COUNTS).
    seconds: the time that the copy took. attempts: the largest number of attempts that a blob needed, at least 1.
    referrers: the number of attachments by outcome (`copied`, `exists`); empty if there are none."""

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
    referrers: Mapping[str, int] = field(default_factory=dict)


class RunCost(Struct, frozen=True):
    """The cost of a run.

    requests: the number of requests, by host and then by method and kind. seconds: the duration, measured with a
    monotonic clock. waited: the sum of all waits before retries, in seconds, including parallel ones. longest_wait: the
    longest of these waits. retry_after: the longest delay, in seconds, that a server asked for and that the run did not
    wait for."""

    requests: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    retries: int = 0
    waited: float = 0.0
    longest_wait: float = 0.0
    retry_after: float | None = None
    seconds: float = 0.0


class FailedImage(Struct, frozen=True):
    """An image that failed or is in conflict, as the summary lists it."""

    source: str
    target: str
    result: Result
    message: str
    hint: str


class Totals(Struct):
    """The totals of the entries that were added to a report so far.

    sources: the hashes of the source references, so that each reference is counted once. hosts: the target hosts."""

    images: Counter[str] = field(default_factory=Counter)
    blobs: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    sources: set[int] = field(default_factory=set)
    hosts: set[str] = field(default_factory=set)

    def add(self, entry: ImageEntry) -> None:
        """Add the counts of an entry to the totals."""
        self.images[entry.result] += 1
        for sums, counts in ((self.blobs, entry.blobs), (self.bytes, entry.bytes)):
            for name, count in counts.items():
                if count:
                    sums[name] += count
        self.sources.add(hash(entry.source))
        self.hosts.add(entry.target.partition("/")[0])


def entry_fields(entry: ImageEntry, message: str) -> dict[str, object]:
    """Return the JSON object for an entry in the list `images` of report.json (docs/operations.md, "Report").

    message: the text of the entry's error."""
    fields: dict[str, object] = {
        "source": printable(entry.source, 2000),
        "target": printable(entry.target, 2000),
        "digest": entry.digest,
        "result": entry.result,
        "protocol": entry.protocol,
        "blobs": {outcome: entry.blobs.get(outcome, 0) for outcome in OUTCOMES},
        "bytes": {way: entry.bytes.get(way, 0) for way in BYTE_COUNTS},
        "seconds": round(entry.seconds, 3),
        "attempts": entry.attempts,
    }
    if entry.source_digest is not None:
        fields["source_digest"] = entry.source_digest
    if entry.v1_id is not None:
        fields["v1_id"] = entry.v1_id
    if any(entry.referrers.values()):
        fields["referrers"] = {outcome: entry.referrers.get(outcome, 0) for outcome in ("copied", "exists")}
    if entry.error is not None:
        error = entry.error
        fields["error"] = {
            "code": error.code,
            "status": error.status,
            "retryable": error.retryable,
            "message": message,
            **({} if error.request_id is None else {"request_id": error.request_id}),
        }
    return fields
