"""The values in a report, such as the results of images and the cost of the run, and their form in report.json."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal

from mirror.errors import FAILED, MirrorError, printable
from mirror.util.host_use import HostUsage
from mirror.util.structs import Struct, field

Result = Literal["copied", "up-to-date", "failed", "skipped", "conflict", "deleted", "kept"]
RESULTS: tuple[Result, ...] = ("copied", "up-to-date", "failed", "skipped", "conflict")
PRUNE_RESULTS: tuple[Result, ...] = ("deleted", "up-to-date", "kept", "failed", "skipped")
# What copying an image changed: the target got a new tag, or the tag was moved to another digest, or the target had the
# tag with the same digest but lacked content or attachments, or had damaged content.
Change = Literal["new", "moved", "completed"]
OUTCOMES = ("copied", "mounted", "exists", "failed", "interrupted")  # what can happen to a blob
BYTE_COUNTS = ("read", "sent", "mounted")  # the counters of bytes


class Failure(Struct, frozen=True):
    """The error that caused an image or mirror to fail.

    code: one of the error codes in docs/operations.md. status: the HTTP status, if there was a response. retryable:
    whether a later run may succeed without any change. host: the host that caused the error; empty if it is unknown.
    account: the credentials that the host refused, without secrets; empty for other errors. exit_code: the exit code of
    a run with this error. request_id: the id of the HTTP request in the log and in the trace, if requests were
    logged."""

    code: str
    message: str
    hint: str = ""
    status: int | None = None
    retryable: bool = False
    host: str = ""
    account: str = ""
    exit_code: int = FAILED
    request_id: int | None = None

    @classmethod
    def from_error(cls, error: MirrorError, *hosts: str) -> Failure:
        """Convert an exception to a Failure.

        hosts: the hosts of the source and the targets. If the error does not name a host, its host is the one of these
        that its text mentions first."""
        host = printable(error.host or _first_mentioned(error.what, hosts))
        return cls(
            error.code,
            error.what,
            error.hint,
            error.status,
            error.is_transient,
            host,
            error.account,
            error.exit_code,
            error.request_id,
        )


def _first_mentioned(text: str, hosts: tuple[str, ...]) -> str:
    """Return the host that `text` mentions first, or an empty string if it mentions none."""
    found = []
    for host in hosts:
        match = re.search(rf"(?<![\w.-]){re.escape(host)}(?!\w|[.:-]\w)", text) if host in text else None
        if match is not None:
            found.append((match.start(), host))
    return min(found, default=(0, ""))[1]


class ImageEntry(Struct, frozen=True):
    """The result for one reference on one target, or for a whole mirror that could not be planned.

    source, target: the names of the image or, for a mirror, the source repository and the target repositories.
    mirror: the source of the mirror as the configuration names it; only totals contain it.
    digest: the digest that the image has on the target.
    source_digest, v1_id: the digest or the v1 image ID at the source, if it is not equal to `digest`.
    blobs: the number of blobs by outcome (OUTCOMES). bytes: the number of bytes by kind (BYTE_COUNTS).
    seconds: the time that the copy took. attempts: the largest number of attempts that a blob needed, at least 1.
    referrers: the number of attachments by outcome (`copied`, `exists`); empty if there are none.
    change: for a copied image, how it changed the target (`Change`). old_digest: the digest that its tag had before.
    is_image: whether this is the result for one image, in contrast to a whole mirror.
    more_errors: further errors of the image, in addition to `error`.
    compared: False if the image is complete on the target, but could not be compared with the source."""

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
    is_image: bool = True
    more_errors: tuple[Failure, ...] = ()
    compared: bool = True
    change: Change | None = None
    old_digest: str | None = None
    mirror: str = ""


class RunCost(Struct, frozen=True):
    """The cost of a run.

    requests: the number of requests, by host and then by method and kind. seconds: the duration, measured with a
    monotonic clock. waited: the sum of all waits before retries, in seconds, including parallel ones. longest_wait: the
    longest of these waits. retry_after: the longest delay, in seconds, that a server asked for and that the run did not
    wait for. hosts: how each host was used."""

    requests: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    retries: int = 0
    waited: float = 0.0
    longest_wait: float = 0.0
    retry_after: float | None = None
    seconds: float = 0.0
    hosts: Mapping[str, HostUsage] = field(default_factory=dict)


class FailedImage(Struct, frozen=True):
    """A failure of an image, repository or mirror, as the summary of a run shows it.

    source, target: the names of the image; for a mirror that could not be planned, those of its repositories.
    is_image: whether one image failed, in contrast to a whole repository or mirror."""

    source: str
    target: str
    result: Result
    failure: Failure
    is_image: bool = True


class Totals(Struct):
    """The totals of the entries that were added to a report so far.

    mirrors: the number of images by result, for each mirror.
    sources: the hashes of the source references, so that each reference is counted once. hosts: the target hosts."""

    images: Counter[str] = field(default_factory=Counter)
    blobs: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    mirrors: dict[str, Counter[str]] = field(default_factory=dict)
    sources: set[int] = field(default_factory=set)
    hosts: set[str] = field(default_factory=set)

    def add(self, entry: ImageEntry) -> None:
        """Add the counts of an entry to the totals."""
        self.images[entry.result] += 1
        if entry.mirror:
            self.mirrors.setdefault(entry.mirror, Counter())[entry.result] += 1
        for sums, counts in ((self.blobs, entry.blobs), (self.bytes, entry.bytes)):
            for name, count in counts.items():
                if count:
                    sums[name] += count
        self.sources.add(hash(entry.source))
        self.hosts.add(entry.target.partition("/")[0])


def timestamp(moment: datetime) -> str:
    """Format a time as ISO 8601 in UTC, with milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def entry_fields(
    entry: ImageEntry, failing_since: datetime | None = None, complete: Callable[[str], str] = str
) -> dict[str, object]:
    """Return the JSON object for an entry in the list `images` of report.json (docs/operations.md, "Report").

    failing_since: the start of the first of the consecutive runs in which this image has failed; None if the image did
    not fail, or if the time is not known. complete: completes the commands in messages and hints."""
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
    if entry.change is not None:
        fields |= {"change": entry.change, "old_digest": entry.old_digest}
    if entry.source_digest is not None:
        fields["source_digest"] = entry.source_digest
    if entry.v1_id is not None:
        fields["v1_id"] = entry.v1_id
    if any(entry.referrers.values()):
        fields["referrers"] = {outcome: entry.referrers.get(outcome, 0) for outcome in ("copied", "exists")}
    if entry.error is not None:
        fields["error"] = failure_fields(entry.error, complete)
    if entry.more_errors:
        fields["more_errors"] = [failure_fields(failure, complete) for failure in entry.more_errors]
    if not entry.compared:
        fields["compared"] = False
    if failing_since is not None:
        fields["failing_since"] = timestamp(failing_since)
    return fields


def failure_fields(failure: Failure, complete: Callable[[str], str] = str) -> dict[str, object]:
    """Return the JSON object for an error in report.json. complete: completes the commands in its texts."""
    message, hint = complete(failure.message), complete(failure.hint)
    fields: dict[str, object] = {
        "code": failure.code,
        "status": failure.status,
        "retryable": failure.retryable,
        "message": f"{message} ({hint})" if hint else message,
    }
    more = {"hint": hint, "host": failure.host, "account": failure.account}
    if failure.request_id is not None:
        fields["request_id"] = failure.request_id
    return fields | {key: value for key, value in more.items() if value}
