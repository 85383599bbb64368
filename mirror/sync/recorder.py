"""Records the result for each image and blob in the report, the log, the progress display and the exit code."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from mirror.errors import FAILED, OK, Cancelled, MirrorError, OtherPlatform
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.output.log import log_blob
from mirror.output.progress import Progress
from mirror.output.report import Change, ImageEntry, Report, Result
from mirror.selection.tag_rules import SelectionSummary
from mirror.sync.plan_model import MirrorEntry, PlanEntry
from mirror.sync.report_entries import failure_result, image_entry, mirror_entry, mirror_failure
from mirror.transfer.blob_request import BlobOutcome, BlobRequest, BlobResult
from mirror.util.structs import Struct, field, replace

if TYPE_CHECKING:
    from mirror.output.event_stream import EventStream

_log = logging.getLogger("mirror")


class BlobCounts(Struct):
    """Counts the blobs of one image by outcome, and the bytes and attempts for copying them.

    blobs: the number of blobs by outcome (copied, mounted, exists, failed, interrupted), each counted once. A blob is
    interrupted by a signal, or because another blob of the image failed.
    bytes: the numbers of bytes that were read, sent and mounted.
    attachments: the number of attachments by outcome (copied, exists).
    attempts: the largest number of attempts that any blob needed.
    started: the time when the copy of the image started, in seconds of the monotonic clock."""

    blobs: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    attempts: int = 1
    started: float = field(default_factory=time.monotonic)
    attachments: Counter[str] = field(default_factory=Counter)
    _sent: set[Digest] = field(default_factory=set)  # the blobs that were copied or mounted

    def reset_for_second_push(self) -> None:
        """Reset the counts before the second push of an image, except for copied and mounted blobs."""
        for outcome in ("exists", "failed", "interrupted"):
            self.blobs[outcome] = 0
        self.attachments.clear()

    def add_interrupted(self, blob: Descriptor) -> None:
        """Count a blob whose copy was cancelled."""
        self.blobs["interrupted"] += blob.digest not in self._sent

    def add_failed(self, blob: Descriptor, result: BlobResult) -> None:
        """Count a blob that failed, and the bytes and attempts for copying it."""
        self.blobs["failed"] += blob.digest not in self._sent
        self._add_cost(result)

    def add(self, blob: Descriptor, result: BlobResult) -> None:
        """Count a blob that the target now has. If several images share the copy, only the first image counts it."""
        outcome = result.take_outcome()
        if outcome is None:
            return
        self.blobs[outcome.value] += blob.digest not in self._sent
        if outcome is BlobOutcome.EXISTS:
            return
        self._add_cost(result)
        self._sent.add(blob.digest)
        if outcome is BlobOutcome.MOUNTED:
            self.bytes["mounted"] += blob.size or 0

    def _add_cost(self, result: BlobResult) -> None:
        """Add the bytes and attempts for copying one blob."""
        self.bytes["read"] += result.bytes_read
        self.bytes["sent"] += result.bytes_sent
        self.attempts = max(self.attempts, result.attempts)


class ResultRecorder:
    """Records the results of a run. Thread-safe. No method waits for the network or a disk."""

    def __init__(self, report: Report, progress: Progress, events: EventStream | None = None) -> None:
        """Create a recorder. events: the stream that also receives the results (`--json-events`)."""
        self._events = events
        self._report = report
        self._progress = progress
        self._lock = threading.Lock()
        self._codes: set[int] = {OK}
        self._unfinished: set[Repository] = set()

    @property
    def codes(self) -> set[int]:
        """The exit codes for all results that have been recorded so far."""
        with self._lock:
            return set(self._codes)

    @property
    def unfinished(self) -> set[Repository]:
        """The target repositories in which an image failed or was skipped."""
        with self._lock:
            return set(self._unfinished)

    def record_error(self, error: MirrorError) -> None:
        """Record an error that concerns a target or the whole run, not a single image."""
        self.add_exit_code(error)
        _log.error("trouble", extra={"code": error.code, "text": str(error)})

    def record_bug(self, error: BaseException) -> None:
        """Record an exception that was caused by a bug, and that concerns no single image."""
        _log.error("internal_error", exc_info=error, extra={"text": f"internal error: {type(error).__name__}: {error}"})
        with self._lock:
            self._codes.add(FAILED)

    def record_selection(self, entry: MirrorEntry, selection: SelectionSummary) -> None:
        """Log the number of references that a mirror selects, and add it, for each target, to the progress display."""
        count, rejected = selection.count, dict(selection.rejected)
        self._progress.add_images(count * len(entry.targets))
        waiting = f"; {rejected['min-age']} wait for min-age" if "min-age" in rejected else ""
        text = f"{entry.name}: {count} tags selected{waiting}"
        _log.info("selected", extra={"source": entry.name, "tags": count, "rejected": rejected, "text": text})

    def record_copy_start(self, plan_entry: PlanEntry) -> None:
        """Show in the progress display that an image has been read, and that its copy begins."""
        self._progress.start_image(plan_entry.name)

    def record_written(self, plan_entry: PlanEntry) -> None:
        """Show that an image was written to a bundle. The result is recorded when the bundle is complete."""
        self._progress.end_image(plan_entry.name)

    def record_finishing(self) -> None:
        """Show that all images have been copied, and that the targets are being closed."""
        self._progress.set_phase("finishing")

    def add_exit_code(self, error: MirrorError) -> None:
        """Add the exit code of an error to `codes`."""
        with self._lock:
            self._codes.add(error.exit_code)

    # ---- images

    def record_up_to_date(self, plan_entry: PlanEntry, digest: Digest, counts: BlobCounts) -> None:
        """Record that the target already had an image. counts: only the counts of attachments are reported."""
        self._add_to_report(plan_entry, "up-to-date", BlobCounts(attachments=counts.attachments), digest)

    def record_copied(self, plan_entry: PlanEntry, digest: Digest, counts: BlobCounts) -> None:
        """Record that an image was copied."""
        old = plan_entry.old_digest
        change: Change = "completed" if plan_entry.damaged or old == digest else "new" if old is None else "moved"
        self._add_to_report(plan_entry, "copied", counts, digest, change=change)
        text = f"copied {plan_entry.reference.name} to {plan_entry.name}, digest {digest}"
        fields = {"source": plan_entry.reference.name, "target": plan_entry.name, "text": text}
        _log.info("image_copied", extra=fields)

    def record_failure(self, plan_entry: PlanEntry, error: MirrorError, counts: BlobCounts) -> None:
        """Record that an image failed, is in conflict, or was skipped because of a stop or its platform."""
        if isinstance(error, Cancelled | OtherPlatform):
            self._add_to_report(plan_entry, "skipped", counts, plan_entry.old_digest, error)
            return
        self._add_to_report(plan_entry, failure_result(error), counts, plan_entry.old_digest, error)
        self.add_exit_code(error)
        self._log_failure(plan_entry.reference.name, plan_entry.name, error)

    def record_skipped(self, plan_entry: PlanEntry, error: Cancelled) -> None:
        """Record that the copy of an image was not attempted. error: the reason."""
        self._add_to_report(plan_entry, "skipped", BlobCounts(), plan_entry.old_digest, error)

    def record_mirror_failure(self, entry: MirrorEntry, error: MirrorError) -> None:
        """Record that a mirror cannot be planned, or that its source lists an invalid name."""
        failed = mirror_failure(entry, error)
        self._add_entry(mirror_entry(failed, error, entry.mirror_name))
        self.add_exit_code(error)
        self._log_failure(entry.name, failed.target, error)

    def record_crash(self, plan_entry: PlanEntry, error: BaseException) -> None:
        """Record that an image failed because of a bug. The run continues with the other images."""
        text = f"{plan_entry.name}: internal error: {type(error).__name__}: {error}"
        _log.error("internal_error", exc_info=error, extra={"target": plan_entry.name, "text": text})
        failure = MirrorError(text, hint="please report this bug, with a log of level `debug`", code="internal_error")
        self._add_to_report(plan_entry, "failed", BlobCounts(), plan_entry.old_digest, failure)
        with self._lock:
            self._codes.add(FAILED)

    def _add_to_report(
        self,
        plan_entry: PlanEntry,
        result: Result,
        counts: BlobCounts,
        digest: Digest | None,
        error: MirrorError | None = None,
        change: Change | None = None,
    ) -> None:
        """Add the result of an image to the report, and count the image in the progress display."""
        self._add_entry(
            replace(
                image_entry(plan_entry, result, digest, error),
                blobs=counts.blobs,
                bytes=counts.bytes,
                seconds=time.monotonic() - counts.started,
                attempts=counts.attempts,
                referrers=counts.attachments,
                change=change,
                old_digest=plan_entry.old_digest if change is not None else None,
            )
        )
        if result in ("failed", "skipped") and not isinstance(error, OtherPlatform):
            with self._lock:
                self._unfinished.add(plan_entry.target.repository)
        self._progress.count_image(plan_entry.name, failed=result in ("failed", "conflict"))

    def _add_entry(self, entry: ImageEntry) -> None:
        """Add an entry to the report and to the events."""
        self._report.add(entry)
        if self._events is not None:
            self._events.add_image(entry)

    def _log_failure(self, source: str, target: str, error: MirrorError) -> None:
        """Log that an image or a mirror failed. source, target: the names at the source and on the target."""
        fields = {"source": source, "target": target, "code": error.code, "status": error.status}
        if error.request_id is not None:
            fields["request_id"] = error.request_id
        _log.error("image_failed", extra=fields | {"retryable": error.is_transient, "text": f"{target}: {error}"})

    # ---- blobs

    def record_blob(self, request: BlobRequest, result: BlobResult, error: MirrorError | None) -> None:
        """Log the result of copying a blob or manifest to a target repository. error: the reason if the copy failed."""
        fields = log_blob(
            is_root=request.is_root,
            source=str(request.source),
            target=str(request.repository),
            image=request.image,
            digest=request.blob.digest,
            size=request.blob.size,
            outcome=result.outcome.value if result.outcome is not None else "failed",
            from_=result.mounted_from,
            bytes_read=result.bytes_read,
            bytes_sent=result.bytes_sent,
            attempt=max(1, result.attempts),
            seconds=result.seconds,
            code=error.code if error is not None else None,
        )
        if self._events is not None:
            self._events.add_blob(fields, is_root=request.is_root)
