"""The HTML report: complete without JavaScript, inert for hostile texts, and bounded."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mirror.output.html_charts import history_charts, host_rows, repository_rows
from mirror.output.html_page import render_page
from mirror.output.html_view import MAX_IMAGES, run_view
from mirror.output.report import Failure, ImageEntry, Report, RunCost
from mirror.output.report.document import ReportDocument, ReportTotals, read_report
from mirror.output.report.history import History
from mirror.util.host_use import HostUsage, Pause

STARTED = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
DIGEST = "sha256:" + "a" * 64
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "' onmouseover='alert(3)",
    "</title></style></script><svg onload=alert(4)>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(5)",
    "\u202egnp.exe\x1b[31m\x00",
    "<!--",
    "]]>&#60;b&#62;&lt;i&gt;",
)


class Page(HTMLParser):
    """Collects the elements, attributes and texts of a page. It does not use our template engine."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        self.raw.get(self._open, self.texts).append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


def page_of(directory: Path, entries: Sequence[ImageEntry], history: History | None = None, **cost: object) -> str:
    with Report(directory, run="0a1b2c3d4e5f", started=STARTED) as report:
        for entry in entries:
            report.add(entry)
        run_cost = RunCost({"quay.io": {"HEAD manifest": 9}}, **cost)  # type: ignore[arg-type]
        report.finish(1, ended=STARTED + timedelta(seconds=90), cost=run_cost)
    return render_page(*read_report(directory), history or History())


def entries(number: int = 1) -> list[ImageEntry]:
    found = []
    for index in range(number):
        source, target = (
            f"quay.io/team/app-{index % 40}:v{index}",
            f"registry.example.com/team/app-{index % 40}:v{index}",
        )
        account = "user acme, password from env TOKEN"
        message, hint = f"{target}: the push was refused", "check the permissions"
        error = Failure("auth_denied", message, hint, 403, host="registry.example.com", account=account)
        found.append(
            ImageEntry(source, target, "failed", error=error)
            if index % 4 == 0
            else ImageEntry(source, target, "copied", digest=DIGEST, bytes={"sent": 1000 * index}, seconds=1.5)
        )
    return found


def test_the_page_has_all_facts_without_javascript(tmp_path: Path) -> None:
    text = Page(page_of(tmp_path, entries(4), retry_after=3600.0)).text
    for fact in (
        "failed",
        "exit code 1",
        "1 image failed",
        "registry.example.com: the push was refused (auth_denied, 403)",
        "user acme, password from env TOKEN",
        "quay.io/team/app-0:v0",
        "registry.example.com/team/app-3:v3",
        "check the permissions",
        "1.5 s",
        "A registry asked for a pause of 1 h 0 min",
        "quay.io HEAD manifest",
    ):
        assert fact in text


@pytest.mark.parametrize(
    ("code", "deadline_reached", "counts", "outcome", "meaning"),
    [
        (0, False, {"copied": 1}, "succeeded", "nothing failed"),
        (1, False, {"failed": 1}, "failed", "some images failed"),
        (143, False, {"skipped": 1}, "stopped", "stopped by a signal"),
        (1, True, {"skipped": 1}, "stopped", "stopped by the deadline"),
        (1, True, {"failed": 1}, "failed", "stopped by the deadline; some images failed"),
        (4, True, {"skipped": 1}, "failed", "stopped by the deadline; a local error occurred"),
        (143, True, {"skipped": 1}, "stopped", "stopped by a signal"),
    ],
)
def test_the_page_says_how_the_run_ended(
    code: int, deadline_reached: bool, counts: dict[str, int], outcome: str, meaning: str
) -> None:
    totals = ReportTotals(counts, {}, {}, {})
    run = run_view(ReportDocument(1, "r", STARTED, STARTED, code, totals, deadline_reached=deadline_reached))
    assert (outcome, meaning) == (run.outcome, run.meaning)


def test_a_tag_that_moved_is_shown_with_both_digests(tmp_path: Path) -> None:
    images = [
        ImageEntry("h/a:1", "t/a:1", "copied", digest=DIGEST, change="moved", old_digest="sha256:" + "b" * 64),
        ImageEntry("h/a:2", "t/a:2", "copied", digest=DIGEST, change="new"),
    ]
    text = Page(page_of(tmp_path, images)).text
    assert "bbbbbbbbbbbb → aaaaaaaaaaaa" in text
    assert "new" in text.split()


def test_hostile_texts_are_shown_and_add_no_element_attribute_or_script(tmp_path: Path) -> None:
    expected = Page(page_of(tmp_path, _named(*(f"v{number}" for number in range(len(HOSTILE))))))
    found = Page(page_of(tmp_path, _named(*HOSTILE)))
    assert expected.raw == found.raw
    assert {tag for tag, _ in expected.elements} == {tag for tag, _ in found.elements}
    assert {name for _, attributes in expected.elements for name in attributes} == {
        name for _, attributes in found.elements for name in attributes
    }
    assert [] == [text for text in HOSTILE[:6] if text not in found.text]
    assert "\\u202egnp.exe\\x1b[31m" in found.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", page_of(tmp_path, _named(HOSTILE[6])))


def _named(*texts: str) -> list[ImageEntry]:
    """Return a failed and a copied image for each text, which is in all names and messages."""
    found = [ImageEntry("other.example/b:1", "h/b:1", "copied")]
    for text in texts:
        error = Failure("bad_response", text, hint=text)
        found.append(ImageEntry(f"evil.example/a:{text}", f"h/{text}", "failed", digest=text, error=error))
        found.append(ImageEntry(f"evil.example/a:{text}", f"h/{text}", "copied", digest=text))
    return found


def test_the_page_refers_to_nothing_outside_and_allows_only_its_own_script(tmp_path: Path) -> None:
    page = Page(page_of(tmp_path, entries(8)))
    assert {"data:,"} == {a[name] for _, a in page.elements for name in ("href", "src", "action") if name in a}
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    for kind, texts in page.raw.items():
        digest = base64.b64encode(hashlib.sha256("".join(texts).encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert [] == [name for _, attributes in page.elements for name in attributes if name.startswith(("on", "style"))]


def test_the_page_of_2000_images_is_smaller_than_2_mib_and_a_larger_one_is_bounded(tmp_path: Path) -> None:
    assert len(page_of(tmp_path, entries(2000)).encode()) < 2 << 20
    text = page_of(tmp_path, entries(2 * MAX_IMAGES))
    assert len(text.encode()) < 2 << 20
    assert f"The report lists {MAX_IMAGES} more images." in text


def test_the_charts_of_hosts_show_requests_and_pauses_at_their_times() -> None:
    use = HostUsage({}, 1.0, [9, 0, 3], [Pause(5.0, 5.0)])
    totals = ReportTotals({}, {}, {}, {"quay.io": {"GET tags": 12}})
    report = ReportDocument(1, "r", STARTED, STARTED + timedelta(seconds=20), 0, totals, {"quay.io": use})
    ((row,), end) = host_rows(report)
    assert (20.0, "12 requests, paused 5.0 s") == (end, row.text)
    assert [("busy3", 0.0, 5.0), ("busy1", 10.0, 5.0), ("pause", 25.0, 25.0)] == [
        (part.name, part.start, part.width) for part in row.parts
    ]


def test_the_bars_of_repositories_are_in_proportion_to_their_bytes(tmp_path: Path) -> None:
    sizes = {"h/a:1": (300, 100), "h/a:2": (0, 100), "h/b@" + DIGEST: (100, 0)}
    images = [ImageEntry(name, name, "copied", bytes={"sent": s, "mounted": m}) for name, (s, m) in sizes.items()]
    page_of(tmp_path, images)
    rows = repository_rows(read_report(tmp_path)[1])
    assert [("h/a", [60.0, 40.0]), ("h/b", [20.0, 0.0])] == [
        (row.name, [part.width for part in row.parts]) for row in rows
    ]


@pytest.mark.parametrize(("count", "charts"), [(0, 0), (1, 0), (2, 3), (100, 3)])
def test_the_history_has_charts_if_there_are_at_least_two_runs(count: int, charts: int) -> None:
    totals = ReportTotals({"copied": 2, "failed": 1}, {}, {"sent": 10}, {})
    history = History()
    for number in range(count):
        report = ReportDocument(1, f"r{number}", STARTED, STARTED + timedelta(seconds=number), 1, totals)
        history = history.with_run(report, {})
    found = history_charts(history)
    assert [count] * charts == [len(chart.columns) for chart in found]


def test_the_history_shows_a_run_that_the_deadline_ended_as_stopped() -> None:
    history, ended = History(), STARTED + timedelta(seconds=9)
    for counts, reached in (({"skipped": 2}, True), ({"failed": 1}, True), ({"failed": 1}, False)):
        report = ReportDocument(1, "r", STARTED, ended, 1, ReportTotals(counts, {}, {}, {}), deadline_reached=reached)
        history = history.with_run(report, {})
    durations = history_charts(history)[0]
    assert [["stopped"], ["failed"], ["failed"]] == [[part.name for part in one.parts] for one in durations.columns]
