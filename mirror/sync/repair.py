"""Wraps the targets of `sync --repair`, to verify each object on them by reading and hashing it.

A registry may acknowledge a write that it did not perform. If docker-registry already has the file of a blob or
manifest, it responds to an upload with 201 and keeps the file, even if its content is wrong. Therefore, all objects
that are sent are read back and verified.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import TracebackType

from mirror.errors import MirrorError, NetworkError, NotFound, RateLimited, Refused, RemoteError
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Repository
from mirror.store import DAMAGED, BlobReader, ExpectedImage, LeftOut, Mount, Target, UploadSession, Version
from mirror.transfer.blob_request import BlobSource
from mirror.transfer.downloads import BlobDownload
from mirror.util.cancellation import Work
from mirror.util.retry_policy import Policy
from mirror.util.structs import replace

BUFFER = 256 << 10  # bytes
TRUNCATED_ATTEMPTS = 3  # number of truncated reads after which a blob is treated as damaged

_log = logging.getLogger("mirror.sync")


def wrap_for_repair(targets: Mapping[str, Target]) -> dict[str, Target]:
    """Wrap each target in a RepairTarget. Bundles are not wrapped: writing a bundle hashes its content anyway."""
    return {host: target if target.needs_all_images else RepairTarget(target) for host, target in targets.items()}


class RepairTarget:
    """A Target that wraps another target, and verifies all existing and all written objects. Thread-safe.

    A blob or manifest is treated as existing only if its bytes match its digest. A write succeeds only if the bytes can
    be read back; otherwise, it raises Refused (target_lied). The hint of this error tells the registry's operator which
    files to delete.

    policy: the retry policy for reads that are not retried as part of a transfer."""

    def __init__(self, target: Target, policy: Policy | None = None) -> None:
        self._target = target
        self._policy = policy or Policy()
        self._lock = threading.Lock()
        self._damaged: set[tuple[str, Digest]] = set()  # repositories and their damaged blobs, which are not mounted
        self._not_replaced: dict[
            Digest, Refused
        ] = {}  # objects of which the target kept a damaged copy; not sent again
        self.host = target.host
        self.partial = target.partial
        self.needs_all_images = target.needs_all_images
        self.incomplete = target.incomplete
        self.on_disk = target.on_disk

    # ---- reading

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        """Yield the repositories under `prefix`."""
        return self._target.repositories(prefix, work)

    def tags(self, repository: str, work: Work) -> Iterable[str | MirrorError]:
        """Yield the tags of a repository."""
        return self._target.tags(repository, work)

    def resolve(self, repository: str, references: Sequence[str], work: Work) -> Iterator[Version | MirrorError]:
        """Resolve references by reading their manifests, because a HEAD request would not reveal wrong bytes."""
        for reference in references:
            work.stop.raise_if_requested()
            try:
                yield self.read(repository, reference, work)
            except (RemoteError, Refused) as error:
                if not isinstance(error, NotFound):
                    self._log_damage(str(Repository(self.host, repository)), reference, error)
                yield _convert_truncated(error)

    def read(self, repository: str, reference: str, work: Work) -> Version:
        """Resolve a reference, and read its manifest."""
        return self._target.read(repository, reference, work)

    def manifest(self, repository: str, reference: str, work: Work) -> Manifest:
        """Read a manifest and verify its digest."""
        return self._target.manifest(repository, reference, work)

    def open_blob(self, repository: str, blob: Descriptor, work: Work, *, offset: int = 0) -> BlobReader:
        """Open a blob for reading from byte `offset`."""
        return self._target.open_blob(repository, blob, work, offset=offset)

    def omits_blob(self, blob: Descriptor) -> bool:
        """Return whether the target is a partial store that leaves out a blob."""
        return self._target.omits_blob(blob)

    def referrers(self, repository: str, digest: Digest, work: Work) -> Iterable[Descriptor] | None:
        """Return the referrers of a manifest, or None if the target does not list referrers."""
        return self._target.referrers(repository, digest, work)

    # ---- writing

    def begin(self, images: Sequence[ExpectedImage], work: Work, *, missing: Collection[str] = ()) -> None:
        """Prepare the wrapped target before the run writes to it."""
        self._target.begin(images, work, missing=missing)

    def finish(self, *, whole: bool, work: Work) -> None:
        """Finish writing to the target at the end of the run."""
        self._target.finish(whole=whole, work=work)

    def has_blob(self, repository: str, blob: Descriptor, work: Work) -> bool:
        """Return whether a blob exists and its bytes match the digest. Reads the whole blob.

        Return False for a damaged blob, which may also have the wrong size, so that it is sent again. Raises Refused
        (target_lied) if this run has already sent the blob and the target did not replace the damaged copy."""
        error = self.find_damage(repository, blob, work)
        if error is None or isinstance(error, NotFound):
            return error is None
        self._raise_if_not_replaced(blob.digest)
        with self._lock:
            self._damaged.add((repository, blob.digest))
        self._log_damage(str(Repository(self.host, repository)), blob.digest, error)
        return False

    def mount_blob(self, repository: str, blob: Descriptor, from_repository: str, work: Work) -> Mount | UploadSession:
        """Mount a blob, and return MOUNTED only if the mounted blob is intact.

        If the blob is known to be damaged in the target repository, open an upload session instead, because all
        repositories may share the damaged file. Raises Refused (target_lied) as `begin_upload` does."""
        self._raise_if_not_replaced(blob.digest)
        with self._lock:
            damaged = (repository, blob.digest) in self._damaged
        if not damaged:
            mounted = self._target.mount_blob(repository, blob, from_repository, work)
            if not isinstance(mounted, Mount):
                return _VerifiedUpload(mounted, self, repository, blob)
            if mounted is not Mount.MOUNTED or self.has_blob(repository, blob, work):
                return mounted
        return self.begin_upload(repository, blob, work)

    def begin_upload(self, repository: str, blob: Descriptor, work: Work) -> UploadSession:
        """Open an upload session that reads the blob back after sending it.

        Raises Refused (target_lied) if the target has already kept a damaged copy of the blob in this run."""
        self._raise_if_not_replaced(blob.digest)
        return _VerifiedUpload(self._target.begin_upload(repository, blob, work), self, repository, blob)

    def put_manifest(
        self, repository: str, reference: str, manifest: Manifest, work: Work, *, left_out: LeftOut | None = None
    ) -> bool:
        """Write a manifest and read it back. Return whether the target lists it as a referrer by itself.

        Raises Refused (target_lied) if the target has not stored the manifest correctly."""
        self._raise_if_not_replaced(manifest.digest)
        is_listed = self._target.put_manifest(repository, reference, manifest, work, left_out=left_out)
        try:
            stored = self._target.manifest(repository, reference, work)
        except (RemoteError, Refused) as error:
            if not _is_damage(error):
                raise
            raise self.not_replaced_error(repository, manifest.digest, error) from error
        if stored.digest != manifest.digest:
            raise self.not_replaced_error(repository, manifest.digest, None)
        return is_listed

    def delete(self, repository: str, reference: str, work: Work) -> None:
        """Delete a tag or manifest."""
        self._target.delete(repository, reference, work)

    # ---- verification

    def find_damage(self, repository: str, blob: Descriptor, work: Work) -> MirrorError | None:
        """Read and hash a blob. Return None if it is intact, NotFound if it is missing, or an error if it is damaged.

        Raises any error that does not show whether the blob is damaged."""
        try:
            self._retry(lambda: self._hash(repository, blob, work), work)
        except (RemoteError, Refused) as error:
            if isinstance(error, NotFound) or _is_damage(error):
                return error
            raise
        return None

    def _hash(self, repository: str, blob: Descriptor, work: Work) -> None:
        """Read a blob once and verify it. Raises Refused if its bytes are wrong, and NetworkError if it ends early."""
        buffer = memoryview(bytearray(min(BUFFER, (blob.size or BUFFER) + 1)))
        silent = replace(work, progress=lambda count: None)  # these bytes do not count as upload progress
        body = BlobDownload(blob, [BlobSource(self._target, repository)])
        try:
            with body.open(0, silent) as reader:
                while reader.readinto(buffer):
                    work.stop.raise_if_requested()
        except NetworkError as error:
            if not _is_truncated(error):
                raise
            size = f" of {blob.size}" if blob.size is not None else ""
            what = f"{Repository(self.host, repository)}@{blob.digest} ends early, after {body.bytes_read}{size} bytes"
            raise error.with_text(what) from error

    def _retry(self, run: Callable[[], None], work: Work) -> None:
        """Call `run`, which reads a blob. If `work.retries` is set, call it again after a transient failure.

        A read that ends early is always retried here, because the number of these reads decides when a blob counts as
        damaged."""
        attempt, started = 1, time.monotonic()
        while True:
            try:
                return run()
            except MirrorError as error:
                wait = self._policy.wait_before_next(attempt, error, time.monotonic() - started)
                retry = attempt < TRUNCATED_ATTEMPTS if _is_truncated(error) else work.retries
                if not retry or wait is None:
                    raise
            work.stop.sleep(wait)
            attempt += 1

    def _raise_if_not_replaced(self, digest: Digest) -> None:
        """Raise Refused (target_lied) if a write of this digest has already failed to replace a damaged copy."""
        with self._lock:
            error = self._not_replaced.get(digest)
        if error is not None:
            raise error.with_text(error.what)

    def not_replaced_error(self, repository: str, digest: Digest, error: MirrorError | None) -> Refused:
        """Log and return the error for a damaged blob or manifest that the target kept although it was sent again.

        The object is not sent again in this run. error: the damage of the target's copy, if it is known."""
        target = str(Repository(self.host, repository))
        copy = f"a damaged copy{_describe_damage(error, target, digest)}"
        refused = Refused(
            f"{target} accepted the upload of {digest} but still serves {copy}",
            hint="check the disk of the target" if self.on_disk else removal_instructions(digest),
            code="target_lied",
        )
        with self._lock:
            self._not_replaced.setdefault(digest, refused)
        extra = {"target": target, "digest": digest, "code": refused.code}
        _log.warning("not_replaced", extra={**extra, "text": str(refused)})
        return refused

    def _log_damage(self, repository: str, what: str, error: MirrorError) -> None:
        """Log that a blob or manifest is damaged and will be sent again."""
        text = f"{repository}: {what} is damaged and will be sent again: {error.what}"
        _log.warning("damaged", extra={"target": repository, "digest": what, "code": error.code, "text": text})


class _VerifiedUpload:
    """An UploadSession that reads the blob back after sending it, to verify that the target has stored it correctly."""

    def __init__(self, session: UploadSession, target: RepairTarget, repository: str, blob: Descriptor) -> None:
        self._session = session
        self._target = target
        self._repository = repository
        self._blob = blob

    @property
    def committed(self) -> bool:
        """Whether the store has confirmed that it has the blob."""
        return self._session.committed

    @property
    def resumable(self) -> bool:
        """Whether `send` can continue after the bytes that the store already has."""
        return self._session.resumable

    def send(self, body: Callable[[int], BlobReader], work: Work) -> None:
        """Upload the blob and read it back. Raises Refused (target_lied) if the stored blob is damaged."""
        self._session.send(body, work)
        error = self._target.find_damage(self._repository, self._blob, work)
        if error is not None:
            raise self._target.not_replaced_error(self._repository, self._blob.digest, error)

    def __enter__(self) -> _VerifiedUpload:
        self._session.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.__exit__(kind, error, trace)


def removal_instructions(digest: Digest) -> str:
    """Return instructions for the registry's operator on how to remove a damaged blob or manifest from its storage."""
    file = f"docker/registry/v2/blobs/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}/data"
    return (
        f"1. delete {file} below the registry's root directory (all its repositories use this copy), 2. restart "
        "the registry (needed if it caches blob descriptors, as Debian's default does), 3. run `mirror sync --repair "
        "CONFIG`; for a product other than the distribution registry, delete the digest from its storage instead"
    )


def _describe_damage(error: MirrorError | None, repository: str, digest: Digest) -> str:
    """Return a short description of the damage in parentheses, or an empty string if `error` is None."""
    if error is None:
        return ""
    what = error.what.partition(", not ")[0].removeprefix(f"{repository}@{digest}").strip()
    what = what.rpartition(": ")[2]
    return f" ({what})" if digest not in what else f" ({error.code})"


def _is_damage(error: MirrorError) -> bool:
    """Return whether an error shows that an object's bytes in a store are wrong, or that the store cannot read them."""
    if isinstance(error, Refused):
        return error.code in DAMAGED
    if _is_truncated(error):
        return True
    return error.status is not None and error.status >= 500 and not isinstance(error, RateLimited)


def _is_truncated(error: MirrorError) -> bool:
    """Return whether an error means that a response ended early.

    A registry that caches sizes sends such a response if the file of the object is truncated."""
    return isinstance(error, NetworkError) and error.code == "truncated"


def _convert_truncated(error: MirrorError) -> MirrorError:
    """Convert the error for a truncated response to Refused (size_mismatch). Return other errors unchanged."""
    return Refused(error.what, hint=error.hint, code="size_mismatch") if _is_truncated(error) else error
