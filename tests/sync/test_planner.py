"""Planning: what is asked of whom, and what is found."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from mirror.commands.options import ReferenceFilter
from mirror.errors import AuthError, MirrorError, NotFound, Refused, RemoteError, Unreachable
from mirror.limits import Limits
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest, parse_manifest
from mirror.oci.reference import ListedTag, Repository
from mirror.selection.tag_rules import TagRules
from mirror.sync.plan_model import Action, MirrorEntry, PlanEntry, TargetEntry
from mirror.sync.planner import Planner
from mirror.transfer.calls import Calls, new_loop
from mirror.util.cancellation import Stop
from tests.support.stores import MemoryStore


def manifest(name: str) -> Manifest:
    body = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [],
        "annotations": {"name": name},
    }
    return parse_manifest(json.dumps(body).encode())


@dataclass
class Seen:
    """Implements planner.Findings."""

    plan_entries: list[PlanEntry] = field(default_factory=list)
    errors: list[tuple[str, MirrorError]] = field(default_factory=list)
    tags: dict[tuple[str, str], Digest] = field(default_factory=dict)
    rejected: dict[str, Mapping[str, int]] = field(default_factory=dict)

    def add_plan_entry(self, plan_entry: PlanEntry) -> None:
        self.plan_entries.append(plan_entry)

    def record_listing_failure(self, entry: MirrorEntry, error: MirrorError) -> None:
        self.errors.append((entry.name, error))

    def record_invalid_name(self, entry: MirrorEntry, error: MirrorError) -> None:
        self.errors.append((entry.name, error))

    def note_target_tag(self, repository: Repository, tag: str, digest: Digest) -> None:
        self.tags[str(repository), tag] = digest

    def record_selection(self, entry: MirrorEntry, count: int, rejected: Mapping[str, int]) -> None:
        self.rejected[entry.name] = rejected

    def actions(self, host: str = "target") -> dict[str, str]:
        return {one.reference.tag: one.action.value for one in self.plan_entries if one.target.repository.host == host}


@dataclass
class Memory:
    """What earlier runs noted."""

    tags: dict[tuple[str, str], Digest] = field(default_factory=dict)
    marks: set[str] = field(default_factory=set)
    sources: dict[tuple[str, str], Digest] = field(default_factory=dict)

    def target_tag(self, repository: str, tag: str) -> Digest | None:
        return self.tags.get((repository, tag))

    def source_tag(self, repository: str, tag: str) -> Digest | None:
        return self.sources.get((repository, tag))

    def transform_digest(self, identity: str) -> Digest | None:
        return None

    def is_unfinished(self, repository: str) -> bool:
        return repository in self.marks


class World:
    def __init__(self) -> None:
        self.source = MemoryStore("source")
        self.target = MemoryStore("target")
        self.other = MemoryStore("other")
        self.memory = Memory()
        self.seen = Seen()
        self.wanted = ""

    def tag(self, store: MemoryStore, tag: str, name: str | None = None, repository: str = "app") -> Digest:
        made = manifest(name or tag)
        store.manifests[repository][tag] = store.manifests[repository][made.digest] = made
        return made.digest

    def was_equal(self, tag: str, digest: Digest) -> None:
        """An earlier run noted so of the source and the target."""
        self.memory.tags["target/copy", tag] = self.memory.sources["source/app target/copy", tag] = digest

    def plan(self, rules: TagRules | None = None, *targets: TargetEntry, heads_first: bool = False) -> Seen:
        entry = MirrorEntry(
            self.source,
            "app",
            rules or TagRules(),
            targets or (TargetEntry(self.target, Repository("target", "copy")),),
            heads_first=heads_first,
        )
        loop = new_loop()
        calls = Calls(loop, Limits(), Stop())
        only = ReferenceFilter([f"*{self.wanted}*"])
        planner = Planner(calls, self.memory, self.seen, only=only, parallel={"source": 4})
        try:
            loop.run_until_complete(planner.plan_all([entry]))
        finally:
            calls.close()
        return self.seen


@pytest.fixture
def world() -> World:
    return World()


def test_tags_that_the_target_lacks_are_not_asked_for_on_either_side(world: World) -> None:
    world.tag(world.source, "v1")
    world.tag(world.source, "v2")
    assert {"v1": "copy", "v2": "copy"} == world.plan().actions()
    assert [("tags", "app", "")] == world.source.asked
    assert [("tags", "copy", "")] == world.target.asked
    assert [False, False] == [one.may_have_blobs for one in world.seen.plan_entries]
    assert [None, None] == [one.reference.version for one in world.seen.plan_entries]


def test_equal_tags_cost_one_question_on_each_side(world: World) -> None:
    digest = world.tag(world.source, "v1")
    world.tag(world.target, "v1", repository="copy")
    assert {"v1": "skip"} == world.plan().actions()
    assert ["tags", "resolve"] == [verb for verb, _, _ in world.source.asked]
    assert ["tags", "resolve"] == [verb for verb, _, _ in world.target.asked]
    assert {("target/copy", "v1"): digest} == world.seen.tags


def test_a_tag_that_moved_is_to_be_copied_and_tells_what_is_there(world: World) -> None:
    world.tag(world.source, "v1", "new")
    old = world.tag(world.target, "v1", "old", repository="copy")
    [plan_entry] = world.plan().plan_entries
    assert (Action.COPY, old, True) == (plan_entry.action, plan_entry.old_digest, plan_entry.may_have_blobs)


def test_other_tags_of_the_target_are_left_alone(world: World) -> None:
    world.tag(world.source, "v1")
    world.tag(world.target, "theirs", repository="copy")
    assert {"v1": "copy"} == world.plan().actions()
    assert [] == world.target.verbs("resolve")
    assert [True] == [one.may_have_blobs for one in world.seen.plan_entries]


def test_a_repository_that_a_killed_run_began_is_asked_for_blobs_though_it_has_no_tag(world: World) -> None:
    world.tag(world.source, "v1")
    world.memory.marks.add("target/copy")
    assert [True] == [one.may_have_blobs for one in world.plan().plan_entries]


def test_the_source_is_resolved_once_for_all_targets(world: World) -> None:
    for number in range(10):
        world.tag(world.source, f"v{number}")
        world.tag(world.target, f"v{number}", repository="copy")
        world.tag(world.other, f"v{number}", "old", repository="copy")
    world.plan(
        None,
        TargetEntry(world.target, Repository("target", "copy")),
        TargetEntry(world.other, Repository("other", "copy")),
    )
    assert 10 == len(world.source.verbs("resolve"))
    assert {"skip"} == set(world.seen.actions("target").values())
    assert {"copy"} == set(world.seen.actions("other").values())


def test_named_tags_are_asked_for_without_any_listing_of_the_source(world: World) -> None:
    world.tag(world.source, "v1")
    world.tag(world.target, "v1", repository="copy")
    assert {"v1": "skip", "nope": "fail"} == world.plan(TagRules(literal=("v1", "nope"))).actions()
    assert [] == world.source.verbs("tags") + world.target.verbs("tags")
    assert [NotFound] == [type(one.error) for one in world.seen.plan_entries if one.error]


def test_named_tags_of_a_new_repository_cost_one_listing_that_spares_the_questions_for_blobs(world: World) -> None:
    world.tag(world.source, "v1")
    assert [False] == [one.may_have_blobs for one in world.plan(TagRules(literal=("v1",))).plan_entries]
    assert 1 == len(world.target.verbs("tags"))


def test_a_digest_is_its_own_version_and_is_asked_for_by_digest(world: World) -> None:
    digest = world.tag(world.source, "v1")
    [plan_entry] = world.plan(TagRules(digest=digest)).plan_entries
    assert f"target/copy@{digest}" == plan_entry.name
    world.tag(world.target, "v1", repository="copy")
    world.seen.plan_entries.clear()
    assert ["skip"] == list(world.plan(TagRules(digest=digest)).actions().values())


def test_a_digest_can_be_given_a_tag_on_the_target(world: World) -> None:
    digest = world.tag(world.source, "v1")
    [plan_entry] = world.plan(TagRules(literal=("stable",), digest=digest)).plan_entries
    assert "target/copy:stable" == plan_entry.name
    assert digest == plan_entry.reference.identifier


def test_where_gets_are_metered_digests_are_asked_for_first(world: World) -> None:
    world.tag(world.source, "v1")
    [plan_entry] = world.plan(heads_first=True).plan_entries
    assert plan_entry.reference.version is not None
    assert 1 == len(world.source.verbs("resolve"))


def test_an_exclusive_target_is_asked_nothing_about_what_is_remembered(world: World) -> None:
    digest = world.tag(world.source, "v1")
    world.memory.tags["target/copy", "v1"] = digest
    world.tag(world.source, "v2")
    seen = world.plan(None, TargetEntry(world.target, Repository("target", "copy"), exclusive=True))
    assert {"v1": "skip", "v2": "copy"} == seen.actions()
    assert [("resolve", "copy", "v2")] == world.target.asked, "an earlier run may have put it, and not have noted it"


def test_an_exclusive_target_that_nothing_is_remembered_of_is_asked(world: World) -> None:
    world.tag(world.source, "v1")
    world.tag(world.target, "v1", repository="copy")
    seen = world.plan(None, TargetEntry(world.target, Repository("target", "copy"), exclusive=True))
    assert {"v1": "skip"} == seen.actions()


def test_a_listing_that_fails_is_one_failure(world: World) -> None:
    world.source.fault = lambda verb, repository, reference: AuthError("wrong password")
    assert ["source/app"] == [name for name, _ in world.plan().errors]
    assert [] == world.seen.plan_entries
    assert [] == world.target.verbs("resolve")


def test_a_target_is_listed_while_the_source_is(world: World) -> None:
    world.tag(world.source, "v1")
    asked = threading.Event()
    world.target.fault = lambda verb, repository, reference: asked.set()
    world.source.fault = lambda verb, repository, reference: None if asked.wait(10) else AuthError("alone")
    assert {"v1": "copy"} == world.plan().actions()


def test_a_target_that_cannot_be_listed_fails_its_own_findings_only(world: World) -> None:
    world.tag(world.source, "v1")
    world.other.fault = lambda verb, repository, reference: Unreachable("refused")
    world.plan(
        None,
        TargetEntry(world.target, Repository("target", "copy")),
        TargetEntry(world.other, Repository("other", "copy")),
    )
    assert {"v1": "copy"} == world.seen.actions("target")
    assert {"v1": "fail"} == world.seen.actions("other")


def test_a_target_tag_that_answers_an_error_is_pushed_again(world: World) -> None:
    world.tag(world.source, "v1")
    world.tag(world.target, "v1", repository="copy")

    class Broken(MemoryStore):
        def resolve(self, repository, references, work):  # type: ignore[no-untyped-def]
            return [RemoteError("500", status=500) for _ in references]

    broken = Broken("target")
    broken.manifests = world.target.manifests
    assert {"v1": "copy"} == world.plan(None, TargetEntry(broken, Repository("target", "copy"))).actions()


def test_a_hostile_name_is_told_and_the_rest_is_planned(world: World) -> None:
    world.tag(world.source, "v1")

    class Hostile(MemoryStore):
        def tags(self, repository, work):  # type: ignore[no-untyped-def]
            return ["v1", Refused("a hostile name", code="ref_invalid")]

    hostile = Hostile("source")
    hostile.manifests = world.source.manifests
    world.source = hostile
    assert {"v1": "copy"} == world.plan().actions()
    assert ["a hostile name"] == [error.what for _, error in world.seen.errors]


def test_what_is_not_wanted_is_not_found_and_what_rules_leave_out_is_counted(world: World) -> None:
    for tag in ("v1", "v2", "v2-rc"):
        world.tag(world.source, tag)
    world.wanted = "v2"
    assert {"v2": "copy"} == world.plan(TagRules(exclude=(".*-rc",))).actions()
    assert {"source/app": {"exclude .*-rc": 1}} == world.seen.rejected


def test_a_thousand_tags_are_asked_for_in_batches(world: World) -> None:
    for number in range(1000):
        world.tag(world.source, f"v{number}")
        world.tag(world.target, f"v{number}", repository="copy")
    assert {"skip"} == set(world.plan().actions().values())
    assert (
        1000 == len(world.seen.plan_entries) == len(world.source.verbs("resolve")) == len(world.target.verbs("resolve"))
    )


IMMUTABLE = TagRules(immutable=("v.*",))


def test_an_immutable_tag_that_was_equal_is_not_asked_for_again(world: World) -> None:
    for tag in ("v1", "latest"):
        world.tag(world.target, tag, repository="copy")
        digest = world.tag(world.source, tag)
        world.was_equal(tag, digest)
    assert {"v1": "skip", "latest": "skip"} == world.plan(IMMUTABLE).actions()
    assert [("app", "latest")] == world.source.verbs("resolve")
    assert [("copy", "latest")] == world.target.verbs("resolve")


def test_an_immutable_tag_that_vanished_from_the_target_is_copied_again(world: World) -> None:
    world.was_equal("v1", world.tag(world.source, "v1"))
    assert {"v1": "copy"} == world.plan(IMMUTABLE).actions()


def test_an_immutable_tag_that_is_not_known_to_be_equal_is_compared(world: World) -> None:
    digest = world.tag(world.source, "v1")
    world.tag(world.target, "v1", repository="copy")
    world.memory.tags["target/copy", "v1"] = digest
    assert {"v1": "skip"} == world.plan(IMMUTABLE).actions()
    assert 1 == len(world.source.verbs("resolve"))


def test_an_immutable_tag_that_differs_is_a_conflict_and_stays(world: World) -> None:
    new = world.tag(world.source, "v1", "new")
    old = world.tag(world.target, "v1", "old", repository="copy")
    [plan_entry] = world.plan(IMMUTABLE).plan_entries
    assert plan_entry.error is not None
    assert ("tag_immutable", 3) == (plan_entry.error.code, plan_entry.error.exit_code)
    assert old in str(plan_entry.error)
    assert new in str(plan_entry.error)


def test_what_is_immutable_is_copied_the_first_time(world: World) -> None:
    world.tag(world.source, "v1")
    assert {"v1": "copy"} == world.plan(IMMUTABLE).actions()


def test_where_lists_say_what_tags_name_nothing_is_asked_for(world: World) -> None:
    class Telling(MemoryStore):
        def tags(self, repository, work):  # type: ignore[no-untyped-def]
            return [
                ListedTag(name, made.digest) for name, made in self.manifests[repository].items() if ":" not in name
            ]

    for store, repository in ((source := Telling("source"), "app"), (target := Telling("target"), "copy")):
        world.tag(store, "same", repository=repository)
        world.tag(store, "moved", repository, repository=repository)
    world.tag(source, "new")
    world.source = source
    seen = world.plan(None, TargetEntry(target, Repository("target", "copy")))
    assert {"same": "skip", "moved": "copy", "new": "copy"} == seen.actions()
    assert [] == source.verbs("resolve") + target.verbs("resolve")


def test_an_exclusive_target_with_immutable_tags_costs_the_listing_and_nothing_else(world: World) -> None:
    for number in range(300):
        world.was_equal(f"v{number}", world.tag(world.source, f"v{number}"))
    seen = world.plan(IMMUTABLE, TargetEntry(world.target, Repository("target", "copy"), exclusive=True))
    assert {"skip"} == set(seen.actions().values())
    assert [("tags", "app", "")] == world.source.asked
    assert [] == world.target.asked


def test_what_is_remembered_of_an_exclusive_target_is_told_once_for_each_tag(world: World) -> None:
    told = []
    world.seen.note_target_tag = lambda repository, tag, digest: told.append(tag)  # type: ignore[method-assign]
    for number in range(200):
        world.memory.tags["target/copy", f"v{number}"] = world.tag(world.source, f"v{number}")
    world.plan(None, TargetEntry(world.target, Repository("target", "copy"), exclusive=True))
    assert 200 == len(told)
