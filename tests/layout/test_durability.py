"""A layout after a power cut at any moment: everything that its index names is complete, and nothing durable is
lost."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from mirror.layout.directory import LayoutStore
from mirror.util.cancellation import Stop, Work
from tests.support.bundles import manifests_of
from tests.support.images import Graph
from tests.support.layouts import bring
from tests.support.power_cut import Named, Record, Synced, recorded

WORK = Work(Stop())


def graphs() -> list[Graph]:
    made = [Graph("one"), Graph("two")]
    made[0].platforms("v1", "latest", size=400)
    made[1].image("v1", size=400)
    made[1].artifact(subject=made[1].image("v2", size=400))
    return made


TAGS = {(f"app-{number}", tag) for number, graph in enumerate(graphs()) for tag in graph.tags}


def export(layout: Path, made: Sequence[Graph]) -> None:
    store = LayoutStore(layout, new=True)
    try:
        for number, graph in enumerate(made):
            bring(store, graph, f"app-{number}")
            store.finish(whole=True, work=WORK)
    finally:
        store.close()


def whole_tags(layout: Path) -> set[tuple[str, str]]:
    """Return the tags of a layout after checking that everything below them is complete. Raises the layout's errors."""
    store = LayoutStore(layout, new=True)
    found = set()
    try:
        for name in store.repositories("", WORK):
            for tag in store.tags(str(name), WORK):
                assert isinstance(tag, str), tag
                todo = [store.manifest(str(name), tag, WORK)]
                while todo:
                    one = todo.pop()
                    todo += [store.manifest(str(name), child.digest, WORK) for child in one.children]
                    for blob in one.blobs:
                        with store.open_blob(str(name), blob, WORK) as reader:
                            data = memoryview(bytearray(blob.size or 0))
                            assert reader.readinto(data) == blob.size
                        assert blob.digest == type(blob.digest).of(bytes(data))
                found.add((str(name), tag))
    finally:
        store.close()
    return found


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    top = tmp_path_factory.mktemp("disk")
    with recorded(top) as made:
        export(top / "layout", graphs())
    return made


@pytest.mark.parametrize("seed", [None, 1, 2, 3], ids=lambda seed: f"chance-{seed}" if seed else "only-what-is-sure")
def test_after_a_power_cut_everything_named_in_the_index_is_complete(
    record: Record, tmp_path: Path, seed: int | None
) -> None:
    seen: set[int] = set()
    for at in range(len(record.events) + 1):
        place = tmp_path / "after"
        record.crash(at, place, random.Random(seed + at * 10) if seed else None)
        if (place / "layout").exists():
            seen.add(len(whole_tags(place / "layout")))
        shutil.rmtree(place)
    assert {0, len(TAGS)} <= seen


def test_a_power_cut_after_the_end_of_a_run_loses_nothing(record: Record, tmp_path: Path) -> None:
    record.crash(len(record.events), tmp_path / "after")
    assert TAGS == whole_tags(tmp_path / "after" / "layout")


@pytest.mark.parametrize("seed", range(12))
def test_a_run_after_a_power_cut_completes_the_layout(record: Record, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    record.crash(chance.randrange(len(record.events)), tmp_path / "after", chance)
    export(tmp_path / "after" / "layout", graphs())
    assert TAGS == whole_tags(tmp_path / "after" / "layout")


def test_the_simulation_detects_missing_syncs(tmp_path: Path) -> None:
    """Check the test itself: without any sync, the simulation must find missing content."""
    with recorded(tmp_path) as made:
        export(tmp_path / "layout", graphs())
    made.events = [event for event in made.events if isinstance(event, Named)]
    damaged = 0
    for seed in range(20):
        place = tmp_path / f"after-{seed}"
        made.crash(len(made.events), place, random.Random(seed))
        try:
            damaged += whole_tags(place / "layout") != TAGS
        except Exception:  # noqa: BLE001 (whatever is wrong with it)
            damaged += 1
    assert 20 == damaged


def test_index_json_is_replaced_after_its_content_was_synced(tmp_path: Path) -> None:
    graph = Graph("order")
    graph.image("v1")
    with recorded(tmp_path) as made:
        export(tmp_path / "layout", [graph])
    blobs = {digest.partition(":")[2] for digest in (*graph.blobs, *manifests_of(graph))}
    named = {event.name: number for number, event in enumerate(made.events) if isinstance(event, Named)}
    folder = next(event.directory for event in made.events if isinstance(event, Named) and event.name in blobs)
    synced = [number for number, event in enumerate(made.events) if isinstance(event, Synced) and event.inode == folder]
    assert max(named[name] for name in blobs) < max(synced) < named["index.json"]
