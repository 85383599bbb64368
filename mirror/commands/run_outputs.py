"""The outputs of a sync besides its log and report: the history, the metrics, and notifications."""

from __future__ import annotations

import hashlib
import logging
import socket
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mirror.config import Config
from mirror.config.outputs import Webhook, parse_webhook_url
from mirror.errors import OK, SIGNALLED, MirrorError, worst_exit_code
from mirror.output.redaction import Redactor
from mirror.output.report import Report, RunCost
from mirror.output.report.document import REPORT_NAME, ReportDocument
from mirror.output.report.failure_ages import FailureAges
from mirror.output.report.files import resolve_writable
from mirror.output.report.history import History, SentMessage, read_history, write_history
from mirror.registry.http.host_settings import HostSettings
from mirror.util.cancellation import Stop, Work
from mirror.util.signals import Signals
from mirror.util.structs import replace

if TYPE_CHECKING:
    from mirror.output.notification import RunMessage

_MAX_PARALLEL = 8  # webhooks that are contacted at the same time
_POLL = 0.1  # seconds between two checks for a signal while messages are sent
_AFTER_DEADLINE = 4.0  # seconds after `--deadline` until sending ends; the next run sends the other messages
_SHORTEST_SECRET = 12  # minimum length of a path that is hidden in all output; shorter paths occur in names of images

_log = logging.getLogger("mirror")


class RunOutputs:
    """The outputs of one run of `mirror sync`. The caller holds the lock of the state directory.

    directory: the state directory. shard: the shard of the run, or an empty string."""

    def __init__(self, config: Config, directory: Path, shard: str, redactor: Redactor, signals: Signals) -> None:
        """Read the history of runs. Raises LocalError if the file for metrics cannot be written."""
        self._config = config
        self._directory = directory
        self._shard = shard
        self._redactor = redactor
        self._signals = signals
        self._history = read_history(directory)
        self._textfile = config.output.textfile_of(shard)
        if self._textfile is not None:
            resolve_writable(self._textfile, "write the metrics to")

    def failure_ages(self, started: datetime) -> FailureAges:
        """Return the object that tracks since when each image has been failing. started: the start of the run."""
        return FailureAges(self._history.failing, started)

    def write_report(
        self, report: Report, exit_code: int, cost: RunCost, ages: FailureAges, *, complete: bool
    ) -> ReportDocument:
        """Write the report and the metrics. Return the report without images.

        If the metrics cannot be written, the exit code of this error is part of the report, which is then written once
        more. ages: the results of the images. complete: whether the run processed all images that are selected. Raises
        LocalError if the report cannot be written."""
        finish = partial(
            report.finish, ended=datetime.now(UTC), cost=cost, deadline_reached=self._signals.deadline_reached
        )
        document = finish(exit_code)
        if self._textfile is None:
            return document
        code = self._write_metrics(document, self._history.with_run(document, ages.for_next_run(complete=complete)))
        worst = exit_code if exit_code >= SIGNALLED else worst_exit_code({exit_code, code})
        return document if worst == exit_code else finish(worst)

    def write(self, report: ReportDocument, ages: FailureAges, summary: Sequence[str], *, complete: bool) -> None:
        """Write the history, and send notifications. Errors are only logged.

        ages: the object from `failure_ages`, which has received the results of all images. summary: the lines for
        messages. complete: whether the run processed all selected images."""
        history = self._history.with_run(report, ages.for_next_run(complete=complete))
        self._write_history(history)
        if self._config.output.webhooks and self._signals.number is None:
            sent = self._notify(report, history, summary)
            if sent != history.sent:
                self._write_history(replace(history, sent=sent))

    def _write_history(self, history: History) -> None:
        """Write the history. An error causes only a warning, because the history contains only hints."""
        try:
            write_history(self._directory, history)
        except MirrorError as error:
            _log.warning("history", extra={"code": error.code, "text": str(error)})

    def _write_metrics(self, report: ReportDocument, history: History) -> int:
        """Write the metrics to their file. Log an error. Return OK, or the exit code for the error."""
        from mirror.output import metrics  # noqa: PLC0415 (prometheus_client is slow to import)

        assert self._textfile is not None  # noqa: S101 - the caller checks it
        try:
            text = metrics.render_metrics(report, history, config=self._config.path, shard=self._shard)
            metrics.write_textfile(self._textfile, text)
        except MirrorError as error:
            _log.error("metrics", extra={"code": error.code, "text": str(error)})
            return error.exit_code
        return OK

    # ---- notifications

    def _notify(self, report: ReportDocument, history: History, summary: Sequence[str]) -> dict[str, SentMessage]:
        """Send the notifications that are due, and wait until they are sent. A signal interrupts the wait.

        Return the last message to each webhook, for the history."""
        from mirror.output import notification  # noqa: PLC0415 (few configurations have notifications)

        lines = [self._redactor(line) for line in summary]
        path = self._directory / REPORT_NAME
        config = self._config.path.absolute()
        message = notification.RunMessage(report, lines, config, self._shard, socket.gethostname(), path)
        failure = notification.failure_digest(report, history.failing)
        stop, kept = Stop(), dict[str, SentMessage | None]()
        futures: dict[Future[bool], tuple[str, SentMessage | None]] = {}
        with ThreadPoolExecutor(_MAX_PARALLEL, thread_name_prefix="notify") as pool:
            for webhook in self._config.output.webhooks:
                key = _webhook_key(webhook)
                last = history.sent.get(key)
                event = notification.choose_event(report, failure, webhook.events, last)
                after = notification.next_sent_message(report, failure, event, last)
                kept[key] = after if event is None else last  # a message that cannot be sent is due in the next run
                if event is None:
                    continue
                futures[pool.submit(partial(self._send, webhook, message, event, Work(stop)))] = (key, after)
            waiting = set(futures)
            while waiting:
                waiting = wait(waiting, timeout=_POLL).not_done
                deadline = self._signals.deadline
                is_late = deadline is not None and time.monotonic() > deadline + _AFTER_DEADLINE
                if is_late or self._signals.number is not None:
                    stop.request(self._signals.error().what)
        kept |= {key: after for future, (key, after) in futures.items() if future.result()}
        return {key: one for key, one in kept.items() if one is not None}

    def _send(self, webhook: Webhook, message: RunMessage, event: str, work: Work) -> bool:
        """Send a notification to a webhook, and return True. If this fails, log a warning and return False."""
        from mirror.output import notification  # noqa: PLC0415 (few configurations have notifications)
        from mirror.registry.http.webhook import post_json  # noqa: PLC0415 (`requests` is slow to import)

        where = f"the URL from {webhook.url.origin}"
        try:
            text = webhook.url.reveal()
            self._redactor.add(text)
            origin, target = parse_webhook_url(text)
            if len(target) >= _SHORTEST_SECRET:
                self._redactor.add(target)
            where = str(origin)
            body = notification.slack_body if webhook.format == "slack" else notification.json_body
            settings = self._config.registries.get(origin.netloc) or HostSettings(origin.netloc)
            post_json(settings, origin, target, body(message, event), work)
        except MirrorError as error:
            text = f"the notification to {where} was not sent: {error}"
            _log.warning("notify", extra={"event": "notify", "code": error.code, "text": text})
            return False
        _log.info("notify", extra={"event": "notify", "text": f"sent a notification ({event}) to {where}"})
        return True


def _webhook_key(webhook: Webhook) -> str:
    """Return the key of a webhook in the history: a hash of its format and its URL, or of the reference to the URL."""
    url = webhook.url
    return hashlib.sha256(f"{url.origin} {url.plain or ''} {webhook.format}".encode()).hexdigest()[:16]
