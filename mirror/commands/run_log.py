"""Opens the log of a run that copies or deletes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from mirror.commands.options import Options
from mirror.config import Config
from mirror.output import log as logs
from mirror.output.console import Console
from mirror.output.redaction import Redactor
from mirror.util.shell_commands import insert_path


def command_completer(config: Path, options: Options) -> Callable[[str], str]:
    """Return the function that replaces the word CONFIG in the commands of a text. config: the configuration."""
    path = None if options.copy is not None else config
    return lambda text: insert_path(text, path)


def open_run_log(
    config: Config, options: Options, run: str, directory: Path, console: Console, redactor: Redactor
) -> AbstractContextManager[logs.RunLog]:
    """Return a context manager that opens the log of a run with the settings of the configuration and the options.

    run: the id of the run. directory: the state directory of the run. Entering the `with` block raises LocalError if
    the log file cannot be written."""
    log = config.log
    return logs.open_log(
        run=run,
        console=console,
        redact=redactor,
        file=log.file or directory / "mirror.log",
        level=log.level,
        max_size=log.max_size,
        backups=log.backups,
        verbosity=options.verbosity,
        complete=command_completer(config.path, options),
    )
