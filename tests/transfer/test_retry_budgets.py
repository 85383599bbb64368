"""A blob that failed all its attempts is not retried by later images in this run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirror.errors import MirrorError, NetworkError, NotFound, Refused, RemoteError
from mirror.oci.descriptor import Descriptor
from mirror.transfer.blob_copier import BlobCopier
from mirror.transfer.blob_request import BlobOutcome, BlobRequest, BlobResult, BlobSource
from mirror.transfer.blob_uploader import SMALL_BLOB
from mirror.transfer.spool import Spool
from mirror.transfer.tasks import gather_results
from mirror.util.retry_policy import Policy
from mirror.util.structs import replace
from tests.support.stores import blob_of
from tests.transfer.test_blob_copier import PATHS, World

SMALL, LARGE = b"small", bytes(SMALL_BLOB + 1)
BOTH = [("source", "target"), ("source", "other")]
WAYS = pytest.mark.parametrize(
    "data, pairs", [(SMALL, BOTH[:1]), (LARGE, BOTH[:1]), (LARGE, BOTH)], ids=["memory", "stream", "spool"]
)
Outcome = BlobOutcome | type[MirrorError] | None
Fault = Callable[[str, str, str], MirrorError | None]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    spool = Spool(tmp_path / "spool", None)
    spool.prepare()
    yield World(spool)
    spool.close()


def copy_all(world: World, *requests: BlobRequest, together: bool = True) -> list[Outcome]:
    """Copy blobs, concurrently or one after the other, and return the outcome or the type of the error of each."""

    async def copy(blob_copier: BlobCopier) -> list[BlobResult | MirrorError]:
        if together:
            return await gather_results(blob_copier.copy(request) for request in requests)
        return [one for request in requests for one in await gather_results([blob_copier.copy(request)])]

    results = world.drive(copy)
    return [type(one) if isinstance(one, MirrorError) else one.outcome for one in results]


def failing(verb: str, error: Callable[[], MirrorError], *repositories: str, times: int = 1000) -> Fault:
    """Return a fault that fails requests `times` times, for all repositories or those given."""
    left = iter(range(times))

    def fault(asked: str, repository: str, reference: str) -> MirrorError | None:
        hit = asked == verb and (not repositories or repository in repositories) and next(left, None) is not None
        return error() if hit else None

    return fault


def server_error() -> MirrorError:
    return RemoteError("500", status=500, retryable=True)


@WAYS
def test_uploads_that_fail_are_retried_for_one_repository_and_tried_once_for_each_other(
    world: World, data: bytes, pairs: list[tuple[str, str]]
) -> None:
    world.pairs = pairs
    target = world.targets["target"]
    target.fault = failing("send", server_error)
    blob = world.source.add("app", data)
    assert [RemoteError] * 3 == copy_all(world, *(world.request(blob, path) for path in PATHS))
    assert Policy().attempts + 2 == len(target.verbs("send"))


@WAYS
def test_reads_that_fail_are_retried_for_one_repository_and_tried_once_for_each_other(
    world: World, data: bytes, pairs: list[tuple[str, str]]
) -> None:
    world.pairs = pairs
    world.source.fault = failing("open", server_error)
    blob = world.source.add("app", data)
    assert [RemoteError] * 3 == copy_all(world, *(world.request(blob, path) for path in PATHS))
    assert Policy().attempts + 2 == len(world.source.verbs("open"))


@WAYS
def test_after_a_host_has_recovered_the_next_copy_succeeds(
    world: World, data: bytes, pairs: list[tuple[str, str]]
) -> None:
    world.pairs = pairs
    target = world.targets["target"]
    target.fault = failing("send", server_error, times=Policy().attempts)
    blob = world.source.add("app", data)
    results = copy_all(world, *(world.request(blob, path) for path in PATHS))
    assert [RemoteError, BlobOutcome.COPIED, BlobOutcome.MOUNTED] == results


def test_after_a_success_a_blob_has_all_its_retries_again(world: World) -> None:
    world.mounting = {"target": False}
    target = world.targets["target"]
    attempts = Policy().attempts
    hits = iter([*range(attempts), None, 0, 1, None])
    target.fault = lambda verb, repository, reference: (
        server_error() if verb == "send" and next(hits, None) is not None else None
    )
    blob = world.source.add("app", SMALL)
    results = copy_all(world, *(world.request(blob, path) for path in PATHS), together=False)
    assert [RemoteError, BlobOutcome.COPIED, BlobOutcome.COPIED] == results


@WAYS
def test_a_blob_that_the_source_lacks_is_requested_once(
    world: World, data: bytes, pairs: list[tuple[str, str]]
) -> None:
    world.pairs = pairs
    blob = blob_of(data)
    requests = [*(world.request(blob, path) for path in PATHS), world.request(blob, "one", "other")]
    assert [NotFound] * 4 == copy_all(world, *requests, together=False)
    assert 1 == len(world.source.verbs("open"))
    assert [] == world.targets["target"].verbs("begin") + world.targets["other"].verbs("begin")


@WAYS
@pytest.mark.parametrize("change", [lambda data: data[:-1] + b"?", lambda data: data + b"?"], ids=["other", "longer"])
def test_a_damaged_blob_is_read_once_for_all_repositories_of_the_source(
    world: World, data: bytes, pairs: list[tuple[str, str]], change: Callable[[bytes], bytes]
) -> None:
    world.pairs = pairs
    blob = blob_of(data)
    for repository in ("app", "web"):
        world.source.blobs[repository][blob.digest] = change(data)
    from_web = replace(world.request(blob, "two"), source=BlobSource(world.source, "web"))
    requests = [world.request(blob, "one"), from_web, world.request(blob, "one", "other")]
    assert [Refused] * 3 == copy_all(world, *requests, together=False)
    assert 1 == len(world.source.verbs("open"))


def test_a_descriptor_with_a_wrong_size_does_not_fail_requests_with_the_right_size(world: World) -> None:
    blob = world.source.add("app", LARGE)
    wrong = Descriptor(blob.digest, len(LARGE) - 1, blob.media_type)
    results = copy_all(world, world.request(wrong, "one"), world.request(blob, "two"), together=False)
    assert [Refused, BlobOutcome.COPIED] == results


@WAYS
def test_a_blob_that_one_repository_of_the_source_lacks_is_read_from_another_one(
    world: World, data: bytes, pairs: list[tuple[str, str]]
) -> None:
    world.pairs = pairs
    blob = world.source.add("web", data)
    from_web = replace(world.request(blob, "two"), source=BlobSource(world.source, "web"))
    requests = [world.request(blob, "one"), from_web, world.request(blob, "three")]
    results = copy_all(world, *requests, together=False)
    assert [NotFound, BlobOutcome.COPIED, BlobOutcome.MOUNTED] == results


def test_a_repository_without_write_permission_does_not_use_up_the_retries(world: World) -> None:
    denied = failing("begin", lambda: NotFound("no such project"), "one")
    hits = iter(range(Policy().attempts - 1))
    target = world.targets["target"]
    target.fault = lambda verb, repository, reference: (
        denied(verb, repository, reference)
        or (NetworkError("reset") if verb == "send" and next(hits, None) is not None else None)
    )
    blob = world.source.add("app", SMALL)
    results = copy_all(world, *(world.request(blob, path) for path in PATHS))
    assert [NotFound, BlobOutcome.COPIED, BlobOutcome.MOUNTED] == results
