"""`mirror copy`: a sync of one mirror, which the command line defines."""

from __future__ import annotations

import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

from mirror.commands.options import Options
from mirror.commands.read_only import load_config
from mirror.commands.sync import run_once
from mirror.config import state_directory
from mirror.errors import MirrorError
from mirror.util.cancellation import Stop
from mirror.util.files import Lock
from mirror.util.signals import Signals

KEEP_STATE = 30 * 86400.0  # seconds that a state is kept after the last copy with the same arguments

_FOLDER = re.compile(r"copy-[0-9a-f]{12}")


def copy(options: Options) -> int:
    """Copy the selected references of the source to every target and return the exit code.

    Each combination of arguments has its own state. States that were not used for KEEP_STATE seconds are deleted.
    Raises ConfigError, LocalError, LockBusy."""
    config = load_config(options)
    with Signals() as signals:
        code = signals.exit_if_hung(run_once(config, options, signals))
        if signals.number is None:
            _delete_old_states(state_directory(config), time.time() - KEEP_STATE)
    return code


def _delete_old_states(directory: Path, before: float) -> None:
    """Delete the states of `mirror copy` whose last run began before `before`, in seconds since the epoch.

    directory: the state directory. A state that another run uses, or that cannot be deleted, is skipped."""
    for folder in directory.iterdir():
        lock = folder / "lock"  # each run changes its modification time
        with suppress(OSError, MirrorError):
            if _FOLDER.fullmatch(folder.name) and lock.stat().st_mtime < before:
                with Lock(lock).acquire(0.0, Stop()):
                    shutil.rmtree(folder)
