"""What `plan` and `verify` do without: no lock, no log file, nothing written. And what they share with `sync`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mirror.commands.options import Only, Options
from mirror.commands.session import Engine, started
from mirror.config import Config, load, state_directory
from mirror.output import log
from mirror.output.console import Console
from mirror.output.redaction import Redactor
from mirror.output.report import read_references_file
from mirror.state.hints import State
from mirror.state.run_marks import current_mark
from mirror.util.signals import Signals

_log = logging.getLogger("mirror")


def choose_references(options: Options) -> Only:
    if not options.only and options.only_from is None:
        return Only(None, options.shard)
    given = read_references_file(options.only_from) if options.only_from is not None else ()
    return Only([*options.only, *given], options.shard)


def log_config_warnings(config: Config) -> None:
    for warning in config.warnings:
        _log.warning("config", extra={"text": warning})


def new_run_id() -> str:
    return os.urandom(6).hex()


@contextmanager
def open_for_reading(options: Options) -> Iterator[tuple[Engine, State]]:
    """For commands that only read: no lock, no log file, nothing written to the state."""
    config = load(options.config)
    only, redactor, console = choose_references(options), Redactor(), Console()
    with (
        Signals() as signals,
        log.setup(run=new_run_id(), console=console, redact=redactor, verbosity=options.verbosity),
    ):
        log_config_warnings(config)
        directory = state_directory(config)
        with (
            State.open(directory, _log.warning, read_only=True, writers=current_mark(directory)) as state,
            started(config, options, only, redactor, signals, state, copies=False) as engine,
        ):
            yield engine, state
