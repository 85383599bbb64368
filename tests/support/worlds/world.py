"""A random scenario made from a seed: sources and targets of every kind, mirrors between them, and changes.

It records what each source holds at any time, and never asks the tool.
"""

from __future__ import annotations

import gzip
import random
import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.registries.client import sha256
from tests.registries.scripted import ScriptedRegistry
from tests.registries.v1 import V1, gz, no_v2, tar
from tests.registries.weather import Weather
from tests.support.images import Graph, Made
from tests.support.layouts import lay, pack

SHARE = 0.06  # fraction of the requests that get a fault
TAGS = ("v0", "v1", "v2", "v3", "edge", "latest")


@dataclass(eq=False)
class SourceRepository:
    """kind: registry, mixed (v1 as well), v1, layout, bundle. reference: as a configuration writes it."""

    kind: str
    name: str
    reference: str
    registry: ScriptedRegistry | None = None
    path: Path | None = None
    graph: Graph = field(default_factory=Graph)
    made: int = 0
    past: list[tuple[str, str]] = field(default_factory=list)  # (tag, what it referred to before)

    @property
    def tags(self) -> dict[str, str]:
        """Return tag -> digest; for v1: tag -> image id."""
        return self.v1.tags[self.name] if self.kind == "v1" and self.v1 else self.graph.tags

    @property
    def v1(self) -> V1 | None:
        return self.registry.v1 if self.registry else None

    def diff_ids(self, tag: str) -> list[str]:
        """Return the diff IDs of a v1 image, the base first."""
        assert self.v1 is not None
        image_id, found = self.tags[tag], list[str]()
        while image_id:
            image = self.v1.images[image_id]
            found.insert(0, sha256(gzip.decompress(image.layer)))
            image_id = image.parent or ""
        return found


@dataclass(frozen=True)
class TargetPlace:
    """The target of a mirror. kind: registry, layout, bundle. repository: `*` stands for what a wildcard matched."""

    kind: str
    repository: str
    reference: str
    registry: ScriptedRegistry | None = None
    path: Path | None = None


@dataclass(frozen=True)
class Entry:
    """One mirror of the configuration. sources: one, or all that the wildcard matches."""

    sources: tuple[SourceRepository, ...]
    targets: tuple[TargetPlace, ...]
    reference: str
    tags: Any
    extra: dict[str, Any]

    def selects(self, tag: str) -> bool:
        if isinstance(self.tags, list):
            return tag in self.tags
        include = self.tags.get("include") if self.tags else None
        return include is None or any(re.fullmatch(one, tag) for one in include)

    def is_immutable(self, tag: str) -> bool:
        patterns = self.tags.get("immutable", ()) if isinstance(self.tags, dict) else ()
        return any(re.fullmatch(one, tag) for one in patterns)

    def document(self) -> dict[str, Any]:
        keys = {"tags": self.tags} if self.tags else {}
        return {"source": self.reference, "targets": [one.reference for one in self.targets], **keys, **self.extra}


class World:
    """The scenario. Use with `with`. registries: all that listen; weather: the faults of each."""

    def __init__(self, seed: str, folder: Path) -> None:
        self.chance = random.Random(seed)
        self.seed = seed
        self.folder = folder
        self._stack = ExitStack()
        self.registries: list[ScriptedRegistry] = []
        self.weather: dict[ScriptedRegistry, Weather] = {}
        self.entries: list[Entry] = []
        self.settings: dict[str, dict[str, Any]] = {}
        self._repositories: list[SourceRepository] = []

    def __enter__(self) -> World:
        with ExitStack() as stack:
            self._stack = stack
            self._build()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def is_mixed(self) -> bool:
        """Whether a source has other images by v1; then a false 404 of a listing is accepted until v2 has answered."""
        return any(one.kind == "mixed" for one in self._repositories)

    # ---- building

    def _build(self) -> None:
        hosts = [self._open(f"target-{number}", target=True) for number in range(self.chance.randint(1, 2))]
        source = self._open("source")
        disk = self.chance.choice(("", "", "layout", "bundle"))  # at most one target is a store on disk
        for number in range(self.chance.randint(1, 3)):
            self.entries.append(self._entry(number, source, hosts, disk))

    def _open(self, name: str, *, target: bool = False) -> ScriptedRegistry:
        chance = self.chance
        features: dict[str, Any] = {
            "content_digest": chance.random() < 0.9,
            "api_version": chance.random() < 0.9,
            "page": chance.choice((None, None, 2, 3)),
            "referrers": chance.random() < 0.3,
        }
        if target:
            features |= {
                "checks_references": chance.random() < 0.6,
                "mounts": chance.random() < 0.7,
                "empty_is_unknown": chance.random() < 0.5,
                "ranges": chance.random() < 0.5,
            }
        registry = self._stack.enter_context(ScriptedRegistry(name, **features))
        weather = Weather(f"{self.seed} {name}", SHARE)
        registry.faults = self.weather[registry] = weather
        self.registries.append(registry)
        self.settings[registry.host] = {"plain-http": True}
        if target and chance.random() < 0.3:
            self.settings[registry.host]["exclusive"] = True
        return registry

    def _entry(self, number: int, source: ScriptedRegistry, hosts: list[ScriptedRegistry], disk: str) -> Entry:
        chance = self.chance
        kind = chance.choice(("registry", "registry", "registry", "wildcard", "mixed", "v1", "layout", "bundle"))
        extra: dict[str, Any] = {}
        if kind == "wildcard":
            sources = [self._source("registry", source, f"team{number}/{name}") for name in ("a", "b")]
            reference, name = f"{source.host}/team{number}/*", f"copy{number}/*"
        else:
            home = self._open(f"source-{number}") if kind in ("mixed", "v1") else source
            sources = [self._source(kind, home, f"app{number}")]
            reference, name = sources[0].reference, f"copy{number}"
            extra = {"v1": chance.choice(("auto", "only"))} if kind == "v1" else {}
        targets = [
            TargetPlace("registry", name, f"{host.host}/{name}", registry=host)
            for host in chance.sample(hosts, chance.randint(1, len(hosts)))
        ]
        if disk and kind not in ("layout", "bundle") and chance.random() < 0.6:
            path = self.folder / ("export" if disk == "layout" else "export.tar")
            written = name.replace("*", "{repository}")
            prefix = "oci:" if disk == "layout" else ""
            targets.append(TargetPlace(disk, name, f"{prefix}{path}:{written}", path=path))
        return Entry(tuple(sources), tuple(targets), reference, self._selection(), extra)

    def _selection(self) -> Any:
        return self.chance.choice(
            (None, None, ["v0", "latest"], {"include": [r"v\d"]}, {"immutable": [r"v\d"]}, {"immutable": [r"v0"]})
        )

    def _source(self, kind: str, registry: ScriptedRegistry, name: str) -> SourceRepository:
        path = self.folder / f"{name}{'.tar' if kind == 'bundle' else ''}"
        if kind in ("layout", "bundle"):
            one = SourceRepository(kind, name, f"{'oci:' if kind == 'layout' else ''}{path}:{name}", path=path)
        else:
            one = SourceRepository(kind, name, f"{registry.host}/{name}", registry=registry)
        one.graph = Graph(f"{self.seed} {name}")
        if kind == "v1":
            registry.v1, registry.hook = V1(), no_v2
            registry.v1.tags[name] = {}
        if kind == "mixed":
            registry.v1 = V1()
            registry.features.api_version = True
            old = registry.v1.image(gz(tar(file=b"old")), seed=name)
            registry.v1.tags[name] = dict.fromkeys((*TAGS, "ancient"), old)
        for tag in ("v0", "latest", *self.chance.sample(("v1", "v2", "edge"), self.chance.randint(0, 2))):
            self._tag(one, tag)
        self._repositories.append(one)
        self._publish(one)
        return one

    # ---- what happens at the sources

    def change(self) -> None:
        """Add new tags, move tags, move tags back, delete tags."""
        for one in self._repositories:
            for _ in range(self.chance.randint(0, 3)):
                what = self.chance.choice(("tag", "tag", "again", "back", "delete"))
                if what == "tag":
                    self._tag(one, self.chance.choice(TAGS))
                elif what == "again":
                    old = self.chance.choice(sorted(one.tags))
                    self._name(one, self.chance.choice(TAGS), one.tags[old])
                elif what == "back" and one.past:
                    self._name(one, *self.chance.choice(one.past))
                elif what == "delete":
                    gone = [tag for tag in one.tags if tag not in ("v0", "latest")]
                    if gone:
                        del one.tags[self.chance.choice(gone)]
            self._publish(one)

    def _tag(self, one: SourceRepository, tag: str) -> None:
        one.made += 1
        if one.kind == "v1":
            assert one.v1 is not None
            base = one.v1.image(gz(tar(base=b"base")), seed=f"{one.name} base")
            own = f"{one.name} {one.made}".encode()
            self._name(one, tag, one.v1.image(gz(tar(file=own)), base, seed=f"{one.name} {one.made}"))
            return
        self._name(one, tag, self._image(one.graph, one.made).digest)

    def _image(self, graph: Graph, number: int) -> Made:
        chance, label = self.chance, f"image {number}"
        if chance.random() < 0.1:
            return graph.artifact(texts=[label.encode(), b"text"])
        shared = [graph.blob(f"shared by all, {part}".encode() * 300) for part in chance.sample(range(3), 2)]
        layers = [*shared, graph.layer(label, chance.choice((200, 3000, 30_000)))]
        kind = chance.randrange(5)
        if kind < 3:
            return graph.image(layers=layers, label=label, oci=kind > 0)
        children = [graph.image(layers=layers[part:], label=f"{label} {part}") for part in (0, 1)]
        return graph.index(children=children if kind == 3 else [graph.index(children=children), children[0]])

    @staticmethod
    def _name(one: SourceRepository, tag: str, what: str) -> None:
        if tag in one.tags:
            one.past.append((tag, one.tags[tag]))
        one.tags[tag] = what

    @staticmethod
    def _publish(one: SourceRepository) -> None:
        """Write the graph's content to the store."""
        if one.kind in ("registry", "mixed"):
            assert one.registry is not None
            home = one.registry.load(one.name, one.graph)
            for tag in set(home.tags) - set(one.graph.tags):
                del home.tags[tag]
        elif one.path is not None:
            if one.path.is_dir():
                shutil.rmtree(one.path)
            one.path.unlink(missing_ok=True)
            (lay if one.kind == "layout" else pack)(one.path, **{one.name: one.graph})
