"""Messages about the results of runs: when a message is sent, and its content as JSON or as text for Slack."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from datetime import timedelta
from pathlib import Path

from mirror.errors import OK
from mirror.output.report.document import ReportDocument
from mirror.output.report.history import SentMessage
from mirror.output.report.records import timestamp
from mirror.util.structs import Struct, to_builtins

REPEAT_AFTER = timedelta(hours=24)  # a failure that has not changed is sent again after this time
MAX_LINES = 40  # lines of the summary in a message
MAX_SLACK_TEXT = 3000  # characters of the summary in a text for Slack


class RunMessage(Struct, frozen=True):
    """The content of a message about one run, independent of the message's format.

    summary: the lines of the summary; for a failure, only those about failures.
    config: the configuration file. shard: the shard of the run, or an empty string.
    machine: the host name of the machine. path: the path of report.json."""

    report: ReportDocument
    summary: Sequence[str]
    config: Path
    shard: str
    machine: str
    path: Path


def failure_digest(report: ReportDocument, failing: Collection[str]) -> str | None:
    """Return a hash that identifies the failure of a run, or an empty string if the run succeeded.

    failing: the names of the images that are failing after the run. Two runs with the same exit code and the same
    failing images have the same hash. If the run succeeded, but did not process all failing images, return None."""
    if report.exit == OK:
        return None if failing else ""
    return hashlib.sha256("\n".join([str(report.exit), *sorted(failing)]).encode()).hexdigest()[:16]


def choose_event(
    report: ReportDocument, failure: str | None, events: Collection[str], last: SentMessage | None
) -> str | None:
    """Return the event to send in a message about a run (failure, recovery or change), or None to send no message.

    failure: the `failure_digest` of the run. events: the events that are configured. last: the last message that was
    sent. The same failure is sent again only after REPEAT_AFTER."""
    changed = "change" if "change" in events and report.totals.images.get("copied") else None
    if failure is None:
        return changed
    if failure:
        known = last is not None and last.failure == failure and report.ended - last.at < REPEAT_AFTER
        return "failure" if "failure" in events and not known else changed
    recovered = last is not None and last.failure != ""
    return "recovery" if "recovery" in events and recovered else changed


def next_sent_message(
    report: ReportDocument, failure: str | None, event: str | None, last: SentMessage | None
) -> SentMessage | None:
    """Return the state of a webhook's messages that the history stores for the next run.

    event: the event for which a message was sent; None if no message was necessary. last: the state before this run.
    The time of the last failure message is kept while the failure stays the same."""
    if failure is None or (event != "failure" and last is not None and last.failure == failure):
        return last
    return SentMessage(failure, report.ended)


def json_body(message: RunMessage, event: str) -> bytes:
    """Return the JSON document of a message (docs/operations.md, "Notifications")."""
    report = message.report
    return json.dumps(
        {
            "schema": 1,
            "event": event,
            "machine": message.machine,
            "config": str(message.config),
            "shard": message.shard or None,
            "run": report.run,
            "started": timestamp(report.started),
            "ended": timestamp(report.ended),
            "exit": report.exit,
            "images": to_builtins(report.totals.images),
            "bytes": to_builtins(report.totals.bytes),
            "summary": list(message.summary[:MAX_LINES]),
            "report": str(message.path),
        }
    ).encode()


def slack_body(message: RunMessage, event: str) -> bytes:
    """Return the JSON document of a message for a Slack webhook: a title, and the summary as preformatted text.

    Source: Slack documentation, "Formatting message text": `&`, `<` and `>` are escaped."""
    report = message.report
    counts = ", ".join(f"{count} {result}" for result, count in report.totals.images.items() if count) or "no images"
    what = f"{message.config}, shard {message.shard}" if message.shard else str(message.config)
    title = {
        "failure": f"mirror sync failed with exit code {report.exit}",
        "recovery": "mirror sync succeeds again",
        "change": "mirror sync copied images",
    }[event]
    lines = "\n".join(message.summary[:MAX_LINES]).replace("`", "'")
    if len(lines) > MAX_SLACK_TEXT:
        lines = lines[: MAX_SLACK_TEXT - 1] + "…"
    text = f"{title} ({counts}): {what} on {message.machine}\n```\n{lines}\n```"
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return json.dumps({"text": escaped, "unfurl_links": False, "unfurl_media": False}).encode()
