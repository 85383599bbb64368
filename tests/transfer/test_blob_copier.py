"""The requests of a copy of a blob, and how concurrent copies share them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from mirror.errors import (
    AuthError,
    Cancelled,
    LocalError,
    MirrorError,
    NetworkError,
    NotFound,
    RateLimited,
    Refused,
    RemoteError,
)
from mirror.limits import Limits
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.output.progress import Progress
from mirror.selection.repository_rules import RepositoryRules, can_match
from mirror.store import Mount
from mirror.transfer.blob_copier import BlobCopier
from mirror.transfer.blob_locations import MAX_FAILED_MOUNTS, BlobLocations
from mirror.transfer.blob_recorder import BlobRecorder
from mirror.transfer.blob_request import BlobOutcome, BlobRequest, BlobResult, BlobSource
from mirror.transfer.blob_uploader import SMALL_BLOB
from mirror.transfer.calls import Calls, new_loop
from mirror.transfer.idle_sessions import CLOSE_THREADS
from mirror.transfer.routes import Routes
from mirror.transfer.spool import Spool
from mirror.transfer.tasks import Coro, gather_results, run_group
from mirror.util.cancellation import Stop
from mirror.util.retry_policy import Policy
from tests.support.stores import MemoryStore, blob_of
from tests.transfer.harness import eventually, wait_until

DATA = b"a layer" * 5000
PATHS = ("one", "two", "three")

T = TypeVar("T")


@dataclass
class Hints:
    """The hints of earlier runs."""

    blobs: set[tuple[str, Digest]] = field(default_factory=set)
    elsewhere: dict[Digest, list[str]] = field(default_factory=dict)
    forgotten: list[str] = field(default_factory=list)

    def had_blob(self, repository: str, digest: Digest) -> bool:
        return (repository, digest) in self.blobs

    def repositories_with_blob(self, host: str, digest: Digest) -> list[str]:
        return self.elsewhere.get(digest, [])

    def forget(self, repository: str) -> None:
        self.forgotten.append(repository)


class World:
    """A source, targets, and copies between them."""

    def __init__(self, spool: Spool, **options: int) -> None:
        self.source = MemoryStore("source")
        self.targets = {name: MemoryStore(name) for name in ("target", "other", "source")}
        self.hints = Hints()
        self.limits = Limits()
        self.spool = spool
        self.recorded: list[tuple[str, BlobResult | MirrorError]] = []
        self.marked: list[str] = []
        self.mounting = {"target": True}
        self.pairs = [("source", "target")]
        self.options = options
        self.locations = BlobLocations(self.hints, dict.fromkeys(self.targets, PATHS))

    def new_loop(self) -> asyncio.AbstractEventLoop:
        return new_loop()

    @contextmanager
    def opened(self, stop: Stop) -> Iterator[tuple[Calls, BlobCopier]]:
        """Yield the calls and a BlobCopier, and close the calls afterwards."""
        policy = Policy(base=0.001, cap=0.002)
        for name in ("source", "target", "other"):
            self.limits.configure(name, self.options.get(name, 8))
        uploads = self.options.get("uploads", 8)
        self.loop = self.new_loop()
        calls = Calls(self.loop, self.limits, stop, policy=policy, uploads=uploads)
        routes = Routes(self.pairs, mounting=self.mounting, parallel={n: self.options.get(n, 8) for n in self.targets})
        try:
            yield (
                calls,
                BlobCopier(
                    calls,
                    self.locations,
                    routes,
                    self.spool,
                    recorder=BlobRecorder(
                        lambda request, result, error: self.recorded.append((str(request.repository), error or result))
                    ),
                    progress=Progress(),
                    before_write=lambda repository: self.marked.append(str(repository)),
                ),
            )
        finally:
            calls.close()

    def drive(self, copy: Callable[[BlobCopier], Coro[T]]) -> T:
        """Run a coroutine with a BlobCopier, close everything, and return the result."""
        with self.opened(Stop()) as (_, blob_copier):
            result = self.loop.run_until_complete(copy(blob_copier))
        blob_copier.close()
        return result

    def run(self, copies: Callable[[BlobCopier], Sequence[Coro[BlobResult]]]) -> list[BlobResult]:
        """Run copies concurrently and return their results."""
        return self.drive(lambda blob_copier: run_group(copies(blob_copier)))

    def add_mountable(self, data: bytes) -> Descriptor:
        """Add a blob to the source and to another repository of the target, and return it."""
        blob = self.source.add("app", data)
        self.targets["target"].blobs["two"][blob.digest] = data
        self.locations.add_blob(Repository("target", "two"), blob.digest)
        return blob

    def request(
        self, blob: Descriptor, path: str, host: str = "target", *, may_exist: bool = False, lookup_first: bool = False
    ) -> BlobRequest:
        """Return a request to copy a blob to the repository `path` of a target."""
        target = self.targets[host]
        return BlobRequest(
            blob,
            target,
            Repository(host, path),
            BlobSource(self.source, "app"),
            "source/app:1",
            may_exist,
            lookup_first,
        )


def value_of(result: BlobResult) -> str:
    """Return the outcome of a successful copy."""
    assert result.outcome is not None
    return result.outcome.value


def read_hints(world: World, digests: Sequence[Digest]) -> None:
    """Read the hints about blobs, as for a copy to target/one."""
    repository = Repository("target", "one")
    world.locations.add_hints(repository, world.locations.read_hints(repository, digests))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    spool = Spool(tmp_path / "spool", None)
    spool.prepare()
    yield World(spool)
    spool.close()


def test_a_new_blob_takes_one_read_and_one_upload_without_a_lookup(world: World) -> None:
    blob = world.source.add("app", DATA)
    [result] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one"))])
    assert BlobOutcome.COPIED is result.outcome
    assert (len(DATA), len(DATA), 1) == (result.bytes_read, result.bytes_sent, result.attempts)
    assert ["open"] == [verb for verb, _, _ in world.source.asked]
    assert ["begin", "send"] == [verb for verb, _, _ in world.targets["target"].asked]
    assert ["target/one"] == world.marked


def test_two_requests_for_the_same_blob_in_the_same_repository_share_one_copy(world: World) -> None:
    world.source.gate = gate = threading.Event()
    blob = world.source.add("app", DATA)

    async def copy(blob_copier: BlobCopier) -> list[BlobResult]:
        tasks = [asyncio.ensure_future(blob_copier.copy(world.request(blob, "one"))) for _ in range(2)]
        await eventually(lambda: world.source.asked)
        gate.set()
        return await asyncio.gather(*tasks)

    first, second = world.drive(copy)
    assert first is second
    assert [BlobOutcome.COPIED, None] == [first.take_outcome(), second.take_outcome()], "only the first one counts"
    assert 1 == len(world.recorded)


def test_a_blob_for_three_repositories_is_uploaded_once_and_mounted_twice(world: World) -> None:
    blob = world.source.add("app", DATA)
    results = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, path)) for path in PATHS])
    assert ["copied", "mounted", "mounted"] == sorted(value_of(one) for one in results)
    assert 1 == len(world.source.verbs("open"))
    assert 1 == len(world.targets["target"].verbs("begin"))
    assert {one.mounted_from for one in results if one.mounted_from} <= {"one", "two"}


def test_if_the_leader_fails_another_copy_becomes_the_leader(world: World) -> None:
    blob = world.source.add("app", DATA)
    world.targets["target"].fault = lambda verb, repository, reference: (
        NotFound("no such project") if verb == "begin" and repository == "one" else None
    )

    async def copy(blob_copier: BlobCopier) -> list[BlobResult | MirrorError]:
        return await gather_results(blob_copier.copy(world.request(blob, path)) for path in PATHS)

    failed, *others = world.drive(copy)
    assert isinstance(failed, NotFound)
    assert ["copied", "mounted"] == sorted(value_of(one) for one in others if isinstance(one, BlobResult))


def test_an_upload_session_opened_instead_of_a_mount_is_used(world: World) -> None:
    target = world.targets["target"]
    target.mounts = None
    blob = world.source.add("app", DATA)
    world.locations.add_blob(Repository("target", "two"), blob.digest)
    target.blobs["two"][blob.digest] = DATA
    [result] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one"))])
    assert BlobOutcome.COPIED is result.outcome
    assert ["mount", "open", "send"] == [verb for verb, _, _ in target.asked], "read from the sibling, no second POST"
    assert [] == world.source.asked
    assert [] == target.deleted


def test_a_mount_that_is_not_done_is_followed_by_a_lookup_if_the_repository_may_have_the_blob(world: World) -> None:
    target = world.targets["target"]
    target.mounts = None
    blob = world.add_mountable(DATA)
    target.blobs["one"][blob.digest] = DATA

    async def copy(blob_copier: BlobCopier) -> BlobResult:
        result = await blob_copier.copy(world.request(blob, "one", may_exist=True))
        await eventually(lambda: [blob.digest] == target.deleted)
        return result

    assert BlobOutcome.EXISTS is world.drive(copy).outcome
    assert ["mount", "head"] == [verb for verb, _, _ in target.asked], "no bytes are read or sent"


def test_a_refused_mount_falls_back_to_an_upload_and_is_not_tried_for_other_blobs(world: World) -> None:
    target = world.targets["target"]
    target.mounts = Mount.REFUSED
    blobs = [world.source.add("app", DATA + bytes([number])) for number in range(3)]
    for blob in blobs:
        world.hints.elsewhere[blob.digest] = ["two"]
    read_hints(world, [blob.digest for blob in blobs])

    async def copy_sequentially(blob_copier: BlobCopier) -> list[BlobResult]:
        return [await blob_copier.copy(world.request(blob, "one")) for blob in blobs]

    assert {BlobOutcome.COPIED} == {one.outcome for one in world.drive(copy_sequentially)}
    assert 1 == len(target.verbs("mount"))


def test_a_mount_that_fails_all_retries_falls_back_to_an_upload_and_later_mounts_get_one_attempt(world: World) -> None:
    target = world.targets["target"]
    blobs = [world.add_mountable(DATA + bytes([number])) for number in range(3)]
    broken = {blob.digest for blob in blobs[:2]}
    target.fault = lambda verb, repository, reference: (
        RemoteError("a bad gateway", status=502, retryable=True) if verb == "mount" and reference in broken else None
    )

    async def copy_sequentially(blob_copier: BlobCopier) -> list[BlobResult]:
        return [await blob_copier.copy(world.request(blob, "one")) for blob in blobs]

    results = world.drive(copy_sequentially)
    assert ["copied", "copied", "mounted"] == [value_of(one) for one in results]
    assert [5, 1, 1] == [target.verbs("mount").count(("one", blob.digest)) for blob in blobs]


def test_mounts_are_no_longer_tried_on_a_host_where_all_mounts_fail(world: World) -> None:
    target = world.targets["target"]
    target.fault = lambda verb, repository, reference: (
        RemoteError("an internal error", status=500, retryable=True) if verb == "mount" else None
    )
    blobs = [world.source.add("app", DATA + bytes([number])) for number in range(MAX_FAILED_MOUNTS + 2)]
    for blob in blobs:
        world.hints.elsewhere[blob.digest] = ["two"]
    read_hints(world, [blob.digest for blob in blobs])

    async def copy_sequentially(blob_copier: BlobCopier) -> list[BlobResult]:
        return [await blob_copier.copy(world.request(blob, "one")) for blob in blobs]

    assert {BlobOutcome.COPIED} == {one.outcome for one in world.drive(copy_sequentially)}
    assert 5 + (MAX_FAILED_MOUNTS - 1) == len(target.verbs("mount"))


def test_refused_mounts_between_different_credentials_end_no_mounts_between_equal_ones(world: World) -> None:
    target = world.targets["target"]
    paths = ["a/one", "b/one", "b/two"]
    world.locations = BlobLocations(world.hints, {"target": paths}, None, lambda one: one.path.partition("/")[0])
    both = []
    for number in range(MAX_FAILED_MOUNTS + 2):
        blob = world.source.add("app", DATA + bytes([number]))
        target.blobs["a/one"][blob.digest] = world.source.blobs["app"][blob.digest]
        world.locations.add_blob(Repository("target", "a/one"), blob.digest)
        both.append(blob)
    target.mounts = Mount.ABSENT

    async def copy_sequentially(blob_copier: BlobCopier) -> None:
        for blob in both:
            await blob_copier.copy(world.request(blob, "b/one"))

    world.drive(copy_sequentially)
    assert MAX_FAILED_MOUNTS == len(target.verbs("mount"))
    assert world.locations.is_mount_worthwhile("target")
    assert ["b/one"] == world.locations.mount_candidates(Repository("target", "b/two"), both[0].digest)


def test_repositories_with_the_same_credentials_are_the_first_candidates(world: World) -> None:
    paths = ["a/one", "a/two", "b/one"]
    world.locations = BlobLocations(world.hints, {"target": paths}, None, lambda one: one.path.partition("/")[0])
    blob = world.source.add("app", DATA)
    for path in ("a/one", "b/one", "a/two"):
        world.locations.add_blob(Repository("target", path), blob.digest)
    assert ["b/one", "a/two"] == world.locations.mount_candidates(Repository("target", "b/two"), blob.digest)


def test_only_repositories_that_the_configuration_names_are_mounted_from(world: World) -> None:
    blob = world.source.add("app", DATA)
    world.hints.elsewhere[blob.digest] = ["secret/project"]
    read_hints(world, [blob.digest])
    world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one"))])
    assert [] == world.targets["target"].verbs("mount")


def test_blobs_are_mounted_from_repositories_that_match_a_pattern_of_the_configuration(world: World) -> None:
    target = world.targets["target"]
    templates = {"hub/{repository}/x": (), "team/{repository}": ("secret",)}
    selects = [
        partial(can_match, template=template, rules=RepositoryRules(exclude=exclude))
        for template, exclude in templates.items()
    ]
    world.locations = BlobLocations(world.hints, {"target": ["one"]}, {"target": selects})
    blobs = [world.source.add("app", DATA + bytes([number])) for number in range(6)]
    paths = ["hub/a/x", "team/a/b", "hub/a", "hub//x", "team/", "team/secret"]
    for blob, path in zip(blobs, paths, strict=True):
        world.hints.elsewhere[blob.digest] = [path]
        target.blobs[path][blob.digest] = world.source.blobs["app"][blob.digest]
    read_hints(world, [blob.digest for blob in blobs])
    results = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one")) for blob in blobs])
    assert ["hub/a/x", "team/a/b", None, None, None, None] == [one.mounted_from for one in results]
    assert 2 == len(target.verbs("mount"))


def test_a_blob_is_mounted_from_the_source_of_another_mirror_on_the_same_host(world: World) -> None:
    blob = world.source.add("app", DATA)
    world.targets["target"].blobs["two"][blob.digest] = DATA
    world.locations.add_mount_candidates(Repository("target", "two"), [blob.digest])
    world.locations.add_mount_candidates(Repository("target", "secret"), [blob.digest])
    [result] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one"))])
    assert (BlobOutcome.MOUNTED, "two") == (result.outcome, result.mounted_from)
    assert [] == world.source.asked


def test_a_lookup_finds_a_blob_in_a_repository_that_may_have_it(world: World) -> None:
    blob = world.source.add("app", DATA)
    world.targets["target"].blobs["one"][blob.digest] = DATA
    [result] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one", may_exist=True))])
    assert BlobOutcome.EXISTS is result.outcome
    assert ["head"] == [verb for verb, _, _ in world.targets["target"].asked]
    assert [] == world.source.asked


@pytest.mark.parametrize("exists", [True, False], ids=["exists", "lost"])
def test_a_hint_about_the_repository_causes_one_lookup_before_a_mount(world: World, exists: bool) -> None:
    blob = world.source.add("app", DATA)
    world.hints.blobs.add(("target/one", blob.digest))
    world.hints.elsewhere[blob.digest] = ["two"]
    world.targets["target"].blobs["one" if exists else "two"][blob.digest] = DATA
    read_hints(world, [blob.digest])
    assert not world.locations.has_blob(Repository("target", "one"), blob.digest)
    [result] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one", may_exist=True))])
    assert (BlobOutcome.EXISTS if exists else BlobOutcome.MOUNTED) is result.outcome
    assert (["head"] if exists else ["head", "mount"]) == [verb for verb, _, _ in world.targets["target"].asked]


@pytest.mark.parametrize("status", [400, 500, 503])
def test_a_blob_that_a_target_cannot_look_up_is_uploaded_with_retries(world: World, status: int) -> None:
    blob = world.source.add("app", DATA)
    target, failures = world.targets["target"], iter([NetworkError("reset")] * 2)

    def fail(verb: str, repository: str, reference: str) -> MirrorError | None:
        if verb == "head":
            return RemoteError("no response", status=status, retryable=status >= 500)
        return next(failures, None) if verb == "send" else None

    target.fault = fail
    [result] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one", may_exist=True))])
    assert BlobOutcome.COPIED is result.outcome
    # The first lookup after a failed upload is retried together with the upload if its error is retryable.
    again = ["head", "head"] if status >= 500 else ["head"]
    requests = ["head", "begin", "send", *again, "begin", "send", "head", "begin", "send"]
    assert requests == [verb for verb, _, _ in target.asked]


@pytest.mark.parametrize(
    "error", [AuthError("denied", code="auth_denied", status=403), RateLimited("too many", status=429, retryable=False)]
)
def test_a_denied_or_rate_limited_lookup_fails_the_copy(world: World, error: MirrorError) -> None:
    blob = world.source.add("app", DATA)
    world.targets["target"].fault = lambda verb, repository, reference: error if verb == "head" else None

    with pytest.raises(type(error)):
        world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one", may_exist=True))])
    assert [] == world.targets["target"].verbs("begin")


def test_a_blob_is_looked_up_in_a_distrusted_repository(world: World) -> None:
    blob = world.source.add("app", DATA)
    repository = Repository("target", "one")
    world.locations.add_blob(repository, blob.digest)
    world.locations.distrust(repository)
    [result] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one", lookup_first=True))])
    assert BlobOutcome.COPIED is result.outcome
    assert ["head", "begin", "send"] == [verb for verb, _, _ in world.targets["target"].asked]
    assert ["target/one"] == world.hints.forgotten


def test_a_broken_upload_is_retried(world: World) -> None:
    blob = world.source.add("app", DATA)
    failures = iter([NetworkError("reset"), NetworkError("reset")])
    world.targets["target"].fault = lambda verb, repository, reference: next(failures, None) if verb == "send" else None
    [result] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one"))])
    assert (BlobOutcome.COPIED, 3) == (result.outcome, result.attempts)
    assert 2 == len(world.targets["target"].deleted)
    assert 2 == world.limits.retries


def test_wrong_bytes_are_not_uploaded_and_the_failure_is_recorded_once(world: World) -> None:
    blob = blob_of(DATA)
    world.source.blobs["app"][blob.digest] = DATA[:-1] + b"?"
    with pytest.raises(Refused):
        world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one"))])
    assert [("target/one", Refused)] == [(repository, type(what)) for repository, what in world.recorded]
    assert blob.digest not in world.targets["target"].blobs["one"]


def test_a_blob_for_two_target_hosts_is_read_once(world: World) -> None:
    world.pairs = [("source", "target"), ("source", "other")]
    blob = world.source.add("app", DATA)
    results = world.run(
        lambda blob_copier: [blob_copier.copy(world.request(blob, "one", host)) for host in ("target", "other")]
    )
    assert {BlobOutcome.COPIED} == {one.outcome for one in results}
    assert 1 == len(world.source.verbs("open"))
    assert len(DATA) == sum(one.bytes_read for one in results)
    assert 2 * len(DATA) == sum(one.bytes_sent for one in results)


def test_a_blob_for_several_repositories_of_a_host_without_mounts_is_read_once(world: World) -> None:
    world.mounting = {"target": False}
    blob = world.source.add("app", DATA)
    results = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, path)) for path in PATHS])
    assert {BlobOutcome.COPIED} == {one.outcome for one in results}
    assert 1 == len(world.source.verbs("open"))
    assert [] == world.targets["target"].verbs("mount")


def test_a_broken_download_is_resumed_and_its_uploads_restart(world: World) -> None:
    world.pairs = [("source", "target"), ("source", "other")]
    world.source.cut_after = 10_000
    blob = world.source.add("app", DATA)
    opens = iter(range(10))

    def complete_the_third(verb: str, repository: str, reference: str) -> MirrorError | None:
        if verb == "open" and next(opens) == 2:
            world.source.cut_after = None
        return None

    world.source.fault = complete_the_third
    results = world.run(
        lambda blob_copier: [blob_copier.copy(world.request(blob, "one", host)) for host in ("target", "other")]
    )
    assert {BlobOutcome.COPIED} == {one.outcome for one in results}
    assert DATA == world.targets["target"].blobs["one"][blob.digest] == world.targets["other"].blobs["one"][blob.digest]


def test_a_failed_download_fails_all_uploads_that_share_it(world: World) -> None:
    world.pairs = [("source", "target"), ("source", "other")]
    blob = blob_of(DATA)

    async def copy(blob_copier: BlobCopier) -> list[BlobResult | MirrorError]:
        return await gather_results(blob_copier.copy(world.request(blob, "one", host)) for host in ("target", "other"))

    assert [NotFound, NotFound] == [type(one) for one in world.drive(copy)]
    assert [] == world.targets["target"].verbs("begin") + world.targets["other"].verbs("begin")


def test_a_copy_within_one_host_needs_only_one_permit_at_a_time(tmp_path: Path) -> None:
    spool = Spool(tmp_path, None)
    spool.prepare()
    world = World(spool, source=1)
    world.pairs = [("source", "source")]
    world.targets["source"].mounts = Mount.REFUSED
    blob = world.source.add("app", DATA)
    [result] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one", "source"))])
    assert BlobOutcome.COPIED is result.outcome


def test_a_copy_within_one_host_mounts_from_the_source_repository(world: World) -> None:
    world.pairs = [("source", "source")]
    store = world.targets["source"]
    blob = world.source.add("app", DATA)
    store.blobs["app"][blob.digest] = DATA
    world.locations = BlobLocations(world.hints, {"source": ["app", "one"]})
    [result] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one", "source"))])
    assert (BlobOutcome.MOUNTED, "app") == (result.outcome, result.mounted_from)
    assert [] == world.source.asked


def test_mounts_are_no_longer_tried_on_a_host_that_always_opens_an_upload_session_instead(world: World) -> None:
    target = world.targets["target"]
    target.mounts = None
    blobs = [world.add_mountable(bytes([number]) * 100) for number in range(MAX_FAILED_MOUNTS + 3)]

    async def copy_sequentially(blob_copier: BlobCopier) -> list[BlobResult]:
        return [await blob_copier.copy(world.request(blob, "one")) for blob in blobs]

    assert {BlobOutcome.COPIED} == {one.outcome for one in world.drive(copy_sequentially)}
    assert MAX_FAILED_MOUNTS == len(target.verbs("mount"))
    assert [] == world.source.asked, "the bytes were read from the target itself"


def test_a_blob_waits_for_room_in_the_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path, len(DATA) + 10)
    spool.prepare()
    world = World(spool)
    world.pairs = [("source", "target"), ("source", "other")]
    blobs = [world.source.add("app", DATA + bytes([number])) for number in range(3)]
    results = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one")) for blob in blobs])
    assert [BlobOutcome.COPIED] * 3 == [one.outcome for one in results]


def test_a_cancelled_copy_leaves_no_upload_session_open(world: World) -> None:
    world.source.gate = threading.Event()
    blob = world.source.add("app", bytes(SMALL_BLOB + 1))

    async def copy_and_cancel(blob_copier: BlobCopier) -> None:
        task = asyncio.ensure_future(blob_copier.copy(world.request(blob, "one")))
        await eventually(lambda: world.targets["target"].verbs("begin"))
        task.cancel()
        await asyncio.wait([task])

    world.drive(copy_and_cancel)
    assert [blob.digest] == world.targets["target"].deleted


def test_a_session_that_a_mount_opens_after_a_stop_is_deleted_by_the_same_call(world: World) -> None:
    target, stop, asked, answered = world.targets["target"], Stop(), threading.Event(), threading.Event()
    target.mounts = None
    blob = world.add_mountable(DATA)

    def block_mounts(verb: str, repository: str, reference: str) -> MirrorError | None:
        if verb == "mount":
            asked.set()
            assert answered.wait(30)
        return None

    target.fault = block_mounts
    with world.opened(stop) as (calls, blob_copier):
        task = calls.tasks.start(blob_copier.copy(world.request(blob, "one")))
        world.loop.run_until_complete(eventually(asked.is_set))
        stop.request("enough")
        world.loop.run_until_complete(asyncio.wait([task]))
        assert isinstance(task.exception(), Cancelled)
        blob_copier.close()
        assert [] == target.deleted
        answered.set()
    assert [blob.digest] == target.deleted


def test_an_idle_session_is_deleted_as_soon_as_its_copy_is_cancelled(world: World) -> None:
    target = world.targets["target"]
    target.mounts, target.gate = None, threading.Event()
    blob = world.add_mountable(DATA)

    async def copy_and_cancel(blob_copier: BlobCopier) -> None:
        task = asyncio.ensure_future(blob_copier.copy(world.request(blob, "one")))
        await eventually(lambda: target.verbs("open"))
        assert [] == target.deleted
        task.cancel()
        await eventually(lambda: [blob.digest] == target.deleted)

    world.drive(copy_and_cancel)


def test_sessions_left_open_by_a_stop_are_closed_concurrently_within_one_timeout(world: World) -> None:
    target, stop = world.targets["target"], Stop()
    target.mounts, target.gate, target.closing = None, threading.Event(), threading.Event()
    blobs = [world.add_mountable(bytes([number]) * 100) for number in range(CLOSE_THREADS + 3)]
    world.options["target"] = len(blobs)
    together = threading.Barrier(len(blobs))

    def wait_for_all_mounts(verb: str, repository: str, reference: str) -> MirrorError | None:
        if verb == "mount":
            together.wait(30)
        return None

    target.fault = wait_for_all_mounts
    with world.opened(stop) as (calls, blob_copier):
        tasks = [calls.tasks.start(blob_copier.copy(world.request(blob, "one"))) for blob in blobs]
        world.loop.run_until_complete(eventually(lambda: len(blobs) == world.locations._failed_mounts["target"]))
        stop.request("enough")
        world.loop.run_until_complete(asyncio.wait(tasks))
        assert {Cancelled} == {type(task.exception()) for task in tasks}
        with pytest.raises(LocalError, match=f"{len(blobs)} upload sessions"):
            blob_copier.close(0.1)
    target.closing.set()
    wait_until(lambda: not any(thread.name.startswith("close") for thread in threading.enumerate()))
    assert CLOSE_THREADS == len(target.deleted)


def test_waiting_mounts_are_not_sent_after_mounts_turned_out_not_to_work(world: World) -> None:
    target = world.targets["target"]
    target.mounts = None
    world.options["target"] = 1
    blobs = [world.add_mountable(bytes([number]) * 100) for number in range(MAX_FAILED_MOUNTS + 10)]
    results = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one")) for blob in blobs])
    assert {BlobOutcome.COPIED} == {one.outcome for one in results}
    assert MAX_FAILED_MOUNTS == len(target.verbs("mount"))
    assert len(blobs) - MAX_FAILED_MOUNTS == len(target.verbs("begin"))
    assert [] == target.deleted


@pytest.mark.parametrize("size", [0, 1, SMALL_BLOB, SMALL_BLOB + 1], ids=str)
def test_small_and_large_blobs_take_the_same_requests(world: World, size: int) -> None:
    blob = world.source.add("app", bytes(size))
    [result] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one"))])
    assert (BlobOutcome.COPIED, size, size) == (result.outcome, result.bytes_read, result.bytes_sent)
    assert ["open"] == [verb for verb, _, _ in world.source.asked]
    assert ["begin", "send"] == [verb for verb, _, _ in world.targets["target"].asked]
    assert bytes(size) == world.targets["target"].blobs["one"][blob.digest]


def test_blobs_beyond_the_memory_limit_are_streamed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirror.transfer.blob_uploader.MAX_BUFFERED", len(DATA))
    blobs = [world.source.add("app", DATA[:-1] + bytes([number])) for number in range(20)]
    results = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one")) for blob in blobs])
    assert [BlobOutcome.COPIED] * 20 == [one.outcome for one in results]


def test_a_small_blob_with_wrong_bytes_opens_no_upload(world: World) -> None:
    blob = blob_of(DATA)
    world.source.blobs["app"][blob.digest] = DATA + b"more"
    with pytest.raises(Refused):
        world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one"))])
    assert [] == world.targets["target"].asked
