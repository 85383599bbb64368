"""`mirror validate` and `mirror schema`: the configuration alone; no host is contacted."""

from __future__ import annotations

import sys
from pathlib import Path

from mirror import config
from mirror.commands.disk_stores import check_bases
from mirror.output.console import Console, tell
from mirror.output.report.summary import count


def validate(path: Path, *, secrets: bool) -> int:
    """Check a configuration, and print what it has. -> the exit code.

    secrets: passwords and files that are missing are errors. Raises ConfigError, LocalError."""
    loaded = config.load(path, secrets=secrets)
    warnings = list(loaded.warnings)
    if any(mirror.base is not None for mirror in loaded.mirrors):
        warnings += check_bases(loaded, present=secrets)
    for warning in warnings:
        Console(sys.stderr).line(f"mirror: warning: {warning}")
    targets = count(sum(len(mirror.targets) for mirror in loaded.mirrors), "target")
    return tell([f"{path}: valid; {count(len(loaded.mirrors), 'mirror')}, {targets}"])


def print_schema() -> int:
    """Print the JSON Schema. -> the exit code."""
    return tell(config.schema_text().splitlines())
