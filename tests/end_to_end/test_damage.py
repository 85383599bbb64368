"""Random damage to targets: `verify` agrees with an independent check, and following its hints repairs everything.

MIRROR_TESTS_DAMAGES sets the number of damages (default: 30), MIRROR_TESTS_SEED the first seed. One round damages four
targets with the same content: a docker-registry, `mirror serve`, a layout and a bundle.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.conftest import RegistryFactory, ScriptedFactory
from tests.registries.client import Client
from tests.registries.real import RealRegistry
from tests.registries.scripted import ScriptedRegistry
from tests.support.damages import BundleVictim, Group, LayoutVictim, RealVictim, Victim, damage
from tests.support.images import Graph
from tests.support.layouts import Served
from tests.support.tool import MirrorTool, Ran
from tests.support.walks import RegistryView, View, Walker, bundle_view, layout_view

KINDS = ("registry", "serve", "layout", "bundle")
GROUPS = 8  # each is damaged once on each target
DAMAGES = int(os.environ.get("MIRROR_TESTS_DAMAGES", "30"))
FIRST = int(os.environ.get("MIRROR_TESTS_SEED", "1"))
ROUNDS = -(-DAMAGES // (GROUPS * len(KINDS)))
MOST_REPAIRS = 4  # runs: one problem of an image may hide others

Images = dict[str, str]  # name on the target -> why the image is incomplete


class World:
    """A source, four targets, and the tool."""

    def __init__(self, folder: Path, source: ScriptedRegistry, registry: RealRegistry, tool: MirrorTool) -> None:
        self._folder, self.source, self.registry, self.tool = folder, source, registry, tool
        self.layout, self.bundle, self.served_folder = folder / "layout", folder / "images.tar", folder / "served"
        self.served = Served(self.served_folder, writable=True)
        self.clients: dict[str, Client] = {}
        self.groups = [self._group(number) for number in range(GROUPS)]

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self.served)
            for kind, registry in (("registry", self.registry), ("serve", self.served)):
                self.clients[kind] = stack.enter_context(registry.client())
            yield

    def _group(self, number: int) -> Group:
        graph = Graph(f"group {number}")
        base = graph.layer("base", 600)
        children = [
            graph.image(platform=one, layers=[base, graph.layer(one, 600)]) for one in ("linux/amd64", "linux/arm64")
        ]
        graph.index("multi", children=children)
        graph.image("single", layers=[base, graph.layer("own", 900)])
        names = (f"group-{number}/one", f"group-{number}/two")
        for name in names:
            self.source.load(name, graph)
        return Group(graph, names)

    def place(self, kind: str, repository: str) -> str:
        """Return a repository of a target as configurations and `verify` write it."""
        places = {
            "registry": f"{self.registry.host}/{repository}",
            "serve": f"{self.served.host}/{repository}",
            "layout": f"oci:{self.layout}:{repository}",
            "bundle": f"{self.bundle}:{repository}",
        }
        return places[kind]

    def config(self, *kinds: str) -> Path:
        mirrors = [
            {"source": f"{self.source.host}/{name}", "targets": [self.place(kind, name) for kind in kinds]}
            for group in self.groups
            for name in group.repositories
        ]
        file = self._folder / f"{'-'.join(kinds)}.yaml"
        plain = {self.served.host: {"plain-http": True}}
        return self.tool.config(mirrors, self.source, self.registry, file=file, registries=plain)

    def victim(self, kind: str) -> Victim:
        makers: dict[str, Callable[[], Victim]] = {
            "registry": lambda: RealVictim(self.registry),
            "serve": lambda: LayoutVictim(self.served_folder, self.clients["serve"]),
            "layout": lambda: LayoutVictim(self.layout),
            "bundle": lambda: BundleVictim(self.bundle),
        }
        return makers[kind]()

    def view(self, kind: str) -> View:
        if kind in self.clients:
            return RegistryView(self.clients[kind])
        return layout_view(self.layout) if kind == "layout" else bundle_view(self.bundle)

    def walked(self, *, hashing: bool) -> Images:
        """Return the problems that the independent check finds."""
        found: Images = {}
        for kind in KINDS:
            walker = Walker(self.view(kind), hashing=hashing)
            for group in self.groups:
                for name in group.repositories:
                    for tag, digest in group.graph.tags.items():
                        problems = walker.problems(name, tag, digest)
                        if problems:
                            found[f"{self.place(kind, name)}:{tag}"] = "; ".join(problems)
        return found

    def verified(self, *options: str) -> tuple[Ran, Images]:
        """Return the problems that `verify` finds."""
        ran, problems = self.tool.verify(*options, file=self.config(*KINDS))
        return ran, dict(problems)

    def repair(self, kind: str, found: Images) -> None:
        """Follow the hints of the messages for one target."""
        if any("remove that file" in text for text in found.values()):
            self.bundle.unlink()
        by_command: dict[str, list[str]] = {}
        for name, text in found.items():
            said = re.search(r"run `mirror sync( --\w+)? [^`]+`", text)
            assert said, f"no remedy: {text}"
            by_command.setdefault((said[1] or "").strip(), []).append(name)
        for option in sorted(by_command):
            only = [part for name in by_command[option] for part in ("--only", self._source_of(kind, name))]
            if kind == "bundle":  # a bundle is always made of all selected images
                only = []
            ran = self.tool("sync", self.config(kind), *([option] if option else []), *only)
            kept = re.findall(r"docker/registry/v2/blobs/\w+/\w\w/\w+/data", ran.text)
            assert kept or ran.code == 0 or "`mirror sync --repair " in ran.text, f"the remedy does not work: {ran}"
            for file in set(kept):
                (self.registry.storage / file).unlink()
            if kept:
                self.tool("sync", self.config(kind), "--repair", *only)

    def _source_of(self, kind: str, name: str) -> str:
        return f"{self.source.host}/{name.removeprefix(self.place(kind, ''))}"


@pytest.mark.parametrize("number", range(ROUNDS))
def test_verify_agrees_with_an_independent_check_and_its_hints_work(
    number: int,
    scripted: ScriptedFactory,
    registry_factory: RegistryFactory,
    mirror_run: MirrorTool,
    tmp_path: Path,
) -> None:
    chance = random.Random(seed := FIRST + number)
    left = min(DAMAGES - number * GROUPS * len(KINDS), GROUPS * len(KINDS))
    world = World(tmp_path, scripted("source"), registry_factory("registry"), mirror_run)
    with world.running():
        assert 0 == mirror_run("sync", world.config(*KINDS)).code
        assert {} == world.walked(hashing=True)
        done = []
        for kind in KINDS:
            victim = world.victim(kind)
            share = left // len(KINDS) + (KINDS.index(kind) < left % len(KINDS))
            done += [f"{kind}: {damage(victim, group, chance)}" for group in world.groups[:share]]
            if isinstance(victim, BundleVictim):
                victim.save(share=chance.choice((1.0, 1.0, 1.0, 0.6)))
        context = "\n".join([f"MIRROR_TESTS_SEED={seed}", *done])
        for option, hashing in (((), False), (("--deep",), True)):
            walked = world.walked(hashing=hashing)
            ran, found = world.verified(*option)
            assert walked.keys() == found.keys(), f"{context}\n{_difference(walked, found)}\n{ran}"
            assert bool(found) == (ran.code != 0), f"{context}\n{ran}"
        assert found, context
        for _ in range(MOST_REPAIRS):
            for kind in KINDS:
                mine = {name: text for name, text in found.items() if name.startswith(world.place(kind, ""))}
                if mine:
                    world.repair(kind, mine)
            ran, found = world.verified("--deep")
            if not found:
                break
        assert {} == world.walked(hashing=True), f"{context}\n{ran}"
        assert 0 == ran.code, f"{context}\n{ran}"


def _difference(walked: Images, found: Images) -> str:
    missed = {name: walked[name] for name in walked.keys() - found.keys()}
    invented = {name: found[name] for name in found.keys() - walked.keys()}
    return f"only the walk finds: {missed}\nonly verify finds: {invented}"
