"""`mirror prune` in random worlds: `make test-prune`. Selected tags and those that someone else changed stay.

Each world has 25 repositories with images, indexes, shared manifests and signatures. Between the steps, tags are
deleted at the source, and someone else writes to the target: other images, indexes over copied manifests, further tags.
"""

from __future__ import annotations

import json
import random

import pytest

from tests.conftest import ScriptedFactory
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph, Made, tag_of
from tests.support.oracle import snapshot
from tests.support.prune_scenarios import SIGNATURE, small_image
from tests.support.tool import MirrorTool

WORLDS = 40
REPOSITORIES = 25


class World:
    """A source and a target. foreign: the tags that someone else wrote last, each with its digest."""

    def __init__(self, seed: int, source: ScriptedRegistry, target: ScriptedRegistry) -> None:
        self.draw = random.Random(seed)
        self.source, self.target = source, target
        self.foreign: dict[tuple[str, str], str] = {}
        self.graphs = {name: self._make_graph(f"{seed} {name}") for name in map("r{}".format, range(REPOSITORIES))}
        for name, graph in self.graphs.items():
            source.load(name, graph)

    def _make_graph(self, seed: str) -> Graph:
        graph, made = Graph(seed), list[Made]()
        for number in range(self.draw.randint(2, 6)):
            tag, kind = f"t{number}", self.draw.random()
            if not made or kind < 0.6:
                made.append(small_image(graph, tag))
                if kind < 0.15:
                    graph.artifact(kind=SIGNATURE, texts=[tag.encode()], subject=made[-1])
                    graph.image(f"{tag_of(made[-1])}.sig", layers=[graph.layer(tag, 50)], label=tag)
            elif kind < 0.8:
                made.append(graph.index(tag, children=self.draw.sample(made, self.draw.randint(1, len(made)))))
            else:
                graph.tag(self.draw.choice(made).digest, tag)
        return graph

    def delete_at_source(self) -> None:
        """Delete a third of the tags, but not the last one of a repository."""
        for name in self.graphs:
            tags = self.source.create(name).tags
            for tag in list(tags):
                if len(tags) > 1 and self.draw.random() < 0.35:
                    del tags[tag]

    def change_target(self, share: float) -> None:
        """Write foreign tags. share: the probability of each further tag."""
        for name, graph in self.graphs.items():
            while self.draw.random() < share:
                self._write_foreign(
                    name, self.draw.choice(["f1", "f2", *(tag for tag in graph.tags if "-" not in tag)])
                )

    def _write_foreign(self, name: str, tag: str) -> None:
        home, kind = self.target.create(name), self.draw.random()
        digests = self.draw.sample(sorted(home.manifests), min(2, len(home.manifests)))
        graph = Graph(f"foreign {name} {self.draw.random()}")
        if kind < 0.4:
            graph.tag(digests[0], tag)
        elif kind < 0.7:
            parts = [(home.manifests[digest], digest) for digest in digests]
            graph.index(tag, children=[Made(body.media_type, digest, len(body.data)) for body, digest in parts])
        else:
            small_image(graph, tag)
        self.target.load(name, graph)
        self.foreign[name, tag] = graph.tags[tag]

    def check_signatures(self, name: str) -> None:
        """Check that each image that a tag leads to still has its referrers."""
        home = self.target.create(name)
        used, todo = set[str](), [digest for tag, digest in home.tags.items() if "-" not in tag]
        while todo:
            used.add(digest := todo.pop())
            todo += [child["digest"] for child in json.loads(home.manifests[digest].data).get("manifests", [])]
        for digest, body in self.graphs[name].manifests.items():
            subject = json.loads(body.data).get("subject")
            assert subject is None or subject["digest"] not in used or digest in home.manifests, (name, digest)


@pytest.mark.parametrize("seed", range(WORLDS))
def test_nothing_is_deleted_that_is_selected_or_that_someone_else_changed(
    seed: int, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source = scripted("source", referrers=True)
    target = scripted("target", tag_delete=bool(seed & 1), referrers=bool(seed & 2))
    world, plan = World(seed, source, target), mirror_run.folder / "plan.json"
    mirrors = [{"source": f"{source.host}/{name}", "targets": [f"{target.host}/{name}"]} for name in world.graphs]
    config = mirror_run.config(mirrors, source, target)
    mirror_run.sync()
    written = snapshot(target, world.graphs).tags
    world.delete_at_source()
    world.change_target(0.4)
    ran = mirror_run("prune", config, "--plan", plan)
    assert 0 == ran.code, ran
    world.change_target(0.25)
    before = snapshot(target, world.graphs)
    ran = mirror_run("prune", config, "--apply", plan, "--max-delete", "100")
    assert ran.code in (0, 1), ran
    after = snapshot(target, world.graphs)
    assert [] == before.problems + after.problems
    assert after.tags.items() <= before.tags.items()
    lost = before.tags.keys() - after.tags.keys()
    assert lost
    for name, tag in lost:
        assert written.get((name, tag)) == before.tags[name, tag] == world.foreign.get((name, tag), written[name, tag])
        assert tag not in source.create(name).tags
    for name in world.graphs:
        world.check_signatures(name)
