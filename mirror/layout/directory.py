"""An OCI image layout in a directory, as a Source and a Target: one for many repositories, whose blobs are common.

A blob has its name only when it is whole and on disk, and index.json names only what is there. So a kill or a power
cut at any moment leaves a layout that is whole, and all that was finished is found again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from mirror.errors import MirrorError, NotFound, Refused, RemoteError
from mirror.layout.files import Folder
from mirror.layout.index import Index, Root, holders
from mirror.layout.index_file import Ledger
from mirror.layout.referrers import Subjects
from mirror.oci import manifest as manifests
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Kind, Manifest, parse_manifest
from mirror.store import BlobReader, Coming, Mount, Version
from mirror.util.cancellation import Work
from mirror.util.file_reader import FileReader

_PIECE = 256 << 10  # bytes written at a time
_COMPLETE = "copy the layout again, or export it again"


class Missing(NotFound):
    """Something that the layout names is not in it: the layout is damaged, or was meant to be completed elsewhere."""

    code = "bundle_incomplete"
    exit_code = Refused.exit_code


class InUse(RemoteError):
    """A manifest cannot be removed: an index of the same repository refers to it."""


class LayoutStore:
    """A layout. Thread-safe; close it, which gives back its lock.

    adopts: repositories to which names without a repository belong (those that locations of sources give).
    new: it is a target, so the directory need not be there, nor be a layout if it is empty."""

    partial = False
    gathers = False
    incomplete = False
    on_disk = True

    def __init__(self, directory: Path, *, adopts: Collection[str] = (), new: bool = False) -> None:
        self.host = f"oci:{directory}"
        self._folder = Folder(directory)
        self._ledger = Ledger(self._folder, self.host, adopts, new=new)
        self._subjects = Subjects(self.manifest)
        self._new = new

    def close(self) -> None:
        self._ledger.close()
        self._folder.close()

    def gave_up(self, error: MirrorError) -> None:
        """No directory is ever down."""

    # ---- reading

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        names, strays = self._ledger.look(lambda index: (index.repositories(), index.strays()))
        return [*strays, *(name for name in names if name.startswith(prefix))]

    def tags(self, repository: str, work: Work) -> Iterable[str | MirrorError]:
        return self._ledger.look(lambda index: index.tags(repository))

    def resolve(self, repository: str, references: Sequence[str], work: Work) -> Iterator[Version | MirrorError]:
        for reference in references:
            work.stop.check()
            yield self._resolve(repository, reference)

    def _resolve(self, repository: str, reference: str) -> Version | MirrorError:
        wanted = self._wanted(repository, reference)
        if isinstance(wanted, MirrorError):
            return wanted
        try:
            size = self._folder.blob_size(wanted.digest)
            if size is None:
                return self._absent(repository, reference, wanted)
            self._same_size(wanted, size)
        except Refused as error:
            error.names = wanted.digest
            return error
        return Version(wanted.digest, media_type=wanted.media_type)

    def read(self, repository: str, reference: str, work: Work) -> Version:
        manifest = self.manifest(repository, reference, work)
        return Version(manifest.digest, manifest)

    def manifest(self, repository: str, reference: str, work: Work) -> Manifest:
        wanted = self._wanted(repository, reference)
        if isinstance(wanted, MirrorError):
            raise wanted
        path = self._folder.blob_path(wanted.digest)
        size = self._folder.blob_size(wanted.digest)
        if size is not None:
            self._same_size(wanted, size)
            if size > manifests.MAX_BYTES:
                raise manifests.too_big(str(path), size)
        body = self._folder.read_blob(wanted.digest, manifests.MAX_BYTES)
        if body is None:
            raise self._absent(repository, reference, wanted)
        return parse_manifest(body, wanted.media_type, expected=wanted.digest, what=str(path))

    def open_blob(self, repository: str, blob: Descriptor, work: Work, *, offset: int = 0) -> FileReader:
        reader = self._folder.open_blob(blob.digest, offset)
        if reader is None:
            raise Missing(f"{self.host} does not have blob {blob.digest}", hint=_COMPLETE)
        try:
            self._same_size(blob, reader.size or 0)
        except BaseException:
            reader.__exit__(None, None, None)
            raise
        return reader

    def lacks(self, blob: Descriptor) -> bool:
        return False

    def referrers(self, repository: str, digest: Digest, work: Work) -> Iterable[Descriptor]:
        """By reading all manifests under the roots of the repository, once for all questions."""

        def roots() -> list[Root]:
            return self._ledger.look(lambda index: list(index.roots()))

        self._ledger.look(lambda index: None)  # the edition is that of the last look
        return self._subjects.of(repository, digest, self._ledger.edition, roots, work)

    def _wanted(self, repository: str, reference: str) -> Descriptor | NotFound | Refused:
        """What a reference names; of a digest neither size nor type is known. Raises what is wrong with the layout."""

        def find(index: Index) -> Descriptor | NotFound | Refused:
            try:
                return index.find(repository, reference).descriptor
            except (NotFound, Refused) as error:
                return error

        return Descriptor(Digest.parse(reference), None) if ":" in reference else self._ledger.look(find)

    def _absent(self, repository: str, reference: str, wanted: Descriptor) -> NotFound:
        if ":" in reference:
            return NotFound(f"{self.host}:{repository}@{reference} does not exist")
        return Missing(f"{self.host}:{repository}:{reference} is {wanted.digest}, which is missing", hint=_COMPLETE)

    def _same_size(self, wanted: Descriptor, size: int) -> None:
        if wanted.size not in (None, size):
            raise Refused(
                f"{self._folder.blob_path(wanted.digest)} has {size} bytes, its descriptor says {wanted.size}",
                hint="the layout is damaged: remove that file, then export it again",
                code="size_mismatch",
            )

    # ---- writing

    def begin(self, images: Sequence[Coming], work: Work, *, missing: Collection[str] = ()) -> None:
        """Make the layout if there is none, and take its lock. Raises LockBusy: another run has it; LocalError."""
        self._ledger.begin(work)

    def finish(self, *, whole: bool, work: Work) -> None:
        """Have index.json name all that was put; what has come is kept, whatever else failed. Raises LocalError."""
        self._ledger.publish()

    def has_blob(self, repository: str, blob: Descriptor, work: Work) -> bool:
        if self._new and not self._ledger.writing and not self._ledger.is_there():
            return False
        size = self._folder.blob_size(blob.digest)
        if size is not None:
            self._same_size(blob, size)
        return size is not None

    def mount_blob(self, repository: str, blob: Descriptor, from_repository: str, work: Work) -> Mount | LayoutUpload:
        """Blobs are common to all repositories."""
        return Mount.MOUNTED if self.has_blob(repository, blob, work) else Mount.ABSENT

    def begin_upload(self, repository: str, blob: Descriptor, work: Work) -> LayoutUpload:
        self._ledger.begin(work)
        return LayoutUpload(self._folder, blob)

    def put_manifest(self, repository: str, reference: str, manifest: Manifest, work: Work) -> None:
        if manifest.kind is Kind.SCHEMA1:
            raise RemoteError(
                f"{self.host}:{repository}:{reference} is a schema 1 image, which an OCI layout cannot hold",
                hint="set `schema1: convert` for this mirror",
                code="manifest_invalid",
            )
        self._ledger.begin(work)
        for part in (*manifest.children, *manifest.blobs):
            # A name never leads to what is not there.
            if not part.foreign and not self.has_blob(repository, part, work):
                raise RemoteError(
                    f"{self.host}:{repository}:{reference} refers to {part.digest}, which is not there",
                    code="blob_missing",
                )
        # A file of another size is damaged, and may be larger than what is read of a manifest.
        kept = self._folder.blob_size(manifest.digest) == manifest.size
        if not kept or self._folder.read_blob(manifest.digest, manifests.MAX_BYTES) != manifest.body:
            with self._folder.write_blob(manifest.digest) as file:
                file.write(manifest.body)

        def put(index: Index) -> bool:
            index.put(repository, reference, manifest)
            return True

        try:
            self._ledger.change(put)
        except BaseException:
            self._subjects.forget()  # where index.json cannot be written it is in memory all the same
            raise
        self._subjects.add(repository, manifest)

    def delete(self, repository: str, reference: str, work: Work) -> None:
        """Take a name away; blobs stay. What is not there is no error."""
        self._ledger.begin(work)
        try:
            self._ledger.change(lambda index: index.remove(repository, reference))
        finally:
            self._subjects.forget()

    def remove_manifest(self, repository: str, digest: Digest, work: Work) -> bool:
        """Remove a manifest from a repository, with all its tags there. -> whether its file is removed as well: it is
        kept for other repositories that have the manifest.

        Not while a manifest is put. Raises InUse, LocalError, Cancelled."""
        self._ledger.begin(work)
        roots = self._ledger.look(lambda index: list(index.roots()))
        named, below = holders(digest, roots, lambda one: self.manifest("", one, work), work)
        if below & {repository, None, *self._ledger.unnamed(repository)}:
            raise InUse(
                f"an index in {repository} refers to {digest}", hint="delete the index first; its tags can be deleted"
            )
        self.delete(repository, digest, work)
        named -= {repository, *self._ledger.unnamed(repository)}
        if named | below:
            return False
        self._ledger.publish()  # index.json names only what is there
        self._folder.remove_blob(digest)
        return True


class LayoutUpload:
    """An UploadSession: one blob into the layout. What was not finished leaves nothing."""

    resumable = False

    def __init__(self, folder: Folder, blob: Descriptor) -> None:
        self._folder = folder
        self._blob = blob
        self.committed = False

    def send(self, body: Callable[[int], BlobReader], work: Work) -> None:
        """Raises LocalError, and what `body` raises, which proves the bytes at their end."""
        buffer = memoryview(bytearray(min(_PIECE, self._blob.size or _PIECE)))
        with body(0) as reader, self._folder.write_blob(self._blob.digest) as file:
            while count := reader.readinto(buffer):
                work.stop.check()
                file.write(buffer[:count])
                work.progress(count)
        self.committed = True

    def __enter__(self) -> LayoutUpload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
