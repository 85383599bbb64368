"""A bundle as a Source and a Target: a layout in one tar file, whose first member is an inventory.

A bundle is read without unpacking it. A new bundle is written to a file beside its final path, and renamed when it is
complete. Until then, every read uses the bundle that already exists.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from contextlib import ExitStack
from pathlib import Path

from mirror.errors import LocalError, MirrorError, NotFound, Refused, RemoteError
from mirror.layout.base_inventory import BaseInventory
from mirror.layout.bundle.reader import BundleReader, MemberReader, open_bundle, open_standard_input
from mirror.layout.bundle.tar_reader import bundle_incomplete
from mirror.layout.bundle.upload import BundleUpload
from mirror.layout.bundle.writer import BundleWriter
from mirror.layout.inventory import Inventory
from mirror.layout.referrers import Referrers
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.store import DAMAGED, ExpectedImage, LeftOut, Mount, Version
from mirror.util.cancellation import Work
from mirror.util.single_flight import LazyValue


class BundleStore:
    """A Source and Target for a bundle in a file or on a standard stream. Thread-safe. Opens the bundle on first use.

    partial: the bundle may lack blobs, such as those that its base has. For a target, the blobs that it leaves out are
    not exactly those that the current base has. incomplete: the bundle lacks images that it should have. Both are False
    until the bundle is opened."""

    needs_all_images = True
    on_disk = True

    def __init__(
        self,
        file: Path | None,
        host: str,
        *,
        spool: Path,
        base: BaseInventory | None = None,
        adopts: Collection[str] = (),
        new: bool = False,
        repair: bool = False,
    ) -> None:
        """Prepare the store without opening a file.

        file: the path, or None for a standard stream. host: name of the store. spool: directory for copies of pipes.
        base: the blobs that a new bundle leaves out. adopts: the repositories to which tags without a repository name
        are assigned. new: True for a target, which may not exist yet. repair: replace an existing bundle if it is
        damaged."""
        self.host = host
        self.partial = False
        self.incomplete = False
        self._file = Path(file.resolve()) if file is not None else None
        self._spool = spool
        self._base = base or BaseInventory()
        self._adopts = adopts
        self._new = new
        self._repair = repair
        self._output_fd: int | None = None
        self._reader = LazyValue(self._open)
        self._left_out = LazyValue(self._find_left_out)
        self._referrers = Referrers(self.manifest)
        self._writer: BundleWriter | None = None
        self._resumes = False  # whether the last `finish` kept an incomplete bundle
        self._unchanged = False  # whether the existing bundle equals the new one, so nothing is written

    def _open(self, work: Work) -> BundleReader:
        """Open the existing bundle, and set `partial` and `incomplete`."""
        bundle = self._open_file(work)
        self.partial = not (self._matches_base(bundle, work) if self._new else bundle.is_self_contained)
        self.incomplete = bundle.incomplete_error() is not None
        return bundle

    def _open_file(self, work: Work) -> BundleReader:
        """Open the file or stream. Raises NotFound, LocalError, Refused."""
        if self._file is None and self._new:
            raise NotFound(f"{self.host} is standard output, which cannot be read")
        if self._file is None:
            return open_standard_input(self.host, self._spool, work, self._adopts)
        try:
            return open_bundle(self._file, self.host, self._spool, work, self._adopts)
        except NotFound as error:
            if self._new:
                raise
            raise Refused(error.what, hint="copy the bundle to this path", code="bundle_invalid") from error
        except Refused as error:
            if self._new and error.code in DAMAGED:
                error.hint = "remove that file, then run `mirror sync CONFIG`"
            raise

    def close(self) -> None:
        """Close all files. An unfinished bundle is kept for the next run. Call this last. Raises LocalError."""
        writer, self._writer = self._writer, None
        output, self._output_fd = self._output_fd, None
        bundle = self._reader.value_if_created()
        with ExitStack() as stack:
            if output is not None:
                stack.callback(os.close, output)
            if bundle is not None:
                stack.callback(bundle.close)
            if writer is not None:
                stack.callback(writer.close)

    # ---- reading

    def reader(self, work: Work) -> BundleReader:
        """Open the existing bundle if it is not open yet, and return it. Raises NotFound, LocalError, Refused."""
        return self._reader.get(work)

    def incomplete_error(self) -> Refused | None:
        """Return an error if the open bundle lacks images. Otherwise, or if it has not been opened yet, return None."""
        bundle = self._reader.value_if_created()
        return bundle.incomplete_error() if bundle is not None else None

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        """Return the repositories whose names start with `prefix`.

        If the index has entries but no repository, return the errors that explain why."""
        bundle = self.reader(work)
        return [*bundle.index.unnamed_errors(), *(name for name in bundle.repositories() if name.startswith(prefix))]

    def tags(self, repository: str, work: Work) -> Iterable[str | MirrorError]:
        """Return the sorted tags of a repository, and errors for entries that cannot be used. Raises NotFound."""
        return self.reader(work).tags(repository)

    def resolve(self, repository: str, references: Sequence[str], work: Work) -> Iterator[Version | MirrorError]:
        """Resolve tags and digests: for each, yield a Version with the digest of the manifest, or an error."""
        for reference in references:
            work.stop.raise_if_requested()
            yield self._resolve(repository, reference, work)

    def _resolve(self, repository: str, reference: str, work: Work) -> Version | MirrorError:
        """Resolve one tag or digest: return a Version with the digest of the manifest, or an error."""
        try:
            digest, media_type = self.reader(work).find(repository, reference)
        except NotFound as error:
            return error
        return Version(digest, media_type=media_type, platforms=self.reader(work).platforms(repository, reference))

    def read(self, repository: str, reference: str, work: Work) -> Version:
        """Read the manifest that a tag or digest refers to, and return it in a Version. Raises NotFound, Refused."""
        manifest = self.manifest(repository, reference, work)
        return Version(manifest.digest, manifest, platforms=self.reader(work).platforms(repository, reference))

    def manifest(self, repository: str, reference: str, work: Work) -> Manifest:
        """Read the manifest that a tag or digest refers to, and verify its digest. Raises NotFound, Refused."""
        bundle = self.reader(work)
        return bundle.manifest(*bundle.find(repository, reference))

    def open_blob(self, repository: str, blob: Descriptor, work: Work, *, offset: int = 0) -> MemberReader:
        """Open a blob for reading from byte `offset`.

        Raises Refused if the inventory lists the blob but the bundle lacks it, or NotFound if it is not listed."""
        bundle = self.reader(work)
        member = bundle.member(blob.digest)
        if member is None and bundle.inventory is not None and blob.digest in bundle.inventory.blobs:
            raise bundle_incomplete(self.host, f"blob {blob.digest} is missing")
        if member is None:
            raise NotFound(f"{self.host} does not have blob {blob.digest}")
        return MemberReader(bundle, member, offset)

    def omits_blob(self, blob: Descriptor) -> bool:
        """Return whether the blob is not in the bundle. If the bundle has not been opened yet, return False."""
        bundle = self._reader.value_if_created()
        return bundle is not None and bundle.member(blob.digest) is None

    def referrers(self, repository: str, digest: Digest, work: Work) -> Iterable[Descriptor]:
        """Return the descriptors of all manifests whose subject is `digest`."""
        bundle = self.reader(work)
        names = bundle.repositories()
        only = names[0] if not repository and len(names) == 1 else repository
        return self._referrers.find(only, digest, None, bundle.roots, work)

    # ---- writing

    def begin(self, images: Sequence[ExpectedImage], work: Work, *, missing: Collection[str] = ()) -> None:
        """Create the file of the new bundle with its final size, and write all manifests to it.

        Then reuse blobs from an interrupted run and from the existing bundle. If the existing bundle already has the
        same inventory, and needs no repair, write nothing. Raises RemoteError (an image has blobs of unknown size),
        LockBusy (another run is writing this bundle), LocalError, Refused."""
        inventory = Inventory(missing=tuple(sorted(missing)))
        for image in images:
            inventory.add(image, self._base)
        inventory.normalize()
        manifests = {one.digest: one for image in images for one in image.manifests}
        writer = BundleWriter(self._output_path(), inventory, manifests.values())
        old = self._open_existing(work)
        unchanged = old is not None and not old.missing_digests() and Digest.of(old.inventory_bytes) == writer.identity
        if unchanged and not (self._repair and old is not None and old.has_damage(work)):
            self._unchanged = True
            return
        self._writer = writer
        writer.prepare(old, work, keep=self._resumes)

    def _output_path(self) -> Path:
        """Return the path of the finished bundle. For standard output, return a path in the spool directory."""
        if self._file is not None:
            return self._file
        if self._output_fd is None:
            self._output_fd = _take_standard_output()
        self._spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._spool / "standard-output.tar"

    def _open_existing(self, work: Work) -> BundleReader | None:
        """Open the existing bundle and return it. Return None if it does not exist."""
        try:
            return self.reader(work)
        except NotFound:
            return None

    def finish(self, *, whole: bool, work: Work) -> None:
        """If `whole` is True, rename the new bundle or write it to standard output. Otherwise keep it for the next run.

        Raises Refused, LocalError."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            if whole and self._output_fd is not None:
                writer.write_to_pipe(self._output_fd, work)
            elif whole:
                writer.finish()
            self._resumes = not whole
        finally:
            writer.close()

    def has_blob(self, repository: str, blob: Descriptor, work: Work) -> bool:
        """Return whether the new bundle already contains the blob, or leaves it out because its base has it.

        Before `begin` is called, the existing bundle is checked instead. Raises Refused (size_mismatch)."""
        if self._writer is not None:
            return self._writer.has_blob(blob.digest)
        try:
            bundle = self.reader(work)
        except NotFound:
            return False
        if bundle.inventory is not None and blob.digest in bundle.inventory.base:
            # if the new bundle equals the existing one, it leaves this blob out as well
            return self._unchanged or blob.digest in self._left_out.get(work)
        member = bundle.member(blob.digest)
        if member is not None and blob.size not in (None, member.size):
            raise Refused(
                f"{self.host}: {blob.digest} has {member.size} bytes, expected {blob.size}",
                hint="the bundle is damaged: run `mirror sync --repair CONFIG`",
                code="size_mismatch",
            )
        return member is not None

    def _find_left_out(self, work: Work) -> frozenset[Digest]:
        """Return the blobs that the existing bundle leaves out and that the current base has."""
        bundle = self.reader(work)
        left_out = set(bundle.inventory.base) if bundle.inventory is not None else set()
        return self._find_in_base(bundle, left_out, work)

    def _matches_base(self, bundle: BundleReader, work: Work) -> bool:
        """Return whether the bundle contains all blobs that its inventory lists, except those that the base has."""
        inventory = bundle.inventory
        if inventory is None or bundle.missing_digests():
            return False
        return self._find_in_base(bundle, inventory.base.keys() | inventory.blobs.keys(), work) == inventory.base.keys()

    def _find_in_base(self, bundle: BundleReader, blobs: Set[Digest], work: Work) -> frozenset[Digest]:
        """Return those of the blobs that the current base has. The bundle's manifests refer to these blobs."""
        known = {digest for digest in blobs if self._base.repositories_with(digest)}
        if len(known) < len(blobs) and self._base.is_from_report:
            known.update(self._base.find_blobs(bundle.manifests_children_first(work)))
        return frozenset(blobs & known)

    def mount_blob(self, repository: str, blob: Descriptor, from_repository: str, work: Work) -> Mount | BundleUpload:
        """Return MOUNTED if the bundle has the blob, otherwise ABSENT.

        Nothing is copied, because all repositories in a bundle share their blobs."""
        return Mount.MOUNTED if self.has_blob(repository, blob, work) else Mount.ABSENT

    def begin_upload(self, repository: str, blob: Descriptor, work: Work) -> BundleUpload:
        """Return an upload session that writes a blob to the new bundle."""
        return BundleUpload(self._require_writer(), blob)

    def put_manifest(
        self, repository: str, reference: str, manifest: Manifest, work: Work, *, left_out: LeftOut | None = None
    ) -> bool:
        """Check that the bundle has all blobs of `manifest`. The manifest itself was written by `begin`.

        Return True, because a bundle needs no lists of referrers. Raises RemoteError (blob_missing)."""
        if self._unchanged:
            return True
        writer = self._require_writer()
        needed = [blob for blob in manifest.blobs if left_out is None or not left_out.covers(manifest, blob)]
        missing = [blob.digest for blob in needed if not blob.foreign and not writer.has_blob(blob.digest)]
        if missing:
            raise RemoteError(
                f"{self.host}:{repository}: {manifest.digest} refers to {missing[0]}, which the bundle does not have",
                code="blob_missing",
            )
        return True

    def delete(self, repository: str, reference: str, work: Work) -> None:
        """Raise LocalError, because images cannot be deleted from a bundle."""
        raise LocalError(f"{self.host}: images cannot be deleted from a bundle", hint="export the bundle again")

    def _require_writer(self) -> BundleWriter:
        """Return the writer of the new bundle. Raises Refused if `begin` was not called."""
        if self._writer is None:
            raise Refused(
                f"{self.host}: cannot write a blob or manifest before the list of images is known",
                code="bundle_invalid",
            )
        return self._writer


def _take_standard_output() -> int:
    """Return a new descriptor for standard output. Later writes to descriptor 1 go to standard error instead.

    Raises LocalError if standard output is a terminal."""
    if os.isatty(1):
        raise LocalError(
            "cannot write a bundle to standard output, because it is a terminal",
            hint="pipe the output to another program: mirror sync ... | ssh HOST 'cat > FILE.tar'",
        )
    if sys.stdout is not None:
        sys.stdout.flush()
    descriptor = os.dup(1)
    os.dup2(2, 1)
    return descriptor
