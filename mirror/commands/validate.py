"""`mirror validate` and `mirror schema`, which contact no host."""

from __future__ import annotations

import sys
from pathlib import Path

from mirror import config
from mirror.commands.disk_stores import check_bases
from mirror.output.console import Console, print_lines
from mirror.output.report.units import format_count


def validate(path: Path, *, secrets: bool) -> int:
    """Check a configuration, print the number of its mirrors and targets, and return the exit code.

    secrets: whether missing passwords, TLS files and bases are errors, not warnings. Raises ConfigError, LocalError."""
    loaded = config.load(path, secrets=secrets)
    warnings = list(loaded.warnings)
    if any(mirror.base is not None for mirror in loaded.mirrors):
        warnings += check_bases(loaded, must_exist=secrets)
    for warning in warnings:
        Console(sys.stderr).write_line(f"mirror: warning: {warning}")
    targets = format_count(sum(len(mirror.targets) for mirror in loaded.mirrors), "target")
    return print_lines([f"{path}: valid; {format_count(len(loaded.mirrors), 'mirror')}, {targets}"])


def print_schema() -> int:
    """Print the JSON Schema of the configuration and return the exit code."""
    return print_lines(config.schema_text().splitlines())
