"""What `sync --repair` writes to: a target of which nothing is believed that was not read from it and hashed.

Registries acknowledge what they do not do: docker-registry answers 201 to an upload of a blob, or to a manifest, whose
file it has already, and keeps that file, whatever is in it. So what was sent is read again, and compared.
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
from mirror.store import DAMAGED, BlobReader, ExpectedImage, Mount, Target, UploadSession, Version
from mirror.transfer.downloads import BlobSource, SourceBody
from mirror.util.cancellation import Work
from mirror.util.retry_policy import Policy
from mirror.util.structs import replace

BUFFER = 256 << 10  # bytes
CUT_ATTEMPTS = 3  # reads of a blob that end early, before the blob counts as damaged

_log = logging.getLogger("mirror.repair")


def wrap_for_repair(targets: Mapping[str, Target]) -> dict[str, Target]:
    """The targets of a run with `--repair`. Bundles are as they are: a new one hashes all that it takes over."""
    return {host: target if target.needs_all_images else RepairTarget(target) for host, target in targets.items()}


class RepairTarget:
    """A Target around another one. Thread-safe.
    A blob or manifest exists only if its bytes hash to its digest; a write has succeeded only if the bytes can be read
    back. Else it raises Refused (target_lied), whose hint says what the registry's operator has to delete."""

    def __init__(self, target: Target, policy: Policy | None = None) -> None:
        self._target = target
        self._policy = policy or Policy()
        self._lock = threading.Lock()
        self._damaged: set[tuple[str, Digest]] = set()  # by repository: blobs that a mount must not bring back
        self._kept: dict[Digest, Refused] = {}  # what the target did not replace: it is not sent again in this run
        self.host = target.host
        self.partial = target.partial
        self.needs_all_images = target.needs_all_images
        self.incomplete = target.incomplete
        self.on_disk = target.on_disk

    # ---- reading

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        return self._target.repositories(prefix, work)

    def tags(self, repository: str, work: Work) -> Iterable[str | MirrorError]:
        return self._target.tags(repository, work)

    def resolve(self, repository: str, references: Sequence[str], work: Work) -> Iterator[Version | MirrorError]:
        """By reading each manifest: a HEAD does not tell that its bytes are wrong."""
        for reference in references:
            work.stop.raise_if_requested()
            try:
                yield self.read(repository, reference, work)
            except (RemoteError, Refused) as error:
                if not isinstance(error, NotFound):
                    self._log_damage(str(Repository(self.host, repository)), reference, error)
                yield _convert_to_damage(error)

    def read(self, repository: str, reference: str, work: Work) -> Version:
        return self._target.read(repository, reference, work)

    def manifest(self, repository: str, reference: str, work: Work) -> Manifest:
        return self._target.manifest(repository, reference, work)

    def open_blob(self, repository: str, blob: Descriptor, work: Work, *, offset: int = 0) -> BlobReader:
        return self._target.open_blob(repository, blob, work, offset=offset)

    def leaves_out(self, blob: Descriptor) -> bool:
        return self._target.leaves_out(blob)

    def referrers(self, repository: str, digest: Digest, work: Work) -> Iterable[Descriptor]:
        return self._target.referrers(repository, digest, work)

    # ---- writing

    def begin(self, images: Sequence[ExpectedImage], work: Work, *, missing: Collection[str] = ()) -> None:
        self._target.begin(images, work, missing=missing)

    def finish(self, *, whole: bool, work: Work) -> None:
        self._target.finish(whole=whole, work=work)

    def has_blob(self, repository: str, blob: Descriptor, work: Work) -> bool:
        """Whether it is there and its bytes are right. Reads all of it; one of another size is to be sent again.

        Raises Refused (target_lied): it is wrong, and this target did not replace it when it was sent before."""
        error = self.find_damage(repository, blob, work)
        if error is None or isinstance(error, NotFound):
            return error is None
        self._check_not_refused(blob.digest)
        with self._lock:
            self._damaged.add((repository, blob.digest))
        self._log_damage(str(Repository(self.host, repository)), blob.digest, error)
        return False

    def mount_blob(self, repository: str, blob: Descriptor, from_repository: str, work: Work) -> Mount | UploadSession:
        """A blob that is damaged here is not mounted: a registry may have one file for all its repositories."""
        self._check_not_refused(blob.digest)
        with self._lock:
            damaged = (repository, blob.digest) in self._damaged
        if not damaged:
            mounted = self._target.mount_blob(repository, blob, from_repository, work)
            if not isinstance(mounted, Mount):
                return _Upload(mounted, self, repository, blob)
            if mounted is not Mount.MOUNTED or self.has_blob(repository, blob, work):
                return mounted
        return self.begin_upload(repository, blob, work)

    def begin_upload(self, repository: str, blob: Descriptor, work: Work) -> UploadSession:
        self._check_not_refused(blob.digest)
        return _Upload(self._target.begin_upload(repository, blob, work), self, repository, blob)

    def put_manifest(self, repository: str, reference: str, manifest: Manifest, work: Work) -> None:
        self._check_not_refused(manifest.digest)
        self._target.put_manifest(repository, reference, manifest, work)
        try:
            stored = self._target.manifest(repository, reference, work)
        except (RemoteError, Refused) as error:
            if not _is_damage(error):
                raise
            raise self.not_replaced_error(repository, manifest.digest, error) from error
        if stored.digest != manifest.digest:
            raise self.not_replaced_error(repository, manifest.digest, None)

    def delete(self, repository: str, reference: str, work: Work) -> None:
        self._target.delete(repository, reference, work)

    # ---- proofs

    def find_damage(self, repository: str, blob: Descriptor, work: Work) -> MirrorError | None:
        """Read the blob and hash it. -> NotFound: it is not there; another error: what is wrong with it; None: nothing.

        Raises what says nothing about the blob."""
        try:
            self._retry(lambda: self._hash(repository, blob, work), work)
        except (RemoteError, Refused) as error:
            if isinstance(error, NotFound) or _is_damage(error):
                return error
            raise
        return None

    def _hash(self, repository: str, blob: Descriptor, work: Work) -> None:
        buffer = memoryview(bytearray(min(BUFFER, (blob.size or BUFFER) + 1)))
        quiet = replace(work, progress=lambda count: None)  # the bytes of a proof are no progress of an upload
        body = SourceBody(blob, [BlobSource(self._target, repository)])
        try:
            with body.open(0, quiet) as reader:
                while reader.readinto(buffer):
                    work.stop.raise_if_requested()
        except NetworkError as error:
            if not _is_truncated(error):
                raise
            size = f" of {blob.size}" if blob.size is not None else ""
            what = f"{Repository(self.host, repository)}@{blob.digest} ends early, after {body.read}{size} bytes"
            raise error.with_text(what) from error

    def _retry(self, run: Callable[[], None], work: Work) -> None:
        """Try again here what may pass, unless the transfer as a whole is tried again (`work.retries`).

        A read that ends early is always tried again here: only here it is known when it counts as damage."""
        attempt, began = 1, time.monotonic()
        while True:
            try:
                return run()
            except MirrorError as error:
                wait = self._policy.wait_before_next(attempt, error, time.monotonic() - began)
                again = attempt < CUT_ATTEMPTS if _is_truncated(error) else work.retries
                if not again or wait is None:
                    raise
            work.stop.sleep(wait)
            attempt += 1

    def _check_not_refused(self, digest: Digest) -> None:
        """Raises Refused: this target was sent the blob or manifest, and still has its damaged copy."""
        with self._lock:
            kept = self._kept.get(digest)
        if kept is not None:
            raise kept.with_text(kept.what)

    def not_replaced_error(self, repository: str, digest: Digest, error: MirrorError | None) -> Refused:
        """The error for something that was sent, acknowledged, and is still wrong. The target is not sent it again."""
        target = str(Repository(self.host, repository))
        copy = f"a damaged copy{_describe_damage(error, target, digest)}"
        refused = Refused(
            f"{target} accepted the upload of {digest} but still serves {copy}",
            hint="look at that disk" if self.on_disk else remedy(digest),
            code="target_lied",
        )
        with self._lock:
            self._kept.setdefault(digest, refused)
        extra = {"target": target, "digest": digest, "code": refused.code}
        _log.warning("not_replaced", extra={**extra, "text": str(refused)})
        return refused

    def _log_damage(self, repository: str, what: str, error: MirrorError) -> None:
        text = f"{repository}: {what} is damaged, sending it again: {error.what}"
        _log.warning("damaged", extra={"target": repository, "digest": what, "code": error.code, "text": text})


class _Upload:
    """An UploadSession that ends with a proof."""

    def __init__(self, session: UploadSession, target: RepairTarget, repository: str, blob: Descriptor) -> None:
        self._session = session
        self._target = target
        self._repository = repository
        self._blob = blob

    @property
    def committed(self) -> bool:
        return self._session.committed

    @property
    def resumable(self) -> bool:
        return self._session.resumable

    def send(self, body: Callable[[int], BlobReader], work: Work) -> None:
        self._session.send(body, work)
        error = self._target.find_damage(self._repository, self._blob, work)
        if error is not None:
            raise self._target.not_replaced_error(self._repository, self._blob.digest, error)

    def __enter__(self) -> _Upload:
        self._session.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.__exit__(kind, error, trace)


def remedy(digest: Digest) -> str:
    """What the operator of a registry has to do that keeps a damaged copy, in this order."""
    file = f"docker/registry/v2/blobs/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}/data"
    return (
        f"1. delete {file} below the registry's root directory (it is the copy for all its repositories), 2. restart "
        "the registry (needed with a cache of blob descriptors, Debian's default), 3. run `mirror sync --repair "
        "CONFIG`; for another registry than distribution: delete the digest from its storage"
    )


def _describe_damage(error: MirrorError | None, repository: str, digest: Digest) -> str:
    """What a damaged copy looks like, in parentheses, without its name; empty: nobody knows."""
    if error is None:
        return ""
    what = error.what.partition(", not ")[0].removeprefix(f"{repository}@{digest}").strip()
    what = what.rpartition(": ")[2]
    return f" ({what})" if digest not in what else f" ({error.code})"


def _is_damage(error: MirrorError) -> bool:
    """Whether an error says that the bytes in a store are wrong, or that the store cannot read them."""
    if isinstance(error, Refused):
        return error.code in DAMAGED
    if _is_truncated(error):
        return True
    return error.status is not None and error.status >= 500 and not isinstance(error, RateLimited)


def _is_truncated(error: MirrorError) -> bool:
    """Whether an answer ended early. A registry that remembers the size of a file answers so if the file is cut."""
    return isinstance(error, NetworkError) and error.code == "truncated"


def _convert_to_damage(error: MirrorError) -> MirrorError:
    """A manifest whose answer ended early on every attempt is a damaged one, which is to be sent again."""
    return Refused(error.what, hint=error.hint, code="size_mismatch") if _is_truncated(error) else error
