"""The setup for commands that take no lock and write nothing to stores. `sync` uses parts of this module."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mirror.commands.options import Options, ReferenceFilter
from mirror.commands.output_files import check_outputs
from mirror.commands.run_log import command_completer
from mirror.commands.session import RunContext, open_run
from mirror.config import Config, load, state_directory
from mirror.limits import Limits
from mirror.output import log
from mirror.output.console import Console
from mirror.output.progress import Phase, Progress
from mirror.output.progress_display import show_progress
from mirror.output.redaction import Redactor
from mirror.output.report import RunCost, read_references_file
from mirror.state.hints import State
from mirror.state.run_marks import current_mark
from mirror.state.shard_states import SharedV2Memory, shard_folders
from mirror.util.signals import Signals

_log = logging.getLogger("mirror")


def reference_filter(options: Options) -> ReferenceFilter:
    """Create the filter for references from the options `--only`, `--only-from` and `--shard`.

    Raises ConfigError if the file given with `--only-from` cannot be read."""
    if not options.only and options.only_from is None:
        return ReferenceFilter(None, options.shard)
    given = read_references_file(options.only_from) if options.only_from is not None else ()
    return ReferenceFilter([*options.only, *given], options.shard)


def load_config(options: Options) -> Config:
    """Load the configuration file, or create a configuration from the arguments of `mirror copy`.

    Raises ConfigError, LocalError."""
    if options.copy is None:
        return load(options.config)
    from mirror.config.copy_arguments import load_copy  # noqa: PLC0415 (only for `copy`)

    return load_copy(options.copy)


def log_config_warnings(config: Config) -> None:
    """Log the warnings about the configuration."""
    for warning in config.warnings:
        _log.warning("config", extra={"text": warning})


def log_state_warning(text: str) -> None:
    """Log a warning about the state database."""
    _log.warning("state", extra={"text": text})


def new_run_id() -> str:
    """Return a random id of 12 hex digits for a run."""
    return os.urandom(6).hex()


def run_cost(limits: Limits, started: float) -> RunCost:
    """Return the cost of the run so far. started: when the run started, on the monotonic clock."""
    requests = {host.name: counts for host in limits.hosts() if (counts := host.requests())}
    seconds = time.monotonic() - started
    return RunCost(
        requests,
        limits.retries,
        limits.waited,
        limits.longest_wait,
        limits.retry_after,
        seconds=seconds,
        hosts={name: limits.host(name).use() for name in requests},
    )


@contextmanager
def open_trace_file(options: Options, run: str, redactor: Redactor) -> Iterator[None]:
    """Return a context manager that logs HTTP requests to the file of `--trace-http`, if the option is given.

    run: the id of the run. Raises LocalError if the file cannot be opened."""
    if options.trace_http is None:
        yield
        return
    from mirror.output.http_trace import open_trace  # noqa: PLC0415 (few runs need it)

    with open_trace(options.trace_http, run=run, redact=redactor):
        yield


@contextmanager
def open_for_reading(options: Options, work: Phase = "copying") -> Iterator[tuple[RunContext, State]]:
    """Return a context manager that opens the stores and the state of a configuration for a command that only reads.

    It yields the RunContext and the state, and closes them when the `with` block exits. Inside the block, the progress
    is shown. The command takes no lock and writes no log file. work: the phase that follows the planning. Raises
    ConfigError, LocalError."""
    with _open_for_reading(options, work) as (context, (state,)):
        yield context, state


@contextmanager
def open_with_shards(
    options: Options, work: Phase = "copying", *, share_memory: bool
) -> Iterator[tuple[RunContext, list[State]]]:
    """Return a context manager like `open_for_reading` that also opens the other states of the configuration.

    It yields the RunContext and the states: first the state of this run, then those of all shards and of runs without
    `--shard`.
    share_memory: whether all states decide which source repositories may be read over v1, and not only the first."""
    with _open_for_reading(options, work, with_shards=True, share_memory=share_memory) as opened:
        yield opened


@contextmanager
def _open_for_reading(
    options: Options, work: Phase, *, with_shards: bool = False, share_memory: bool = False
) -> Iterator[tuple[RunContext, list[State]]]:
    """Return the context manager for both functions above. with_shards: whether to open the states of all shards."""
    config = load_config(options)
    check_outputs(config, options)
    run = new_run_id()
    only, redactor, console = reference_filter(options), Redactor(), Console()
    progress = Progress(work=work)
    with (
        Signals() as signals,
        log.open_log(
            run=run,
            console=console,
            redact=redactor,
            verbosity=options.verbosity,
            complete=command_completer(config.path, options),
        ),
        open_trace_file(options, run, redactor),
    ):
        log_config_warnings(config)
        directory = state_directory(config)
        own = directory / options.folder
        others = [one for one in (directory, *shard_folders(directory)) if with_shards and one != own]
        with ExitStack() as stack:
            state = State.open(own, _log.warning, read_only=True, writers=current_mark(directory))
            states = [stack.enter_context(state)]
            states += [stack.enter_context(State.open(one, _log.warning, read_only=True)) for one in others]
            stack.enter_context(show_progress(progress, console, options.progress_mode))
            arguments = (config, options, only, redactor, signals, state, progress)
            memory = SharedV2Memory(states) if share_memory else None
            context = open_run(*arguments, run=run, writes=False, memory=memory)
            yield stack.enter_context(context), states
