"""Exports and imports in one bundle, by the tool as users run it."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mirror.layout.bundle.journal import read_journal
from mirror.layout.inventory import parse_inventory
from tests.conftest import RegistryFactory, ScriptedFactory
from tests.end_to_end.conftest import NAMES
from tests.end_to_end.test_kill import IMAGES, KILLS, Killer, killed_after
from tests.registries.process import eventually
from tests.registries.real import RealRegistry
from tests.registries.wires import Front, Pipe
from tests.support.images import Graph
from tests.support.oracle import assert_equal, assert_whole
from tests.support.seeding import Seeded, push, seed
from tests.support.tool import MirrorTool, Ran


@pytest.fixture
def media(tmp_path: Path) -> Path:
    (tmp_path / "media").mkdir()
    return tmp_path / "media"


class Gap:
    """The two sides of a transfer. Each has its own configuration, state, and home."""

    def __init__(self, tool: MirrorTool, media: Path) -> None:
        self.tool, self.media = tool, media
        self.bundle = media / "bundle.tar"

    def export(self, source: Any, *names: str, to: str = "", expect: int = 0, **keys: Any) -> Ran:
        to = to or str(self.bundle)
        mirrors = [{"source": f"{source.host}/{name}", "targets": [to], **keys} for name in names or NAMES]
        self.tool.config(mirrors, source)
        return self.tool.sync(expect=expect)

    def far_side(self, target: Any, *, source: str = "", **keys: Any) -> Path:
        mirrors = [{"source": source or f"{self.bundle}:*", "targets": [f"{target.host}/{{repository}}"], **keys}]
        state = str(self.media.parent / "far-state")
        return self.tool.config(mirrors, target, file=self.media.parent / "import.yaml", state=state)

    def inventory(self, of: Path) -> Path:
        """Write the inventory of `of`, for use as a base. of: a bundle, a report, or a configuration of the importing
        side."""
        ran = self.tool("inventory", of)
        assert 0 == ran.code, str(ran)
        base = self.media.parent / "far-side.json"
        base.write_text(ran.out)
        return base

    def arrive(self, target: Any, *, expect: int = 0, **keys: Any) -> Ran:
        """Import the bundle. A connection to any host but the target is recorded and fails."""
        ran = self.tool("sync", self.far_side(target, **keys), environment={"MIRROR_TESTS_ONLY": target.host})
        assert expect == ran.code, str(ran)
        return ran


@pytest.fixture
def gap(mirror_run: MirrorTool, media: Path) -> Gap:
    return Gap(mirror_run, media)


def blobs_of(path: Path) -> set[str]:
    with tarfile.open(path) as tar:
        return {"sha256:" + one.name[13:] for one in tar if one.name.startswith("blobs/sha256/")}


def listing(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


# ---- the whole way


def test_everything_is_imported_without_the_source(
    gap: Gap, stocked: RealRegistry, target: RealRegistry, graphs: dict[str, Graph], tmp_path: Path
) -> None:
    gap.export(stocked)
    assert ["bundle.tar"] == listing(gap.media)
    assert 0 == gap.tool("bundle", "verify", gap.bundle).code
    asked = stocked.counts()
    assert sum(asked[kind] for kind in ("GET blob",)) == len({d for graph in graphs.values() for d in graph.blobs})
    stocked.stop()
    gap.arrive(target)
    stocked.start()
    for name in NAMES:
        assert_equal(stocked, name, target)
    stocked.mark()
    gap.arrive(target)
    assert [] == stocked.requests()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    for name in NAMES:
        command = ["skopeo", "inspect", "--raw", f"oci-archive:{gap.bundle}:{name}:v1"]
        shown = subprocess.run(command, capture_output=True, check=True, env=environment).stdout
        assert graphs[name].manifests[graphs[name].tags["v1"]].data == shown


def test_an_unchanged_export_leaves_the_bundle_as_it_is(gap: Gap, stocked: RealRegistry) -> None:
    gap.export(stocked)
    before = gap.bundle.stat()
    stocked.mark()
    ran = gap.export(stocked)
    assert 1 == len(ran.out.splitlines())
    assert before.st_mtime_ns == gap.bundle.stat().st_mtime_ns
    assert 0 == stocked.counts()["GET blob"]


def test_a_changed_export_fetches_only_new_content_and_replaces_the_bundle_atomically(
    gap: Gap, stocked: RealRegistry, graphs: dict[str, Graph]
) -> None:
    gap.export(stocked)
    old = blobs_of(gap.bundle)
    graphs["app"].image("v2")
    push(stocked, "app", graphs["app"])
    stocked.mark()
    gap.export(stocked)
    fresh = {seen.reference for seen in stocked.requests() if seen.kind == "GET blob"}
    assert fresh == blobs_of(gap.bundle) - old - set(graphs["app"].manifests)
    assert ["bundle.tar"] == listing(gap.media)
    assert 0 == gap.tool("bundle", "verify", gap.bundle).code


def test_an_export_with_a_failed_image_keeps_the_old_bundle(
    gap: Gap, stocked: RealRegistry, graphs: dict[str, Graph]
) -> None:
    gap.export(stocked)
    before = gap.bundle.read_bytes()
    graphs["app"].image("broken", layers=[graphs["app"].layer("broken")])
    graphs["app"].image("right")
    push(stocked, "app", graphs["app"])
    stocked.drop_bytes(graphs["app"].layer("broken").digest)
    ran = gap.export(stocked, expect=1)
    assert "app:broken" in ran.text
    assert before == gap.bundle.read_bytes()
    assert [".bundle.tar.journal", ".bundle.tar.partial", "bundle.tar"] == listing(gap.media)


# ---- differential


def test_a_differential_export_has_only_new_content_and_needs_its_base(
    gap: Gap,
    stocked: RealRegistry,
    target: RealRegistry,
    graphs: dict[str, Graph],
    registry_factory: RegistryFactory,
    tmp_path: Path,
) -> None:
    gap.export(stocked)
    gap.arrive(target)
    known = gap.tool("inventory", gap.far_side(target))
    assert 0 == known.code
    base = tmp_path / "far-side.json"
    base.write_text(known.out)
    graphs["app"].image("v2", layers=[graphs["app"].layer("app"), graphs["app"].layer("moved", 90_000)])
    graphs["team/web"].image("v3", layers=[graphs["team/web"].layer("added", 70_000)])
    new = {digest for name in ("app", "team/web") for digest in graphs[name].blobs} - blobs_of(gap.bundle)
    for name in ("app", "team/web"):
        push(stocked, name, graphs[name])
    gap.bundle = gap.media / "second.tar"
    stocked.mark()
    gap.export(stocked, base=str(base))
    assert new == {seen.reference for seen in stocked.requests() if seen.kind == "GET blob"}
    size = sum(
        len(graphs[name].blobs[digest]) for name in ("app", "team/web") for digest in new & graphs[name].blobs.keys()
    )
    assert size <= gap.bundle.stat().st_size < size + (64 << 10)
    verified = gap.tool("bundle", "verify", gap.bundle)
    assert (0, True) == (verified.code, "relies on" in verified.out)

    empty = registry_factory("empty")
    refused = gap.tool("sync", gap.far_side(empty))
    assert 3 == refused.code
    count = int(re.search(r"relies on (\d+) blobs that are missing", refused.text)[1])  # type: ignore[index]
    (log,) = tmp_path.rglob("far-state/mirror.log")
    missing = [line for line in map(json.loads, log.read_text().splitlines()) if line["event"] == "base_missing"]
    assert count == len({line["digest"] for line in missing})
    assert 1 == refused.out.count("failed: ")
    assert 3 == len(re.findall("relies on sha256:[0-9a-f]{64}, which is missing in", refused.text))
    planned = gap.tool("plan", gap.far_side(empty), "--exit-code")
    assert (3, 1) == (planned.code, planned.out.count(f"relies on {count} blobs that are missing")), str(planned)
    assert "nothing to copy" in planned.out
    assert [] == empty.writes()
    planned = gap.tool("plan", gap.far_side(target), "--exit-code")
    assert (10, True) == (planned.code, "0 manifest requests that count against a pull quota" in planned.out)
    gap.arrive(target)
    for name in NAMES:
        assert_equal(stocked, name, target)


@pytest.mark.parametrize("known_by", ["bundle", "report", "configuration"])
def test_an_unchanged_differential_export_reads_no_manifest_and_copies_nothing(
    known_by: str, gap: Gap, stocked: RealRegistry, target: RealRegistry, graphs: dict[str, Graph]
) -> None:
    gap.export(stocked)
    gap.arrive(target)
    report = gap.tool.state / "report.json"
    base = gap.inventory(
        gap.far_side(target) if known_by == "configuration" else report if known_by == "report" else gap.bundle
    )
    graphs["app"].image("v2", layers=[graphs["app"].layer("app"), graphs["app"].layer("moved", 90_000)])
    push(stocked, "app", graphs["app"])
    gap.bundle = gap.media / "second.tar"
    gap.export(stocked, base=str(base))
    stocked.mark()
    ran = gap.export(stocked, base=str(base))
    assert {"GET tags", "HEAD manifest"} >= stocked.counts().keys()
    assert {"up-to-date"} == set(gap.tool.results().values()), str(ran)
    assert 0 == gap.tool("plan", "--exit-code", gap.tool.config_file).code

    gap.arrive(target)
    grown = gap.inventory(gap.bundle if known_by == "bundle" else gap.far_side(target))
    planned = gap.tool("plan", "--exit-code", gap.tool.config_file)
    assert (10, True) == (planned.code, "written with a different base" in planned.out), str(planned)
    size = gap.bundle.stat().st_size
    gap.export(stocked, base=str(grown))
    assert gap.bundle.stat().st_size < size - 80_000, "what the base has by now is left out"
    gap.arrive(target)
    for name in NAMES:
        assert_equal(stocked, name, target)


@pytest.mark.parametrize("known_by", ["bundle", "report"])
def test_verify_counts_the_blobs_of_the_base_of_a_differential_bundle(
    known_by: str, scripted: ScriptedFactory, mirror_run: MirrorTool, media: Path
) -> None:
    source, graph = scripted("source"), Graph("x")
    graph.platforms("v1")
    source.load("app", graph)
    gap = Gap(mirror_run, media)
    gap.export(source, "app")
    base = gap.inventory(gap.bundle if known_by == "bundle" else mirror_run.state / "report.json")
    gap.bundle = gap.media / "second.tar"
    for again in ([], ["--repair"]):
        gap.export(source, "app", base=str(base))
        mirror_run.sync(*again)
        assert 0 == mirror_run("plan", "--exit-code", mirror_run.config_file).code
        for deep in ([], ["--deep"]):
            ran = mirror_run("verify", mirror_run.config_file, *deep)
            assert 0 == ran.code, str(ran)
    mirror_run.config([{"source": f"{source.host}/app", "targets": [str(gap.bundle)]}], source)
    assert "is missing" in mirror_run("verify", mirror_run.config_file).out
    assert 10 == mirror_run("plan", "--exit-code", mirror_run.config_file).code


@pytest.mark.parametrize(
    ("inventory", "codes"),
    [
        ('{"inventory": 1, "repositories": {}, "manifests": {}, "blobs": {}}', (0, 0, 0)),
        ("{}", (2, 2, 2)),
        (None, (0, 2, 2)),
    ],
    ids=["right", "no inventory", "missing"],
)
def test_validate_reports_the_same_error_for_a_base_as_a_run(
    inventory: str | None, codes: tuple[int, ...], scripted: ScriptedFactory, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    source, graph = scripted("source"), Graph("x")
    graph.image("v1")
    source.load("app", graph)
    base = tmp_path / "base.json"
    if inventory is not None:
        base.write_text(inventory)
    mirror_run.config([{"source": f"{source.host}/app", "targets": ["o.tar"], "base": str(base)}], source)
    runs = [
        mirror_run(*words, mirror_run.config_file) for words in (("validate",), ("validate", "--secrets"), ("sync",))
    ]
    assert codes == tuple(ran.code for ran in runs)
    assert ("does not exist; a run needs it" in runs[0].err) == (inventory is None)


def test_an_export_without_a_base_is_complete_although_a_differential_one_exists(
    gap: Gap, stocked: RealRegistry, target: RealRegistry, tmp_path: Path
) -> None:
    gap.export(stocked)
    base = gap.inventory(gap.bundle)
    gap.bundle.unlink()
    gap.export(stocked, base=str(base))
    made = gap.bundle.stat().st_ino, gap.bundle.stat().st_mtime_ns
    gap.export(stocked, base=str(base))
    assert made == (gap.bundle.stat().st_ino, gap.bundle.stat().st_mtime_ns)
    gap.export(stocked)
    assert "relies on" not in gap.tool("bundle", "verify", gap.bundle).out
    gap.arrive(target)
    for name in NAMES:
        assert_equal(stocked, name, target)


def test_a_changed_export_without_a_base_replaces_a_differential_one(
    gap: Gap, stocked: RealRegistry, target: RealRegistry, graphs: dict[str, Graph], tmp_path: Path
) -> None:
    gap.export(stocked)
    base = gap.inventory(gap.bundle)
    gap.bundle.unlink()
    gap.export(stocked, base=str(base))
    graphs["app"].image("v3", layers=[graphs["app"].layer("app"), graphs["app"].layer("moved", 90_000)])
    push(stocked, "app", graphs["app"])
    gap.export(stocked)
    assert "relies on" not in gap.tool("bundle", "verify", gap.bundle).out
    gap.arrive(target)
    for name in NAMES:
        assert_equal(stocked, name, target)


def test_shared_blobs_are_uploaded_once_and_mounted_in_other_repositories(
    gap: Gap, stocked: RealRegistry, target: RealRegistry, graphs: dict[str, Graph]
) -> None:
    gap.export(stocked)
    target.mark()
    gap.arrive(target)
    every = {digest for graph in graphs.values() for digest in graph.blobs}
    sent = [seen.reference for seen in target.requests() if (seen.kind, seen.status) == ("PUT upload", 201)]
    assert sorted(every) == sorted(sent)
    assert sum(len(graph.blobs) for graph in graphs.values()) - len(every) == target.counts(status=201)["POST mount"]


def test_blobs_that_the_base_has_in_another_repository_are_mounted_from_it(
    gap: Gap, stocked: RealRegistry, target: RealRegistry, graphs: dict[str, Graph], tmp_path: Path
) -> None:
    gap.export(stocked)
    gap.arrive(target)
    base = gap.inventory(gap.far_side(target))
    moved = graphs["team/web"].blob(graphs["app"].blobs[graphs["app"].layer("app").digest])
    graphs["team/web"].image("v3", layers=[moved])  # only `app` has its layer
    push(stocked, "team/web", graphs["team/web"])
    gap.bundle = gap.media / "second.tar"
    gap.export(stocked, base=str(base))
    assert moved.digest not in blobs_of(gap.bundle)
    (gap.media.parent / "far-state" / "state.sqlite").unlink(missing_ok=True)
    gap.arrive(target)
    for name in NAMES:
        assert_equal(stocked, name, target)


def test_the_report_of_an_import_can_be_used_as_a_base(
    gap: Gap, stocked: RealRegistry, target: RealRegistry, graphs: dict[str, Graph], tmp_path: Path
) -> None:
    gap.export(stocked)
    gap.arrive(target)
    base = gap.inventory(tmp_path / "far-state" / "report.json")
    graphs["app"].image("v3", layers=[graphs["app"].layer("added", 70_000)])
    push(stocked, "app", graphs["app"])
    gap.bundle = gap.media / "second.tar"
    mirrors = [{"source": f"{stocked.host}/{name}", "targets": [str(gap.bundle)]} for name in NAMES]
    gap.tool.config(mirrors, stocked)
    gap.tool.sync("--base", base)
    with tarfile.open(gap.bundle) as tar:
        file = tar.extractfile("mirror-inventory.json")
        assert file is not None
        inventory = parse_inventory(file.read(), "inventory")
    assert {graphs["app"].layer("added", 70_000).digest} <= set(inventory.blobs)
    assert 2 == len(inventory.blobs)
    gap.arrive(target)
    for name in NAMES:
        assert_equal(stocked, name, target)


# ---- pipes


def piped(tool: MirrorTool, config: Path, **streams: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mirror", "sync", str(config)]
    return subprocess.Popen(command, env=tool.environment, cwd=tool.folder, stderr=subprocess.PIPE, **streams)


def test_a_bundle_split_into_volumes_is_imported(
    gap: Gap, stocked: RealRegistry, target: RealRegistry, tmp_path: Path
) -> None:
    mirrors = [{"source": f"{stocked.host}/{name}", "targets": ["-"]} for name in NAMES]
    config = gap.tool.config(mirrors, stocked)
    split = subprocess.Popen(["split", "-b", "100k", "-", "part-"], stdin=subprocess.PIPE, cwd=gap.media)
    with piped(gap.tool, config, stdout=split.stdin) as export:
        assert split.stdin is not None
        split.stdin.close()
        said = export.communicate(timeout=60)[1].decode()
    assert (0, 0) == (export.returncode, split.wait(30)), said
    parts = listing(gap.media)
    assert len(parts) > 1
    far = gap.far_side(target, source="-")
    cat = subprocess.Popen(["cat", *parts], stdout=subprocess.PIPE, cwd=gap.media)
    with piped(gap.tool, far, stdin=cat.stdout, stdout=subprocess.PIPE) as arrival:
        said_there = arrival.communicate(timeout=60)[1]
    assert cat.stdout is not None
    cat.stdout.close()
    assert (0, 0) == (arrival.returncode, cat.wait(30)), said_there.decode()
    for name in NAMES:
        assert_equal(stocked, name, target)
    assert [] == [one for one in tmp_path.rglob("spool/*") if one.is_file()]

    # With one volume missing, nothing is imported.
    empty = gap.far_side(target, source="-")
    target.mark()
    cat = subprocess.Popen(["cat", *parts[:-1]], stdout=subprocess.PIPE, cwd=gap.media)
    with piped(gap.tool, empty, stdin=cat.stdout, stdout=subprocess.PIPE) as arrival:
        said_there = arrival.communicate(timeout=60)[1]
    assert cat.stdout is not None
    cat.stdout.close()
    cat.wait(30)
    assert 3 == arrival.returncode, said_there.decode()
    assert [] == target.writes()


def test_a_bundle_is_streamed_from_one_process_to_another(
    gap: Gap, stocked: RealRegistry, target: RealRegistry
) -> None:
    mirrors = [{"source": f"{stocked.host}/{name}", "targets": ["-"]} for name in NAMES]
    config = gap.tool.config(mirrors, stocked)
    far = gap.far_side(target, source="-")
    with (
        piped(gap.tool, config, stdout=subprocess.PIPE) as export,
        piped(gap.tool, far, stdin=export.stdout, stdout=subprocess.PIPE) as arrival,
    ):
        assert export.stdout is not None
        export.stdout.close()
        errors = [arrival.communicate(timeout=60)[1].decode(), export.communicate(timeout=60)[1].decode()]
    assert [0, 0] == [export.returncode, arrival.returncode], errors
    for name in NAMES:
        assert_equal(stocked, name, target)


# ---- killed


@dataclass(frozen=True, slots=True)
class Moment:
    """When a run is killed: how far into it (0 to 1), by time or by the requests that it makes."""

    number: int
    by: str
    place: float

    def __str__(self) -> str:
        return f"{self.number}-{self.by}-{self.place:.2f}"


def moments(seed_of: str) -> list[Moment]:
    chance = random.Random(seed_of)
    first = [Moment(0, "request", 0.3), Moment(1, "time", 0.7), Moment(2, "request", 0.95)]
    more = [Moment(number, chance.choice(("request", "request", "time")), chance.random()) for number in range(3, 25)]
    return [*first, *more][:KILLS]


@dataclass(frozen=True, slots=True)
class Setting:
    """A registry to export from, its bundle, and the duration of undisturbed runs."""

    source: RealRegistry
    seeded: Seeded
    bundle: Path
    blobs: int  # GETs of an export
    seconds: float  # seconds of an export
    uploads: int  # requests of an import
    seconds_there: float  # seconds of an import


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    root = tmp_path_factory.mktemp("killed")
    (root / "media").mkdir()
    with ExitStack() as stack:
        source, target = (stack.enter_context(RealRegistry(root, name)) for name in ("source", "target"))
        gap = Gap(stack.enter_context(MirrorTool(root / "mirror")), root / "media")
        seeded = seed(source, "team/app", repositories=3, images=IMAGES, layer_size=60_000, index=True)
        source.mark()
        ran = gap.export(source, *seeded.repositories)
        blobs = source.counts()["GET blob"]
        there = gap.arrive(target)
        yield Setting(source, seeded, gap.bundle, blobs, ran.seconds, target.counts()["PUT upload"], there.seconds)


@pytest.mark.parametrize("moment", moments("export"), ids=str)
def test_a_killed_export_resumes(moment: Moment, setting: Setting, gap: Gap) -> None:
    with Front(setting.source.port) as front:
        mirrors = [
            {"source": f"{front.host}/{name}", "targets": [str(gap.bundle)]} for name in setting.seeded.repositories
        ]
        config = gap.tool.config(mirrors, registries={front.host: {"plain-http": True}})
        if moment.by == "time":
            process = gap.tool.start("sync", config)
            killed_after(setting.seconds * moment.place, process)
        else:
            killer = Killer(front, "GET blob", 1 + int(moment.place * (setting.blobs - 1)), after=False)
            process = gap.tool.start("sync", config)
            killer.aim(process)
        killed = gap.tool.finish(process)
        front.hook = front.alter = None
        assert front.journal.wait_idle()
        kept = noted(gap.media)
        # The process may be killed after the bundle was renamed; then the bundle is complete.
        assert gap.bundle.exists() or killed.code
        assert not gap.bundle.exists() or setting.bundle.read_bytes() == gap.bundle.read_bytes()
        if moment.by == "request":
            assert (-signal.SIGKILL, False) == (killed.code, gap.bundle.exists())
        setting.source.mark()
        gap.tool.sync()
    fetched = {seen.reference for seen in setting.source.requests() if seen.kind == "GET blob"}
    assert set() == kept & fetched
    assert ["bundle.tar"] == listing(gap.media)
    assert setting.bundle.read_bytes() == gap.bundle.read_bytes()


@pytest.mark.parametrize("moment", moments("import"), ids=str)
def test_a_killed_import_resumes(moment: Moment, setting: Setting, gap: Gap, target: RealRegistry) -> None:
    gap.bundle = setting.bundle
    with Front(target.port) as front:
        config = gap.far_side(front)
        config = gap.tool.config(
            [{"source": f"{gap.bundle}:*", "targets": [f"{front.host}/{{repository}}"]}],
            file=config,
            state=str(gap.media / "state"),
            registries={front.host: {"plain-http": True}},
        )
        if moment.by == "time":
            process = gap.tool.start("sync", config)
            killed_after(setting.seconds_there * moment.place, process)
        else:
            killer = Killer(front, "PUT upload", 1 + int(moment.place * (setting.uploads - 1)), after=True)
            process = gap.tool.start("sync", config)
            killer.aim(process)
        gap.tool.finish(process)
        front.hook = front.alter = None
        assert front.journal.wait_idle()
        assert_whole(target)
        first = stored(target)
        target.mark()
        assert 0 == gap.tool("sync", config).code
    assert setting.seeded.tags == assert_whole(target).tags
    assert set() == first & stored(target)


def stored(target: RealRegistry) -> set[tuple[str, str]]:
    return {
        (one.repository, one.reference) for one in target.requests() if one.kind == "PUT upload" and one.status == 201
    }


def test_a_stopped_export_ends_in_time_and_resumes(gap: Gap, stocked: RealRegistry, graphs: dict[str, Graph]) -> None:
    blobs = {digest for graph in graphs.values() for digest in graph.blobs}
    with Pipe(stocked.port, rate=200_000) as pipe:
        mirrors = [{"source": f"{pipe.host}/{name}", "targets": [str(gap.bundle)]} for name in NAMES]
        config = gap.tool.config(mirrors, registries={pipe.host: {"plain-http": True}})
        process = gap.tool.start("sync", config)
        assert eventually(lambda: 3 < len(noted(gap.media)) < len(blobs) - 3, within=60)
        process.send_signal(signal.SIGTERM)
        stopped = gap.tool.finish(process, timeout=10)
    assert 143 == stopped.code
    kept = noted(gap.media)
    assert not gap.bundle.exists()
    stocked.mark()
    gap.export(stocked)
    fetched = {seen.reference for seen in stocked.requests() if seen.kind == "GET blob"}
    assert blobs - kept == fetched
    assert 0 == gap.tool("bundle", "verify", gap.bundle).code


def noted(media: Path) -> set[str]:
    """Return the blobs in the journal of an unfinished export."""
    found = read_journal(media / ".bundle.tar.journal")
    return {str(entry.digest) for entry in found.entries} if found is not None else set()


# ---- the commands


def test_plan_and_verify_support_bundles_as_targets_and_sources(
    gap: Gap, stocked: RealRegistry, target: RealRegistry
) -> None:
    mirrors = [{"source": f"{stocked.host}/{name}", "targets": [str(gap.bundle)]} for name in NAMES]
    config = gap.tool.config(mirrors, stocked)
    assert 10 == gap.tool("plan", config, "--exit-code").code
    assert [] == listing(gap.media)
    assert 1 == gap.tool("verify", config).code
    gap.tool.sync()
    assert 0 == gap.tool("plan", config, "--exit-code").code
    assert 0 == gap.tool("verify", config, "--deep").code
    far = gap.far_side(target)
    assert 10 == gap.tool("plan", far, "--exit-code").code
    gap.arrive(target)
    assert 0 == gap.tool("verify", far, "--deep").code
    before = gap.bundle.stat()
    gap.tool.config(mirrors, stocked)
    gap.tool.sync("--deep")
    assert before.st_mtime_ns == gap.bundle.stat().st_mtime_ns


def test_list_shows_each_reference_with_digest_and_size(
    gap: Gap, stocked: RealRegistry, graphs: dict[str, Graph]
) -> None:
    gap.export(stocked, "app")
    ran = gap.tool("bundle", "list", gap.bundle)
    found = dict(line.split("  ", 1) for line in ran.out.splitlines())
    assert {f"app:{tag}" for tag in graphs["app"].tags} == set(found)
    digest, size = found["app:v2"].split()
    assert graphs["app"].tags["v2"] == digest
    body = graphs["app"].manifests[digest].data
    document = json.loads(body)
    parts = [document["config"], *document["layers"]]
    assert len(body) + sum(part["size"] for part in parts) == int(size)


def test_verify_names_the_damaged_blob(gap: Gap, stocked: RealRegistry, graphs: dict[str, Graph]) -> None:
    gap.export(stocked)
    digest = graphs["app"].layer("app").digest
    with tarfile.open(gap.bundle) as tar:
        place = tar.getmember(f"blobs/sha256/{digest[7:]}").offset_data
    with gap.bundle.open("r+b") as file:
        file.seek(place + 10)
        file.write(b"!!")
    ran = gap.tool("bundle", "verify", gap.bundle)
    assert 3 == ran.code
    assert any(digest in line and "affects app:" in line for line in ran.out.splitlines()), ran
    assert f"{gap.bundle}: damaged; " in ran.out.splitlines()[-1]
    assert "`mirror sync --repair CONFIG`" in ran.out


def test_a_damaged_blob_fails_its_image_and_the_others_are_imported(
    gap: Gap, stocked: RealRegistry, target: RealRegistry, graphs: dict[str, Graph]
) -> None:
    gap.export(stocked)
    digest = graphs["app"].layer("app").digest
    with tarfile.open(gap.bundle) as tar:
        place = tar.getmember(f"blobs/sha256/{digest[7:]}").offset_data
    with gap.bundle.open("r+b") as file:
        file.seek(place + 10)
        file.write(b"!!")
    ran = gap.arrive(target, expect=3)
    assert "app:v2" in ran.text
    there = assert_whole(target)
    assert {"v1", "signed"} <= set(target.tags("app"))
    assert ("app", "v2") not in there.tags
    assert ("team/web", "v2") in there.tags


def test_a_missing_bundle_is_reported(gap: Gap, target: RealRegistry) -> None:
    ran = gap.arrive(target, expect=2)
    assert "bundle.tar does not exist" in ran.text
    assert 0 == gap.tool("inventory", gap.far_side(target)).code, "the targets are asked, not the bundle"
    assert [] == target.writes()
