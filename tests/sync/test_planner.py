"""The planner: which requests it sends, and what it plans."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from mirror.commands.options import ReferenceFilter
from mirror.errors import AuthError, MirrorError, NotFound, Refused, RemoteError, Unreachable
from mirror.limits import Limits
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest, parse_manifest
from mirror.oci.platform import Platform
from mirror.oci.platform_filter import PlatformFilter
from mirror.oci.reference import ListedTag, Repository
from mirror.selection.attachment_rules import AttachmentRules
from mirror.selection.locations import MATCHED
from mirror.selection.tag_rules import FirstSeen, SelectionSummary, TagRules
from mirror.store import Version
from mirror.sync.plan_model import Action, MirrorEntry, PlanEntry, TargetEntry
from mirror.sync.planner import Planner
from mirror.transfer.calls import Calls, new_loop
from mirror.util.cancellation import Stop
from mirror.util.retry_policy import Policy
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
class RecordedPlan:
    """Implements PlanReceiver."""

    plan_entries: list[PlanEntry] = field(default_factory=list)
    errors: list[tuple[str, MirrorError]] = field(default_factory=list)
    tags: dict[tuple[str, str], Digest] = field(default_factory=dict)
    rejected: dict[str, Mapping[str, int]] = field(default_factory=dict)
    wait_ends: dict[str, float | None] = field(default_factory=dict)
    dates_read: dict[str, int] = field(default_factory=dict)

    def add_plan_entry(self, plan_entry: PlanEntry) -> None:
        self.plan_entries.append(plan_entry)

    def record_mirror_failure(self, entry: MirrorEntry, error: MirrorError) -> None:
        self.errors.append((entry.name, error))

    def record_invalid_name(self, entry: MirrorEntry, error: MirrorError) -> None:
        self.errors.append((entry.name, error))

    def record_target_tag(self, repository: Repository, tag: str, digest: Digest) -> None:
        self.tags[str(repository), tag] = digest

    def record_selection(self, entry: MirrorEntry, selection: SelectionSummary) -> None:
        self.rejected[entry.name] = selection.rejected
        self.wait_ends[entry.name] = selection.wait_ends
        self.dates_read[entry.name] = selection.dates_read

    def record_repositories(self, entry: MirrorEntry, count: int, rejected: Mapping[str, int]) -> None:
        self.rejected[entry.name] = rejected

    def actions(self, host: str = "target") -> dict[str, str]:
        """Return the planned actions on one target host, by tag."""
        return {
            entry.reference.tag: entry.action.value
            for entry in self.plan_entries
            if entry.target.repository.host == host
        }


@dataclass
class Hints:
    """Implements PlanHints: what earlier runs noted."""

    tags: dict[tuple[str, str], Digest] = field(default_factory=dict)
    marks: set[str] = field(default_factory=set)
    sources: dict[tuple[str, str], Digest] = field(default_factory=dict)
    ages: dict[tuple[str, str], FirstSeen] = field(default_factory=dict)
    dates: dict[str, dict[str, int]] = field(default_factory=dict)
    checked: dict[tuple[str, str, Digest], float] = field(default_factory=dict)
    results: dict[str, Digest] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    sparse: dict[str, dict[Digest, str]] = field(default_factory=dict)

    def target_tag(self, repository: str, tag: str) -> Digest | None:
        return self.tags.get((repository, tag))

    def source_tag(self, repository: str, tag: str) -> Digest | None:
        return self.sources.get((repository, tag))

    def transform_digest(self, identity: str) -> Digest | None:
        return self.results.get(identity)

    def other_platform(self, key: str) -> str | None:
        return self.others.get(key)

    def has_sparse_images(self, repository: str) -> bool:
        return bool(self.sparse)

    def sparse_images(self, repository: str) -> dict[str, dict[Digest, str]]:
        return self.sparse

    def is_unfinished(self, repository: str) -> bool:
        return repository in self.marks

    def first_seen(self, repository: str, tag: str) -> FirstSeen | None:
        return self.ages.get((repository, tag))

    def record_first_seen(self, repository: str, tag: str, seen: FirstSeen) -> None:
        self.ages[repository, tag] = seen

    def image_date(self, repository: str, identity: str) -> int | None:
        return self.dates.get(repository, {}).get(identity)

    def record_image_dates(self, repository: str, dates: Mapping[str, int]) -> None:
        self.dates.setdefault(repository, {}).update(dates)

    def delete_other_image_dates(self, repository: str, identities: Collection[str]) -> None:
        self.dates[repository] = {one: date for one, date in self.dates[repository].items() if one in identities}

    def checked_attachments(
        self, source: str, repository: str, digests: Collection[Digest], after: float, until: float
    ) -> set[Digest]:
        checked = ((digest, self.checked.get((source, repository, digest))) for digest in digests)
        return {digest for digest, time in checked if time is not None and after < time <= until}


class World:
    """A source, two targets, and what earlier runs noted."""

    def __init__(self) -> None:
        self.source = MemoryStore("source")
        self.target = MemoryStore("target")
        self.other = MemoryStore("other")
        self.hints = Hints()
        self.recorded = RecordedPlan()
        self.only = ""
        self.now = 1_800_000_000.0
        self.kept_tags: list[str] = []

    def tag(self, store: MemoryStore, tag: str, name: str | None = None, repository: str = "app") -> Digest:
        """Add a tag to a store and return its digest. name: makes the manifest unique; the tag by default."""
        root = manifest(name or tag)
        store.manifests[repository][tag] = store.manifests[repository][root.digest] = root
        return root.digest

    def note_equal(self, tag: str, digest: Digest) -> None:
        """Note, as an earlier run does, that source and target had the tag with the same digest."""
        self.hints.tags["target/copy", tag] = self.hints.sources["source/app target/copy", tag] = digest

    def plan(
        self,
        rules: TagRules | None = None,
        *targets: TargetEntry,
        heads_first: bool = False,
        deep: bool = False,
        attachments: AttachmentRules | None = None,
        platforms: PlatformFilter | None = None,
        use_hints: bool = True,
    ) -> RecordedPlan:
        """Plan a mirror of `app`, by default to `copy` on the first target."""
        entry = MirrorEntry(
            self.source,
            "app",
            rules or TagRules(),
            targets or (TargetEntry(self.target, Repository("target", "copy")),),
            heads_first=heads_first,
            attachments=attachments,
            platforms=platforms,
        )
        only = ReferenceFilter([f"*{self.only}*"])
        return self.plan_entries([entry], only, deep=deep, use_hints=use_hints)

    def plan_entries(
        self,
        entries: Sequence[MirrorEntry],
        only: ReferenceFilter,
        *,
        numbers: Collection[int] | None = None,
        deep: bool = False,
        use_hints: bool = True,
    ) -> RecordedPlan:
        """Plan several mirrors. numbers: those to plan; None for all."""
        loop = new_loop()
        calls = Calls(loop, Limits(), Stop(), policy=Policy(base=0.001))
        planner = Planner(
            calls,
            self.hints,
            self.recorded,
            only=only,
            parallel={"source": 4},
            use_hints=use_hints and not deep,
            reread_dates=deep,
            now=lambda: self.now,
            keep_tags=lambda entry, tags: self.kept_tags.extend(tags),
        )
        try:
            loop.run_until_complete(planner.plan_all(entries, numbers))
        finally:
            calls.close()
        return self.recorded


@pytest.fixture
def world() -> World:
    return World()


def test_tags_that_the_target_does_not_list_are_resolved_on_neither_side(world: World) -> None:
    world.tag(world.source, "v1")
    world.tag(world.source, "v2")
    assert {"v1": "copy", "v2": "copy"} == world.plan().actions()
    assert [("tags", "app", "")] == world.source.asked
    assert [("tags", "copy", "")] == world.target.asked
    assert [False, False] == [entry.may_have_blobs for entry in world.recorded.plan_entries]
    assert [None, None] == [entry.reference.version for entry in world.recorded.plan_entries]


def test_a_listed_tag_is_resolved_once_on_each_side(world: World) -> None:
    digest = world.tag(world.source, "v1")
    world.tag(world.target, "v1", repository="copy")
    assert {"v1": "skip"} == world.plan().actions()
    assert ["tags", "resolve"] == [verb for verb, _, _ in world.source.asked]
    assert ["tags", "resolve"] == [verb for verb, _, _ in world.target.asked]
    assert {("target/copy", "v1"): digest} == world.recorded.tags


def test_a_tag_that_differs_is_copied_and_its_old_digest_is_known(world: World) -> None:
    world.tag(world.source, "v1", "new")
    old = world.tag(world.target, "v1", "old", repository="copy")
    [plan_entry] = world.plan().plan_entries
    assert (Action.COPY, old, True) == (plan_entry.action, plan_entry.old_digest, plan_entry.may_have_blobs)


def test_other_tags_of_the_target_are_not_resolved(world: World) -> None:
    world.tag(world.source, "v1")
    world.tag(world.target, "theirs", repository="copy")
    assert {"v1": "copy"} == world.plan().actions()
    assert [] == world.target.verbs("resolve")
    assert [True] == [entry.may_have_blobs for entry in world.recorded.plan_entries]


def test_an_unfinished_repository_may_have_blobs_although_it_has_no_tag(world: World) -> None:
    world.tag(world.source, "v1")
    world.hints.marks.add("target/copy")
    assert [True] == [entry.may_have_blobs for entry in world.plan().plan_entries]


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
    assert {"skip"} == set(world.recorded.actions("target").values())
    assert {"copy"} == set(world.recorded.actions("other").values())


def test_literal_tags_are_resolved_without_a_list(world: World) -> None:
    world.tag(world.source, "v1")
    world.tag(world.target, "v1", repository="copy")
    assert {"v1": "skip", "nope": "fail"} == world.plan(TagRules(literal=("v1", "nope"))).actions()
    assert [] == world.source.verbs("tags") + world.target.verbs("tags")
    assert [NotFound] == [type(entry.error) for entry in world.recorded.plan_entries if entry.error]


def test_for_literal_tags_a_repository_is_listed_only_to_find_out_whether_it_may_have_blobs(world: World) -> None:
    world.tag(world.source, "v1")
    assert [False] == [entry.may_have_blobs for entry in world.plan(TagRules(literal=("v1",))).plan_entries]
    assert 1 == len(world.target.verbs("tags"))


def test_a_digest_is_mirrored_by_its_digest(world: World) -> None:
    digest = world.tag(world.source, "v1")
    [plan_entry] = world.plan(TagRules(digest=digest)).plan_entries
    assert f"target/copy@{digest}" == plan_entry.name
    world.tag(world.target, "v1", repository="copy")
    world.recorded.plan_entries.clear()
    assert ["skip"] == list(world.plan(TagRules(digest=digest)).actions().values())


def test_a_digest_can_get_a_tag_on_the_target(world: World) -> None:
    digest = world.tag(world.source, "v1")
    [plan_entry] = world.plan(TagRules(literal=("stable",), digest=digest)).plan_entries
    assert "target/copy:stable" == plan_entry.name
    assert digest == plan_entry.reference.identifier


def test_digests_are_resolved_first_if_the_source_limits_manifest_requests(world: World) -> None:
    world.tag(world.source, "v1")
    [plan_entry] = world.plan(heads_first=True).plan_entries
    assert plan_entry.reference.version is not None
    assert 1 == len(world.source.verbs("resolve"))


def test_tags_that_the_state_knows_are_not_resolved_at_an_exclusive_target(world: World) -> None:
    digest = world.tag(world.source, "v1")
    world.hints.tags["target/copy", "v1"] = digest
    world.tag(world.source, "v2")
    recorded = world.plan(None, TargetEntry(world.target, Repository("target", "copy"), exclusive=True))
    assert {"v1": "skip", "v2": "copy"} == recorded.actions()
    assert [("resolve", "copy", "v2")] == world.target.asked, "an earlier run may have copied it without a note"


def test_an_exclusive_target_that_the_state_does_not_know_is_listed(world: World) -> None:
    world.tag(world.source, "v1")
    world.tag(world.target, "v1", repository="copy")
    recorded = world.plan(None, TargetEntry(world.target, Repository("target", "copy"), exclusive=True))
    assert {"v1": "skip"} == recorded.actions()


def test_a_list_that_cannot_be_read_is_one_failure(world: World) -> None:
    world.source.fault = lambda verb, repository, reference: AuthError("wrong password")
    assert ["source/app"] == [name for name, _ in world.plan().errors]
    assert [] == world.recorded.plan_entries
    assert [] == world.target.verbs("resolve")


def test_source_and_target_are_listed_in_parallel(world: World) -> None:
    world.tag(world.source, "v1")
    asked = threading.Event()
    world.target.fault = lambda verb, repository, reference: asked.set()
    world.source.fault = lambda verb, repository, reference: None if asked.wait(10) else AuthError("alone")
    assert {"v1": "copy"} == world.plan().actions()


def test_a_target_that_cannot_be_listed_does_not_affect_other_targets(world: World) -> None:
    world.tag(world.source, "v1")
    world.other.fault = lambda verb, repository, reference: Unreachable("refused")
    world.plan(
        None,
        TargetEntry(world.target, Repository("target", "copy")),
        TargetEntry(world.other, Repository("other", "copy")),
    )
    assert {"v1": "copy"} == world.recorded.actions("target")
    assert {"v1": "fail"} == world.recorded.actions("other")


def test_a_tag_that_the_target_answers_with_a_server_error_is_copied(world: World) -> None:
    world.tag(world.source, "v1")
    world.tag(world.target, "v1", repository="copy")

    class ServerError(MemoryStore):
        def resolve(self, repository, references, work):  # type: ignore[no-untyped-def]
            return [RemoteError("500", status=500) for _ in references]

    failing = ServerError("target")
    failing.manifests = world.target.manifests
    assert {"v1": "copy"} == world.plan(None, TargetEntry(failing, Repository("target", "copy"))).actions()


def test_an_invalid_name_is_recorded_and_the_other_tags_are_planned(world: World) -> None:
    world.tag(world.source, "v1")

    class Hostile(MemoryStore):
        def tags(self, repository, work):  # type: ignore[no-untyped-def]
            return ["v1", Refused("a hostile name", code="ref_invalid")]

    hostile = Hostile("source")
    hostile.manifests = world.source.manifests
    world.source = hostile
    assert {"v1": "copy"} == world.plan().actions()
    assert ["a hostile name"] == [error.what for _, error in world.recorded.errors]


def test_references_that_are_not_selected_are_not_planned_and_rejected_tags_are_counted(world: World) -> None:
    for tag in ("v1", "v2", "v2-rc"):
        world.tag(world.source, tag)
    world.only = "v2"
    assert {"v2": "copy"} == world.plan(TagRules(exclude=(".*-rc",))).actions()
    assert {"source/app": {"exclude .*-rc": 1}} == world.recorded.rejected


def test_each_of_a_thousand_tags_is_resolved_once_on_each_side(world: World) -> None:
    for number in range(1000):
        world.tag(world.source, f"v{number}")
        world.tag(world.target, f"v{number}", repository="copy")
    assert {"skip"} == set(world.plan().actions().values())
    assert (
        1000
        == len(world.recorded.plan_entries)
        == len(world.source.verbs("resolve"))
        == len(world.target.verbs("resolve"))
    )


IMMUTABLE = TagRules(immutable=("v.*",))


def test_an_immutable_tag_that_was_equal_is_not_resolved_again(world: World) -> None:
    for tag in ("v1", "latest"):
        world.tag(world.target, tag, repository="copy")
        digest = world.tag(world.source, tag)
        world.note_equal(tag, digest)
    assert {"v1": "skip", "latest": "skip"} == world.plan(IMMUTABLE).actions()
    assert [("app", "latest")] == world.source.verbs("resolve")
    assert [("copy", "latest")] == world.target.verbs("resolve")


def test_an_immutable_tag_that_the_target_lacks_now_is_copied_again(world: World) -> None:
    world.note_equal("v1", world.tag(world.source, "v1"))
    assert {"v1": "copy"} == world.plan(IMMUTABLE).actions()


def test_an_immutable_tag_that_is_not_known_to_be_equal_is_compared(world: World) -> None:
    digest = world.tag(world.source, "v1")
    world.tag(world.target, "v1", repository="copy")
    world.hints.tags["target/copy", "v1"] = digest
    assert {"v1": "skip"} == world.plan(IMMUTABLE).actions()
    assert 1 == len(world.source.verbs("resolve"))


def test_an_immutable_tag_that_differs_is_a_conflict(world: World) -> None:
    new = world.tag(world.source, "v1", "new")
    old = world.tag(world.target, "v1", "old", repository="copy")
    [plan_entry] = world.plan(IMMUTABLE).plan_entries
    assert plan_entry.error is not None
    assert ("tag_immutable", 3) == (plan_entry.error.code, plan_entry.error.exit_code)
    assert old in str(plan_entry.error)
    assert new in str(plan_entry.error)


def test_an_immutable_tag_that_the_target_lacks_is_copied(world: World) -> None:
    world.tag(world.source, "v1")
    assert {"v1": "copy"} == world.plan(IMMUTABLE).actions()


def test_no_tag_is_resolved_if_the_lists_contain_digests(world: World) -> None:
    class ListsDigests(MemoryStore):
        def tags(self, repository, work):  # type: ignore[no-untyped-def]
            return [
                ListedTag(name, root.digest) for name, root in self.manifests[repository].items() if ":" not in name
            ]

    for store, repository in ((source := ListsDigests("source"), "app"), (target := ListsDigests("target"), "copy")):
        world.tag(store, "same", repository=repository)
        world.tag(store, "moved", repository, repository=repository)
    world.tag(source, "new")
    world.source = source
    recorded = world.plan(None, TargetEntry(target, Repository("target", "copy")))
    assert {"same": "skip", "moved": "copy", "new": "copy"} == recorded.actions()
    assert [] == source.verbs("resolve") + target.verbs("resolve")


def test_immutable_tags_of_an_exclusive_target_need_only_the_list_of_the_source(world: World) -> None:
    for number in range(300):
        world.note_equal(f"v{number}", world.tag(world.source, f"v{number}"))
    recorded = world.plan(IMMUTABLE, TargetEntry(world.target, Repository("target", "copy"), exclusive=True))
    assert {"skip"} == set(recorded.actions().values())
    assert [("tags", "app", "")] == world.source.asked
    assert [] == world.target.asked


def test_each_tag_of_an_exclusive_target_is_noted_once(world: World) -> None:
    noted = []
    world.recorded.record_target_tag = lambda repository, tag, digest: noted.append(tag)  # type: ignore[method-assign]
    for number in range(200):
        world.hints.tags["target/copy", f"v{number}"] = world.tag(world.source, f"v{number}")
    world.plan(None, TargetEntry(world.target, Repository("target", "copy"), exclusive=True))
    assert 200 == len(noted)


# ---- attachments

CHECKED = f"source/app {TagRules().attachments_key}"  # the key under which a check of attachments is recorded


def same_everywhere(world: World, *tags: str) -> list[Digest]:
    for tag in tags:
        world.tag(world.target, tag, repository="copy")
    return [world.tag(world.source, tag) for tag in tags]


def due(recorded: RecordedPlan) -> set[str]:
    return {one.reference.tag for one in recorded.plan_entries if one.recheck}


def test_the_attachments_of_an_unchanged_image_are_due_after_a_period(world: World) -> None:
    digests = same_everywhere(world, "old", "fresh", "never", "future")
    world.tag(world.source, "new")
    for digest, time in zip(digests, (world.now - 3600, world.now - 3599, None, world.now + 1), strict=True):
        if time is not None:
            world.hints.checked[CHECKED, "target/copy", digest] = time
    recorded = world.plan(attachments=AttachmentRules(recheck=3600.0))
    assert {"old", "never", "future"} == due(recorded)  # also if the clock was set back
    assert {"old": "skip", "fresh": "skip", "never": "skip", "future": "skip", "new": "copy"} == recorded.actions()
    assert ["fresh", "future", "never", "new", "old"] == sorted(world.kept_tags)


def test_with_a_period_of_zero_attachments_are_always_due(world: World) -> None:
    (digest,) = same_everywhere(world, "v1")
    world.hints.checked[CHECKED, "target/copy", digest] = world.now
    assert {"v1"} == due(world.plan(attachments=AttachmentRules(recheck=0.0)))


def test_attachments_are_due_if_the_rules_have_changed(world: World) -> None:
    (digest,) = same_everywhere(world, "v1")
    world.hints.checked[CHECKED, "target/copy", digest] = world.now
    assert set() == due(world.plan(attachments=AttachmentRules()))
    assert {"v1"} == due(world.plan(attachments=AttachmentRules(require=("sbom",))))
    # Another rule decides which tags of attachments are copied like any other tag.
    for rules in (TagRules(literal=("v1",)), TagRules(include=("v.*",)), TagRules(exclude=("sha256-.*",))):
        assert {"v1"} == due(world.plan(rules, attachments=AttachmentRules()))


def test_nothing_is_due_without_attachments_or_without_hints(world: World) -> None:
    same_everywhere(world, "v1")
    assert set() == due(world.plan())
    assert set() == due(world.plan(attachments=AttachmentRules(), use_hints=False))


def test_attachments_of_immutable_tags_are_due_although_the_source_is_not_asked(world: World) -> None:
    (digest,) = same_everywhere(world, "v1")
    world.note_equal("v1", digest)
    assert {"v1"} == due(world.plan(IMMUTABLE, attachments=AttachmentRules()))
    assert [] == world.source.verbs("resolve")


# ---- platforms

AMD64 = PlatformFilter.of([Platform("linux", "amd64")])
SPARSE = PlatformFilter.of([Platform("linux", "amd64")], sparse=True)


def test_the_result_of_selecting_platforms_in_an_earlier_run_is_compared_with_the_target(world: World) -> None:
    results = {}
    for tag in ("same", "moved", "unknown"):
        digest = world.tag(world.source, tag)
        results[tag] = world.tag(world.target, tag, f"smaller {tag}", "copy")
        if tag != "unknown":
            world.hints.results[AMD64.result_key(digest)] = results[tag]
    world.tag(world.target, "moved", "older", "copy")
    assert {"same": "skip", "moved": "copy", "unknown": "copy"} == world.plan(platforms=AMD64).actions()
    assert [] == world.source.verbs("manifest")
    versions = {entry.reference.tag: entry.reference.version for entry in world.recorded.plan_entries}
    assert isinstance(versions["same"], Version)
    assert (results["same"], manifest("same").digest) == (versions["same"].digest, versions["same"].source_digest)


def test_results_for_other_platforms_do_not_count(world: World) -> None:
    digest = world.tag(world.source, "v1")
    other = PlatformFilter.of([Platform("linux", "arm64")])
    world.hints.results[other.result_key(digest)] = world.tag(world.target, "v1", "smaller", "copy")
    assert {"v1": "copy"} == world.plan(platforms=AMD64).actions()


@pytest.mark.parametrize("use_hints", [True, False])
def test_an_image_that_is_known_to_be_for_another_platform_is_not_read_again(world: World, use_hints: bool) -> None:
    digest = world.tag(world.source, "v1")
    world.hints.others[AMD64.result_key(digest)] = "the image is for linux/s390x"
    [plan_entry] = world.plan(platforms=AMD64, use_hints=use_hints).plan_entries
    if use_hints:
        assert (Action.FAIL, 0) == (plan_entry.action, plan_entry.error.exit_code if plan_entry.error else None)
    else:
        assert Action.COPY is plan_entry.action


def test_digests_in_a_list_of_the_source_are_not_those_of_smaller_indexes(world: World) -> None:
    class ListsDigests(MemoryStore):
        def tags(self, repository: str, work: object) -> list[str | MirrorError]:
            return [ListedTag("v1", self.manifests[repository]["v1"].digest)]

    world.source = ListsDigests("source")
    digest = world.tag(world.source, "v1")
    world.tag(world.target, "v1", repository="copy")
    [plan_entry] = world.plan(platforms=AMD64).plan_entries
    assert Action.COPY is plan_entry.action
    assert isinstance(plan_entry.reference.version, Version)
    assert (None, digest) == (plan_entry.reference.version.digest, plan_entry.reference.version.source_digest)


@pytest.mark.parametrize(
    ("platforms", "recorded", "action"),
    [
        (None, {}, "skip"),
        (None, {"current": "linux/amd64"}, "copy"),
        (None, {"other": "linux/amd64"}, "skip"),
        (SPARSE, {}, "skip"),
        (SPARSE, {"current": "linux/amd64"}, "skip"),
        (SPARSE, {"current": "linux/arm64", "other": "linux/amd64"}, "copy"),
    ],
)
@pytest.mark.parametrize("immutable", [False, True])
def test_an_equal_digest_is_not_enough_if_the_target_has_only_some_platforms(
    world: World, platforms: PlatformFilter | None, recorded: dict[str, str], action: str, immutable: bool
) -> None:
    digest = world.tag(world.source, "v1")
    world.tag(world.target, "v1", repository="copy")
    digests = {"current": digest, "other": manifest("other").digest}
    world.hints.sparse = {"v1": {digests[name]: text for name, text in recorded.items()}} if recorded else {}
    if immutable:
        suffix = f" {platforms.key}" if platforms is not None else ""
        world.hints.tags["target/copy", "v1"] = world.hints.sources[f"source/app target/copy{suffix}", "v1"] = digest
    [plan_entry] = world.plan(IMMUTABLE if immutable else None, platforms=platforms).plan_entries
    assert (action, action == "copy") == (plan_entry.action.value, plan_entry.incomplete)


def test_mirrors_that_are_not_due_are_neither_read_nor_missed_by_a_pattern(world: World) -> None:
    for name in ("one", "two"):
        world.tag(world.source, "v1", repository=name)
    targets = [TargetEntry(world.target, Repository("target", name)) for name in ("one", "two")]
    entries = [
        MirrorEntry(world.source, target.repository.path, TagRules(), (target,), number=number)
        for number, target in enumerate(targets)
    ]
    only = ReferenceFilter(["source/one:v1", "source/two:v1", "source/two:v2"])
    plan = world.plan_entries(entries, only, numbers={1})
    assert [("two", "v1")] == [(one.target.repository.path, one.reference.tag) for one in plan.plan_entries]
    assert [("tags", "two", "")] == world.source.asked
    assert ["source/two:v2"] == only.unused_patterns()


def test_a_write_conflict_with_a_mirror_that_is_not_due_is_found(world: World) -> None:
    for name in ("team/app", "app"):
        world.tag(world.source, "v1", repository=name)
        world.source.blobs[name] = {}  # `repositories` lists it
    wildcard = TargetEntry(world.target, Repository("target", MATCHED))
    single = TargetEntry(world.target, Repository("target", "app"))
    entries = [
        MirrorEntry(world.source, "team", TagRules(), (wildcard,), wildcard=True),
        MirrorEntry(world.source, "app", TagRules(), (single,), number=1),
    ]
    for numbers in ({0}, {1}):
        world.recorded = RecordedPlan()
        plan = world.plan_entries(entries, ReferenceFilter(None), numbers=numbers)
        assert [] == plan.plan_entries
        assert ["target_conflict"] == [error.code for _, error in plan.errors]
