"""Reads an existing bundle: its members, and its inventory or index. The bundle is opened once and never changed."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Collection
from contextlib import suppress
from graphlib import TopologicalSorter
from pathlib import Path
from types import TracebackType
from typing import IO

from mirror.errors import LocalError, MirrorError, NotFound, Refused
from mirror.layout import inventory as inventories
from mirror.layout.bundle.index_document import index_json
from mirror.layout.bundle.input import CHUNK, CopyingInput, FileInput, read_error
from mirror.layout.bundle.tar_reader import Member, bundle_incomplete, bundle_invalid, members
from mirror.layout.bundle.tar_writer import blob_path
from mirror.layout.index import Index, check_version
from mirror.layout.inventory import Inventory, RepositoryContents, parse_inventory
from mirror.layout.root import Root
from mirror.oci import manifest as manifests
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest, parse_manifest
from mirror.oci.reference import ListedTag
from mirror.util.cancellation import Work
from mirror.util.files import local_error

INVENTORY_NAME = "mirror-inventory.json"
VERSION_NAME = "oci-layout"
INDEX_NAME = "index.json"
VERSION = b'{"imageLayoutVersion": "1.0.0"}\n'

_TO_LAYOUT = "convert a `docker save` archive with: skopeo copy docker-archive:FILE oci-archive:NEW.tar"
_MAX_NAMED = 4  # maximum number of missing images that a message names
_MAX_VERSION_BYTES = 64 << 10  # maximum size of an oci-layout file in bytes


class BundleReader:
    """Reads an open bundle: its members, and its inventory or index. Thread-safe.

    inventory: None if another tool wrote the bundle; `index` then holds the parsed index.json. members: the members of
    the tar, by name."""

    def __init__(self, descriptor: int, what: str, adopts: Collection[str] = ()) -> None:
        """Read the tar headers, the inventory and the index of a bundle.

        descriptor: an open, seekable file, which `close` closes. adopts: see Index. Raises Refused if the bundle is
        invalid or truncated."""
        self.what = what
        self.descriptor = descriptor
        self.members: dict[str, Member] = {one.name: one for one in members(FileInput(descriptor, what))}
        for name in (VERSION_NAME, INDEX_NAME):
            if name not in self.members:
                raise bundle_invalid(what, f"not an OCI layout: {name} is missing", hint=_TO_LAYOUT)
        check_version(self._read_small_member(VERSION_NAME, _MAX_VERSION_BYTES), f"{what}: {VERSION_NAME}")
        index = self._read_small_member(INDEX_NAME, inventories.MAX_BYTES)
        self.inventory_bytes = b""  # the inventory as it is stored
        self.inventory: Inventory | None = None
        self.index = Index(f"{what}: {INDEX_NAME}")
        if INVENTORY_NAME in self.members:
            self.inventory_bytes = self._read_small_member(INVENTORY_NAME, inventories.MAX_BYTES)
            self.inventory = parse_inventory(self.inventory_bytes, f"{what}: {INVENTORY_NAME}")
            if index != index_json(self.inventory, self.inventory_bytes):
                raise bundle_invalid(what, f"{INDEX_NAME} does not match {INVENTORY_NAME}")
        else:
            self.index = Index.parse(index, f"{what}: {INDEX_NAME}", adopts)

    def _read_small_member(self, name: str, limit: int) -> bytes:
        """Read the member `name`. Raises Refused (bundle_invalid) if it is larger than `limit` bytes."""
        if self.members[name].size > limit:
            size = self.members[name].size
            raise bundle_invalid(self.what, f"{name} has {size} bytes, but at most {limit} are allowed")
        return self.read_member(self.members[name])

    # ---- content

    @property
    def is_self_contained(self) -> bool:
        """Whether the bundle contains everything that its inventory lists, and was not exported with a base."""
        return self.inventory is not None and not self.inventory.base and not self.missing_digests()

    def incomplete_error(self) -> Refused | None:
        """Return an error that names the images that the inventory lists as missing, or None if it lists none."""
        names = self.inventory.missing if self.inventory is not None else ()
        if not names:
            return None
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        return Refused(
            f"{self.what} is incomplete: it lacks {', '.join(names[:_MAX_NAMED])}{more}",
            hint="not all images could be fetched during the export; export again",
            code="bundle_incomplete",
        )

    def missing_digests(self) -> list[Digest]:
        """Return the digests that the inventory lists but the bundle does not contain."""
        if self.inventory is None:
            return []
        listed = [*self.inventory.manifests, *self.inventory.blobs]
        return [digest for digest in listed if blob_path(digest) not in self.members]

    def has_damage(self, work: Work) -> bool:
        """Return whether any manifest or blob does not match the digest in its name. Reads the whole bundle.

        Raises Refused, Cancelled."""
        buffer = memoryview(bytearray(CHUNK))
        for name, member in self.members.items():
            if not name.startswith("blobs/"):
                continue
            digest = Digest(name.removeprefix("blobs/").replace("/", ":"))
            hasher = digest.hasher()
            with MemberReader(self, member) as reader:
                while count := reader.readinto(buffer):
                    work.stop.raise_if_requested()
                    hasher.update(buffer[:count])
            if hasher.hexdigest() != digest.hex:
                return True
        return False

    def repositories(self) -> list[str]:
        """Return the names of all repositories, sorted."""
        return sorted(self.inventory.repositories) if self.inventory is not None else self.index.repositories()

    def tags(self, repository: str) -> list[str | MirrorError]:
        """Return the sorted tags of a repository. The list also contains an error for each entry that cannot be used.

        Raises NotFound if the repository does not exist."""
        if self.inventory is None:
            return self.index.tags(repository)
        contents = self._repository_contents(repository)
        if contents is None:
            known = ", ".join(self.repositories()[:10])
            hint = f"existing repositories: {known}" if known else ""
            raise NotFound(f"{self.what} has no repository {repository!r}", hint=hint)
        # A tag of a sparse image has no digest in the list, so that its platforms are looked up.
        return [
            tag if digest in contents.platforms else ListedTag(tag, digest)
            for tag, digest in sorted(contents.tags.items())
        ]

    def _repository_contents(self, repository: str) -> RepositoryContents | None:
        """Return the contents of a repository from the inventory, or None if the inventory does not list it.

        An empty name refers to the only repository, if the bundle has exactly one."""
        every = self.inventory.repositories if self.inventory is not None else {}
        return next(iter(every.values())) if not repository and len(every) == 1 else every.get(repository)

    def find(self, repository: str, reference: str) -> tuple[Digest, str]:
        """Return the digest and media type of the manifest that a tag or digest refers to.

        The media type is empty if it is not known. Raises NotFound, Refused."""
        if ":" in reference:
            digest = Digest.parse(reference)
            if self.member(digest) is not None and (self.inventory is None or digest in self.inventory.manifests):
                return digest, self._media_type(digest)
        elif self.inventory is None:
            root = self.index.find(repository, reference).descriptor
            return root.digest, root.media_type
        elif (contents := self._repository_contents(repository)) is not None and reference in contents.tags:
            digest = contents.tags[reference]
            return digest, self._media_type(digest)
        mark = "@" if ":" in reference else ":"
        raise NotFound(f"{self.what}:{repository}{mark}{reference} does not exist")

    def platforms(self, repository: str, reference: str) -> tuple[str, ...]:
        """Return the platforms that a sparse image contains, or an empty tuple for other images."""
        if self.inventory is None:
            return self.index.platforms(repository, reference)
        contents = self._repository_contents(repository)
        if contents is None:
            return ()
        digest = Digest.parse(reference) if ":" in reference else contents.tags.get(reference)
        return contents.platforms.get(digest, ()) if digest is not None else ()

    def _media_type(self, digest: Digest) -> str:
        """Return the media type that the inventory lists for a manifest, or an empty string if it lists none."""
        known = self.inventory.manifests.get(digest) if self.inventory is not None else None
        return known.media_type if known is not None else ""

    def roots(self) -> list[Root]:
        """Return all tagged manifests, and all manifests to which no tag or other manifest refers."""
        if self.inventory is None:
            return list(self.index.roots())
        return [
            Root(Descriptor(digest, None), name, "", contents.platforms.get(digest, ()))
            for name, contents in self.inventory.repositories.items()
            for digest in (*contents.tags.values(), *contents.roots)
        ]

    def manifest(self, digest: Digest, media_type: str | None = None) -> Manifest:
        """Read a manifest and verify its digest. Raises Refused.

        media_type: the media type that `find` returned; if None, the inventory's media type is used."""
        member = self.member(digest)
        what = f"{self.what}: manifest {digest}"
        if member is None:
            raise bundle_incomplete(self.what, f"manifest {digest} is missing")
        if member.size > manifests.MAX_BYTES:
            raise manifests.manifest_too_big_error(what, member.size)
        media_type_hint = self._media_type(digest) if media_type is None else media_type
        return parse_manifest(self.read_member(member), media_type_hint, expected=digest, what=what)

    def manifests_children_first(self, work: Work) -> list[Manifest]:
        """Return all readable manifests that the inventory lists, children before parents. Raises Cancelled."""
        read: dict[Digest, Manifest] = {}
        for digest in self.inventory.manifests if self.inventory is not None else ():
            work.stop.raise_if_requested()
            with suppress(MirrorError):
                read[digest] = self.manifest(digest)
        children = {digest: [child.digest for child in one.children] for digest, one in read.items()}
        return [read[digest] for digest in TopologicalSorter(children).static_order() if digest in read]

    def member(self, digest: Digest) -> Member | None:
        """Return the tar member that contains a manifest or blob, or None if the bundle does not have it."""
        return self.members.get(blob_path(digest))

    # ---- bytes

    def read_member(self, member: Member) -> bytes:
        """Read a whole member. Raises Refused."""
        data = bytearray(member.size)
        with MemberReader(self, member) as reader:
            got = 0
            while got < member.size:
                got += reader.readinto(memoryview(data)[got:])
        return bytes(data)

    def readinto(self, buffer: memoryview, offset: int) -> int:
        """Read bytes at `offset` in the file into `buffer`, and return the number of bytes read.

        Raises Refused if the file ends at `offset`, because it was truncated after it was opened."""
        try:
            count = os.preadv(self.descriptor, [buffer], offset)
        except OSError as error:
            raise read_error(self.what, error) from error
        if not count:
            raise bundle_incomplete(self.what, f"truncated at byte {offset}, within a member")
        return count

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


class MemberReader:
    """A BlobReader for the data of one member, from byte `offset` to the end. size: the size of the member in bytes."""

    def __init__(self, bundle: BundleReader, member: Member, offset: int = 0) -> None:
        self.size: int | None = member.size
        self._bundle = bundle
        self._offset = member.offset + offset
        self._end = member.offset + member.size

    def readinto(self, buffer: memoryview) -> int:
        """Read the next bytes into `buffer`. Return the number of bytes read, or 0 at the end of the member.

        Raises Refused."""
        left = max(0, self._end - self._offset)
        if not left or not len(buffer):
            return 0
        count = self._bundle.readinto(buffer[: min(left, len(buffer), CHUNK)], self._offset)
        self._offset += count
        return count

    def __enter__(self) -> MemberReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


# ---- opening


def open_bundle(path: Path, what: str, spool: Path, work: Work, adopts: Collection[str] = ()) -> BundleReader:
    """Open the bundle at `path`. A pipe is first copied to an unnamed file in the directory `spool`.

    Raises NotFound, LocalError, Refused."""
    try:
        # Without O_NONBLOCK, open() of a FIFO without a writer would block, and a stop could not interrupt it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise NotFound(f"{what} does not exist") from None
    except OSError as error:
        raise local_error("read", path, error) from error
    owned = False  # whether `bundle` closes the descriptor
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode):
            return spool_stream(descriptor, what, spool, work, adopts)
        if not stat.S_ISREG(mode):
            raise Refused(f"{what} is neither a file nor a pipe", code="unsafe_path")
        bundle = BundleReader(descriptor, what, adopts)
        owned = True
        return bundle
    finally:
        if not owned:
            os.close(descriptor)


def open_standard_input(what: str, spool: Path, work: Work, adopts: Collection[str] = ()) -> BundleReader:
    """Copy the bundle on standard input to an unnamed file, and open it. Raises LocalError, Refused, Cancelled."""
    if sys.stdin is None or sys.stdin.closed:
        raise LocalError("standard input is closed", hint="pipe a bundle into it: cat FILE.tar | mirror sync ...")
    if sys.stdin.isatty():
        raise LocalError("standard input is a terminal", hint="pipe a bundle into it: cat FILE.tar | mirror sync ...")
    return spool_stream(sys.stdin.fileno(), what, spool, work, adopts)


def spool_stream(descriptor: int, what: str, spool: Path, work: Work, adopts: Collection[str]) -> BundleReader:
    """Copy a bundle from a pipe to an unnamed file in the directory `spool`, then open that file as a bundle.

    The pipe is read to its end first, so a truncated bundle is refused before any image is copied from it. Raises
    LocalError, Refused, Cancelled."""
    try:
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=spool, buffering=0) as copy:
            _copy(descriptor, what, copy, work)
            duplicate = os.dup(copy.fileno())
    except OSError as error:
        raise local_error("write a temporary copy of", what, error) from error
    try:
        return BundleReader(duplicate, what, adopts)
    except BaseException:
        os.close(duplicate)
        raise


def _copy(descriptor: int, what: str, copy: IO[bytes], work: Work) -> None:
    """Copy a bundle from a pipe to the file `copy`, and check its tar headers. Raises Refused, OSError, Cancelled."""
    source = CopyingInput(descriptor, what, work.stop, copy.fileno())
    for member in members(source):
        source.skip(member.size)
