"""What a blob costs, and who waits for whom."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from tests.transfer.harness import eventually, until

DATA = b"a layer" * 5000
PATHS = ("one", "two", "three")

T = TypeVar("T")


@dataclass
class Hints:
    """What earlier runs noted."""

    known: set[tuple[str, Digest]] = field(default_factory=set)
    elsewhere: dict[Digest, list[str]] = field(default_factory=dict)
    forgotten: list[str] = field(default_factory=list)

    def was_held(self, repository: str, digest: Digest) -> bool:
        return (repository, digest) in self.known

    def holders(self, host: str, digest: Digest) -> list[str]:
        return self.elsewhere.get(digest, [])

    def forget(self, repository: str) -> None:
        self.forgotten.append(repository)


class World:
    """A source, targets, and deliveries between them."""

    def __init__(self, spool: Spool, **options: int) -> None:
        self.source = MemoryStore("source")
        self.targets = {name: MemoryStore(name) for name in ("target", "other", "source")}
        self.hints = Hints()
        self.limits = Limits()
        self.spool = spool
        self.told: list[tuple[str, BlobResult | MirrorError]] = []
        self.marked: list[str] = []
        self.mounting = {"target": True}
        self.pairs = [("source", "target")]
        self.options = options
        self.locations = BlobLocations(self.hints, dict.fromkeys(self.targets, PATHS))

    def new_loop(self) -> asyncio.AbstractEventLoop:
        return new_loop()

    @contextmanager
    def opened(self, stop: Stop) -> Iterator[tuple[Calls, BlobCopier]]:
        """Deliveries, and the calls that they make."""
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
                        lambda request, result, error: self.told.append((str(request.repository), error or result))
                    ),
                    count_bytes=lambda count: None,
                    before_write=lambda repository: self.marked.append(str(repository)),
                ),
            )
        finally:
            calls.close()

    def drive(self, steps: Callable[[BlobCopier], Coro[T]]) -> T:
        """Run `steps` to their end, and close all."""
        with self.opened(Stop()) as (_, blob_copier):
            result = self.loop.run_until_complete(steps(blob_copier))
        blob_copier.close()
        return result

    def run(self, requests: Callable[[BlobCopier], Sequence[Coro[BlobResult]]]) -> list[BlobResult]:
        """What becomes of all orders, given at once."""
        return self.drive(lambda blob_copier: run_group(requests(blob_copier)))

    def held_elsewhere(self, data: bytes) -> Descriptor:
        """A blob of the source that another repository of the target has as well."""
        blob = self.source.add("app", data)
        self.targets["target"].blobs["two"][blob.digest] = data
        self.locations.add(Repository("target", "two"), blob.digest)
        return blob

    def request(
        self, blob: Descriptor, path: str, host: str = "target", *, may_have: bool = False, certain: bool = False
    ) -> BlobRequest:
        target = self.targets[host]
        return BlobRequest(
            blob, target, Repository(host, path), BlobSource(self.source, "app"), "source/app:1", may_have, certain
        )


def value_of(result: BlobResult) -> str:
    """Return the outcome of a successful copy."""
    assert result.outcome is not None
    return result.outcome.value


def read_hints(world: World, digests: Sequence[Digest]) -> None:
    """Read what earlier runs noted of blobs, as for a copy to target/one."""
    repository = Repository("target", "one")
    world.locations.note_hints(repository, world.locations.read_hints(repository, digests))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    spool = Spool(tmp_path / "spool", None)
    spool.prepare()
    yield World(spool)
    spool.close()


def test_a_new_blob_is_one_read_and_one_upload_and_nothing_is_asked_first(world: World) -> None:
    blob = world.source.add("app", DATA)
    [done] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one"))])
    assert BlobOutcome.COPIED is done.outcome
    assert (len(DATA), len(DATA), 1) == (done.bytes_read, done.bytes_sent, done.attempts)
    assert ["open"] == [verb for verb, _, _ in world.source.asked]
    assert ["begin", "send"] == [verb for verb, _, _ in world.targets["target"].asked]
    assert ["target/one"] == world.marked


def test_two_who_want_the_same_blob_in_the_same_repository_share_one_delivery(world: World) -> None:
    world.source.gate = gate = threading.Event()
    blob = world.source.add("app", DATA)

    async def requests(blob_copier: BlobCopier) -> list[BlobResult]:
        tasks = [asyncio.ensure_future(blob_copier.copy(world.request(blob, "one"))) for _ in range(2)]
        await eventually(lambda: world.source.asked)
        gate.set()
        return await asyncio.gather(*tasks)

    first, second = world.drive(requests)
    assert first is second
    assert [BlobOutcome.COPIED, None] == [first.take_outcome(), second.take_outcome()], "it counts once"
    assert 1 == len(world.told)


def test_of_three_repositories_one_leads_and_the_others_mount_from_it(world: World) -> None:
    blob = world.source.add("app", DATA)
    done = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, path)) for path in PATHS])
    assert ["copied", "mounted", "mounted"] == sorted(value_of(one) for one in done)
    assert 1 == len(world.source.verbs("open"))
    assert 1 == len(world.targets["target"].verbs("begin"))
    assert {one.mounted_from for one in done if one.mounted_from} <= {"one", "two"}


def test_when_the_leader_fails_for_its_own_repository_a_follower_leads(world: World) -> None:
    blob = world.source.add("app", DATA)
    world.targets["target"].fault = lambda verb, repository, reference: (
        NotFound("no such project") if verb == "begin" and repository == "one" else None
    )

    async def requests(blob_copier: BlobCopier) -> list[BlobResult | MirrorError]:
        return await gather_results(blob_copier.copy(world.request(blob, path)) for path in PATHS)

    failed, *others = world.drive(requests)
    assert isinstance(failed, NotFound)
    assert ["copied", "mounted"] == sorted(value_of(one) for one in others if isinstance(one, BlobResult))


def test_a_session_that_a_refused_mount_opened_is_used(world: World) -> None:
    target = world.targets["target"]
    target.mounts = None
    blob = world.source.add("app", DATA)
    world.locations.add(Repository("target", "two"), blob.digest)
    target.blobs["two"][blob.digest] = DATA
    [done] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one"))])
    assert BlobOutcome.COPIED is done.outcome
    assert ["mount", "open", "send"] == [verb for verb, _, _ in target.asked], "read from the sibling, no second POST"
    assert [] == world.source.asked
    assert [] == target.deleted


def test_after_a_refused_mount_a_repository_that_may_have_the_blob_is_asked_for_it(world: World) -> None:
    target = world.targets["target"]
    target.mounts = None
    blob = world.held_elsewhere(DATA)
    target.blobs["one"][blob.digest] = DATA

    async def requests(blob_copier: BlobCopier) -> BlobResult:
        done = await blob_copier.copy(world.request(blob, "one", may_have=True))
        await eventually(lambda: [blob.digest] == target.deleted)
        return done

    assert BlobOutcome.EXISTS is world.drive(requests).outcome
    assert ["mount", "head"] == [verb for verb, _, _ in target.asked], "no byte is read or sent"


def test_a_refused_mount_falls_back_to_an_upload_and_is_not_tried_again(world: World) -> None:
    target = world.targets["target"]
    target.mounts = Mount.REFUSED
    blobs = [world.source.add("app", DATA + bytes([number])) for number in range(3)]
    for blob in blobs:
        world.hints.elsewhere[blob.digest] = ["two"]
    read_hints(world, [blob.digest for blob in blobs])

    async def one_after_the_other(blob_copier: BlobCopier) -> list[BlobResult]:
        return [await blob_copier.copy(world.request(blob, "one")) for blob in blobs]

    assert {BlobOutcome.COPIED} == {one.outcome for one in world.drive(one_after_the_other)}
    assert 1 == len(target.verbs("mount"))


def test_a_mount_that_fails_with_every_retry_is_an_upload_and_the_next_one_gets_one_attempt(world: World) -> None:
    target = world.targets["target"]
    blobs = [world.held_elsewhere(DATA + bytes([number])) for number in range(3)]
    broken = {blob.digest for blob in blobs[:2]}
    target.fault = lambda verb, repository, reference: (
        RemoteError("a bad gateway", status=502, retryable=True) if verb == "mount" and reference in broken else None
    )

    async def one_after_the_other(blob_copier: BlobCopier) -> list[BlobResult]:
        return [await blob_copier.copy(world.request(blob, "one")) for blob in blobs]

    done = world.drive(one_after_the_other)
    assert ["copied", "copied", "mounted"] == [value_of(one) for one in done]
    assert [5, 1, 1] == [target.verbs("mount").count(("one", blob.digest)) for blob in blobs]


def test_a_host_that_fails_every_mount_is_not_asked_for_ever(world: World) -> None:
    target = world.targets["target"]
    target.fault = lambda verb, repository, reference: (
        RemoteError("an internal error", status=500, retryable=True) if verb == "mount" else None
    )
    blobs = [world.source.add("app", DATA + bytes([number])) for number in range(MAX_FAILED_MOUNTS + 2)]
    for blob in blobs:
        world.hints.elsewhere[blob.digest] = ["two"]
    read_hints(world, [blob.digest for blob in blobs])

    async def one_after_the_other(blob_copier: BlobCopier) -> list[BlobResult]:
        return [await blob_copier.copy(world.request(blob, "one")) for blob in blobs]

    assert {BlobOutcome.COPIED} == {one.outcome for one in world.drive(one_after_the_other)}
    assert 5 + (MAX_FAILED_MOUNTS - 1) == len(target.verbs("mount"))


def test_only_repositories_that_the_configuration_names_are_mounted_from(world: World) -> None:
    blob = world.source.add("app", DATA)
    world.hints.elsewhere[blob.digest] = ["secret/project"]
    read_hints(world, [blob.digest])
    world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one"))])
    assert [] == world.targets["target"].verbs("mount")


def test_what_a_wildcard_names_is_mounted_from_before_it_is_known_to_match(world: World) -> None:
    target = world.targets["target"]
    world.locations = BlobLocations(world.hints, {"target": ["one"]}, {"target": [("hub/", "/x"), ("team/", "")]})
    blobs = [world.source.add("app", DATA + bytes([number])) for number in range(5)]
    paths = ["hub/a/x", "team/a/b", "hub/a", "hub//x", "team/"]
    for blob, path in zip(blobs, paths, strict=True):
        world.hints.elsewhere[blob.digest] = [path]
        target.blobs[path][blob.digest] = world.source.blobs["app"][blob.digest]
    read_hints(world, [blob.digest for blob in blobs])
    done = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one")) for blob in blobs])
    assert ["hub/a/x", "team/a/b", None, None, None] == [one.mounted_from for one in done]
    assert 2 == len(target.verbs("mount"))


def test_a_source_of_another_mirror_on_the_host_is_mounted_from(world: World) -> None:
    blob = world.source.add("app", DATA)
    world.targets["target"].blobs["two"][blob.digest] = DATA
    world.locations.suggest(Repository("target", "two"), [blob.digest])
    world.locations.suggest(Repository("target", "secret"), [blob.digest])
    [done] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one"))])
    assert (BlobOutcome.MOUNTED, "two") == (done.outcome, done.mounted_from)
    assert [] == world.source.asked


def test_a_repository_that_may_have_it_is_asked_and_what_is_there_is_not_sent(world: World) -> None:
    blob = world.source.add("app", DATA)
    world.targets["target"].blobs["one"][blob.digest] = DATA
    [done] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one", may_have=True))])
    assert BlobOutcome.EXISTS is done.outcome
    assert ["head"] == [verb for verb, _, _ in world.targets["target"].asked]
    assert [] == world.source.asked


@pytest.mark.parametrize("there", [True, False], ids=["there", "lost"])
def test_what_a_hint_says_of_a_repository_is_asked_there_before_anything_else_and_once(
    world: World, there: bool
) -> None:
    blob = world.source.add("app", DATA)
    world.hints.known.add(("target/one", blob.digest))
    world.hints.elsewhere[blob.digest] = ["two"]
    world.targets["target"].blobs["one" if there else "two"][blob.digest] = DATA
    read_hints(world, [blob.digest])
    assert not world.locations.has_blob(Repository("target", "one"), blob.digest)
    [done] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one", may_have=True))])
    assert (BlobOutcome.EXISTS if there else BlobOutcome.MOUNTED) is done.outcome
    assert (["head"] if there else ["head", "mount"]) == [verb for verb, _, _ in world.targets["target"].asked]


@pytest.mark.parametrize("status", [400, 500, 503])
def test_a_blob_that_a_target_cannot_look_up_is_uploaded_however_often_that_has_to_be_tried(
    world: World, status: int
) -> None:
    blob = world.source.add("app", DATA)
    target, failures = world.targets["target"], iter([NetworkError("reset")] * 2)

    def fail(verb: str, repository: str, reference: str) -> MirrorError | None:
        if verb == "head":
            return RemoteError("no response", status=status, retryable=status >= 500)
        return next(failures, None) if verb == "send" else None

    target.fault = fail
    [done] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one", may_have=True))])
    assert BlobOutcome.COPIED is done.outcome
    # The first look-up after a failed upload is left to the retries of the upload, if it may succeed.
    again = ["head", "head"] if status >= 500 else ["head"]
    steps = ["head", "begin", "send", *again, "begin", "send", "head", "begin", "send"]
    assert steps == [verb for verb, _, _ in target.asked]


@pytest.mark.parametrize(
    "error", [AuthError("denied", code="auth_denied", status=403), RateLimited("too many", status=429, retryable=False)]
)
def test_a_look_up_that_is_refused_fails_the_blob(world: World, error: MirrorError) -> None:
    blob = world.source.add("app", DATA)
    world.targets["target"].fault = lambda verb, repository, reference: error if verb == "head" else None

    with pytest.raises(type(error)):
        world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one", may_have=True))])
    assert [] == world.targets["target"].verbs("begin")


def test_a_distrusted_repository_is_asked_for_everything(world: World) -> None:
    blob = world.source.add("app", DATA)
    repository = Repository("target", "one")
    world.locations.add(repository, blob.digest)
    world.locations.distrust(repository)
    [done] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one", certain=True))])
    assert BlobOutcome.COPIED is done.outcome
    assert ["head", "begin", "send"] == [verb for verb, _, _ in world.targets["target"].asked]
    assert ["target/one"] == world.hints.forgotten


def test_a_broken_upload_is_tried_again(world: World) -> None:
    blob = world.source.add("app", DATA)
    failures = iter([NetworkError("reset"), NetworkError("reset")])
    world.targets["target"].fault = lambda verb, repository, reference: next(failures, None) if verb == "send" else None
    [done] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one"))])
    assert (BlobOutcome.COPIED, 3) == (done.outcome, done.attempts)
    assert 2 == len(world.targets["target"].deleted)
    assert 2 == world.limits.retries


def test_wrong_bytes_are_not_delivered_and_told_once(world: World) -> None:
    blob = blob_of(DATA)
    world.source.blobs["app"][blob.digest] = DATA[:-1] + b"?"
    with pytest.raises(Refused):
        world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one"))])
    assert [("target/one", Refused)] == [(repository, type(what)) for repository, what in world.told]
    assert blob.digest not in world.targets["target"].blobs["one"]


def test_two_target_hosts_are_served_by_one_read(world: World) -> None:
    world.pairs = [("source", "target"), ("source", "other")]
    blob = world.source.add("app", DATA)
    done = world.run(
        lambda blob_copier: [blob_copier.copy(world.request(blob, "one", host)) for host in ("target", "other")]
    )
    assert {BlobOutcome.COPIED} == {one.outcome for one in done}
    assert 1 == len(world.source.verbs("open"))
    assert len(DATA) == sum(one.bytes_read for one in done)
    assert 2 * len(DATA) == sum(one.bytes_sent for one in done)


def test_without_mounts_the_repositories_of_a_host_are_served_by_one_read(world: World) -> None:
    world.mounting = {"target": False}
    blob = world.source.add("app", DATA)
    done = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, path)) for path in PATHS])
    assert {BlobOutcome.COPIED} == {one.outcome for one in done}
    assert 1 == len(world.source.verbs("open"))
    assert [] == world.targets["target"].verbs("mount")


def test_a_download_that_breaks_is_gone_on_with_and_its_uploads_begin_again(world: World) -> None:
    world.pairs = [("source", "target"), ("source", "other")]
    world.source.cut_after = 10_000
    blob = world.source.add("app", DATA)
    opens = iter(range(10))

    def whole_at_last(verb: str, repository: str, reference: str) -> MirrorError | None:
        if verb == "open" and next(opens) == 2:
            world.source.cut_after = None
        return None

    world.source.fault = whole_at_last
    done = world.run(
        lambda blob_copier: [blob_copier.copy(world.request(blob, "one", host)) for host in ("target", "other")]
    )
    assert {BlobOutcome.COPIED} == {one.outcome for one in done}
    assert DATA == world.targets["target"].blobs["one"][blob.digest] == world.targets["other"].blobs["one"][blob.digest]


def test_a_download_that_fails_for_good_fails_all_who_wait_for_it(world: World) -> None:
    world.pairs = [("source", "target"), ("source", "other")]
    blob = blob_of(DATA)

    async def requests(blob_copier: BlobCopier) -> list[BlobResult | MirrorError]:
        return await gather_results(blob_copier.copy(world.request(blob, "one", host)) for host in ("target", "other"))

    assert [NotFound, NotFound] == [type(one) for one in world.drive(requests)]
    assert [] == world.targets["target"].verbs("begin") + world.targets["other"].verbs("begin")


def test_source_and_target_on_one_host_with_one_slot_do_not_wait_for_each_other(tmp_path: Path) -> None:
    spool = Spool(tmp_path, None)
    spool.prepare()
    world = World(spool, source=1)
    world.pairs = [("source", "source")]
    world.targets["source"].mounts = Mount.REFUSED
    blob = world.source.add("app", DATA)
    [done] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one", "source"))])
    assert BlobOutcome.COPIED is done.outcome


def test_on_one_host_the_source_repository_is_mounted_from(world: World) -> None:
    world.pairs = [("source", "source")]
    store = world.targets["source"]
    blob = world.source.add("app", DATA)
    store.blobs["app"][blob.digest] = DATA
    world.locations = BlobLocations(world.hints, {"source": ["app", "one"]})
    [done] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one", "source"))])
    assert (BlobOutcome.MOUNTED, "app") == (done.outcome, done.mounted_from)
    assert [] == world.source.asked


def test_a_host_that_never_mounts_what_it_has_is_not_asked_for_ever(world: World) -> None:
    target = world.targets["target"]
    target.mounts = None
    blobs = [world.held_elsewhere(bytes([number]) * 100) for number in range(MAX_FAILED_MOUNTS + 3)]

    async def one_after_the_other(blob_copier: BlobCopier) -> list[BlobResult]:
        return [await blob_copier.copy(world.request(blob, "one")) for blob in blobs]

    assert {BlobOutcome.COPIED} == {one.outcome for one in world.drive(one_after_the_other)}
    assert MAX_FAILED_MOUNTS == len(target.verbs("mount"))
    assert [] == world.source.asked, "the bytes came from the target itself"


def test_a_blob_waits_for_room_in_the_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path, len(DATA) + 10)
    spool.prepare()
    world = World(spool)
    world.pairs = [("source", "target"), ("source", "other")]
    blobs = [world.source.add("app", DATA + bytes([number])) for number in range(3)]
    done = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one")) for blob in blobs])
    assert [BlobOutcome.COPIED] * 3 == [one.outcome for one in done]


def test_a_delivery_that_nobody_wants_any_more_leaves_no_session_behind(world: World) -> None:
    world.source.gate = threading.Event()
    blob = world.source.add("app", bytes(SMALL_BLOB + 1))

    async def leave(blob_copier: BlobCopier) -> None:
        task = asyncio.ensure_future(blob_copier.copy(world.request(blob, "one")))
        await eventually(lambda: world.targets["target"].verbs("begin"))
        task.cancel()
        await asyncio.wait([task])

    world.drive(leave)
    assert [blob.digest] == world.targets["target"].deleted


def test_a_session_that_a_mount_opens_after_a_stop_is_deleted_by_who_opened_it(world: World) -> None:
    target, stop, asked, answered = world.targets["target"], Stop(), threading.Event(), threading.Event()
    target.mounts = None
    blob = world.held_elsewhere(DATA)

    def wait_at_the_mount(verb: str, repository: str, reference: str) -> MirrorError | None:
        if verb == "mount":
            asked.set()
            assert answered.wait(30)
        return None

    target.fault = wait_at_the_mount
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


def test_a_session_that_waits_for_its_blob_is_deleted_as_soon_as_nobody_wants_it(world: World) -> None:
    target = world.targets["target"]
    target.mounts, target.gate = None, threading.Event()
    blob = world.held_elsewhere(DATA)

    async def leave(blob_copier: BlobCopier) -> None:
        task = asyncio.ensure_future(blob_copier.copy(world.request(blob, "one")))
        await eventually(lambda: target.verbs("open"))
        assert [] == target.deleted
        task.cancel()
        await eventually(lambda: [blob.digest] == target.deleted)

    world.drive(leave)


def test_the_sessions_that_a_stop_leaves_open_are_closed_within_one_bound(world: World) -> None:
    target, stop = world.targets["target"], Stop()
    target.mounts, target.gate, target.closing = None, threading.Event(), threading.Event()
    blobs = [world.held_elsewhere(bytes([number]) * 100) for number in range(CLOSE_THREADS + 3)]
    world.options["target"] = len(blobs)
    together = threading.Barrier(len(blobs))

    def mount_all_at_once(verb: str, repository: str, reference: str) -> MirrorError | None:
        if verb == "mount":
            together.wait(30)
        return None

    target.fault = mount_all_at_once
    with world.opened(stop) as (calls, blob_copier):
        tasks = [calls.tasks.start(blob_copier.copy(world.request(blob, "one"))) for blob in blobs]
        world.loop.run_until_complete(eventually(lambda: len(blobs) == world.locations._failed_mounts["target"]))
        stop.request("enough")
        world.loop.run_until_complete(asyncio.wait(tasks))
        assert {Cancelled} == {type(task.exception()) for task in tasks}
        with pytest.raises(LocalError, match=f"{len(blobs)} upload sessions were not closed within 0.1 s"):
            blob_copier.close(0.1)
    target.closing.set()
    until(lambda: not any(thread.name.startswith("close") for thread in threading.enumerate()))
    assert CLOSE_THREADS == len(target.deleted)


def test_mounts_that_wait_for_their_turn_while_a_host_turns_out_not_to_mount_are_not_asked_for(world: World) -> None:
    target = world.targets["target"]
    target.mounts = None
    world.options["target"] = 1
    blobs = [world.held_elsewhere(bytes([number]) * 100) for number in range(MAX_FAILED_MOUNTS + 10)]
    done = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one")) for blob in blobs])
    assert {BlobOutcome.COPIED} == {one.outcome for one in done}
    assert MAX_FAILED_MOUNTS == len(target.verbs("mount"))
    assert len(blobs) - MAX_FAILED_MOUNTS == len(target.verbs("begin"))
    assert [] == target.deleted


@pytest.mark.parametrize("size", [0, 1, SMALL_BLOB, SMALL_BLOB + 1], ids=str)
def test_small_blobs_are_read_before_they_are_sent_and_large_ones_are_streamed(world: World, size: int) -> None:
    blob = world.source.add("app", bytes(size))
    [done] = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one"))])
    assert (BlobOutcome.COPIED, size, size) == (done.outcome, done.bytes_read, done.bytes_sent)
    assert ["open"] == [verb for verb, _, _ in world.source.asked]
    assert ["begin", "send"] == [verb for verb, _, _ in world.targets["target"].asked]
    assert bytes(size) == world.targets["target"].blobs["one"][blob.digest]


def test_what_is_carried_at_once_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirror.transfer.blob_uploader.MAX_BUFFERED", len(DATA))
    blobs = [world.source.add("app", DATA[:-1] + bytes([number])) for number in range(20)]
    done = world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one")) for blob in blobs])
    assert [BlobOutcome.COPIED] * 20 == [one.outcome for one in done]


def test_a_small_blob_with_wrong_bytes_opens_no_upload(world: World) -> None:
    blob = blob_of(DATA)
    world.source.blobs["app"][blob.digest] = DATA + b"more"
    with pytest.raises(Refused):
        world.run(lambda blob_copier: [blob_copier.copy(world.request(blob, "one"))])
    assert [] == world.targets["target"].asked
