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
from mirror.transfer.blob_request import BlobOutcome, BlobRequest, BlobResult
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

    def push_again(self) -> None:
        """The image is about to be pushed a second time: count what becomes of its blobs then, each blob once."""
        self.exists = self.failed = self.interrupted = 0

    def add_interrupted(self, blob: Descriptor) -> None:
        """Count a blob that was called off."""
        self.interrupted += blob.digest not in self._sent

    def add_failed(self, blob: Descriptor, result: BlobResult) -> None:
        """Count a delivery that failed, and what it took."""
        self.failed += blob.digest not in self._sent
        self.bytes_read += result.bytes_read
        self.bytes_sent += result.bytes_sent
        self.attempts = max(self.attempts, result.attempts)

    def add(self, blob: Descriptor, result: BlobResult) -> None:
        """Count a delivery; one that several images joined counts for the first that says so."""
        outcome = result.take_outcome()
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

    def up_to_date(self, planned: PlanEntry, digest: Digest) -> None: ...
    def copied(self, planned: PlanEntry, digest: Digest, counts: BlobCounts) -> None: ...
    def failed(self, planned: PlanEntry, error: MirrorError, counts: BlobCounts) -> None: ...
    def skipped(self, planned: PlanEntry, reason: str) -> None: ...
    def listing_failed(self, entry: MirrorEntry, error: MirrorError) -> None: ...
    def selected(self, entry: MirrorEntry, count: int) -> None: ...
    def crashed(self, planned: PlanEntry, error: BaseException) -> None: ...
    def trouble(self, error: MirrorError) -> None: ...
    def bug(self, error: BaseException) -> None: ...


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

    def trouble(self, error: MirrorError) -> None:
        """Something failed that is not about one image."""
        self.note(error)
        _log.error("trouble", extra={"code": error.code, "text": str(error)})

    def bug(self, error: BaseException) -> None:
        """Something of ours broke outside of any image."""
        _log.error("internal_error", exc_info=error, extra={"text": f"internal error: {type(error).__name__}: {error}"})
        with self._lock:
            self._codes.add(FAILED)

    def selected(self, entry: MirrorEntry, count: int) -> None:
        self._progress.add_images(count * len(entry.targets))

    def note(self, error: MirrorError) -> None:
        """An error that the exit code must know of."""
        with self._lock:
            self._codes.add(error.exit_code)

    # ---- images

    def up_to_date(self, planned: PlanEntry, digest: Digest) -> None:
        self._add(planned, "up-to-date", BlobCounts(), digest)

    def copied(self, planned: PlanEntry, digest: Digest, counts: BlobCounts) -> None:
        self._add(planned, "copied", counts, digest)
        text = f"{planned.name} is now {digest}"
        _log.info("image_copied", extra={"source": planned.reference.name, "target": planned.name, "text": text})

    def failed(self, planned: PlanEntry, error: MirrorError, counts: BlobCounts) -> None:
        if isinstance(error, Cancelled):
            self._add(planned, "skipped", counts, planned.old, error)
            return
        result: Result = "conflict" if error.code == "tag_immutable" else "failed"
        self._add(planned, result, counts, planned.old, error)
        self.note(error)
        self._log_failure(planned.reference.name, planned.name, error)

    def skipped(self, planned: PlanEntry, reason: str) -> None:
        self._add(planned, "skipped", BlobCounts(), planned.old, Cancelled(reason))

    def listing_failed(self, entry: MirrorEntry, error: MirrorError) -> None:
        target = ", ".join(str(one.repository) for one in entry.targets)
        protocol = error.protocol or USUAL
        result: Result = "conflict" if error.code == "target_conflict" else "failed"
        self._report.add(ImageEntry(entry.name, target, result, protocol=protocol, error=Failure.from_error(error)))
        self.note(error)
        self._log_failure(entry.name, target, error)

    def crashed(self, planned: PlanEntry, error: BaseException) -> None:
        """A bug of ours: this image failed by it, the others go on."""
        text = f"{planned.name}: internal error: {type(error).__name__}: {error}"
        _log.error("internal_error", exc_info=error, extra={"target": planned.name, "text": text})
        failure = MirrorError(text, hint="please report this, with the log at level debug", code="internal_error")
        self._add(planned, "failed", BlobCounts(), planned.old, failure)
        with self._lock:
            self._codes.add(FAILED)

    def _add(
        self,
        planned: PlanEntry,
        result: Result,
        counts: BlobCounts,
        digest: Digest | None,
        error: MirrorError | None = None,
    ) -> None:
        version = planned.reference.version if isinstance(planned.reference.version, Version) else None
        source_id = version.source_id if version else ""
        self._report.add(
            ImageEntry(
                source=planned.reference.name,
                target=planned.name,
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
                self._unfinished.add(planned.target.repository)
        self._progress.count_image(failed=result in ("failed", "conflict"))

    def _log_failure(self, source: str, target: str, error: MirrorError) -> None:
        fields = {"source": source, "target": target, "code": error.code, "status": error.status}
        _log.error("image_failed", extra=fields | {"retryable": error.is_transient, "text": f"{target}: {error}"})

    # ---- blobs

    def blob(self, request: BlobRequest, result: BlobResult, error: MirrorError | None) -> None:
        """Log the result of a blob or manifest in a target repository. error: why it failed."""
        log_blob(
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
