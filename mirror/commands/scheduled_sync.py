"""`mirror sync --every`: runs one sync after another until a signal arrives. Each of these runs is a cycle.

The process holds the lock, the state, the connections and the threads of a run only during a cycle.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mirror.commands.options import Options
from mirror.commands.read_only import new_run_id
from mirror.commands.run_log import command_completer, open_run_log
from mirror.commands.run_pages import RunPages
from mirror.commands.schedule import Schedule
from mirror.commands.service_status import ServiceStatus, StatusHandler
from mirror.commands.sync import prepare, run_once
from mirror.config import Config, load
from mirror.errors import ConfigError, LockBusy, MirrorError, printable
from mirror.output.console import Console, print_lines
from mirror.output.log import open_log
from mirror.output.redaction import Redactor
from mirror.output.report.document import ReportDocument
from mirror.selection.locations import STREAM
from mirror.util.cancellation import Stop
from mirror.util.signals import Signals
from mirror.util.structs import replace

_log = logging.getLogger("mirror")


def sync_repeatedly(options: Options, every: float) -> int:
    """Run a sync for each cycle until SIGINT or SIGTERM arrives, and return the exit code of the signal.

    every: the interval, in seconds, of mirrors without an interval of their own. Raises ConfigError and LocalError if
    the first cycle cannot begin."""
    with Signals(hangup=True) as signals:
        config = _load(options)
        status, pages = ServiceStatus(), RunPages()
        with _serve_status(options, status, pages):
            code = _Service(config, options, every, signals, status, pages).run()
    return code


def _load(options: Options) -> Config:
    """Load the configuration, and check that it can be used for repeated runs. Raises ConfigError, LocalError."""
    config = load(options.config)
    if any(STREAM in (mirror.source.host, *(one.host for one in mirror.targets)) for mirror in config.mirrors):
        hint = "use the path of a file, or leave out --every"
        raise ConfigError("--every cannot be used with `-`, because a stream can be copied only once", hint=hint)
    prepare(config, options)
    return config


@contextmanager
def _serve_status(options: Options, status: ServiceStatus, pages: RunPages) -> Iterator[None]:
    """Return a context manager that serves the status and the pages at the address of `--listen`, if it is given.

    Raises ConfigError, LocalError."""
    if options.listen is None:
        yield
        return
    from mirror.serve.server import RegistryServer, parse_address  # noqa: PLC0415 (only with --listen)

    host, port = parse_address(options.listen)
    with RegistryServer(StatusHandler(status, pages).handle, host, port, stop=Stop(), headers=()) as server:
        if options.verbosity >= 0:
            print_lines([f"http://{server.address}/ shows the last report, /healthz the status, /metrics the metrics"])
        yield


class _Service:
    """The loop of `mirror sync --every`: runs cycles, and reloads the configuration after SIGHUP.

    Used only by the main thread. every: the interval, in seconds, of mirrors without an interval of their own."""

    def __init__(
        self,
        config: Config,
        options: Options,
        every: float,
        signals: Signals,
        status: ServiceStatus,
        pages: RunPages,
    ) -> None:
        self._config = config
        self._options = options
        self._every = every
        self._signals = signals
        self._status = status
        self._pages = pages
        self._run_id = new_run_id()  # for log records between two cycles
        self._schedule = self._new_schedule()

    def _new_schedule(self) -> Schedule:
        """Create a schedule in which all mirrors of the current configuration are due now."""
        return Schedule([mirror.every or self._every for mirror in self._config.mirrors], time.monotonic())

    def run(self) -> int:
        """Run cycles until a signal arrives, and return the exit code. A ConfigError of the first cycle is raised."""
        first = True
        while self._wait():
            self._run_cycle(first=first)
            first = False
        return self._signals.exit_code

    def _wait(self) -> bool:
        """Wait until the next cycle is due, and return True. Return False if a signal ends the process.

        After a SIGHUP, reload the configuration."""
        while self._signals.number is None:
            if self._signals.hangup_received:
                self._signals.hangup_received = False
                self._reload()
            seconds = self._schedule.next_start - time.monotonic()
            if seconds <= 0:
                return True
            self._signals.wait(seconds)
        return False

    def _reload(self) -> None:
        """Load the configuration again. If it is valid, all its mirrors are due now. Otherwise, keep the old one."""
        try:
            config = _load(self._options)
        except MirrorError as error:
            rest = "the previous configuration stays in use; correct the file and send SIGHUP again"
            self._log_event(logging.ERROR, "reload_failed", *str(error).splitlines(), rest)
            return
        self._config = config
        self._schedule = self._new_schedule()
        self._log_event(logging.INFO, "reloaded", f"reloaded {printable(config.path)}")

    def _run_cycle(self, *, first: bool) -> None:
        """Run a cycle: copy the mirrors that are due. If an error prevents this, log it, so that a later cycle can run.

        first: whether this is the first cycle. A ConfigError is then raised, because the command line or the
        configuration cannot be used."""
        due = self._schedule.take_due(time.monotonic())
        options = replace(self._options, mirrors=due if len(due) < len(self._config.mirrors) else None)
        self._status.begin_cycle()
        try:
            code = run_once(self._config, options, self._signals, self._status.record_progress, self._set_report)
        except LockBusy as error:
            code = error.exit_code
            self._log_event(logging.WARNING, "cycle_skipped", f"this cycle is skipped: {error}")
        except MirrorError as error:
            if first and isinstance(error, ConfigError):
                raise
            code = error.exit_code
            self._log_event(logging.ERROR, "cycle_failed", f"this cycle failed: {error}")
        finally:
            self._signals.open_pipe()
        # Hung threads would accumulate, and could still write to a target. So the process ends if any thread hangs, and
        # a service manager starts a new process.
        self._signals.exit_if_hung(code if self._signals.number is None else self._signals.exit_code)
        self._status.end_cycle(code)
        gc.collect()  # frees the objects of the run, which refer to each other

    def _set_report(self, report: ReportDocument) -> None:
        """Set the report of a cycle as the report that the pages show."""
        directory = prepare(self._config, self._options)
        self._pages.set_last_run(
            report, directory=directory, config=self._config.path, shard=str(self._options.shard or "")
        )

    def _log_event(self, level: int, event: str, *texts: str) -> None:
        """Log an event between two cycles, with one record for each text.

        If the log file cannot be written, write the records only to standard error."""
        console, redactor = Console(), Redactor()
        with ExitStack() as stack:
            try:
                directory = prepare(self._config, self._options)
                log = open_run_log(self._config, self._options, self._run_id, directory, console, redactor)
                stack.enter_context(log)
            except MirrorError:
                verbosity = self._options.verbosity
                complete = command_completer(self._config.path, self._options)
                stack.enter_context(
                    open_log(run=self._run_id, console=console, redact=redactor, verbosity=verbosity, complete=complete)
                )
            for text in texts:
                _log.log(level, event, extra={"text": text})
