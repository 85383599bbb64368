"""`sync --deadline` ends a run in time, and says what is left."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mirror.cli import main
from mirror.oci.digest import Digest
from mirror.util.cancellation import Stop
from mirror.util.files import Lock
from tests.conftest import ScriptedFactory
from tests.registries.process import eventually
from tests.registries.scripted import ScriptedRegistry
from tests.registries.wires import Pipe
from tests.support.images import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Graph
from tests.support.oracle import assert_equal, assert_whole
from tests.support.tool import MirrorTool

IMAGES = 6
SIZE = 600_000  # bytes of each image
RATE = 1_000_000.0  # bytes per second, so that the copy takes 4 seconds
WITHIN = 10.0  # seconds from the deadline to the end. The limit is 5 s; a busy machine gets twice as much.


@contextmanager
def slow_target(scripted: ScriptedFactory, tool: MirrorTool) -> Iterator[tuple[ScriptedRegistry, ScriptedRegistry]]:
    """Configure a copy through a slow connection. Yield the source and the target."""
    source, target = scripted("source"), scripted("target")
    graph = Graph("deadline")
    for number in range(IMAGES):
        graph.image(f"v{number}", size=SIZE)
    source.load("app", graph)
    with Pipe(int(target.host.rpartition(":")[2]), rate=RATE) as pipe:
        mirrors = [{"source": f"{source.host}/app", "targets": [f"{pipe.host}/app"]}]
        tool.config(mirrors, source, parallel={"images": 1}, registries={pipe.host: {"plain-http": True}})
        yield source, target


def copied_tags(target: ScriptedRegistry) -> list[str]:
    """Return the tags of the target, without a request."""
    found = target.storage.repositories.get("app")
    return [] if found is None else sorted(found.tags)


def test_the_deadline_ends_the_run_with_1_and_the_next_run_copies_the_rest(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    with slow_target(scripted, mirror_run) as (source, target):
        began = time.monotonic()
        ran = mirror_run.sync("--deadline", "2s", expect=1)
        assert time.monotonic() - began < 2 + WITHIN
        report = mirror_run.report()
        assert 1 == report["exit"]
        left = [image for image in report["images"] if image["result"] != "copied"]
        assert {"deadline"} >= {image["error"]["code"] for image in left}
        assert {"skipped"} >= {image["result"] for image in left}
        assert len(copied_tags(target)) < IMAGES
        assert "deadline" in ran.text
        page = mirror_run.folder / "page.html"
        assert 0 == mirror_run("report", mirror_run.state, "--html", page).code
        assert "exit code 1: stopped by the deadline<br>" in page.read_text()
        assert ">stopped</span>" in page.read_text()
        assert_whole(target)
        mirror_run.sync()
        assert_equal(source, "app", target)


def test_a_run_that_ends_before_its_deadline_succeeds(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    with slow_target(scripted, mirror_run) as (source, target):
        mirror_run.sync("--deadline", "10 min")
        assert_equal(source, "app", target)
        assert 0 == mirror_run.report()["exit"]


def test_an_image_that_cannot_be_copied_in_time_is_not_started(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("deadline")
    for number in range(3):
        graph.image(f"v{number}", size=5 << 20)
    source.load("app", graph)
    layer = {"mediaType": OCI_LAYER, "digest": Digest.of(b"never read"), "size": 100 << 30}
    config = graph.blob(b"{}", OCI_CONFIG)
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.json(), "layers": [layer]}
    graph.raw(json.dumps(document).encode(), OCI_MANIFEST, "v3-large")
    source.load("app", graph)
    with Pipe(int(target.host.rpartition(":")[2]), rate=8e6) as pipe:
        mirrors = [{"source": f"{source.host}/app", "targets": [f"{pipe.host}/app"]}]
        mirror_run.config(mirrors, source, parallel={"images": 1}, registries={pipe.host: {"plain-http": True}})
        ran = mirror_run.sync("--deadline", "10 min", expect=1)
        name = f"{pipe.host}/app:v3-large"
    assert {"copied": 3, "skipped": 1} == Counter(mirror_run.results().values())
    (left,) = [image for image in mirror_run.report()["images"] if image["result"] == "skipped"]
    assert (name, "deadline") == (left["target"], left["error"]["code"])
    assert "100 GiB at" in left["error"]["message"]
    assert "stopped by the deadline" in ran.text
    assert layer["digest"] not in {seen.reference for seen in source.requests()}
    assert ["v0", "v1", "v2"] == copied_tags(target)


def test_each_cycle_has_its_own_deadline(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    with slow_target(scripted, mirror_run) as (source, target):
        process = mirror_run.start("sync", mirror_run.config_file, "--every", "1s", "--deadline", "3s")
        assert eventually(lambda: len(copied_tags(target)) == IMAGES, within=120)
        process.send_signal(signal.SIGTERM)
        assert 143 == mirror_run.finish(process).code
        assert_equal(source, "app", target)


def test_the_deadline_ends_the_wait_for_the_lock(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    with slow_target(scripted, mirror_run) as (_, target):
        mirror_run.state.mkdir(parents=True, exist_ok=True)
        with Lock(mirror_run.state / "lock").acquire(0.0, Stop()):
            ran = mirror_run.sync("--deadline", "1s", "--lock-wait", "600", expect=1)
        assert "deadline" in ran.text
        assert not target.log


@pytest.mark.parametrize("text", ["", "soon", "25:00", "5:5", "0s", "-1h", "2", "2h30", "40 d"])
def test_an_invalid_deadline_is_a_usage_error(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == main(["sync", "mirror.yaml", f"--deadline={text}"])
    said = capsys.readouterr().err
    assert "--deadline" in said
    assert "05:30" in said


def test_a_dry_run_refuses_a_deadline(capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == main(["sync", "mirror.yaml", "--dry-run", "--deadline", "2h"])
    assert "--deadline" in capsys.readouterr().err
