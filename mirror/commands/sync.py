"""`mirror sync`: takes the lock, opens the log, the state and the stores, copies images, and writes the report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mirror.commands.options import Options, ReferenceFilter
from mirror.commands.output_files import check_outputs
from mirror.commands.read_only import (
    load_config,
    log_config_warnings,
    log_state_warning,
    new_run_id,
    open_trace_file,
    reference_filter,
    run_cost,
)
from mirror.commands.run_log import command_completer, open_run_log
from mirror.commands.run_outputs import RunOutputs
from mirror.commands.session import RunContext, close_in_time, makes_bundle, open_run, seconds_left, spool_directory
from mirror.config import Config, state_directory
from mirror.errors import FAILED, OK, SIGNALLED, Cancelled, LocalError, MirrorError, worst_exit_code
from mirror.oci.reference import Repository
from mirror.output.console import Console, print_lines
from mirror.output.progress import Progress
from mirror.output.progress_display import show_progress, watch_progress
from mirror.output.redaction import Redactor
from mirror.output.report import Report, RunCost, summary
from mirror.output.report.document import ReportDocument
from mirror.state.hints import State
from mirror.state.ownership import OwnershipRecords
from mirror.state.run_marks import WHOLE, partition_of_shards, use_partition_mark
from mirror.sync.copy_queue import CopyQueue
from mirror.sync.deadline_estimate import DeadlineEstimate
from mirror.sync.image_copier import ImageCopier
from mirror.sync.recorder import ResultRecorder
from mirror.sync.repair import wrap_for_repair
from mirror.sync.target_lifecycle import TargetLifecycle
from mirror.transfer.blob_copier import BlobCopier
from mirror.transfer.blob_recorder import BlobRecorder
from mirror.transfer.blob_request import BlobRequest, BlobResult
from mirror.transfer.spool import Spool
from mirror.util.files import Lock, delete_leftovers, private_directory
from mirror.util.signals import InterruptibleSleep, Signals

if TYPE_CHECKING:
    from mirror.output.event_stream import EventStream

_log = logging.getLogger("mirror")


def sync(options: Options) -> int:
    """Copy every selected reference to every target and return the exit code.

    Raises ConfigError, LocalError, LockBusy."""
    config = load_config(options)
    with Signals() as signals:
        return signals.exit_if_hung(run_once(config, options, signals))


def prepare(config: Config, options: Options) -> Path:
    """Check the options and create the state directory of the run. Return its path. Raises ConfigError, LocalError."""
    reference_filter(options)
    check_outputs(config, options)
    return _state_directory(config, options)


def run_once(
    config: Config,
    options: Options,
    signals: Signals,
    on_progress: Callable[[], object] | None = None,
    on_report: Callable[[ReportDocument], object] | None = None,
) -> int:
    """Run one sync under the lock of the state directory, and return its exit code.

    If threads hang after the run (`signals.has_hung_threads`), the caller must end the process.

    on_progress: called on any thread after each request, and when bytes of blobs have been copied. on_report: called
    with the finished report, without its images. Raises ConfigError, LocalError, LockBusy, and Cancelled if the run
    reaches the deadline while it waits for the lock."""
    only, directory = reference_filter(options), prepare(config, options)
    signals.start_run(None if options.deadline is None else options.deadline.seconds_from(time.time()))
    try:
        with Lock(directory / "lock").acquire(options.lock_wait, InterruptibleSleep(signals)):
            delete_leftovers(directory)
            with use_partition_mark(
                state_directory(config), _partition(config, options), InterruptibleSleep(signals)
            ) as mark:
                return _SyncRun(config, options, only, directory, signals, mark, on_progress, on_report).run()
    except Cancelled:
        if signals.number is None:
            raise
        return signals.exit_code


def _state_directory(config: Config, options: Options) -> Path:
    """Return the state directory of the run. If it does not exist, create it. Raises LocalError."""
    try:
        directory = private_directory(state_directory(config))
    except LocalError as error:
        if config.state is None:
            # The operator did not choose this directory.
            error.hint = "set the key `state` in the configuration to a directory that you can write to"
        raise
    return private_directory(directory / options.folder)


def _partition(config: Config, options: Options) -> str:
    """Return the name of the run's partition: how runs divide the targets among state files (`state/run_marks.py`)."""
    if options.copy is not None:
        return options.folder
    return partition_of_shards(options.shard.count, config.text_hash) if options.shard is not None else WHOLE


# ---- sync


class _SyncRun:
    """One run of `mirror sync`. The caller holds the lock of the run.

    directory: the state directory. run_mark: identifies the run in the state."""

    def __init__(
        self,
        config: Config,
        options: Options,
        only: ReferenceFilter,
        directory: Path,
        signals: Signals,
        run_mark: str,
        on_progress: Callable[[], object] | None,
        on_report: Callable[[ReportDocument], object] | None,
    ) -> None:
        self._run_mark = run_mark
        self._on_progress = on_progress
        self._on_report = on_report
        self._config = config
        self._options = options
        self._only = only
        self._state_directory = directory
        self._signals = signals
        self._started = datetime.now(UTC)
        self._started_monotonic = time.monotonic()
        self._console = Console()
        self._redactor = Redactor()
        self._marked: set[Repository] = set()
        self._events: EventStream | None = None

    def run(self) -> int:
        """Open the log and the report, copy the images, print the summary, and return the exit code."""
        config, run = self._config, new_run_id()
        with ExitStack() as stack:
            logged = stack.enter_context(
                open_run_log(config, self._options, run, self._state_directory, self._console, self._redactor)
            )
            log_config_warnings(config)
            completer = command_completer(config.path.absolute(), self._options)
            stack.enter_context(open_trace_file(self._options, run, self._redactor))
            if self._options.json_events:
                from mirror.output.event_stream import open_events  # noqa: PLC0415 (few runs need it)

                self._events = stack.enter_context(open_events(run=run, redact=self._redactor, complete=completer))
                self._events.start_run(str(config.path))
            shard = str(self._options.shard) if self._options.shard is not None else ""
            outputs = RunOutputs(config, self._state_directory, shard, self._redactor, self._signals)
            ages = outputs.failure_ages(self._started)
            report = stack.enter_context(
                Report(
                    self._state_directory,
                    run=run,
                    started=self._started,
                    copy_to=self._options.report,
                    redact=self._redactor,
                    keep_changes=self._options.verbosity > 0,
                    ages=ages,
                    list_unchanged=config.output.list_unchanged,
                    complete=completer,
                )
            )
            _log.info("run_started", extra={"config": str(config.path), "config_sha256": config.text_hash})
            code, cost = self._copy_all(report, run)
            logged.finish(seconds_left(self._signals))
            if code < SIGNALLED and logged.failure is not None:
                code = worst_exit_code({code, logged.failure.exit_code})
            stopped = self._signals.has_ended_run or (self._options.fail_fast and code != OK)
            complete = self._options.selects_all and not stopped
            document = outputs.write_report(report, code, cost, ages, complete=complete)
            code = document.exit
            _log.info("run_ended", extra={"exit": code, "seconds": round(cost.seconds, 3)})
            if self._events is not None:
                totals = report.totals_fields(cost)
                self._events.end_run(code, seconds=cost.seconds, totals=totals, report=str(report.path))
            self._print_summary(report, cost, code)
            outputs.write(document, ages, self._summary(report, cost, code, quiet=code != OK), complete=complete)
            if self._on_report is not None:
                self._on_report(document)
        return code

    def _copy_all(self, report: Report, run: str) -> tuple[int, RunCost]:
        """Open the state and the stores, and copy the images. Return the exit code and the cost of the run.

        run: the id of the run."""
        progress = Progress(on_bytes=self._on_progress)
        with (
            show_progress(progress, self._console, self._options.progress_mode),
            self._watch_progress(progress),
            State.open(self._state_directory, log_state_warning, writers=self._run_mark) as state,
        ):
            results = ResultRecorder(report, progress, self._events)
            arguments = (self._options, self._only, self._redactor, self._signals, state, progress)
            with open_run(self._config, *arguments, run=run, writes=True, on_request=self._on_progress) as context:
                context.check_no_partial_bundle(self._options)
                self._plan_and_copy(context, state, results)
            if not self._signals.has_ended_run:
                for repository in self._marked - results.unfinished:
                    state.mark_finished(str(repository))
            if state.failure is not None:
                results.add_exit_code(state.failure)
        if self._signals.number is not None:
            code = self._signals.exit_code
        else:
            code = worst_exit_code({*results.codes, FAILED} if self._signals.deadline_reached else results.codes)
        return code, run_cost(context.limits, self._started_monotonic)

    def _watch_progress(self, progress: Progress) -> AbstractContextManager[None]:
        """Return a context manager that writes progress events if `--json-events` is given."""
        if self._events is None:
            return nullcontext()
        progress.on_phase = self._events.start_phase
        self._events.start_phase(progress.phase)
        return watch_progress(progress, self._events)

    def _plan_and_copy(self, context: RunContext, state: State, results: ResultRecorder) -> None:
        """Plan and copy all images, unless a signal or the deadline ends the run. Then close all objects in order."""
        spool = Spool(spool_directory(self._config, self._options.folder), self._config.spool_max)
        spool.prepare()
        context.stores.delete_leftovers()
        context.manifests.close()  # delete files that a killed run left behind
        locations = context.stores.blob_locations(state)
        estimate = DeadlineEstimate(locations, self._signals.seconds_to_deadline)

        def mark_repository(repository: Repository) -> None:
            """Mark a repository as unfinished before the first write to it."""
            state.mark_unfinished(str(repository))
            self._marked.add(repository)

        def record_result(request: BlobRequest, result: BlobResult, error: MirrorError | None) -> None:
            """Record the result for a blob in the report. If it failed, mark the host that caused the error as down."""
            if error is not None:
                context.stores.mark_host_down(error)
            estimate.record(request, result)
            results.record_blob(request, result, error)

        blob_recorder = BlobRecorder(record_result)
        blob_copier = BlobCopier(
            context.calls,
            locations,
            context.stores.routes(context.entries),
            spool,
            recorder=blob_recorder,
            progress=context.progress,
            before_write=mark_repository,
        )
        registries = context.stores.registries
        targets = wrap_for_repair(registries) if self._options.repair else registries
        reader = context.image_reader(state)
        image_copier = ImageCopier(
            context.calls,
            blob_copier,
            locations,
            state,
            OwnershipRecords([state], self._config.path),
            targets,
            blob_recorder,
            reader.attachments.protection,
            estimate,
            check_all=self._options.deep,
            repair=self._options.repair,
            before_write=mark_repository,
        )
        copy_queue = CopyQueue(
            context.calls,
            reader,
            image_copier,
            locations,
            state,
            results,
            targets,
            TargetLifecycle(context.calls, reader, targets, context.must_copy_to),
            images=self._config.parallel.images,
            deep=self._options.deep,
            fail_fast=self._options.fail_fast,
        )
        planner = context.planner(
            state,
            copy_queue,
            reader,
            use_hints=not self._options.deep,
            repair=self._options.repair,
            reread_dates=self._options.deep,
        )
        with ExitStack() as stack:
            stack.callback(blob_recorder.close)
            stack.callback(spool.close)
            stack.callback(copy_queue.close)  # after the threads that write have ended
            stack.callback(close_in_time, context.calls.close, self._signals)
            stack.callback(close_in_time, blob_copier.close, self._signals)
            # Requested before the copier closes, so that upload sessions that registries still open are closed, too.
            stack.callback(context.stop.request, "the run is over")
            planning = context.plan_all(planner, self._options.mirrors)
            if context.run_until_signal(copy_queue.run(planning), copy_queue.halt) is None:
                for _, error in context.run_problems("all other images were imported" if results.codes == {OK} else ""):
                    results.record_error(error)
                if estimate.left_out:
                    self._signals.reach_deadline()

    def _summary(self, report: Report, cost: RunCost, code: int, *, quiet: bool) -> list[str]:
        """Return the lines of the summary. quiet: whether to return only the lines about failures."""
        is_copy = self._options.copy is not None
        return summary(
            report,
            cost,
            code,
            config=None if is_copy else self._config.path,
            suggest_retry=not is_copy and not makes_bundle(self._config),
            retry_arguments=self._options.retry_arguments(),
            quiet=quiet,
            deadline_reached=self._signals.deadline_reached,
        )

    def _print_summary(self, report: Report, cost: RunCost, code: int) -> None:
        """Print the summary of the run to standard output. With `-q`, print only failures, to standard error.

        With `--json-events`, print to standard error, because standard output contains the events."""
        quiet = self._options.verbosity < 0
        if quiet and code == OK:
            return
        lines = self._summary(report, cost, code, quiet=quiet)
        if not quiet and not self._options.json_events:
            print_lines(lines)  # if this fails, the exit code stays the same: the report contains the results
        else:
            for line in lines:
                self._console.write_line(line)
