"""Checks, before any host is contacted, that output files do not replace a file that the run uses."""

from __future__ import annotations

import os
from pathlib import Path

from mirror.commands.options import Options
from mirror.config import Config, state_directory
from mirror.errors import ConfigError, printable
from mirror.output.report import check_output_path
from mirror.selection.locations import STREAM
from mirror.util.files import local_error


def check_outputs(config: Config, options: Options) -> None:
    """Raise ConfigError if a report or trace would replace a file of the run, or if events would mix with a bundle."""
    if options.json_events and any(target.host == STREAM for mirror in config.mirrors for target in mirror.targets):
        raise ConfigError(
            "`--json-events` cannot be used: the target `-` writes a bundle to standard output",
            hint="export to a file, or leave the option out",
        )
    if options.report is None and options.trace_http is None:
        return
    state, used = state_directory(config), _used_files(config, options)
    if options.trace_http is not None:
        check_output_path("--trace-http", options.trace_http, state=state, used=used, suffix=".jsonl")
        used.append(options.trace_http)
    if options.report is not None:
        check_output_path("--report", options.report, state=state, used=used, suffix=".json")


def resolve_output(path: Path, config: Config, *, name: str, remedy: str) -> Path:
    """Resolve symbolic links in the path of an output file, and check the path. Call this before contacting any host.

    name: the content of the file, such as `image lock`. remedy: the end of the hint, which says how to choose another
    file. Raises ConfigError if the file must not be written there, and LocalError if it cannot be."""
    real = Path(os.path.realpath(path))
    if real == Path(os.path.realpath(config.path)):
        what = f"the {name} would replace the configuration {printable(path)}"
        raise ConfigError(what, hint=f"choose another file {remedy}")
    if real.is_relative_to(os.path.realpath(state_directory(config))):
        what = f"the {name} cannot be written to {printable(path)}, because this path is in the state directory"
        raise ConfigError(what, hint=f"choose a file in another directory {remedy}")
    check_directory(path, real)
    return real


def check_directory(path: Path, real: Path) -> None:
    """Raise LocalError if the directory of a file to write does not exist. real: `path` with links resolved."""
    try:
        real.parent.stat()
    except OSError as error:
        raise local_error("write", path, error) from error


def _used_files(config: Config, options: Options) -> list[Path]:
    """Return the files that a run reads or writes outside its state directory. Other output must not replace them."""
    files = [config.path, options.config, config.log.file, config.output.textfile]
    files += [options.only_from, options.base, options.locked]
    files += [webhook.url.file for webhook in config.output.webhooks]
    for host in config.registries.values():
        files += [host.tls.ca, host.tls.cert, host.tls.key, *(password.file for password in host.passwords)]
    return [file for file in files if file is not None]
