"""`mirror report`, called as users do."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mirror.output.report import ImageEntry, Report, RunCost
from tests.support.tool import MirrorTool

STARTED = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)


def written(directory: Path, run: str) -> Path:
    directory.mkdir(parents=True)
    with Report(directory, run=run, started=STARTED) as report:
        report.add(ImageEntry(f"quay.io/{run}:v1", f"h/{run}:v1", "copied", bytes={"sent": 7}))
        report.finish(0, ended=STARTED, cost=RunCost())
    return report.path


def test_a_page_is_written_for_a_report_a_state_directory_and_the_default_one(mirror_run: MirrorTool) -> None:
    folder = mirror_run.home / ".local" / "state" / "mirror"
    path = written(folder / "prod-0123456789ab", "one")
    for number, arguments in enumerate(([path], [path.parent], [])):
        page = mirror_run.folder / f"{number}.html"
        ran = mirror_run("report", *arguments, "--html", page)
        assert (0, "") == (ran.code, ran.text)
        assert "quay.io/one:v1" in page.read_text()
    written(folder / "test-0123456789ab", "two")
    ran = mirror_run("report", "--html", "x.html")
    assert (2, True) == (ran.code, f"specify one of these directories: {path.parent}, " in ran.err)


def test_reports_of_shards_are_merged_into_one_report_or_page(mirror_run: MirrorTool) -> None:
    paths = [written(mirror_run.state / f"shard-{number}-of-2", f"r{number}") for number in range(2)]
    ran = mirror_run("report", "--merge", *paths)
    assert (0, ["quay.io/r0:v1", "quay.io/r1:v1"]) == (
        ran.code,
        [image["source"] for image in json.loads(ran.out)["images"]],
    )
    (mirror_run.folder / "both.json").write_text(ran.out)
    for arguments in (["--merge", *paths], ["both.json"]):
        assert 0 == mirror_run("report", *arguments, "--html", "x.html").code
        text = (mirror_run.folder / "x.html").read_text()
        assert ("quay.io/r0:v1" in text, "quay.io/r1:v1" in text) == (True, True)
    ran = mirror_run("report", mirror_run.state, "--html", "x.html")
    assert (2, True) == (
        ran.code,
        f"mirror report --merge {mirror_run.state}/shard-*/report.json --html x.html" in ran.err,
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing.json", "--html", "x.html"], "missing.json does not exist"),
        (["mirror.yaml", "--html", "x.html"], "mirror.yaml is not a report that mirror wrote"),
        (["state"], "`mirror report` needs a file for the page (specify --html FILE)"),
        (["state", "--merge", "state", "--html", "x.html"], "--merge cannot be combined with state"),
        (["state", "--html", "state/report.json"], "would replace a file that is not an HTML page"),
        (["state", "--html", "mirror.yaml"], "would replace a file that is not an HTML page"),
        (["state", "--html", "link"], "would replace a file that is not an HTML page"),
        (["state", "--html", "device"], "cannot write the page to device: it is not a regular file"),
        (["state", "--html", "-"], "`--html -` does not name a file"),
        (["--merge", "state", "state"], "two reports are of the run one"),
        (["state", "--html", "none/x.html"], "cannot write the page to none/x.html"),
        (["state", "--html", "a" * 300], ": File name too long"),
        (["a" * 300, "--html", "x.html"], ": File name too long"),
        (["--merge", "a" * 300], ": File name too long"),
        (["--html", "x.html"], "no report was found in the user's state directory"),
    ],
)
def test_a_wrong_argument_is_an_error_with_a_remedy(arguments: list[str], says: str, mirror_run: MirrorTool) -> None:
    written(mirror_run.state, "one")
    config, link, device = (mirror_run.folder / name for name in ("mirror.yaml", "link", "device"))
    config.write_text("version: 1\n")
    link.symlink_to(config)
    device.symlink_to("/dev/null")
    ran = mirror_run("report", *arguments)
    is_local = any(word in says for word in ("none/", "too long", "regular"))
    assert (4 if is_local else 2, True) == (ran.code, says in ran.err), ran
    assert ("version: 1\n", "/dev/null") == (link.read_text(), str(device.readlink()))
    assert not (mirror_run.folder / "x.html").exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"started": "2025', '"started": "0001', "`started` has the year 1; want 2 to 9998"),
        ('"ended": "2025', '"ended": "9999', "`ended` has the year 9999; want 2 to 9998"),
        ('"copied": 1,', f'"copied": {"9" * 50},', "at `$.totals.images[...]`"),
        ('"retries": 0', f'"retries": {"9" * 5000}', "at `$.totals.retries`"),
        ('"waited_seconds": 0', f'"waited_seconds": {"9" * 50}', "at `$.totals.waited_seconds`"),
        ('"sent": 7', f'"sent": 1{"0" * 400}', "Expected `int` <= 9223372036854775807 - at `$.totals.bytes[...]`"),
        (
            '"seconds": 0.0',
            f'"seconds": 1{"0" * 50}',
            "images[0]: Expected `float` <= 1000000000000.0 - at `$.seconds`",
        ),
        (
            '"attempts"',
            '"failing_since": "0001-01-01T00:00:00+01:00", "attempts"',
            "images[0]: `failing_since` has the",
        ),
    ],
)
def test_a_time_or_number_beyond_the_limits_is_an_error_with_file_and_key(
    old: str, new: str, says: str, mirror_run: MirrorTool
) -> None:
    path, other = (written(mirror_run.folder / name, name) for name in ("one", "two"))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    page: list[str | Path] = ["--html", "x.html"]
    for arguments in ([path, *page], ["--merge", path, other], ["--merge", path, other, *page]):
        ran = mirror_run("report", *arguments)
        assert (2, "") == (ran.code, ran.out), ran
        assert f"{path} is not a report that mirror wrote: " in ran.err
        assert says in ran.err
