"""A bundle as a Source and a Target: a layout in one tar, with an inventory first.

It is read without being unpacked. It is written to a file beside it that gets its name when it is whole: as long as
that has not happened, all questions are answered from the bundle that is there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from mirror.errors import LocalError, MirrorError, NotFound, Refused, RemoteError
from mirror.layout.bundle.reader import Archive, Slice, open_archive, open_input
from mirror.layout.bundle.tar_reader import incomplete
from mirror.layout.bundle.writer import Assembly
from mirror.layout.inventory import Base, Inventory
from mirror.layout.referrers import Subjects
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.store import DAMAGED, BlobReader, Coming, Mount, Version
from mirror.util.cancellation import Work
from mirror.util.single_flight import Once


class Bundle:
    """The bundle in a file, or on a standard stream. Thread-safe. Opened when it is first asked.

    partial: whether it relies on blobs that it has not; incomplete: whether it says that it lacks images. Both are
    known once it was asked for its tags."""

    gathers = True
    on_disk = True

    def __init__(
        self,
        file: Path | None,
        host: str,
        *,
        spool: Path,
        base: Base | None = None,
        adopts: Collection[str] = (),
        new: bool = False,
        repair: bool = False,
    ) -> None:
        """file: None: a standard stream. host: what it is called; spool: directory for what comes through pipes;
        base: what a new bundle leaves out; adopts: repositories that have the tags which other tools named without;
        new: it is a target, so it need not be there; repair: made anew if what is there is damaged."""
        self.host = host
        self.partial = False
        self.incomplete = False
        self._file = Path(file.resolve()) if file is not None else None
        self._spool = spool
        self._base = base or Base()
        self._adopts = adopts
        self._new = new
        self._repair = repair
        self._output: int | None = None
        self._archive = Once(self._open)
        self._left_out = Once(self._find_left_out)
        self._subjects = Subjects(self.manifest)
        self._assembly: Assembly | None = None
        self._resumes = False  # an earlier `finish` of this run kept what came
        self._same = False  # what is to be made is there already

    def _open(self, work: Work) -> Archive:
        archive = self._opened(work)
        self.partial = not archive.whole
        self.incomplete = archive.incomplete() is not None
        return archive

    def _opened(self, work: Work) -> Archive:
        if self._file is None and self._new:
            raise NotFound(f"{self.host}: nothing is read from standard output")
        if self._file is None:
            return open_input(self.host, self._spool, work, self._adopts)
        try:
            return open_archive(self._file, self.host, self._spool, work, self._adopts)
        except NotFound as error:
            if self._new:
                raise
            raise Refused(error.what, hint="bring the bundle here first", code="bundle_invalid") from error
        except Refused as error:
            if self._new and error.code in DAMAGED:
                error.hint = "remove that file, then run `mirror sync CONFIG`"
            raise

    def close(self) -> None:
        """Keep what has come for the next run, and close all. After the last call. Raises LocalError."""
        assembly, self._assembly = self._assembly, None
        output, self._output = self._output, None
        archive = self._archive.peek()
        with ExitStack() as stack:
            if output is not None:
                stack.callback(os.close, output)
            if archive is not None:
                stack.callback(archive.close)
            if assembly is not None:
                stack.callback(assembly.close)

    # ---- reading

    def archive(self, work: Work) -> Archive:
        """What is there. Raises NotFound, LocalError, Refused."""
        return self._archive.get(work)

    def lack(self) -> Refused | None:
        """The error of a bundle that says that it lacks images; None too if it was not opened yet. Does no I/O."""
        archive = self._archive.peek()
        return archive.incomplete() if archive is not None else None

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        archive = self.archive(work)
        return [*archive.index.strays(), *(name for name in archive.repositories() if name.startswith(prefix))]

    def tags(self, repository: str, work: Work) -> Iterable[str | MirrorError]:
        return self.archive(work).tags(repository)

    def resolve(self, repository: str, references: Sequence[str], work: Work) -> Iterator[Version | MirrorError]:
        for reference in references:
            work.stop.check()
            yield self._resolve(repository, reference, work)

    def _resolve(self, repository: str, reference: str, work: Work) -> Version | MirrorError:
        try:
            digest, media_type = self.archive(work).find(repository, reference)
        except NotFound as error:
            return error
        return Version(digest, media_type=media_type)

    def read(self, repository: str, reference: str, work: Work) -> Version:
        manifest = self.manifest(repository, reference, work)
        return Version(manifest.digest, manifest)

    def manifest(self, repository: str, reference: str, work: Work) -> Manifest:
        archive = self.archive(work)
        return archive.manifest(*archive.find(repository, reference))

    def open_blob(self, repository: str, blob: Descriptor, work: Work, *, offset: int = 0) -> Slice:
        archive = self.archive(work)
        member = archive.member(blob.digest)
        if member is None and archive.inventory is not None and blob.digest in archive.inventory.blobs:
            raise incomplete(self.host, f"blob {blob.digest} is missing")
        if member is None:
            raise NotFound(f"{self.host} does not have blob {blob.digest}")
        return Slice(archive, member, offset)

    def lacks(self, blob: Descriptor) -> bool:
        archive = self._archive.peek()
        return archive is not None and archive.member(blob.digest) is None

    def referrers(self, repository: str, digest: Digest, work: Work) -> Iterable[Descriptor]:
        return self._subjects.of(repository, digest, None, self.archive(work).roots, work)

    # ---- writing

    def begin(self, images: Sequence[Coming], work: Work, *, missing: Collection[str] = ()) -> None:
        """Make the file, of its final size, with all manifests in it, and what an earlier run left or the bundle that
        is there has of its blobs. Raises RemoteError: an image does not say how large its blobs are; LockBusy:
        another run makes this bundle; LocalError, Refused."""
        inventory = Inventory(missing=tuple(sorted(missing)))
        for coming in images:
            inventory.add(coming, self._base)
        inventory.settle()
        manifests = {one.digest: one for coming in images for one in coming.manifests}
        assembly = Assembly(self._target(), inventory, manifests.values())
        old = self._old(work)
        same = old is not None and not old.missing() and Digest.of(old.rendered) == assembly.identity
        if same and not (self._repair and old is not None and old.damaged(work)):
            self._same = True
            return
        self._assembly = assembly
        assembly.prepare(old, work, keep=self._resumes)

    def _target(self) -> Path:
        if self._file is not None:
            return self._file
        if self._output is None:
            self._output = _output()
        self._spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._spool / "standard-output.tar"

    def _old(self, work: Work) -> Archive | None:
        try:
            return self.archive(work)
        except NotFound:
            return None

    def finish(self, *, whole: bool, work: Work) -> None:
        """Show what was written, if it is whole; else keep it for the next run. Raises Refused, LocalError."""
        assembly, self._assembly = self._assembly, None
        if assembly is None:
            return
        try:
            if whole and self._output is not None:
                assembly.pour(self._output, work)
            elif whole:
                assembly.finish()
            self._resumes = not whole
        finally:
            assembly.close()

    def has_blob(self, repository: str, blob: Descriptor, work: Work) -> bool:
        if self._assembly is not None:
            return self._assembly.has(blob.digest)
        try:
            archive = self.archive(work)
        except NotFound:
            return False
        if archive.inventory is not None and blob.digest in archive.inventory.base:
            # `_same`: it is left out of what is there as it would be of what is to be made.
            return self._same or blob.digest in self._left_out.get(work)
        member = archive.member(blob.digest)
        if member is not None and blob.size not in (None, member.size):
            raise Refused(
                f"{self.host} has {member.size} bytes as {blob.digest}, which is {blob.size} bytes long",
                hint="the bundle is damaged: run `mirror sync --repair CONFIG`",
                code="size_mismatch",
            )
        return member is not None

    def _find_left_out(self, work: Work) -> frozenset[Digest]:
        """The blobs that what is there has left out, and that the base has."""
        archive = self.archive(work)
        left_out = set(archive.inventory.base) if archive.inventory is not None else set()
        known = {digest for digest in left_out if self._base.repositories_with(digest)}
        if len(known) < len(left_out):
            known.update(self._base.blobs_of(archive.children_first(work)))
        return frozenset(left_out & known)

    def mount_blob(self, repository: str, blob: Descriptor, from_repository: str, work: Work) -> Mount | Upload:
        """Blobs are common to all repositories."""
        return Mount.MOUNTED if self.has_blob(repository, blob, work) else Mount.ABSENT

    def begin_upload(self, repository: str, blob: Descriptor, work: Work) -> Upload:
        return Upload(self._begun(), blob)

    def put_manifest(self, repository: str, reference: str, manifest: Manifest, work: Work) -> None:
        """All manifests are in the file already: this is where what they refer to has to be there."""
        if self._same:
            return
        assembly = self._begun()
        lacking = [blob.digest for blob in manifest.blobs if not blob.foreign and not assembly.has(blob.digest)]
        if lacking:
            raise RemoteError(
                f"{self.host}:{repository}: {manifest.digest} refers to {lacking[0]}, which has not come",
                code="blob_missing",
            )

    def delete(self, repository: str, reference: str, work: Work) -> None:
        raise LocalError(f"{self.host}: nothing is taken out of a bundle", hint="make it anew")

    def _begun(self) -> Assembly:
        if self._assembly is None:
            raise Refused(f"{self.host}: nothing was told of what is to come", code="bundle_invalid")
        return self._assembly


class Upload:
    """An UploadSession: one blob to its place in the file. There is nothing to take back."""

    resumable = False

    def __init__(self, assembly: Assembly, blob: Descriptor) -> None:
        self._assembly = assembly
        self._blob = blob
        self.committed = False

    def send(self, body: Callable[[int], BlobReader], work: Work) -> None:
        """`body` is not asked for what is there already. Raises Refused, LocalError, and what `body` raises."""
        self._assembly.write(self._blob, body, work)
        self.committed = True

    def __enter__(self) -> Upload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def _output() -> int:
    """Standard output, for us alone: from now on what others write there goes to standard error."""
    if os.isatty(1):
        raise LocalError(
            "standard output is a terminal", hint="send it on: mirror sync ... | ssh HOST 'cat > FILE.tar'"
        )
    if sys.stdout is not None:
        sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    return ours
