"""Records the result of each image and blob: in the report, the log, the progress, and the exit code."""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from mirror.errors import FAILED, OK, Cancelled, MirrorError
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.output.log import log_blob
from mirror.output.progress import Progress
from mirror.output.report import Failure, ImageEntry, Report, Result
from mirror.store import Version
from mirror.sync.plan_model import MirrorEntry, PlanEntry
from mirror.transfer.blob_request import BlobCost, BlobOutcome, BlobRequest, BlobResult
from mirror.util.structs import Struct, field


class BlobCounts(Struct):
    """What one image cost, in blobs and bytes of blobs. interrupted: called off by a signal, or since another blob of
    the image failed. started: seconds of the monotonic clock."""

    copied: int = 0
    mounted: int = 0
    exists: int = 0
    failed: int = 0
    interrupted: int = 0
    bytes_read: int = 0
    bytes_sent: int = 0
    bytes_mounted: int = 0
    attempts: int = 1
    started: float = field(default_factory=time.monotonic)
    _sent: set[Digest] = field(default_factory=set)  # the blobs that `copied` and `mounted` count

    def reset_for_second_push(self) -> None:
        """The image is about to be pushed a second time: count what becomes of its blobs then, each blob once."""
        self.exists = self.failed = self.interrupted = 0

    def add_interrupted(self, blob: Descriptor) -> None:
        """Count a blob that was called off."""
        self.interrupted += blob.digest not in self._sent

    def add_failed(self, blob: Descriptor, cost: BlobCost) -> None:
        """Count a delivery that failed, and what it took."""
        self.failed += blob.digest not in self._sent
        self.bytes_read += cost.bytes_read
        self.bytes_sent += cost.bytes_sent
        self.attempts = max(self.attempts, cost.attempts)

    def add(self, blob: Descriptor, result: BlobResult) -> None:
        """Count a delivery; one that several images joined counts for the first that says so."""
        outcome = result.claim()
        if outcome is None:
            return
        sent_before = blob.digest in self._sent
        if outcome is BlobOutcome.EXISTS:
            self.exists += not sent_before
            return
        self.bytes_read += result.bytes_read
        self.bytes_sent += result.bytes_sent
        self.attempts = max(self.attempts, result.attempts)
        self._sent.add(blob.digest)
        if outcome is BlobOutcome.MOUNTED:
            self.mounted += not sent_before
            self.bytes_mounted += blob.size or 0
        else:
            self.copied += not sent_before


class ResultReceiver(Protocol):
    """Takes the result of each image, once. Called on the event loop; must not block."""

    def record_up_to_date(self, plan_entry: PlanEntry, digest: Digest) -> None: ...
    def record_copied(self, plan_entry: PlanEntry, digest: Digest, counts: BlobCounts) -> None: ...
    def record_failure(self, plan_entry: PlanEntry, error: MirrorError, counts: BlobCounts) -> None: ...
    def record_skipped(self, plan_entry: PlanEntry, reason: str) -> None: ...
    def record_listing_failure(self, entry: MirrorEntry, error: MirrorError) -> None: ...
    def expect_images(self, entry: MirrorEntry, count: int) -> None: ...
    def record_crash(self, plan_entry: PlanEntry, error: BaseException) -> None: ...
    def record_error(self, error: MirrorError) -> None: ...
    def record_bug(self, error: BaseException) -> None: ...


USUAL = "v2"  # the protocol that is not mentioned

_log = logging.getLogger("mirror")


class ResultRecorder:
    """Implements Results, and hears of deliveries. Thread-safe; nothing here waits for the network or a disk."""

    def __init__(self, report: Report, progress: Progress) -> None:
        self._report = report
        self._progress = progress
        self._lock = threading.Lock()
        self._codes: set[int] = {OK}
        self._unfinished: set[Repository] = set()

    @property
    def codes(self) -> set[int]:
        """The exit codes of what happened so far."""
        with self._lock:
            return set(self._codes)

    @property
    def unfinished(self) -> set[Repository]:
        """Repositories where something is left to do."""
        with self._lock:
            return set(self._unfinished)

    def record_error(self, error: MirrorError) -> None:
        """Something failed that is not about one image."""
        self.add_exit_code(error)
        _log.error("trouble", extra={"code": error.code, "text": str(error)})

    def record_bug(self, error: BaseException) -> None:
        """Something of ours broke outside of any image."""
        _log.error("internal_error", exc_info=error, extra={"text": f"internal error: {type(error).__name__}: {error}"})
        with self._lock:
            self._codes.add(FAILED)

    def expect_images(self, entry: MirrorEntry, count: int) -> None:
        self._progress.add_images(count * len(entry.targets))

    def add_exit_code(self, error: MirrorError) -> None:
        """An error that the exit code must know of."""
        with self._lock:
            self._codes.add(error.exit_code)

    # ---- images

    def record_up_to_date(self, plan_entry: PlanEntry, digest: Digest) -> None:
        self._add(plan_entry, "up-to-date", BlobCounts(), digest)

    def record_copied(self, plan_entry: PlanEntry, digest: Digest, counts: BlobCounts) -> None:
        self._add(plan_entry, "copied", counts, digest)
        text = f"{plan_entry.name} is now {digest}"
        _log.info("image_copied", extra={"source": plan_entry.reference.name, "target": plan_entry.name, "text": text})

    def record_failure(self, plan_entry: PlanEntry, error: MirrorError, counts: BlobCounts) -> None:
        if isinstance(error, Cancelled):
            self._add(plan_entry, "skipped", counts, plan_entry.old_digest, error)
            return
        result: Result = "conflict" if error.code == "tag_immutable" else "failed"
        self._add(plan_entry, result, counts, plan_entry.old_digest, error)
        self.add_exit_code(error)
        self._log_failure(plan_entry.reference.name, plan_entry.name, error)

    def record_skipped(self, plan_entry: PlanEntry, reason: str) -> None:
        self._add(plan_entry, "skipped", BlobCounts(), plan_entry.old_digest, Cancelled(reason))

    def record_listing_failure(self, entry: MirrorEntry, error: MirrorError) -> None:
        target = ", ".join(str(one.repository) for one in entry.targets)
        protocol = error.protocol or USUAL
        result: Result = "conflict" if error.code == "target_conflict" else "failed"
        self._report.add(ImageEntry(entry.name, target, result, protocol=protocol, error=Failure.from_error(error)))
        self.add_exit_code(error)
        self._log_failure(entry.name, target, error)

    def record_crash(self, plan_entry: PlanEntry, error: BaseException) -> None:
        """A bug of ours: this image failed by it, the others go on."""
        text = f"{plan_entry.name}: internal error: {type(error).__name__}: {error}"
        _log.error("internal_error", exc_info=error, extra={"target": plan_entry.name, "text": text})
        failure = MirrorError(text, hint="please report this, with the log at level debug", code="internal_error")
        self._add(plan_entry, "failed", BlobCounts(), plan_entry.old_digest, failure)
        with self._lock:
            self._codes.add(FAILED)

    def _add(
        self,
        plan_entry: PlanEntry,
        result: Result,
        counts: BlobCounts,
        digest: Digest | None,
        error: MirrorError | None = None,
    ) -> None:
        version = plan_entry.reference.version if isinstance(plan_entry.reference.version, Version) else None
        source_id = version.source_id if version else ""
        self._report.add(
            ImageEntry(
                source=plan_entry.reference.name,
                target=plan_entry.name,
                result=result,
                digest=digest,
                blobs={
                    "copied": counts.copied,
                    "mounted": counts.mounted,
                    "exists": counts.exists,
                    "failed": counts.failed,
                    "interrupted": counts.interrupted,
                },
                bytes={"read": counts.bytes_read, "sent": counts.bytes_sent, "mounted": counts.bytes_mounted},
                seconds=time.monotonic() - counts.started,
                attempts=counts.attempts,
                error=Failure.from_error(error) if error is not None else None,
                protocol=version.protocol if version else (error.protocol if error else "") or USUAL,
                source_digest=source_id if ":" in source_id else None,
                v1_id=source_id if source_id and ":" not in source_id else None,
            )
        )
        if result in ("failed", "skipped"):
            with self._lock:
                self._unfinished.add(plan_entry.target.repository)
        self._progress.count_image(failed=result in ("failed", "conflict"))

    def _log_failure(self, source: str, target: str, error: MirrorError) -> None:
        fields = {"source": source, "target": target, "code": error.code, "status": error.status}
        _log.error("image_failed", extra=fields | {"retryable": error.is_transient, "text": f"{target}: {error}"})

    # ---- blobs

    def record_blob(self, request: BlobRequest, what: BlobResult | MirrorError, cost: BlobCost) -> None:
        """What became of a blob or manifest in a target repository; once for each. cost: of a failure."""
        took = what if isinstance(what, BlobResult) else cost
        result = what if isinstance(what, BlobResult) else None
        log_blob(
            is_root=request.is_root,
            source=str(request.origin),
            target=str(request.repository),
            image=request.image,
            digest=request.blob.digest,
            size=request.blob.size,
            outcome=result.outcome.value if result else "failed",
            from_=result.from_ if result else None,
            bytes_read=took.bytes_read,
            bytes_sent=took.bytes_sent,
            attempt=took.attempts,
            seconds=took.seconds,
            code=what.code if isinstance(what, MirrorError) else None,
        )
