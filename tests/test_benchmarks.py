"""Counts and presentation of the benchmark; tests_real/test_benchmarks.py runs it."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import chart, cost, figures, files, tables, verify
from benchmarks.__main__ import main
from benchmarks.delay import DelayProxy
from benchmarks.job import Job
from benchmarks.samples import IDEAL, Outcome, Report, Sample
from benchmarks.scenarios import SCENARIOS
from benchmarks.tools import TOOLS, Mirror
from benchmarks.traffic import Content, Traffic, traffic
from tests.registries.access import Seen
from tests.registries.listener import Listener

ROOT = Path(__file__).resolve().parent.parent
JOB = Job("127.0.0.1:1", ["127.0.0.1:2", "127.0.0.1:3"], {"team/app": ["v1", "v2"]})


# ---- the commands of tools


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_a_tool_gets_all_targets_and_the_selection(tool: Mirror, tmp_path: Path) -> None:
    told = _words(tool.commands(replace(JOB, pattern="v[12]"), tmp_path), tmp_path)
    assert [] == [word for word in (JOB.source, *JOB.targets, "team/app") if word not in told]
    assert "v[12]" in told or {"v1", "v2"} <= {word.rpartition(":")[2] for word in told.split()}


def _words(commands: Sequence[Sequence[str]], folder: Path) -> str:
    """Return command lines, and the content of the files that they name."""
    lines = [" ".join(command) for command in commands]
    return "\n".join([*lines, *(path.read_text() for path in folder.iterdir())])


def test_each_scenario_has_a_unique_name_and_a_description() -> None:
    assert len(SCENARIOS) == len({one.name for one in SCENARIOS}) == len({one.title for one in SCENARIOS})
    assert [] == [one.name for one in SCENARIOS if not one.note]


# ---- what is measured


def test_the_cost_of_a_command_includes_its_own_memory_and_the_time_of_its_children(tmp_path: Path) -> None:
    ballast = bytes(64 << 20)
    burn = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(10**7))'])"
    commands = [[sys.executable, "-c", burn], ["false"], ["never-run"]]
    spent = cost.run(commands, folder=tmp_path, environment={}, out=tmp_path / "out", timeout=30)
    assert 1 == spent.code
    assert 0.02 < spent.cpu < spent.wall + 5
    assert spent.memory < len(ballast)


def test_a_hanging_command_is_killed(tmp_path: Path) -> None:
    spent = cost.run([["sleep", "60"]], folder=tmp_path, environment={}, out=tmp_path / "out", timeout=0.2)
    assert (-9, 0.2) == (spent.code, spent.wall)


def test_traffic_counts_responses_and_accepted_bytes() -> None:
    content = Content({("app", "v1"): "sha256:m"}, {"sha256:m": 10, "sha256:b": 100})
    seen = [
        Seen("GET", "/", 200, 7, "GET tags", "app", ""),
        Seen("HEAD", "/", 200, 7, "HEAD manifest", "app", "v1"),
        Seen("PUT", "/", 503, 3, "PUT upload", "app", "sha256:b"),
        Seen("PUT", "/", 201, 0, "PUT upload", "app", "sha256:b"),
        Seen("PUT", "/", 201, 0, "PUT manifest", "app", "v1"),
    ]
    found = traffic(seen, content)
    assert Traffic(
        {"GET tags": 1, "HEAD manifest": 1, "PUT manifest": 1, "PUT upload": 2}, refused=1, sent=10, accepted=110
    ) == replace(found, kinds=dict(found.kinds))


def test_the_delay_proxy_delays_all_bytes_and_loses_none() -> None:
    def echo(connection: socket.socket, number: int) -> None:
        while data := connection.recv(1 << 16):
            connection.sendall(data)

    listener = Listener(echo, name="echo")
    listener.start()
    try:
        with DelayProxy(listener.port, 0.05) as proxy, socket.create_connection(("127.0.0.1", proxy.port), 10) as end:
            began = time.monotonic()
            end.sendall(b"first")
            assert b"first" == end.recv(16)
            assert time.monotonic() - began >= 0.1  # a simulated handshake, and a round trip
            sent = bytes(range(256)) * 1024
            end.sendall(sent)
            end.shutdown(socket.SHUT_WR)
            assert sent == b"".join(iter(lambda: end.recv(1 << 16), b""))
    finally:
        listener.stop()


# ---- what is shown


def _sample(wall: float, *, equal: bool = True, code: int = 0) -> Sample:
    side = Traffic({"GET tags": 1}, sent=1_000_000, accepted=2_000_000)
    return Sample(wall, wall / 2, None, 50 << 20, code, equal, side, side)


OUTCOME = Outcome(
    "cold",
    "Cold & empty",
    "A note.",
    0.2,
    {
        "mirror": [_sample(2.0), _sample(1.0), _sample(3.0)],
        "steady": [_sample(4.0)] * 3,
        "hasty": [_sample(0.1), _sample(0.1, equal=False), _sample(0.1, code=1)],
        IDEAL: [_sample(0.5)] * 3,
    },
    {"oras": "not installed"},
)
REPORT = Report("2026-01-02T03:04+00:00", False, {"cores": "2"}, {"mirror": "1.0"}, [OUTCOME])
QUICK = replace(REPORT, quick=True, scenarios=[replace(OUTCOME, reduced=True)])


def test_a_ratio_compares_with_the_fastest_other_tool_with_correct_targets() -> None:
    assert 0.5 == OUTCOME.ratio("mirror")
    assert 2.0 == OUTCOME.ratio("steady")
    assert (True, False) == (OUTCOME.correct("mirror"), OUTCOME.correct("hasty"))


def test_a_table_has_a_row_for_each_tool_with_the_fastest_first() -> None:
    lines = tables.plain(OUTCOME).splitlines()
    assert ["hasty", IDEAL, "mirror", "steady"] == [line[2:].partition("  ")[0] for line in lines[2:6]]
    assert "2.00 (1.00–3.00)" in lines[4]
    assert "no (1 of 3), exit 1" in lines[2]
    assert "  oras: not installed." in lines


def test_the_page_of_figures_names_the_date_the_machine_and_the_omissions() -> None:
    page = figures.page(replace(REPORT, left_out=["big"], tools_left_out=["skopeo"]), "figures.svg")
    wanted = ["2026-01-02T03:04+00:00", "run: big, skopeo.", "| cores | 2 |", "| mirror | 1.0 |", "(figures.svg)"]
    assert [] == [text for text in wanted if text not in page]
    assert {len(line.split(" | ")) for line in page.splitlines() if line.startswith("| hasty ")} == {11}


def test_every_title_of_a_quick_run_says_that_counts_were_reduced() -> None:
    page = figures.page(QUICK)
    titles = [tables.plain(QUICK.scenarios[0]).splitlines()[0], *page.splitlines(), chart.svg(QUICK.scenarios)]
    told = [title for title in titles if "Cold &" in title]
    assert (3, []) == (len(told), [title for title in told if "reduced by --quick" not in title])
    assert "the ratios have no meaning" in page
    full = [figures.page(REPORT), tables.plain(OUTCOME), chart.svg([OUTCOME])]
    assert [] == [text for text in full if "reduced" in text or "have no meaning" in text]


# ---- where it is written


@pytest.mark.parametrize(
    "report",
    [QUICK, replace(REPORT, left_out=["big"]), replace(REPORT, tools_left_out=["skopeo"])],
    ids=["quick", "some scenarios", "some tools"],
)
def test_an_incomplete_run_does_not_change_the_page_in_docs(tmp_path: Path, report: Report) -> None:
    docs, bench = tmp_path / "docs", tmp_path / "bench"
    docs.mkdir()
    (docs / files.PAGE).write_text("of everything")
    said = files.write(report, bench, docs)
    assert "of everything" == (docs / files.PAGE).read_text()
    assert [files.PAGE] == [path.name for path in docs.iterdir()]
    assert {files.PAGE, files.CHART, files.FIGURES} == {path.name for path in bench.iterdir()}
    assert str(bench / files.PAGE) in said
    assert str(docs / files.PAGE) in said


def test_a_complete_run_writes_the_page_in_docs(tmp_path: Path) -> None:
    docs, bench = tmp_path / "docs", tmp_path / "bench"
    said = files.write(REPORT, bench, docs)
    assert figures.page(REPORT, files.CHART) == (docs / files.PAGE).read_text()
    assert {files.PAGE, files.CHART} == {path.name for path in docs.iterdir()}
    assert [files.FIGURES] == [path.name for path in bench.iterdir()]
    assert f"the page of figures: {docs / files.PAGE}" == said


def test_a_run_without_a_finished_scenario_writes_no_page(tmp_path: Path) -> None:
    assert "no scenario" in files.write(replace(REPORT, scenarios=[]), tmp_path, None)
    assert [files.FIGURES] == [path.name for path in tmp_path.iterdir()]


def test_make_bench_lets_the_run_decide_whether_docs_are_written() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\nbench: ")[2].partition("\n\n")[0]
    assert "--into .bench --docs docs $(BENCH_ARGS)" in recipe
    assert files.PAGE not in recipe


def test_the_chart_is_well_formed_and_has_a_bar_for_each_tool() -> None:
    drawn = ElementTree.fromstring(chart.svg([OUTCOME]))  # noqa: S314  # ours
    bars = drawn.findall(".//{http://www.w3.org/2000/svg}rect")
    assert 1 + len(OUTCOME.tools) == len(bars)


def test_the_report_is_json_with_every_sample_and_the_ratios() -> None:
    document = json.loads(json.dumps(REPORT.document()))
    assert 0.5 == document["summary"]["cold"]["mirror"]["ratio_to_best_other"]
    assert [2.0, 1.0, 3.0] == [sample["wall"] for sample in document["scenarios"][0]["tools"]["mirror"]]


@pytest.mark.parametrize("arguments", [["--runs", "0"], ["--size", "8"], ["--scenario", "unknown"]])
def test_an_invalid_argument_is_an_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert 2 == stopped.value.code
    assert arguments[0] in capsys.readouterr().err


def test_verifying_a_bundle_is_compared_with_hashing_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main(["--mebibytes", "2", "--runs", "1"]) in (0, 1)
    lines = capsys.readouterr().out.splitlines()[1:]
    assert ["sha256sum", "hashlib", "mirror bundle verify"] == [line[:22].rstrip() for line in lines]
    assert all(line.endswith(" times sha256sum") for line in lines)
