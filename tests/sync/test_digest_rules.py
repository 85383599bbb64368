"""`min-age`, `newest` by date, and the limits for the number of tags: what is selected, and which requests it costs."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from mirror.errors import AuthError, MirrorError, NotFound, RateLimited, Refused, RemoteError, Unreachable
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST, Manifest, parse_manifest
from mirror.oci.reference import Repository
from mirror.selection.tag_rules import FirstSeen, TagRules
from mirror.sync.plan_model import TargetEntry
from tests.sync.test_planner import World

HOUR = 3600.0
WAIT = TagRules(min_age=72 * HOUR)
NAME = "source/app"


@pytest.fixture
def world() -> World:
    return World()


class DatedWorld(World):
    """A World whose source has images with dates."""

    def image(self, *tags: str, day: int | None, repository: str = "app", **keys: object) -> Manifest:
        """Add an image that was created on this day of January 2024, or that has no date."""
        created = {} if day is None else {"created": datetime(2024, 1, day, tzinfo=UTC).isoformat()}
        config = self.source.add(repository, json.dumps({**created, "name": tags}).encode())
        described = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.digest}
        body = {"config": {**described, "size": config.size}, "layers": [], **keys}
        return self.put(OCI_MANIFEST, body, *tags, repository=repository)

    def index(self, tag: str, *children: Manifest, attestation_first: bool = False) -> Manifest:
        """Add an index with these children, after an attestation if `attestation_first` is set."""
        platforms = ["unknown" if attestation_first and not number else "arm64" for number in range(len(children))]
        descriptors = [
            {
                "mediaType": child.media_type,
                "digest": child.digest,
                "size": child.size,
                "platform": {"os": "unknown" if platform == "unknown" else "linux", "architecture": platform},
            }
            for child, platform in zip(children, platforms, strict=True)
        ]
        return self.put(OCI_INDEX, {"manifests": descriptors}, tag)

    def put(self, media_type: str, body: dict[str, object], *tags: str, repository: str = "app") -> Manifest:
        manifest = parse_manifest(json.dumps({"schemaVersion": 2, "mediaType": media_type, **body}).encode())
        for name in (*tags, manifest.digest):
            self.source.manifests[repository][name] = manifest
        return manifest

    def reads(self) -> int:
        """Return how many manifests and blobs were read from the source."""
        return len(self.source.verbs("manifest")) + len(self.source.verbs("open"))


@pytest.fixture
def dated() -> DatedWorld:
    return DatedWorld()


def newest(count: int) -> TagRules:
    return TagRules(newest=count, by_created=True)


# ---- min-age


def test_a_tag_is_selected_when_it_has_had_its_digest_for_the_time(world: World) -> None:
    digest = world.tag(world.source, "v1")
    first = world.now
    assert {} == world.plan(WAIT).actions()
    assert {NAME: {"min-age": 1}} == world.recorded.rejected
    assert {NAME: first + 72 * HOUR} == world.recorded.wait_ends
    assert [] == world.recorded.errors
    assert {(NAME, "v1"): FirstSeen(digest, first)} == world.hints.ages
    world.now += 72 * HOUR - 1
    assert {} == world.plan(WAIT).actions()
    world.now += 1
    assert {"v1": "copy"} == world.plan(WAIT).actions()
    assert {NAME: {}} == world.recorded.rejected
    assert {NAME: None} == world.recorded.wait_ends


def test_a_tag_that_moves_waits_again(world: World) -> None:
    old = world.tag(world.source, "v1")
    world.hints.ages[NAME, "v1"] = FirstSeen(old, world.now - 100 * HOUR)
    assert {"v1": "copy"} == world.plan(WAIT).actions()
    world.recorded.plan_entries.clear()
    new = world.tag(world.source, "v1", "new")
    assert {} == world.plan(WAIT).actions()
    assert FirstSeen(new, world.now) == world.hints.ages[NAME, "v1"]


def test_a_time_in_the_future_is_replaced(world: World) -> None:
    digest = world.tag(world.source, "v1")
    world.hints.ages[NAME, "v1"] = FirstSeen(digest, world.now + 1000 * HOUR)
    assert {} == world.plan(WAIT).actions()
    assert FirstSeen(digest, world.now) == world.hints.ages[NAME, "v1"]


def test_each_tag_is_resolved_once_for_the_wait_and_the_plan(world: World) -> None:
    for number in range(200):
        digest = world.tag(world.source, f"v{number}")
        world.tag(world.target, f"v{number}", repository="copy")
        world.hints.ages[NAME, f"v{number}"] = FirstSeen(digest, 0.0)
    world.tag(world.source, "ignored-rc")
    assert {"skip"} == set(world.plan(TagRules(exclude=(".*-rc",), min_age=HOUR)).actions().values())
    assert 200 == len(world.source.verbs("resolve")) == len(world.target.verbs("resolve"))


def test_newest_chooses_from_the_tags_that_do_not_wait(world: World) -> None:
    for tag in ("v1", "v2", "v3"):
        digest = world.tag(world.source, tag)
        world.hints.ages[NAME, tag] = FirstSeen(digest, world.now if tag == "v3" else 0.0)
    world.tag(world.source, "latest")
    assert {"v2": "copy"} == world.plan(TagRules(min_age=HOUR, newest=1)).actions()
    assert {NAME: {"min-age": 1, "newest": 1, "newest (no version)": 1}} == world.recorded.rejected
    assert [] == [reference for _, reference in world.source.verbs("resolve") if reference == "latest"]


def test_a_tag_that_cannot_be_resolved_fails_and_does_not_wait(world: World) -> None:
    world.hints.ages[NAME, "v1"] = FirstSeen(world.tag(world.source, "v1"), 0.0)
    world.tag(world.source, "v2")
    world.source.gone.add("v2")
    assert {"v1": "copy", "v2": "fail"} == world.plan(WAIT).actions()
    assert {} == {tag: seen for (_, tag), seen in world.hints.ages.items() if tag == "v2"}


def test_an_immutable_tag_that_was_equal_needs_no_request_if_its_age_is_known(world: World) -> None:
    rules = TagRules(immutable=("v.*",), min_age=HOUR)
    for tag in ("v1", "v2", "v3"):
        digest = world.tag(world.source, tag)
        world.note_equal(tag, digest)
        world.tag(world.target, tag, repository="copy")
        if tag != "v3":
            world.hints.ages[NAME, tag] = FirstSeen(digest if tag == "v1" else Digest.of(b"other"), 0.0)
    assert {"v1": "skip"} == world.plan(rules).actions()
    assert [("app", "v2"), ("app", "v3")] == sorted(world.source.verbs("resolve"))


def test_an_immutable_tag_that_the_target_lost_is_copied_with_the_digest_that_waited(world: World) -> None:
    digest = world.tag(world.source, "v1")
    world.note_equal("v1", digest)
    world.hints.ages[NAME, "v1"] = FirstSeen(digest, 0.0)
    world.tag(world.source, "v1", "moved")
    [plan_entry] = world.plan(TagRules(immutable=("v.*",), min_age=HOUR)).plan_entries
    version = plan_entry.reference.version
    assert not isinstance(version, MirrorError)
    assert version is not None
    assert ("copy", digest) == (plan_entry.action.value, version.digest)


# ---- newest by date


def test_the_images_that_were_created_last_are_selected(dated: DatedWorld) -> None:
    for day, tag in enumerate(("e", "a", "d", "b", "c"), 1):
        dated.image(tag, day=day)
    assert {"b": "copy", "c": "copy"} == dated.plan(newest(2)).actions()
    assert {NAME: {"newest": 3}} == dated.recorded.rejected


def test_later_runs_read_only_new_images_and_forget_old_ones(dated: DatedWorld) -> None:
    for day in range(1, 21):
        dated.image(f"t{day}", day=day)
    assert {"t19", "t20"} == set(dated.plan(newest(2)).actions())
    assert 40 == dated.reads()
    assert 20 == len(dated.hints.dates[NAME])
    dated.source.asked.clear()
    dated.recorded.plan_entries.clear()
    assert {"t19", "t20"} == set(dated.plan(newest(2)).actions())
    assert 0 == dated.reads()
    assert 20 == len(dated.source.verbs("resolve"))
    dated.image("t1", day=25)
    dated.recorded.plan_entries.clear()
    assert {"t1", "t20"} == set(dated.plan(newest(2)).actions())
    assert 2 == dated.reads()
    assert 20 == len(dated.hints.dates[NAME])


def test_a_deep_run_does_not_trust_recorded_dates(dated: DatedWorld) -> None:
    old, new = dated.image("old", day=1), dated.image("new", day=2)
    dated.hints.dates[NAME] = {old.digest: 2, new.digest: 1}
    assert {"old": "copy"} == dated.plan(newest(1)).actions()
    dated.recorded.plan_entries.clear()
    assert {"new": "copy"} == dated.plan(newest(1), deep=True).actions()


def test_tags_of_one_image_and_images_with_one_config_are_read_once(dated: DatedWorld) -> None:
    dated.image("v1", "v1.0", "latest", day=1)
    dated.image("other", day=2)
    assert {"other", "v1.0", "v1"} == set(dated.plan(newest(3)).actions())
    assert 4 == dated.reads()


def test_equal_and_missing_dates_are_ordered_by_version(dated: DatedWorld) -> None:
    dated.image("1.10", day=1, annotations={"build": "a"})
    dated.image("1.9", day=1, annotations={"build": "b"})
    dated.image("latest", day=1, annotations={"build": "c"})
    dated.image("9.9", day=None)
    dated.image("9.8", day=None)
    order = ["1.10", "1.9", "latest", "9.9", "9.8"]
    for count in range(1, 6):
        dated.recorded.plan_entries.clear()
        assert set(order[:count]) == set(dated.plan(newest(count)).actions())


def test_an_index_has_the_date_of_its_first_image(dated: DatedWorld) -> None:
    early, late = dated.image(day=1), dated.image(day=9)
    dated.index("late-first", late, early)
    dated.index("early-first", early, late)
    dated.index("attested", dated.image(day=8), early, attestation_first=True)
    dated.index("nested", dated.index("inner", dated.image(day=7)), late)
    dated.index("empty")
    assert {"late-first": "copy"} == dated.plan(newest(1)).actions()
    days = {
        tag: datetime.fromtimestamp(dated.hints.dates[NAME][dated.source.manifests["app"][tag].digest] / 1e6, UTC).day
        for tag in ("late-first", "early-first", "attested", "nested", "inner")
    }
    assert {"late-first": 9, "early-first": 1, "attested": 1, "nested": 7, "inner": 7} == days


def test_an_annotation_counts_if_the_config_has_no_date(dated: DatedWorld) -> None:
    dated.image("annotated", day=None, annotations={"org.opencontainers.image.created": "2024-01-05T00:00:00Z"})
    dated.image("dated", day=4, annotations={"org.opencontainers.image.created": "2030-01-01T00:00:00Z"})
    assert {"annotated": "copy"} == dated.plan(newest(1)).actions()


@pytest.mark.parametrize(
    "error",
    [
        Refused("wrong bytes"),
        NotFound("gone", status=404),
        RemoteError("500", status=500),
        AuthError("quarantined", code="auth_denied", status=403),
    ],
    ids=lambda error: error.code,
)
@pytest.mark.parametrize("verb", ["manifest", "open"])
def test_an_image_whose_date_cannot_be_read_fails_beside_the_newest_of_the_others(
    dated: DatedWorld, error: MirrorError, verb: str
) -> None:
    for day in range(1, 5):
        manifest = dated.image(f"t{day}", day=day)
        if day == 2:
            bad = {manifest.digest, manifest.blobs[0].digest}
    dated.source.fault = lambda seen, repository, reference: error if (seen == verb and reference in bad) else None
    recorded = dated.plan(TagRules(newest=2, by_created=True, max_tags=2))
    assert [] == recorded.errors
    assert {"t2", "t3", "t4"} == set(recorded.actions())
    assert {NAME: {"newest": 1}} == recorded.rejected
    failed = {entry.reference.tag: entry.error for entry in recorded.plan_entries if entry.error is not None}
    assert {"t2": error.code} == {tag: failure.code for tag, failure in failed.items()}
    assert 3 == len(dated.hints.dates[NAME])


@pytest.mark.parametrize("verb", ["resolve", "manifest", "open"])
@pytest.mark.parametrize(
    "error",
    [Unreachable("refused"), RateLimited("429", status=429), AuthError("wrong password", status=401)],
    ids=lambda error: error.code,
)
def test_an_error_of_the_host_fails_the_mirror_once(dated: DatedWorld, error: MirrorError, verb: str) -> None:
    for day in range(1, 30):
        dated.image(f"t{day}", day=day)
    dated.source.fault = lambda seen, repository, reference: error if seen == verb else None
    recorded = dated.plan(newest(2))
    assert [NAME] == [name for name, _ in recorded.errors]
    assert [] == recorded.plan_entries
    assert {} == dated.hints.dates.get(NAME, {})


def test_a_run_continues_with_the_dates_that_a_failed_run_has_read(dated: DatedWorld) -> None:
    """Docker Hub allows a number of manifests per hour that may be too small for all images."""
    for number in range(200):
        dated.image(f"t{number}", day=1 + number // 10)
    error, left = RateLimited("429", status=429), iter(range(150))
    dated.source.fault = lambda seen, repository, reference: (
        error if seen == "manifest" and next(left, None) is None else None
    )
    assert [NAME] == [name for name, _ in dated.plan(newest(1)).errors]
    recorded = len(dated.hints.dates[NAME])
    assert 128 <= recorded <= 150
    dated.source.asked.clear()
    dated.source.fault = lambda seen, repository, reference: None
    assert {"t199": "copy"} == dated.plan(newest(1)).actions()
    assert 2 * (200 - recorded) == dated.reads()
    assert {NAME: 200 - recorded} == dated.recorded.dates_read


def test_a_config_that_is_too_large_is_not_read(dated: DatedWorld) -> None:
    described = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest.of(b"x"), "size": 9 << 20}
    dated.put(OCI_MANIFEST, {"config": described, "layers": []}, "large")
    dated.image("small", day=1)
    assert {"small": "copy"} == dated.plan(newest(1)).actions()
    assert 1 == len(dated.source.verbs("open"))


# ---- the number of tags


@pytest.mark.parametrize(
    ("tags", "rules", "says"),
    [
        ("latest edge", TagRules(semver=("*",)), "no tag is a version: select tags with `include`, or by date"),
        ("latest edge", TagRules(newest=1, min_age=HOUR), "no tag is a version"),
        ("latest 1.2.3-alpine", TagRules(semver=(">=1",)), "select such tags with `include`"),
        ("latest 1.2.3", TagRules(semver=(">=2",)), "`allow-empty: true`"),
    ],
)
def test_the_message_about_an_empty_selection_says_what_to_write(
    world: World, tags: str, rules: TagRules, says: str
) -> None:
    for tag in tags.split():
        world.tag(world.source, tag)
    [(_, error)] = world.plan(rules).errors
    assert "nothing_selected" == error.code
    assert says in str(error)
    assert [] == world.source.verbs("resolve")


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (TagRules(min_tags=4), "3 tags are selected, but `min-tags` is 4"),
        (TagRules(max_tags=2), "3 tags are selected, but `max-tags` is 2"),
        (TagRules(include=("v1",), min_tags=2), "1 tag is selected, but `min-tags` is 2"),
        (TagRules(include=("x",), allow_empty=True, min_tags=1), "0 tags are selected, but `min-tags` is 1"),
        (TagRules(min_age=HOUR, min_tags=4), "0 tags are selected, and 3 more wait for min-age, but `min-tags` is 4"),
    ],
)
def test_too_few_or_too_many_tags_fail_the_mirror(world: World, rules: TagRules, says: str) -> None:
    for tag in ("v1", "v2", "v3"):
        world.tag(world.source, tag)
    recorded = world.plan(rules)
    [(name, error)] = recorded.errors
    assert (NAME, "tag_count", 1, False) == (name, error.code, error.exit_code, error.is_transient)
    assert says in str(error)
    assert [] == recorded.plan_entries
    assert [] == world.target.verbs("resolve")


@pytest.mark.parametrize(
    "rules",
    [
        TagRules(min_tags=3, max_tags=3),
        TagRules(newest=2, max_tags=2),
        TagRules(newest=2, by_created=True, max_tags=2),
        TagRules(min_age=HOUR, min_tags=3, max_tags=3),
        TagRules(include=("x",), allow_empty=True),
    ],
)
def test_a_number_of_tags_within_the_limits_is_no_failure(dated: DatedWorld, rules: TagRules) -> None:
    for day in (1, 2, 3):
        dated.image(f"v{day}", day=day)
    assert [] == dated.plan(rules).errors


def test_only_does_not_change_what_the_rules_select(dated: DatedWorld) -> None:
    for day in (1, 2, 3):
        dated.image(f"v{day}", day=day)
    dated.only = "v1"
    assert {} == dated.plan(newest(1)).actions()
    assert [] == dated.plan(TagRules(max_tags=3)).errors
    assert {"v1": "copy"} == dated.recorded.actions()


def test_two_targets_share_the_requests_of_the_selection(dated: DatedWorld) -> None:
    for day in (1, 2, 3):
        dated.image(f"v{day}", day=day)
    targets = (
        TargetEntry(dated.target, Repository("target", "copy")),
        TargetEntry(dated.other, Repository("other", "copy")),
    )
    dated.plan(newest(2), *targets)
    assert {"v2": "copy", "v3": "copy"} == dated.recorded.actions("target") == dated.recorded.actions("other")
    assert (3, 6) == (len(dated.source.verbs("resolve")), dated.reads())
