"""Random damage to the storage of a target: the effect of broken disks, garbage collections and mistakes.

A `Victim` is the storage of one target. Damage concerns objects (`removed`, `cut`, `emptied`, `changed`, `swapped`),
links of a repository if the store has them, and tags.
"""

from __future__ import annotations

import hashlib
import json
import random
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

from tests.registries.client import Client
from tests.registries.real import RealRegistry
from tests.support.images import Graph
from tests.support.walks import REF_NAME


@dataclass(frozen=True, slots=True)
class Group:
    """A graph that several repositories have. No other group shares any bytes with it."""

    graph: Graph
    repositories: tuple[str, ...]

    @property
    def children(self) -> list[str]:
        return [digest for digest in self.graph.manifests if digest not in self.graph.tags.values()]


class Victim(Protocol):
    """The storage of a target."""

    def read(self, digest: str) -> bytes: ...
    def write(self, digest: str, data: bytes | None) -> None:
        """Replace the bytes of a digest for all repositories; None: remove them."""
        ...

    def tag(self, repository: str, tag: str, digest: str | None) -> None:
        """Let the tag refer to another existing manifest; None: remove the tag."""
        ...


class RealVictim:
    """A docker-registry. A blob or manifest can be removed from one of its repositories only."""

    def __init__(self, registry: RealRegistry) -> None:
        self._registry = registry

    def read(self, digest: str) -> bytes:
        return self._registry.blob_file(digest).read_bytes()

    def write(self, digest: str, data: bytes | None) -> None:
        path = self._registry.blob_file(digest)
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)

    def unlink(self, repository: str, digest: str, *, manifest: bool) -> None:
        (self._registry.drop_manifest if manifest else self._registry.drop_blob)(repository, digest)

    def tag(self, repository: str, tag: str, digest: str | None) -> None:
        if digest is None:
            self._registry.drop_tag(repository, tag)
        else:
            folder = self._registry.repository_folder(repository) / "_manifests/tags" / tag
            (folder / "current/link").write_text(digest)


class LayoutVictim:
    """A layout. client: of the writable server for it, which has index.json in memory."""

    def __init__(self, folder: Path, client: Client | None = None) -> None:
        self._folder = folder
        self._client = client

    def _file(self, digest: str) -> Path:
        return self._folder / "blobs" / digest.replace(":", "/")

    def read(self, digest: str) -> bytes:
        return self._file(digest).read_bytes()

    def write(self, digest: str, data: bytes | None) -> None:
        if data is None:
            self._file(digest).unlink()
        else:
            self._file(digest).write_bytes(data)

    def tag(self, repository: str, tag: str, digest: str | None) -> None:
        if self._client is None:
            path = self._folder / "index.json"
            path.write_bytes(_retagged(json.loads(path.read_bytes()), repository, tag, digest))
        elif digest is None:
            assert self._client.delete(repository, tag) == 202
        else:
            body = self.read(digest)
            self._client.put_manifest(repository, tag, body, json.loads(body)["mediaType"])


class BundleVictim:
    """An unpacked bundle; `save` writes the tar."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._members: dict[str, bytes] = {}
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                self._members[member.name] = file.read() if file is not None else b""

    @staticmethod
    def _name(digest: str) -> str:
        return f"blobs/{digest.replace(':', '/')}"

    def read(self, digest: str) -> bytes:
        return self._members[self._name(digest)]

    def write(self, digest: str, data: bytes | None) -> None:
        if data is None:
            del self._members[self._name(digest)]
        else:
            self._members[self._name(digest)] = data

    def tag(self, repository: str, tag: str, digest: str | None) -> None:
        """Change the inventory and the index consistently, as an export would."""
        inventory = json.loads(self._members["mirror-inventory.json"])
        tags = inventory["repositories"][repository]["tags"]
        if digest is None:
            del tags[tag]
        else:
            tags[tag] = digest
        self._members["mirror-inventory.json"] = rendered = json.dumps(inventory).encode()
        index = json.loads(self._members["index.json"])
        index["annotations"] = {name: "sha256:" + hashlib.sha256(rendered).hexdigest() for name in index["annotations"]}
        self._members["index.json"] = _retagged(index, repository, tag, digest)

    def save(self, *, share: float = 1.0) -> None:
        """Write the tar. share: the part of the file that is kept."""
        made = BytesIO()
        with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for name, data in self._members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, BytesIO(data))
        data = made.getvalue()
        self._path.write_bytes(data[: round(len(data) * share)])


def _retagged(index: dict[str, Any], repository: str, tag: str, digest: str | None) -> bytes:
    """Return an index.json in which the tag refers to another root of the same index; None if there is none."""
    entries: list[dict[str, Any]] = index["manifests"]
    for entry in list(entries):
        if entry.get("annotations", {}).get(REF_NAME) == f"{repository}:{tag}":
            if digest is None:
                entries.remove(entry)
            else:
                other = next(one for one in entries if one["digest"] == digest)
                entry.update(mediaType=other["mediaType"], digest=digest, size=other["size"])
    return json.dumps(index, indent=1).encode() + b"\n"


# ---- drawing


def damage(victim: Victim, group: Group, chance: random.Random) -> str:
    """Damage one thing of a group. Return a description for messages."""
    graph = group.graph
    kinds: Mapping[str, Sequence[str]] = {
        "blob": sorted(graph.blobs),
        "child": sorted(group.children),
        "root": sorted(set(graph.tags.values())),
    }
    what = chance.choice(["blob", "blob", "blob", "child", "child", "root", "tag"])
    if what == "tag":
        return _damage_tag(victim, group, chance)
    digest = chance.choice(kinds[what])
    ways: list[Callable[[], str]] = [
        lambda: _removed(victim, digest),
        lambda: _replaced(victim, digest, chance.randrange(1, len(victim.read(digest))), "cut"),
        lambda: _replaced(victim, digest, 0, "emptied"),
        lambda: _changed(victim, digest, chance),
        lambda: _swapped(victim, digest, chance.choice([one for one in kinds[what] if one != digest] or [digest])),
    ]
    if isinstance(victim, RealVictim):
        ways += [partial(_unlinked, victim, group, digest, chance, manifest=what != "blob")] * 2
    return f"{what} {chance.choice(ways)()}"


def _damage_tag(victim: Victim, group: Group, chance: random.Random) -> str:
    tag = chance.choice(sorted(group.graph.tags))
    others = sorted(set(group.graph.tags.values()) - {group.graph.tags[tag]})
    digest = chance.choice([None, *others])
    homes = chance.choice([group.repositories, group.repositories[:1], group.repositories[1:]])
    for repository in homes:
        victim.tag(repository, tag, digest)
    return f"tag {tag} of {', '.join(homes)} {'removed' if digest is None else f'swapped for {digest}'}"


def _removed(victim: Victim, digest: str) -> str:
    victim.write(digest, None)
    return f"{digest} removed"


def _replaced(victim: Victim, digest: str, size: int, how: str) -> str:
    victim.write(digest, victim.read(digest)[:size])
    return f"{digest} {how} to {size} bytes"


def _changed(victim: Victim, digest: str, chance: random.Random) -> str:
    data = bytearray(victim.read(digest))
    place = chance.randrange(len(data))
    data[place] ^= 1 << chance.randrange(8)
    victim.write(digest, bytes(data))
    return f"{digest} changed at byte {place}"


def _swapped(victim: Victim, one: str, other: str) -> str:
    first, second = victim.read(one), victim.read(other)
    victim.write(one, second)
    victim.write(other, first)
    return f"{one} swapped with {other}"


def _unlinked(victim: RealVictim, group: Group, digest: str, chance: random.Random, *, manifest: bool) -> str:
    homes = chance.choice([group.repositories, group.repositories[:1], group.repositories[1:]])
    for repository in homes:
        victim.unlink(repository, digest, manifest=manifest)
    return f"{digest} unlinked in {', '.join(homes)}"
