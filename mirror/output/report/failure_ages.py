"""Determines since when each image has been failing, over consecutive runs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from mirror.errors import STOPPED, printable
from mirror.output.report.records import ImageEntry

MAX_FAILURES = 10_000  # the maximum number of images whose first failure is kept for the next run


class FailureAges:
    """Records the results of the images of a run, and determines since when each failed image has been failing.

    It is not thread-safe."""

    def __init__(self, before: Mapping[str, datetime], started: datetime) -> None:
        """Begin a run. before: the result of `for_next_run` in the previous run. started: the start of this run."""
        self._before = before
        self._started = started
        self._failing: dict[str, datetime] = {}
        self._passed: set[str] = set()
        self._interrupted: set[str] = set()
        self._unlisted: list[str] = []  # the prefixes of keys of images that could not be listed

    def record(self, entry: ImageEntry) -> datetime | None:
        """Record the result of an image. If it failed, return the start of the first run since which it has failed."""
        if not entry.is_image:
            self._unlisted += _key_prefixes(entry.source)
        if entry.result not in ("failed", "conflict"):
            if self._before and (key := failure_key(entry)) in self._before:
                (self._interrupted if _is_interrupted(entry) else self._passed).add(key)
            return None
        key = failure_key(entry)
        since = self._before.get(key, self._started)
        if len(self._failing) < MAX_FAILURES:
            self._failing[key] = since
        return since

    def for_next_run(self, *, complete: bool) -> dict[str, datetime]:
        """Return the time since which each failing image has been failing. The history stores it for the next run.

        complete: whether the run processed all images that are selected. If not, failing images that it did not process
        are kept. Failing images of a repository that could not be listed are always kept."""
        unlisted = tuple(self._unlisted)
        older = {
            key: since
            for key, since in self._before.items()
            if key not in self._passed and (not complete or key in self._interrupted or key.startswith(unlisted))
        }
        return dict(list({**older, **self._failing}.items())[:MAX_FAILURES])


def _key_prefixes(source: str) -> tuple[str, ...]:
    """Return the prefixes of the keys (`failure_key`) of all images from a mirror's source, which may be a wildcard."""
    return (source.removesuffix("*"),) if source.endswith("*") else (f"{source}:", f"{source}@")


def _is_interrupted(entry: ImageEntry) -> bool:
    """Return whether an image was skipped because the run was stopped, and not for another reason."""
    return entry.result == "skipped" and entry.error is not None and entry.error.code in STOPPED


def failure_key(entry: ImageEntry) -> str:
    """Return the key under which the failure of an image on a target is recorded."""
    return printable(f"{entry.source} {entry.target}", 1000)
