"""Verifies a bundle in one pass over its bytes, offline, from a file or a pipe."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from mirror.errors import ConfigError, MirrorError, NotFound, Refused, printable
from mirror.layout import inventory as inventories
from mirror.layout.base_inventory import find_unlisted, sparse_parts
from mirror.layout.bundle.index_document import index_json
from mirror.layout.bundle.input import CHUNK, StreamInput
from mirror.layout.bundle.reader import INDEX_NAME, INVENTORY_NAME, VERSION_NAME
from mirror.layout.bundle.tar_reader import Member, bundle_incomplete, members
from mirror.layout.examination import LayoutProblem, VerificationResult, digest_problem
from mirror.layout.index import Index, check_version
from mirror.layout.inventory import Inventory, parse_inventory
from mirror.layout.sparse import SparseParts
from mirror.oci import manifest as manifests
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest, is_manifest_type, parse_manifest
from mirror.util.cancellation import Work
from mirror.util.files import local_error


def missing_path_error(path: Path) -> ConfigError:
    """Return the error for a bundle or layout that is named on the command line but does not exist."""
    return ConfigError(f"{path} does not exist")


def verify_bundle(path: Path, work: Work) -> VerificationResult:
    """Read and hash a whole bundle. Problems with its content are recorded in the result, not raised.

    Raises ConfigError, Refused or LocalError if the bundle cannot be opened, and Cancelled."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise missing_path_error(path) from None
    except OSError as error:
        raise local_error("read", path, error) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise Refused(f"{path} is neither a file nor a pipe", code="unsafe_path")
        return _BundleVerifier(str(path), descriptor, work).run()
    finally:
        os.close(descriptor)


class _BundleVerifier:
    """Verifies one bundle: hashes its members, compares them with its inventory or index, and records the problems."""

    def __init__(self, what: str, descriptor: int, work: Work) -> None:
        self._result = VerificationResult(what)
        self._input = StreamInput(descriptor, what, work.stop)
        self._work = work
        self._buffer = memoryview(bytearray(CHUNK))
        self._small: dict[str, bytes] = {}  # the inventory, index.json and oci-layout, by name
        self._sizes: dict[Digest, int] = {}  # sizes in bytes of all intact manifests and blobs
        self._parsed: dict[Digest, Manifest] = {}
        self._damaged: set[Digest] = set()
        self._index = Index(INDEX_NAME)

    def run(self) -> VerificationResult:
        """Verify the bundle and return the result."""
        result = self._result
        try:
            for member in members(self._input):
                self._read_member(member)
        except Refused as error:
            result.problems.append(LayoutProblem.from_error(error))
        for name in (VERSION_NAME, INDEX_NAME):
            if name not in self._small:
                result.problems.append(LayoutProblem(f"{name} is missing", damage=False))
        if result.inventory is not None:
            self._check_inventory(result.inventory)
            result.find_affected(_image_names(result.inventory), self._reference_digests)
        elif INDEX_NAME in self._small and self._parse_small_member(INDEX_NAME):
            self._check_index()
            result.find_affected(self._index.references(), self._reference_digests)
        return result

    def _find_parsed(self, digest: Digest) -> Manifest:
        """Return a manifest of the bundle. Raises NotFound if the bundle does not have it, or if it is damaged."""
        if digest not in self._parsed:
            raise NotFound(f"{digest} is not in the bundle")
        return self._parsed[digest]

    def _reference_digests(self, digest: Digest) -> list[Digest]:
        """Return the digests that a manifest refers to, or an empty list if it could not be parsed."""
        one = self._parsed.get(digest)
        return [child.digest for child in (*one.children, *one.blobs)] if one is not None else []

    # ---- members

    def _read_member(self, member: Member) -> None:
        """Read one member. If it is below `blobs/`, verify its digest. If it may be a manifest, parse it."""
        if not member.name.startswith("blobs/"):
            self._read_small_member(member)
            return
        digest = Digest(member.name.removeprefix("blobs/").replace("/", ":"))
        listed = self._result.inventory
        known = listed.manifests.get(digest) if listed is not None else None
        wanted = known is not None or (listed is None and member.size <= manifests.MAX_BYTES)
        data = self._hash_member(member, digest, keep=wanted)
        if data is None:
            return
        self._sizes[digest] = member.size
        if wanted and (known is not None or data.lstrip()[:1] == b"{"):
            self._parse_manifest(digest, data, known.media_type if known is not None else "", certain=known is not None)

    def _read_small_member(self, member: Member) -> None:
        """Read the inventory, index.json or oci-layout. Raises Refused if the member is too large or truncated.

        index.json is parsed later, and only if the bundle has no valid inventory."""
        if member.size > inventories.MAX_BYTES:
            raise Refused(
                f"{member.name} has {member.size} bytes, but at most {inventories.MAX_BYTES} are allowed",
                code="bundle_invalid",
            )
        data = self._input.read(member.size)
        if len(data) < member.size:
            raise bundle_incomplete(self._result.what, f"truncated in {member.name}")
        self._small[member.name] = data
        if member.name == INVENTORY_NAME:
            self._result.identity = Digest.of(data)
            try:
                self._result.inventory = parse_inventory(data, INVENTORY_NAME)
            except Refused as error:
                self._result.problems.append(LayoutProblem.from_error(error))
        elif member.name == VERSION_NAME:
            self._parse_small_member(VERSION_NAME)

    def _parse_small_member(self, name: str) -> bool:
        """Parse oci-layout or index.json. Return whether it is valid. If it is not, record a problem."""
        try:
            if name == VERSION_NAME:
                check_version(self._small[name], name)
            else:
                self._index = Index.parse(self._small[name], name)
        except Refused as error:
            self._result.problems.append(LayoutProblem.from_error(error))
            return False
        return True

    def _hash_member(self, member: Member, digest: Digest, *, keep: bool) -> bytes | None:
        """Hash a member. If its bytes do not match `digest`, record a problem and return None.

        Otherwise return the bytes of the member if `keep` is set, or b"" if it is not. Raises Refused
        (bundle_incomplete), Cancelled."""
        hasher, left, data = digest.hasher(), member.size, bytearray()
        while left:
            count = self._input.fill(self._buffer[: min(left, CHUNK)])
            if not count:
                raise bundle_incomplete(self._result.what, f"truncated in {digest}")
            hasher.update(self._buffer[:count])
            self._work.progress(count)
            if keep:
                data += self._buffer[:count]
            left -= count
        if hasher.hexdigest() != digest.hex:
            self._damaged.add(digest)
            self._result.problems.append(digest_problem(digest, hasher.hexdigest()))
            return None
        return bytes(data)

    def _parse_manifest(self, digest: Digest, body: bytes, media_type: str, *, certain: bool) -> None:
        """Parse a manifest, and store it for the checks that follow.

        certain: whether the inventory lists it as a manifest. If so, an error is recorded as a problem. If not, it may
        be any JSON document, and an error is ignored."""
        try:
            self._parsed[digest] = parse_manifest(body, media_type, expected=digest, what=f"manifest {digest}")
        except MirrorError as error:
            if certain:
                self._result.problems.append(LayoutProblem.from_error(error, digest))

    # ---- with an inventory

    def _check_inventory(self, inventory: Inventory) -> None:
        """Compare the members and their digests with the inventory, and record the problems."""
        result = self._result
        index = self._small.get(INDEX_NAME)
        if index is not None and index != index_json(inventory, self._small[INVENTORY_NAME]):
            result.problems.append(LayoutProblem(f"{INDEX_NAME} does not match {INVENTORY_NAME}", damage=True))
        sizes = {digest: one.size for digest, one in inventory.manifests.items()} | dict(inventory.blobs)
        for digest, size in sizes.items():
            self._check_entry(digest, size)
        result.problems += [
            LayoutProblem(
                f"{printable(name)} is missing: it could not be fetched when the bundle was exported", damage=False
            )
            for name in inventory.missing
        ]
        sparse = sparse_parts(inventory, self._find_parsed)
        result.sparse = sum(len(contents.platforms) for contents in inventory.repositories.values())
        for one in self._parsed.values():
            result.problems += [
                LayoutProblem(text, damage=False, digest=digest)
                for digest, text in find_unlisted(one, inventory, sparse)
            ]
        self._count_entries(set(sizes) & self._sizes.keys(), set(inventory.manifests))

    def _check_entry(self, digest: Digest, size: int | None) -> None:
        """Record a problem if a manifest or blob is missing or has the wrong size.

        size: the expected size in bytes, or None if it is not known."""
        actual = self._sizes.get(digest)
        if actual is None:
            if digest not in self._damaged:
                self._result.problems.append(LayoutProblem(f"{digest} is missing", damage=False, digest=digest))
        elif size is not None and size != actual:
            text = f"{digest} has {actual} bytes, expected {size}"
            self._result.problems.append(LayoutProblem(text, damage=True, digest=digest))

    def _count_entries(self, intact: set[Digest], listed: set[Digest]) -> None:
        """Count the intact manifests, blobs and bytes and the unreferenced files, and store the counts in the result.

        intact: the digests of all intact manifests and blobs. listed: the digests of all manifests."""
        result = self._result
        result.manifests = len(intact & listed)
        result.blobs = len(intact - listed)
        result.bytes = sum(self._sizes[digest] for digest in intact)
        result.unreferenced = len(self._sizes.keys() - intact)

    # ---- without an inventory

    def _check_index(self) -> None:
        """Check everything reachable from index.json. Used for a bundle without an inventory."""
        roots = sorted(self._index.roots(), key=lambda root: not root.platforms)
        sparse = SparseParts(self._find_parsed)
        for root in roots:
            if root.platforms:
                sparse.add(root.descriptor.digest, root.platforms)
                self._result.sparse += 1
        # Complete images come first, because everything that they list is needed.
        todo = [(root.descriptor, not root.platforms) for root in roots]
        seen: set[Digest] = set()
        while todo:
            one, is_complete = todo.pop()
            if one.digest in seen or (one.foreign and one.digest not in self._sizes):
                continue
            seen.add(one.digest)
            self._check_entry(one.digest, one.size)
            todo += [
                (part, is_complete)
                for part in self._references_of(one)
                if is_complete or not sparse.is_left_out(one.digest, part.digest)
            ]
        self._count_entries(seen & self._sizes.keys(), {digest for digest in seen if digest in self._parsed})

    def _references_of(self, one: Descriptor) -> list[Descriptor]:
        """Return the descriptors in the manifest `one`, or an empty list if `one` is a blob."""
        parsed = self._parsed.get(one.digest)
        if parsed is None or not (is_manifest_type(one.media_type) or not one.media_type):
            return []
        return [*parsed.children, *parsed.blobs]


def _image_names(inventory: Inventory) -> Iterator[tuple[str, Digest]]:
    """Yield the name (`REPOSITORY:TAG` or `REPOSITORY@DIGEST`) and the root digest of each image."""
    for name, tag, digest in inventory.references():
        yield f"{name}:{tag}", digest
    for name, contents in inventory.repositories.items():
        for digest in contents.roots:
            yield f"{name}@{digest}", digest
