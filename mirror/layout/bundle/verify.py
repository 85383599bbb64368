"""Is a bundle whole? One pass over its bytes, without the network, from a file or a pipe."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from mirror.errors import ConfigError, MirrorError, Refused, printable
from mirror.layout import inventory as inventories
from mirror.layout.bundle.input import CHUNK, StreamInput
from mirror.layout.bundle.reader import INDEX_NAME, INVENTORY_NAME, VERSION_NAME, index_json
from mirror.layout.bundle.tar_reader import Member, incomplete, members
from mirror.layout.examination import Examined, Problem, damaged
from mirror.layout.index import Index, check_version
from mirror.layout.inventory import Inventory, parse_inventory, unlisted
from mirror.oci import manifest as manifests
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest, is_manifest_type, parse_manifest
from mirror.util.cancellation import Stop
from mirror.util.files import local_error


def absent(path: Path) -> ConfigError:
    """The error that says that the bundle or layout of the command line is not there."""
    return ConfigError(f"{path} does not exist")


def examine(path: Path, stop: Stop) -> Examined:
    """Read all of it, hash all of it. Raises ConfigError, Refused, LocalError where it cannot be opened; Cancelled."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise absent(path) from None
    except OSError as error:
        raise local_error("read", path, error) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise Refused(f"{path} is neither a file nor a pipe", code="unsafe_path")
        return _Examination(str(path), descriptor, stop).run()
    finally:
        os.close(descriptor)


class _Examination:
    def __init__(self, what: str, descriptor: int, stop: Stop) -> None:
        self._found = Examined(what)
        self._input = StreamInput(descriptor, what, stop)
        self._buffer = memoryview(bytearray(CHUNK))
        self._small: dict[str, bytes] = {}
        self._sizes: dict[Digest, int] = {}  # of every manifest and blob that is right
        self._parsed: dict[Digest, Manifest] = {}
        self._damaged: set[Digest] = set()
        self._index = Index(INDEX_NAME)

    def run(self) -> Examined:
        found = self._found
        try:
            for member in members(self._input):
                self._member(member)
        except Refused as error:
            found.problems.append(Problem.of(error))
        for name in (VERSION_NAME, INDEX_NAME):
            if name not in self._small:
                found.problems.append(Problem(f"{name} is missing", damage=False))
        if found.inventory is not None:
            self._compare(found.inventory)
            found.concern(_references(found.inventory), self._digests_below)
        elif INDEX_NAME in self._small and self._believe(INDEX_NAME):
            self._walk()
            found.concern(self._index.references(), self._digests_below)
        return found

    def _digests_below(self, digest: Digest) -> list[Digest]:
        one = self._parsed.get(digest)
        return [child.digest for child in (*one.children, *one.blobs)] if one is not None else []

    # ---- members

    def _member(self, member: Member) -> None:
        if not member.name.startswith("blobs/"):
            self._keep(member)
            return
        digest = Digest(member.name.removeprefix("blobs/").replace("/", ":"))
        listed = self._found.inventory
        known = listed.manifests.get(digest) if listed is not None else None
        wanted = known is not None or (listed is None and member.size <= manifests.MAX_BYTES)
        kept = self._hash(member, digest, keep=wanted)
        if kept is None:
            return
        self._sizes[digest] = member.size
        if wanted and (known is not None or kept.lstrip()[:1] == b"{"):
            self._parse(digest, kept, known.media_type if known is not None else "", certain=known is not None)

    def _keep(self, member: Member) -> None:
        if member.size > inventories.MAX_BYTES:
            raise Refused(f"{member.name} has {member.size} bytes", code="bundle_invalid")
        data = self._input.take(member.size)
        if len(data) < member.size:
            raise incomplete(self._found.what, f"it ends within {member.name}")
        self._small[member.name] = data
        if member.name == INVENTORY_NAME:
            self._found.identity = Digest.of(data)
            try:
                self._found.inventory = parse_inventory(data, INVENTORY_NAME)
            except Refused as error:
                self._found.problems.append(Problem.of(error))
        elif member.name == VERSION_NAME:
            self._believe(VERSION_NAME)

    def _believe(self, name: str) -> bool:
        """Whether a small file can be read as what it is."""
        try:
            if name == VERSION_NAME:
                check_version(self._small[name], name)
            else:
                self._index = Index.parse(self._small[name], name)
        except Refused as error:
            self._found.problems.append(Problem.of(error))
            return False
        return True

    def _hash(self, member: Member, digest: Digest, *, keep: bool) -> bytes | None:
        """The bytes, if they are to be kept, else none of them; None: they are not what the name says."""
        hasher, left, kept = digest.hasher(), member.size, bytearray()
        while left:
            count = self._input.fill(self._buffer[: min(left, CHUNK)])
            if not count:
                raise incomplete(self._found.what, f"it ends within {digest}")
            hasher.update(self._buffer[:count])
            if keep:
                kept += self._buffer[:count]
            left -= count
        if hasher.hexdigest() != digest.hex:
            self._damaged.add(digest)
            self._found.problems.append(damaged(digest, hasher.hexdigest()))
            return None
        return bytes(kept)

    def _parse(self, digest: Digest, body: bytes, media_type: str, *, certain: bool) -> None:
        """certain: it is listed as a manifest; else it may be any JSON."""
        try:
            self._parsed[digest] = parse_manifest(body, media_type, expected=digest, what=f"manifest {digest}")
        except MirrorError as error:
            if certain:
                self._found.problems.append(Problem.of(error, digest))

    # ---- with an inventory

    def _compare(self, inventory: Inventory) -> None:
        found = self._found
        index = self._small.get(INDEX_NAME)
        if index is not None and index != index_json(inventory, self._small[INVENTORY_NAME]):
            found.problems.append(Problem(f"{INDEX_NAME} and {INVENTORY_NAME} do not belong together", damage=True))
        sizes = {digest: one.size for digest, one in inventory.manifests.items()} | dict(inventory.blobs)
        for digest, size in sizes.items():
            self._there(digest, size)
        found.problems += [
            Problem(f"{printable(name)} is not in it: it could not be fetched when the bundle was made", damage=False)
            for name in inventory.missing
        ]
        for one in self._parsed.values():
            found.problems += [Problem(text, damage=False, digest=digest) for digest, text in unlisted(one, inventory)]
        self._count(set(sizes) & self._sizes.keys(), set(inventory.manifests))

    def _there(self, digest: Digest, size: int | None) -> None:
        actual = self._sizes.get(digest)
        if actual is None:
            if digest not in self._damaged:
                self._found.problems.append(Problem(f"{digest} is missing", damage=False, digest=digest))
        elif size is not None and size != actual:
            text = f"{digest} has {actual} bytes, the inventory says {size}"
            self._found.problems.append(Problem(text, damage=True, digest=digest))

    def _count(self, right: set[Digest], listed: set[Digest]) -> None:
        found = self._found
        found.manifests = len(right & listed)
        found.blobs = len(right - listed)
        found.bytes = sum(self._sizes[digest] for digest in right)
        found.beside = len(self._sizes.keys() - right)

    # ---- without one

    def _walk(self) -> None:
        """From the names in the index, as other tools do."""
        todo = [root.descriptor for root in self._index.roots()]
        seen: set[Digest] = set()
        while todo:
            one = todo.pop()
            if one.digest in seen or one.foreign:
                continue
            seen.add(one.digest)
            self._there(one.digest, one.size)
            todo += self._below(one)
        self._count(seen & self._sizes.keys(), {digest for digest in seen if digest in self._parsed})

    def _below(self, one: Descriptor) -> list[Descriptor]:
        parsed = self._parsed.get(one.digest)
        if parsed is None or not (is_manifest_type(one.media_type) or not one.media_type):
            return []
        return [*parsed.children, *parsed.blobs]


def _references(inventory: Inventory) -> Iterator[tuple[str, Digest]]:
    for name, tag, digest in inventory.references():
        yield f"{name}:{tag}", digest
    for name, holdings in inventory.repositories.items():
        for digest in holdings.roots:
            yield f"{name}@{digest}", digest
