"""The entry point of `make demo`. It uses skopeo and docker-registry if they are installed."""

from __future__ import annotations

import platform
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from demo.checks import CheckFailed
from demo.programs import Program, programs
from demo.story import run_demonstration

CACHE = Path(".demo")


def main() -> int:
    """Run the demonstration in a temporary folder, and return the exit code."""
    signal.signal(signal.SIGTERM, _exit_after_signal)
    signal.signal(signal.SIGHUP, _exit_after_signal)
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="mirror-demo-") as folder:
            run_demonstration(
                Path(folder),
                _load_programs,
                skopeo=shutil.which("skopeo") is not None,
                docker_registry=shutil.which("docker-registry") is not None,
            )
    except (CheckFailed, RuntimeError) as wrong:  # RuntimeError: a registry did not start
        print(f"\nThe demonstration FAILED: {wrong}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The registries and temporary files are removed.", file=sys.stderr)
        return 130
    print(f"\nAll checks passed in {time.monotonic() - began:.0f} s. The registries and temporary files are removed.")
    return 0


def _exit_after_signal(number: int, _frame: FrameType | None) -> None:
    """Raise SystemExit, so that the registries are stopped and the temporary files are removed."""
    raise SystemExit(128 + number)


def _load_programs(release: str) -> list[Program]:
    """Return the programs of a release. They are downloaded once, and then kept in the folder .demo."""
    CACHE.mkdir(exist_ok=True)
    return programs(release, CACHE)


if __name__ == "__main__":
    if platform.system() != "Linux":
        sys.exit("The demonstration requires Linux, because it runs programs from the images that it copies.")
    sys.exit(main())
