"""Compares the content of a scenario's targets with that of its sources. Trusts nothing that the tool reports."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.oracle import Snapshot, Tag, snapshot
from tests.support.walks import Walker, disk_view
from tests.support.worlds.world import Entry, SourceRepository, TargetPlace, World

Where = tuple[str, str]  # kind of the store, and its host or path


@dataclass(frozen=True)
class Wanted:
    """A tag that a mirror should copy. digest: None if a v1 image is converted; then diff_ids identifies it."""

    where: Where
    tag: Tag
    digest: str | None
    source: SourceRepository
    immutable: bool


class Judge:
    """The judge; it has the state of each target at the last check."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen: dict[Where, Snapshot] = {}
        self._had: defaultdict[tuple[Where, Tag], set[str]] = defaultdict(set)
        self._made: dict[tuple[Where, Tag], tuple[list[str], str]] = {}
        self.look()

    # ---- what is wanted, what is there

    def wanted(self) -> list[Wanted]:
        """Return all tags that the mirrors select now."""
        return [one for entry in self._world.entries for one in _wanted(entry)]

    def look(self) -> dict[Where, Snapshot]:
        """Walk every target. No tag may be broken at any time. Return the content of the targets."""
        found: dict[Where, Snapshot] = {}
        for where, place in self._places().items():
            if place.registry is not None:
                assert place.registry.journal.wait_idle()
                found[where] = snapshot(place.registry)
            elif place.path is not None:
                found[where] = _snapshot_of(place.path)
            assert not found[where].problems, f"I1: {where}: {found[where].problems[:5]}"
        self._seen = found
        return found

    def _places(self) -> dict[Where, TargetPlace]:
        return {_where(place): place for entry in self._world.entries for place in entry.targets}

    # ---- verdicts

    def after_run(self, code: int) -> None:
        """Check I1 to I3 after a run, however it ended, and equality if it reported success."""
        before = self._seen
        after = self.look()
        wanted = self.wanted()
        for one in wanted:
            if one.digest:
                self._had[one.where, one.tag].add(one.digest)
        for where, old in before.items():
            self._nothing_lost(where, old, after[where], wanted)
        self._from_the_source(before, after, wanted)
        if code == 0:
            assert [] == list(self.differences(after, wanted)), f"exit {code}, but the targets differ"

    def _nothing_lost(self, where: Where, old: Snapshot, new: Snapshot, wanted: list[Wanted]) -> None:
        """Check I3. A bundle is written anew, so it may lose tags that no mirror selects any more."""
        gone = set(old.tags) - set(new.tags)
        if where[0] == "bundle":
            gone &= {one.tag for one in wanted if one.where == where}
        assert not gone, f"I3: {where} lost {sorted(gone)}"
        for one in wanted:
            if one.where == where and one.immutable and one.tag in old.tags and where[0] != "bundle":
                assert old.tags[one.tag] == new.tags[one.tag], f"{where}: the immutable tag {one.tag} was overwritten"

    def _from_the_source(
        self, before: dict[Where, Snapshot], after: dict[Where, Snapshot], wanted: list[Wanted]
    ) -> None:
        """Check I2: each tag is what it was before the run, or what the source has."""
        now = {(one.where, one.tag): one for one in wanted}
        for where, taken in after.items():
            for tag, digest in taken.tags.items():
                one = now.get((where, tag))
                if digest == before[where].tags.get(tag) or (one is not None and one.digest == digest):
                    continue
                converted = one is not None and one.digest is None
                assert converted, f"I2: {where} {tag} is {digest}, neither the old digest nor the source's"

    def differences(self, after: dict[Where, Snapshot], wanted: list[Wanted]) -> Iterator[str]:
        """Return the tags that differ from their source, except moved immutable tags, which keep a bundle unchanged."""
        frozen = {one.where for one in wanted if one.where[0] == "bundle" and _is_conflict(one, after)}
        for one in [one for one in wanted if one.where not in frozen]:
            digest = after[one.where].tags.get(one.tag)
            name = f"{one.where} {one.tag}"
            if digest is None:
                yield f"{name} is missing"
            elif one.digest is None:
                yield from self._converted(one, digest, name)
            elif digest != one.digest and not (one.immutable and digest in self._had[one.where, one.tag]):
                yield f"{name} is {digest}, the source has {one.digest}"

    def _converted(self, one: Wanted, digest: str, name: str) -> Iterator[str]:
        """Check a converted image: it has the layers of its ancestry, and the same digest as long as its v1 image is
        the same."""
        place = self._places()[one.where]
        document = _config(place, one.tag[0], digest)
        expected = one.source.diff_ids(one.tag[1])
        if one.immutable and self._made.get((one.where, one.tag), (expected,))[0] != expected:
            return
        if document["rootfs"]["diff_ids"] != expected:
            yield f"{name} has other layers than the image of the source"
        layers, made = self._made.setdefault((one.where, one.tag), (expected, digest))
        if layers == expected and made != digest:
            yield f"{name} was converted to {made} and now to {digest}"
        self._made[one.where, one.tag] = (expected, digest)


def _is_conflict(one: Wanted, after: dict[Where, Snapshot]) -> bool:
    return one.immutable and after[one.where].tags.get(one.tag) not in (None, one.digest)


def _snapshot_of(path: Path) -> Snapshot:
    view = disk_view(path)
    taken, walker = Snapshot(tags=view.tags()), Walker(view, hashing=True)
    for (repository, tag), digest in taken.tags.items():
        taken.problems += walker.problems(repository, tag, digest)
    return taken


def _where(place: TargetPlace) -> Where:
    return place.kind, place.registry.host if place.registry else str(place.path)


def _wanted(entry: Entry) -> Iterator[Wanted]:
    for source in entry.sources:
        matched = source.name.rpartition("/")[2]
        for place in entry.targets:
            name = place.repository.replace("*", matched)
            for tag, what in source.tags.items():
                if entry.selects(tag):
                    digest = None if source.kind == "v1" else what
                    yield Wanted(_where(place), (name, tag), digest, source, entry.is_immutable(tag))


def _config(place: TargetPlace, repository: str, digest: str) -> dict[str, Any]:
    """Return the config of an image on a target."""
    if place.registry is not None:
        with place.registry.client() as client:
            manifest = json.loads(client.manifest(repository, digest).body)
            body: bytes | None = client.blob(repository, manifest["config"]["digest"]).body
    else:
        assert place.path is not None
        view = disk_view(place.path)
        manifest = json.loads(view.manifest(repository, digest) or b"")
        body = view.blob(repository, manifest["config"]["digest"])
    document: dict[str, Any] = json.loads(body or b"")
    return document
