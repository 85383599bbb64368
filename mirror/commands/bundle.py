"""`mirror bundle`: verifies or lists a bundle or layout."""

from __future__ import annotations

from pathlib import Path

from mirror.commands.inventory import CommandOutput, survey_on_disk
from mirror.errors import OK, REFUSED, worst_exit_code
from mirror.layout.bundle.verify import verify_bundle
from mirror.layout.examination import VerificationResult
from mirror.layout.verify import verify_layout
from mirror.output.console import Console
from mirror.output.progress import Progress
from mirror.output.progress_display import show_progress
from mirror.util.cancellation import Work
from mirror.util.signals import run_with_signals


def verify(path: Path) -> CommandOutput:
    """Verify the bundle or layout at `path`. Return a line for each problem, and a summary.

    Raises Refused if `path` is neither a bundle nor a layout, LocalError, Cancelled."""
    progress = Progress("verifying")
    is_layout = path.is_dir()
    blob = progress.start_blob(size=None if is_layout else _file_size(path))

    def run(work: Work) -> VerificationResult:
        """Verify the bundle or layout on a worker thread."""
        work = work.with_progress(blob.add)
        return verify_layout(path, work) if is_layout else verify_bundle(path, work)

    with show_progress(progress, Console()):
        found = run_with_signals(run)
    return CommandOutput(list(found.lines()), REFUSED if found.problems else OK)


def _file_size(path: Path) -> int | None:
    """Return the size of a file in bytes, or None if it cannot be determined. A pipe has the size 0."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def list_references(path: Path) -> CommandOutput:
    """Return one line for each tag in a bundle or layout: its name, its digest, and the size of the image in bytes.

    Raises ConfigError, Refused, LocalError, Cancelled."""
    found = run_with_signals(lambda work: survey_on_disk(path, work, bare=True))
    lines = [
        f"{name}{':' if name else ''}{tag}  {digest}  {found.total_size(digest)}"
        for name, tag, digest in found.inventory.references()
    ]
    return CommandOutput(lines, worst_exit_code(one.exit_code for one in found.problems), found.problems)
