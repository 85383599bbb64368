"""A bundle that is there: its members, what it lists, and their bytes. Opened once, then only read."""

from __future__ import annotations

import json
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
from mirror.layout.bundle.input import CHUNK, CopyingInput, FileInput, unreadable
from mirror.layout.bundle.tar_reader import Member, incomplete, invalid, members
from mirror.layout.bundle.tar_writer import blob_path
from mirror.layout.index import OF_REPOSITORY, Index, Root, check_version
from mirror.layout.inventory import REF_NAME, Described, Holdings, Inventory, parse_inventory
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
OF_INVENTORY = "mirror.inventory"  # annotation of index.json: the sha256 of the inventory beside it

_TO_LAYOUT = "of an archive by `docker save` a layout is made with: skopeo copy docker-archive:FILE oci-archive:NEW.tar"
_NAMED = 4  # missing images that a message names
_SMALL = 64 << 10  # bytes of an oci-layout file


class Archive:
    """Thread-safe. inventory: None in a bundle that another tool made; index: then its index.json."""

    def __init__(self, descriptor: int, what: str, adopts: Collection[str] = ()) -> None:
        """Takes over `descriptor`, of a file that can be sought in. adopts: see Index. Raises Refused."""
        self.what = what
        self.descriptor = descriptor
        self.members: dict[str, Member] = {one.name: one for one in members(FileInput(descriptor, what))}
        for name in (VERSION_NAME, INDEX_NAME):
            if name not in self.members:
                raise invalid(what, f"no OCI layout is in it ({name} is missing)", hint=_TO_LAYOUT)
        check_version(self._small(VERSION_NAME, _SMALL), f"{what}: {VERSION_NAME}")
        index = self._small(INDEX_NAME, inventories.MAX_BYTES)
        self.rendered = b""  # the bytes of the inventory
        self.inventory: Inventory | None = None
        self.index = Index(f"{what}: {INDEX_NAME}")
        if INVENTORY_NAME in self.members:
            self.rendered = self._small(INVENTORY_NAME, inventories.MAX_BYTES)
            self.inventory = parse_inventory(self.rendered, f"{what}: {INVENTORY_NAME}")
            if index != index_json(self.inventory, self.rendered):
                raise invalid(what, f"{INDEX_NAME} and {INVENTORY_NAME} do not belong together")
        else:
            self.index = Index.parse(index, f"{what}: {INDEX_NAME}", adopts)

    def _small(self, name: str, most: int) -> bytes:
        if self.members[name].size > most:
            raise invalid(self.what, f"{name} has {self.members[name].size} bytes, more than {most}")
        return self.bytes(self.members[name])

    # ---- what is in it

    @property
    def whole(self) -> bool:
        """Whether all that the inventory lists is there, and nothing was left out for a base."""
        return self.inventory is not None and not self.inventory.base and not self.missing()

    def incomplete(self) -> Refused | None:
        """The error that says which images it lacks; None: it has all that it was to have, as far as it says."""
        names = self.inventory.missing if self.inventory is not None else ()
        if not names:
            return None
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return Refused(
            f"{self.what} is incomplete: it lacks {', '.join(names[:_NAMED])}{more}",
            hint="it could not be fetched when the bundle was made: export again for it",
            code="bundle_incomplete",
        )

    def missing(self) -> list[Digest]:
        """What the inventory lists as there, and is not."""
        if self.inventory is None:
            return []
        listed = [*self.inventory.manifests, *self.inventory.blobs]
        return [digest for digest in listed if blob_path(digest) not in self.members]

    def damaged(self, work: Work) -> bool:
        """Whether any member does not have the bytes that its name says. Reads all of it. Raises Cancelled."""
        buffer = memoryview(bytearray(CHUNK))
        for name, member in self.members.items():
            if not name.startswith("blobs/"):
                continue
            digest = Digest(name.removeprefix("blobs/").replace("/", ":"))
            hasher = digest.hasher()
            with Slice(self, member) as reader:
                while count := reader.readinto(buffer):
                    work.stop.check()
                    hasher.update(buffer[:count])
            if hasher.hexdigest() != digest.hex:
                return True
        return False

    def repositories(self) -> list[str]:
        return sorted(self.inventory.repositories) if self.inventory is not None else self.index.repositories()

    def tags(self, repository: str) -> list[str | MirrorError]:
        """In order; a name that cannot be used is an error in its place. Raises NotFound: no such repository."""
        if self.inventory is None:
            return self.index.tags(repository)
        holdings = self._holdings(repository)
        if holdings is None:
            known = ", ".join(self.repositories()[:10])
            hint = f"it has: {known}" if known else ""
            raise NotFound(f"{self.what} has no repository {repository!r}", hint=hint)
        return [ListedTag(tag, digest) for tag, digest in sorted(holdings.tags.items())]

    def _holdings(self, repository: str) -> Holdings | None:
        """A bundle of one repository has that for whoever names none."""
        every = self.inventory.repositories if self.inventory is not None else {}
        return next(iter(every.values())) if not repository and len(every) == 1 else every.get(repository)

    def find(self, repository: str, reference: str) -> tuple[Digest, str]:
        """Digest and media type (empty: not said) of what a tag names, or of a digest that is there.

        Raises NotFound, Refused."""
        if ":" in reference:
            digest = Digest.parse(reference)
            if self.member(digest) is not None and (self.inventory is None or digest in self.inventory.manifests):
                return digest, self._media_type(digest)
        elif self.inventory is None:
            root = self.index.find(repository, reference).descriptor
            return root.digest, root.media_type
        elif (holdings := self._holdings(repository)) is not None and reference in holdings.tags:
            digest = holdings.tags[reference]
            return digest, self._media_type(digest)
        mark = "@" if ":" in reference else ":"
        raise NotFound(f"{self.what}:{repository}{mark}{reference} does not exist")

    def _media_type(self, digest: Digest) -> str:
        known = self.inventory.manifests.get(digest) if self.inventory is not None else None
        return known.media_type if known is not None else ""

    def roots(self) -> list[Root]:
        """Everything that has a name, and what nothing refers to."""
        if self.inventory is None:
            return list(self.index.roots())
        return [
            Root(Descriptor(digest, None), name, "")
            for name, holdings in self.inventory.repositories.items()
            for digest in (*holdings.tags.values(), *holdings.roots)
        ]

    def manifest(self, digest: Digest, media_type: str | None = None) -> Manifest:
        """media_type: as `find` says, if that was asked. Raises Refused: it is missing, or something else."""
        member = self.member(digest)
        what = f"{self.what}: manifest {digest}"
        if member is None:
            raise incomplete(self.what, f"manifest {digest} is missing")
        if member.size > manifests.MAX_BYTES:
            raise manifests.too_big(what, member.size)
        said = self._media_type(digest) if media_type is None else media_type
        return parse_manifest(self.bytes(member), said, expected=digest, what=what)

    def children_first(self, work: Work) -> list[Manifest]:
        """All manifests that the inventory lists and that can be read, children before parents. Raises Cancelled."""
        read: dict[Digest, Manifest] = {}
        for digest in self.inventory.manifests if self.inventory is not None else ():
            work.stop.check()
            with suppress(MirrorError):
                read[digest] = self.manifest(digest)
        below = {digest: [child.digest for child in one.children] for digest, one in read.items()}
        return [read[digest] for digest in TopologicalSorter(below).static_order() if digest in read]

    def member(self, digest: Digest) -> Member | None:
        """Where a manifest or blob is; None: it is not there."""
        return self.members.get(blob_path(digest))

    # ---- bytes

    def bytes(self, member: Member) -> bytes:
        data = bytearray(member.size)
        with Slice(self, member) as reader:
            got = 0
            while got < member.size:
                got += reader.readinto(memoryview(data)[got:])
        return bytes(data)

    def readinto(self, buffer: memoryview, place: int) -> int:
        """Raises Refused where there is nothing at `place`, as in a file that was cut since it was opened."""
        try:
            count = os.preadv(self.descriptor, [buffer], place)
        except OSError as error:
            raise unreadable(self.what, error) from error
        if not count:
            raise incomplete(self.what, f"it ends at byte {place}, within a member")
        return count

    def close(self) -> None:
        os.close(self.descriptor)


class Slice:
    """A BlobReader over one member. size: bytes."""

    def __init__(self, archive: Archive, member: Member, offset: int = 0) -> None:
        self.size: int | None = member.size
        self._archive = archive
        self._place = member.offset + offset
        self._end = member.offset + member.size

    def readinto(self, buffer: memoryview) -> int:
        left = max(0, self._end - self._place)
        if not left or not len(buffer):
            return 0
        count = self._archive.readinto(buffer[: min(left, len(buffer), CHUNK)], self._place)
        self._place += count
        return count

    def __enter__(self) -> Slice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


# ---- opening


def open_archive(path: Path, what: str, spool: Path, work: Work, adopts: Collection[str] = ()) -> Archive:
    """The bundle at `path`; a pipe is first read into a file in the directory `spool`, which has no name there.

    Raises NotFound, LocalError, Refused."""
    try:
        # A fifo without a writer must not keep us in `open`, where no stop reaches.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise NotFound(f"{what} does not exist") from None
    except OSError as error:
        raise local_error("read", path, error) from error
    kept = False
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode):
            return read_stream(descriptor, what, spool, work, adopts)
        if not stat.S_ISREG(mode):
            raise Refused(f"{what} is neither a file nor a pipe", code="unsafe_path")
        archive = Archive(descriptor, what, adopts)
        kept = True
        return archive
    finally:
        if not kept:
            os.close(descriptor)


def open_input(what: str, spool: Path, work: Work, adopts: Collection[str] = ()) -> Archive:
    """The bundle on standard input. Raises LocalError, Refused."""
    if sys.stdin is None or sys.stdin.closed:
        raise LocalError("standard input is closed", hint="pipe a bundle into it: cat FILE.tar | mirror sync ...")
    if sys.stdin.isatty():
        raise LocalError("standard input is a terminal", hint="pipe a bundle into it: cat FILE.tar | mirror sync ...")
    return read_stream(sys.stdin.fileno(), what, spool, work, adopts)


def read_stream(descriptor: int, what: str, spool: Path, work: Work, adopts: Collection[str]) -> Archive:
    """Read a pipe to its end, into a file that goes when it is closed: nothing of a cut stream is ever used."""
    try:
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=spool, buffering=0) as copy:
            _copy(descriptor, what, copy, work)
            kept = os.dup(copy.fileno())
    except OSError as error:
        raise local_error("write what comes from", what, error) from error
    try:
        return Archive(kept, what, adopts)
    except BaseException:
        os.close(kept)
        raise


def _copy(descriptor: int, what: str, copy: IO[bytes], work: Work) -> None:
    source = CopyingInput(descriptor, what, work.stop, copy.fileno())
    for member in members(source):
        source.skip(member.size)


def index_json(inventory: Inventory, rendered: bytes) -> bytes:
    """The index.json beside an inventory. rendered: the bytes of that."""

    def entry(digest: Digest, annotations: dict[str, str]) -> dict[str, object]:
        found = inventory.manifests[digest]
        return {"mediaType": found.media_type, "digest": digest, "size": found.size, "annotations": annotations}

    named = [entry(digest, {REF_NAME: f"{name}:{tag}"}) for name, tag, digest in inventory.references()]
    nameless = [
        entry(digest, {OF_REPOSITORY: name})
        for name, holdings in sorted(inventory.repositories.items())
        for digest in sorted(holdings.roots)
    ]
    document = {
        "schemaVersion": 2,
        "mediaType": manifests.OCI_INDEX,
        "manifests": named + nameless,
        "annotations": {OF_INVENTORY: Digest.of(rendered)},
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def inventory_of(archive: Archive) -> Inventory:
    """What is in it: its own inventory, or one made by reading the manifests. Raises Refused."""
    if archive.inventory is not None:
        return archive.inventory
    made = Inventory()
    if not archive.repositories():
        raise invalid(archive.what, "no repository is named in it", hint="name one: FILE.tar:REPOSITORY as a source")
    for name in archive.repositories():
        holdings = made.repositories.setdefault(name, Holdings())
        holdings.tags.update({tag: archive.find(name, tag)[0] for tag in archive.tags(name) if isinstance(tag, str)})
        todo = [*holdings.tags.values()]
        while todo:
            digest = todo.pop()
            if digest not in holdings.manifests:
                holdings.manifests.add(digest)
                one = archive.manifest(digest)
                made.manifests[digest] = Described(one.media_type, one.size)
                todo += [child.digest for child in one.children if archive.member(child.digest) is not None]
                there = [blob.digest for blob in one.blobs if archive.member(blob.digest) is not None]
                holdings.blobs.update(there)
                made.blobs.update({digest: archive.members[blob_path(digest)].size for digest in there})
    return made
