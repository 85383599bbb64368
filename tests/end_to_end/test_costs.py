"""The cost of a sync: every request and every byte, counted by the registries.

Ten repositories with six tags each. Every tag is an index of two platforms with four layers of 1 MiB; half of the
layers are shared by all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import RegistryFactory
from tests.registries.access import Seen
from tests.registries.real import RealRegistry
from tests.support.oracle import assert_equal, assert_whole, skopeo_copy_to_dir
from tests.support.seeding import Seeded, seed
from tests.support.tool import MirrorTool, Ran

REPOSITORIES, TAGS, LAYERS, LAYER_SIZE = 10, 6, 4, 100_000
BLOB_KINDS = {"HEAD blob", "POST upload", "PUT upload", "PATCH upload", "DELETE upload", "POST mount"}


@dataclass(frozen=True, slots=True)
class Account:
    """One sync: its result, and the requests to source and target."""

    ran: Ran
    source: list[Seen]
    target: list[Seen]

    @property
    def source_requests(self) -> Counter[str]:
        """Requests to the source."""
        return Counter(seen.kind for seen in self.source)

    @property
    def target_requests(self) -> Counter[str]:
        """Requests to the target."""
        return Counter(seen.kind for seen in self.target)


@dataclass(frozen=True, slots=True)
class World:
    """Two registries and two syncs between them."""

    source: RealRegistry
    target: RealRegistry
    seeded: Seeded
    cold: Account
    rerun: Account

    @property
    def mounted(self) -> int:
        """The number of blobs that a repository needs although another repository already has them."""
        return len(self.seeded.shared) * (REPOSITORIES - 1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("costs")
    with ExitStack() as stack:
        source, target = (stack.enter_context(RealRegistry(root, name)) for name in ("source", "target"))
        tool = stack.enter_context(MirrorTool(root / "mirror"))
        seeded = seed(
            source,
            "team/app",
            repositories=REPOSITORIES,
            images=TAGS,
            layers=LAYERS,
            layer_size=LAYER_SIZE,
            shared=0.5,
            index=True,
        )
        mirrors = [
            {"source": f"{source.host}/{name}", "targets": [f"{target.host}/{name}"]} for name in seeded.repositories
        ]
        tool.config(mirrors, source, target)
        yield World(source, target, seeded, _sync(tool, source, target), _sync(tool, source, target))


def _sync(tool: MirrorTool, source: RealRegistry, target: RealRegistry) -> Account:
    source.mark()
    target.mark()
    ran = tool.sync()
    return Account(ran, source.requests(), target.requests())


# ---- into an empty registry


def test_the_source_sends_each_blob_and_manifest_once(world: World) -> None:
    seeded = world.seeded
    fetched = Counter(seen.reference for seen in world.cold.source if seen.kind == "GET blob")
    assert dict.fromkeys(seeded.blobs, 1) == fetched
    sent = sum(seen.size for seen in world.cold.source if seen.method == "GET")
    assert sent <= 1.02 * seeded.bytes


def test_the_source_gets_requests_only_for_pages_manifests_and_blobs(world: World) -> None:
    expected = {
        "GET tags": REPOSITORIES,
        "GET manifest": len(world.seeded.manifests),
        "GET blob": len(world.seeded.blobs),
        "GET referrers": REPOSITORIES,  # the response shows that the registry does not have this API
    }
    assert expected == world.cold.source_requests
    assert 564 == world.cold.source_requests.total()


def test_no_blob_is_requested_from_a_repository_that_does_not_exist(world: World) -> None:
    assert 0 == world.cold.target_requests["HEAD blob"]


def test_a_shared_layer_is_uploaded_once_and_mounted_in_other_repositories(world: World) -> None:
    uploads, mounts = _committed(world.cold.target, "PUT upload"), _committed(world.cold.target, "POST mount")
    shared = world.seeded.shared
    assert dict.fromkeys(world.seeded.blobs, 1) == uploads
    assert dict.fromkeys(shared, REPOSITORIES - 1) == mounts
    places = Counter((seen.repository, seen.reference) for seen in world.cold.target if seen.kind == "POST mount")
    assert len(places) == places.total() == world.mounted


def _committed(requests: list[Seen], kind: str) -> Counter[str]:
    """Return how often each digest was answered with 201."""
    return Counter(seen.reference for seen in requests if seen.kind == kind and seen.status == 201)


def test_an_upload_costs_two_requests_and_everything_else_one(world: World) -> None:
    expected = {
        "GET tags": REPOSITORIES,
        "POST upload": len(world.seeded.blobs),
        "PUT upload": len(world.seeded.blobs),
        "POST mount": world.mounted,
        "PUT manifest": len(world.seeded.manifests),
    }
    assert expected == world.cold.target_requests
    assert 954 == world.cold.target_requests.total()


def test_no_request_fails(world: World) -> None:
    """Except the listings of repositories that do not exist yet, and the question whether the source lists
    referrers."""
    refused = [seen for seen in world.cold.source + world.cold.target if seen.status >= 400]
    assert {("GET tags", 404): REPOSITORIES, ("GET referrers", 404): REPOSITORIES} == Counter(
        (seen.kind, seen.status) for seen in refused
    )


def test_the_target_is_complete_and_has_nothing_else(world: World) -> None:
    after = assert_whole(world.target)
    assert world.seeded.tags == after.tags
    assert {*world.seeded.blobs, *world.seeded.manifests} == {digest for _, digest in after.objects}


# ---- once more, with nothing changed


def test_a_rerun_costs_pages_and_one_head_per_tag_at_the_source(world: World) -> None:
    assert {"GET tags": REPOSITORIES, "HEAD manifest": REPOSITORIES * TAGS} == world.rerun.source_requests


def test_a_rerun_costs_no_more_at_the_target_and_writes_nothing(world: World) -> None:
    assert {"GET tags": REPOSITORIES, "HEAD manifest": REPOSITORIES * TAGS} == world.rerun.target_requests


def test_a_rerun_without_changes_prints_one_line(world: World) -> None:
    assert 1 == len(world.rerun.ran.out.splitlines())


# ---- one tag, several tags, several targets, skopeo


def test_a_moved_tag_costs_only_the_difference(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    seed(source, "app", images=3, index=True)
    mirror_run.config([{"source": f"{source.host}/app", "targets": [f"{target.host}/app"]}], source, target)
    mirror_run.sync()
    moved = seed(source, "app", images=1, index=True, name="moved", shared=0)
    target.mark()
    source.mark()
    mirror_run.sync()
    assert len(moved.blobs) == source.counts()["GET blob"]
    assert len(moved.manifests) == source.counts()["GET manifest"]
    wanted = {"POST upload": len(moved.blobs), "PUT upload": len(moved.blobs), "PUT manifest": len(moved.manifests)}
    assert wanted == Counter(seen.kind for seen in target.writes())


def test_each_further_tag_of_an_image_costs_one_put(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    seeded = seed(source, "app", images=1, tags=12, index=True)
    mirror_run.config([{"source": f"{source.host}/app", "targets": [f"{target.host}/app"]}], source, target)
    mirror_run.sync()
    assert len(seeded.manifests) + 11 == target.counts()["PUT manifest"]
    assert len(seeded.blobs) == target.counts()["PUT upload"] == source.counts()["GET blob"]


def test_three_targets_need_one_read_of_the_source(
    source: RealRegistry, registry_factory: RegistryFactory, mirror_run: MirrorTool
) -> None:
    seeded = seed(source, "app", repositories=2, images=3, index=True, layer_size=100_000)
    targets = [registry_factory(f"target-{number}") for number in range(3)]
    mirrors = [
        {"source": f"{source.host}/{name}", "targets": [f"{target.host}/{name}" for target in targets]}
        for name in seeded.repositories
    ]
    mirror_run.config(mirrors, source, *targets)
    source.mark()
    mirror_run.sync()
    expected = {"GET tags": 2, "GET manifest": len(seeded.manifests), "GET blob": len(seeded.blobs)}
    assert expected | {"GET referrers": 2} == source.counts()
    for target in targets:
        for name in seeded.repositories:
            assert_equal(source, name, target)
        assert target.counts()["HEAD blob"] == 0
        assert len(seeded.blobs) == len(_committed(target.requests(), "PUT upload"))


def test_skopeo_copies_every_synced_image_to_a_directory(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    seeded = seed(source, "app", images=1, index=True)
    docker = seed(source, "docker", images=1, index=True, oci=False)
    names = [*seeded.repositories, *docker.repositories]
    mirrors = [{"source": f"{source.host}/{name}", "targets": [f"{target.host}/{name}"]} for name in names]
    mirror_run.config(mirrors, source, target)
    mirror_run.sync()
    for repository, tag in {**seeded.tags, **docker.tags}:
        copied = skopeo_copy_to_dir(target, repository, tag, tmp_path / "copied" / repository / tag)
        # The index's manifest, one manifest per platform, and the blobs of both.
        assert 3 == len(list(copied.glob("*manifest.json")))
