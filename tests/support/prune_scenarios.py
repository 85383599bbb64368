"""Scenarios of a prune: one repository for each, in one pair of registries, so that a few runs serve all of them.

The order of events: the first sync; `change` at the source and on the target; the second sync, with the mirrors of
`after`; `later` on the target; the plan; `meanwhile`; and the plan is applied. The walk of the target afterwards may
lack only the tags in `deleted`, and what nothing but these tags leads to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.registries.exchange import Reply, json_reply
from tests.registries.scripted import ScriptedRegistry
from tests.registries.storage import Repository
from tests.support.images import Graph, Made, tag_of

Mirror = dict[str, Any]
SIGNATURE = "application/vnd.cncf.notary.signature"


class Scene:
    """The repositories of one scenario: at the source, and on the target, each with the name of the scenario."""

    def __init__(self, name: str, source: ScriptedRegistry, target: ScriptedRegistry) -> None:
        self.name, self.source, self.target = name, source, target
        self.graph = Graph(name)
        self.foreign_digests: set[str] = set()

    @property
    def here(self) -> Repository:
        return self.source.create(self.name)

    @property
    def there(self) -> Repository:
        return self.target.create(self.name)

    def image(self, *tags: str) -> Made:
        """Make an image at the source."""
        made = small_image(self.graph, *tags)
        self.source.load(self.name, self.graph)
        return made

    def foreign(self, tag: str, *, children: Sequence[Made] = (), subject: Made | None = None) -> Made:
        """Make an image, or an index with these children, on the target, as someone else would."""
        graph = Graph(f"foreign {self.name} {tag}")
        if children:
            made = graph.index(tag, children=children)
        elif subject is not None:
            made = graph.artifact(kind=SIGNATURE, texts=[b"someone else's"], subject=subject)
        else:
            made = small_image(graph, tag)
        self.target.load(self.name, graph)
        self.foreign_digests.add(made.digest)
        return made

    def remove(self, *tags: str) -> None:
        """Delete tags at the source."""
        for tag in tags:
            del self.here.tags[tag]

    def mirror(self, **keys: Any) -> Mirror:
        return {"source": f"{self.source.host}/{self.name}", "targets": [f"{self.target.host}/{self.name}"], **keys}

    def answer(self, registry: ScriptedRegistry, kind: str, reply: Reply) -> None:
        """Let a registry answer requests of one kind for this repository with a fixed reply."""
        registry.fault(kind, repository=self.name, times=float("inf"), hook=lambda request: reply)


def small_image(graph: Graph, *tags: str, label: str = "") -> Made:
    """Make an artifact, because that takes fewer requests than an image. Its content depends on the tags and label."""
    return graph.artifact(*tags, texts=[f"{graph.seed} {label} {tags}".encode()])


Step = Callable[[Scene], object]
Mirrors = Callable[[Scene], list[Mirror]]


def nothing(scene: Scene) -> None:
    """Do nothing."""


def one_mirror(scene: Scene) -> list[Mirror]:
    return [scene.mirror()]


def rules(**tags: Any) -> Mirrors:
    return lambda scene: [scene.mirror(tags=tags)]


@dataclass(frozen=True, slots=True)
class Scenario:
    """prepare: makes the images; by default, `a` and `b`. deleted: the tags that are deleted. by_digest: those on a
    registry that deletes no tag by its name, if they differ. planned: the tags in the plan, if they differ from
    `deleted`. reason: a part of what is printed, if something is kept. attachments: the number of referrers and of tags
    of cosign that are deleted."""

    change: Step = nothing
    prepare: Step = lambda scene: (scene.image("a"), scene.image("b"))
    before: Mirrors = one_mirror
    after: Mirrors | None = None
    later: Step = nothing
    meanwhile: Step = nothing
    deleted: Sequence[str] = ()
    by_digest: Sequence[str] | None = None
    planned: Sequence[str] | None = None
    reason: str = ""
    attachments: int = 0

    @property
    def depends_on_registry(self) -> bool:
        """Whether it matters how the registry deletes a tag."""
        return self.by_digest is not None or self.attachments > 0 or len(self.deleted) > 1

    def expected(self, *, by_name: bool) -> Sequence[str]:
        return self.deleted if by_name or self.by_digest is None else self.by_digest


def remove_b(scene: Scene) -> None:
    scene.remove("b")


def share(scene: Scene) -> None:
    """Let `b` share its manifest with the selected tag `same`."""
    scene.image("a")
    made = scene.image("b")
    scene.graph.tag(made.digest, "same")
    scene.source.load(scene.name, scene.graph)


def point(registry: ScriptedRegistry, repository: str, tag: str, to: str) -> None:
    home = registry.create(repository)
    home.tags[tag] = home.tags[to]


def hide_second_page(scene: Scene) -> None:
    """Let the list at the source lack `b`, although the source has it."""
    scene.answer(scene.source, "GET tags", json_reply(200, {"name": scene.name, "tags": ["a"]}))


def deny(kind: str) -> Step:
    """Let the source answer requests of one kind with 403."""
    return lambda scene: scene.answer(scene.source, kind, json_reply(403, {"errors": [{"code": "DENIED"}]}))


def deny_at_target(kind: str) -> Step:
    return lambda scene: scene.answer(scene.target, kind, json_reply(403, {"errors": [{"code": "DENIED"}]}))


def sign(scene: Scene) -> None:
    """Make `b`, an index with a signature of cosign, a referrer, a signature of that, and one of a platform."""
    graph = scene.graph
    scene.image("a")
    children = [graph.image(platform=platform, size=100, label="b") for platform in ("linux/amd64", "linux/arm64")]
    made = graph.index("b", children=children)
    graph.signature(made)
    sbom = graph.artifact(kind="application/spdx+json", texts=[b"sbom"], subject=made)
    graph.artifact(kind=SIGNATURE, texts=[b"of the sbom"], subject=sbom)
    graph.artifact(kind=SIGNATURE, texts=[b"of a platform"], subject=children[0])
    scene.source.load(scene.name, graph)


def signed_b(scene: Scene) -> Made:
    digest = scene.graph.tags["b"]
    return Made(scene.graph.manifests[digest].media_type, digest, len(scene.graph.manifests[digest].data))


def remove_signed(scene: Scene) -> None:
    """Delete `b` and cosign's tag at the source."""
    scene.remove("b", f"{tag_of(signed_b(scene))}.sig")


def two_mirrors(scene: Scene) -> list[Mirror]:
    """Two sources for one repository of the target, with different endings of the tags."""
    other = f"{scene.name}-other"
    return [
        {**scene.mirror(), "targets": [f"{scene.target.host}/{scene.name}:{{tag}}-first"]},
        {"source": f"{scene.source.host}/{other}", "targets": [f"{scene.target.host}/{scene.name}:{{tag}}-other"]},
    ]


def prepare_two(scene: Scene) -> None:
    scene.image("a")
    scene.image("b")
    graph = Graph(f"other {scene.name}")
    for tag in ("a", "b"):
        small_image(graph, tag)
    scene.source.load(f"{scene.name}-other", graph)


def remove_second_source(scene: Scene) -> None:
    """Delete `b` at the first source, and the whole second source."""
    scene.remove("b")
    del scene.source.storage.repositories[f"{scene.name}-other"]


def rename_at_source(scene: Scene) -> None:
    """Give the image `b` another tag."""
    point(scene.source, scene.name, "same", "b")
    scene.remove("b")


def wildcard(scene: Scene) -> list[Mirror]:
    return [
        {
            "source": f"{scene.source.host}/{scene.name}/*",
            "targets": [f"{scene.target.host}/{scene.name}/{{repository}}"],
        }
    ]


def prepare_wildcard(scene: Scene) -> None:
    for name in ("one", "two"):
        graph = Graph(f"{scene.name} {name}")
        for tag in ("a", "b"):
            small_image(graph, tag)
        scene.source.load(f"{scene.name}/{name}", graph)


def remove_from_two(scene: Scene) -> None:
    """Delete one tag of the first repository, and the second repository."""
    del scene.source.create(f"{scene.name}/one").tags["b"]
    del scene.source.storage.repositories[f"{scene.name}/two"]


def move_at_source(scene: Scene) -> None:
    small_image(scene.graph, "b", label="moved")
    scene.source.load(scene.name, scene.graph)


SCENARIOS = {
    "deleted-at-the-source": Scenario(remove_b, deleted="b"),
    "left-out-by-include": Scenario(after=rules(include=["a"]), deleted="b"),
    "left-out-by-newest": Scenario(
        prepare=lambda scene: (scene.image("1"), scene.image("2")), after=rules(newest=1), deleted="1"
    ),
    "no-longer-in-the-list-of-tags": Scenario(
        before=lambda scene: [scene.mirror(tags=["a", "b"])],
        after=lambda scene: [scene.mirror(tags=["a"])],
        deleted="b",
    ),
    "shared-with-a-selected-tag": Scenario(
        remove_b, prepare=share, deleted="b", by_digest="", planned="b", reason="by the tag same"
    ),
    "shared-with-a-foreign-tag": Scenario(
        remove_b,
        later=lambda scene: point(scene.target, scene.name, "theirs", "b"),
        deleted="b",
        by_digest="",
        planned="b",
        reason="by the tag theirs",
    ),
    "shared-with-a-tag-that-appears-after-the-plan": Scenario(
        remove_b,
        meanwhile=lambda scene: point(scene.target, scene.name, "theirs", "b"),
        deleted="b",
        by_digest="",
        planned="b",
        reason="by the tag theirs",
    ),
    "in-a-foreign-index": Scenario(
        remove_b,
        later=lambda scene: scene.foreign("theirs", children=[small_image(scene.graph, "b")]),
        deleted="b",
        by_digest="",
        planned="b",
        reason="by an index",
    ),
    "two-deleted-tags-share-a-manifest": Scenario(
        lambda scene: scene.remove("b", "same"), prepare=share, deleted=("b", "same")
    ),
    "moved-on-the-target-before-the-plan": Scenario(
        remove_b, later=lambda scene: scene.foreign("b"), reason="someone else changed the tag"
    ),
    "moved-on-the-target-after-the-plan": Scenario(
        remove_b, meanwhile=lambda scene: scene.foreign("b"), planned="b", reason="someone else changed the tag"
    ),
    "foreign-tags": Scenario(remove_b, later=lambda scene: scene.foreign("theirs"), deleted="b"),
    "foreign-tag-equal-to-a-selected-one": Scenario(
        # The target has the image before the first sync: it is not written, so it is not ours.
        remove_b,
        prepare=lambda scene: (scene.image("a"), scene.image("b"), scene.target.load(scene.name, scene.graph)),
    ),
    "immutable": Scenario(remove_b, after=rules(immutable=["b"]), reason="the tag is `immutable`"),
    "partial-list-of-the-source": Scenario(later=hide_second_page, reason="is incomplete: it lacks `b`"),
    "list-of-the-source-denied": Scenario(remove_b, later=deny("GET tags"), reason="403"),
    "deleted-tag-not-confirmed-by-the-source": Scenario(remove_b, later=deny("HEAD manifest"), reason="403"),
    "source-without-tags": Scenario(
        later=lambda scene: scene.answer(scene.source, "GET tags", json_reply(200, {"name": "x", "tags": []})),
        reason="lists no tags",
    ),
    "source-without-a-list": Scenario(
        later=lambda scene: scene.answer(scene.source, "GET tags", json_reply(200, {"name": "x", "tags": None})),
        reason="lists no tags",
    ),
    "source-does-not-exist-any-more": Scenario(
        lambda scene: scene.source.storage.repositories.pop(scene.name), reason="was not found"
    ),
    "list-of-the-target-denied": Scenario(remove_b, later=deny_at_target("GET tags"), reason="403"),
    "partial-list-of-the-target": Scenario(
        remove_b,
        later=lambda scene: scene.answer(
            scene.target, "GET tags", json_reply(200, {"name": scene.name, "tags": ["b"]})
        ),
        reason="is incomplete: it lacks `a`",
    ),
    "renamed-by-a-template": Scenario(
        after=lambda scene: [{**scene.mirror(), "targets": [f"{scene.target.host}/{scene.name}:{{tag}}-new"]}],
        deleted=("a", "b"),
        by_digest="",
        planned=("a", "b"),
        reason="by the tag b-new",
    ),
    "renamed-before-the-next-sync": Scenario(
        after=lambda scene: [{**scene.mirror(), "targets": [f"{scene.target.host}/{scene.name}:{{tag}}-new"]}],
        later=lambda scene: [scene.there.tags.pop(tag) for tag in ("a-new", "b-new")],
        reason="none of the tags that are selected",
    ),
    "two-mirrors-in-one-repository": Scenario(remove_b, prepare=prepare_two, before=two_mirrors, deleted=["b-first"]),
    "one-of-two-mirrors-fails": Scenario(
        remove_second_source,
        prepare=prepare_two,
        before=two_mirrors,
        reason="was not found",
    ),
    "one-of-two-mirrors-removed": Scenario(
        prepare=prepare_two,
        before=two_mirrors,
        after=lambda scene: two_mirrors(scene)[:1],
        reason="no longer has this mirror",
    ),
    "mirror-removed": Scenario(after=lambda scene: [], reason="no mirror copies to this repository any more"),
    "repositories-under-a-wildcard": Scenario(
        remove_from_two,
        prepare=prepare_wildcard,
        before=wildcard,
        deleted=("/one:b",),
        reason="no mirror copies to this repository any more",
    ),
    "waits-for-min-age": Scenario(move_at_source, after=rules(**{"min-age": "7 d", "allow-empty": True})),
    "deleted-on-the-target-by-someone": Scenario(remove_b, later=lambda scene: scene.there.tags.pop("b")),
    "deleted-on-the-target-after-the-plan": Scenario(
        remove_b, meanwhile=lambda scene: scene.there.tags.pop("b"), planned="b"
    ),
    "selected-again-after-the-plan": Scenario(
        remove_b,
        meanwhile=lambda scene: scene.source.load(scene.name, scene.graph),
        planned="b",
        reason="the tag is selected again",
    ),
    "signed": Scenario(remove_signed, prepare=sign, deleted="b", attachments=4),
    "signed-and-tagged-twice": Scenario(
        rename_at_source,
        prepare=sign,
        deleted="b",
        by_digest="",
        planned="b",
        reason="by the tag same",
    ),
    "signed-by-someone-else-too": Scenario(
        remove_signed,
        prepare=sign,
        later=lambda scene: scene.foreign("", subject=signed_b(scene)),
        deleted="b",
        attachments=4,
    ),
    "signature-moved-on-the-target": Scenario(
        remove_signed,
        prepare=sign,
        later=lambda scene: scene.foreign(f"{tag_of(signed_b(scene))}.sig"),
        deleted="b",
        attachments=3,
        reason="it belongs to a deleted image, but someone else wrote it",
    ),
}
