from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mirror.output.notification import (
    REPEAT_AFTER,
    RunMessage,
    choose_event,
    failure_digest,
    json_body,
    next_sent_message,
    slack_body,
)
from mirror.output.report.document import ReportDocument, ReportTotals
from mirror.output.report.history import SentMessage

ENDED = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
ALL = frozenset({"failure", "change", "recovery"})
MINUTE = timedelta(minutes=1)


def report(exit_code: int = 0, copied: int = 0) -> ReportDocument:
    return ReportDocument(1, "r1", ENDED - MINUTE, ENDED, exit_code, ReportTotals({"copied": copied}, {}, {}, {}))


def sent(failure: str, ago: timedelta = MINUTE) -> SentMessage:
    return SentMessage(failure, ENDED - ago)


@pytest.mark.parametrize(
    ("copied", "failure", "events", "last", "event"),
    [
        (0, "", ALL, None, None),
        (3, "", ALL, None, "change"),
        (3, "", {"failure", "recovery"}, None, None),
        (0, "a", ALL, None, "failure"),
        (0, "a", ALL, sent(""), "failure"),
        (0, "a", ALL, sent("a"), None),
        (0, "a", ALL, sent("a", REPEAT_AFTER), "failure"),
        (0, "b", ALL, sent("a"), "failure"),
        (3, "a", ALL, sent("a"), "change"),
        (3, "b", ALL, sent("a"), "failure"),
        (3, "a", {"change"}, None, "change"),
        (0, "a", {"recovery"}, None, None),
        (0, "", {"recovery"}, sent("a"), "recovery"),
        (3, "", ALL, sent("a"), "recovery"),
        (3, "", {"failure", "change"}, sent("a"), "change"),
        (0, "", ALL, sent(""), None),
        (0, None, ALL, sent("a"), None),
        (3, None, ALL, sent("a"), "change"),
    ],
)
def test_which_event_of_a_run_is_sent(
    copied: int, failure: str | None, events: frozenset[str], last: SentMessage | None, event: str | None
) -> None:
    assert event == choose_event(report(copied=copied), failure, events, last)


def test_the_time_of_a_failure_message_is_kept_while_the_failure_stays_the_same() -> None:
    last = sent("a")
    assert last == next_sent_message(report(1), "a", None, last)
    assert last == next_sent_message(report(1, copied=1), "a", "change", last)
    assert SentMessage("a", ENDED) == next_sent_message(report(1), "a", "failure", last)
    assert SentMessage("b", ENDED) == next_sent_message(report(1), "b", None, last)
    assert SentMessage("", ENDED) == next_sent_message(report(), "", "recovery", last)
    assert [None, last] == [next_sent_message(report(), None, "change", one) for one in (None, last)]


def test_two_failures_are_the_same_if_the_same_images_fail_with_the_same_exit_code() -> None:
    one = failure_digest(report(1), ["a:1 b:1", "a:2 b:2"])
    assert one == failure_digest(report(1), ["a:2 b:2", "a:1 b:1"])
    assert 4 == len(
        {"", one, failure_digest(report(3), ["a:1 b:1", "a:2 b:2"]), failure_digest(report(1), ["a:1 b:1"])}
    )
    assert "" == failure_digest(report(0), [])
    assert None is failure_digest(report(0), ["a:1 b:1"]), "a run with --only that did not deal with the failing image"


def test_a_message_is_bounded(tmp_path: Path) -> None:
    lines = ["x" * 600] * 1000
    config, path = tmp_path / "a.yaml", tmp_path / "report.json"
    message = RunMessage(report(1, copied=2), lines, config, "shard-0-of-2", "cron1", path)
    text = json.loads(slack_body(message, "failure"))["text"]
    assert len(text) < 3500
    assert "failed with exit code 1 (2 copied): " in text
    assert "shard-0-of-2 on cron1" in text
    assert 40 == len(json.loads(json_body(message, "failure"))["summary"])
