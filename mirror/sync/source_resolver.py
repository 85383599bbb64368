"""Resolves the references of a source, each at most once in a run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mirror.errors import MirrorError
from mirror.store import Version
from mirror.sync.plan_hints import PlanHints
from mirror.sync.plan_model import SourceReference, hide_digest
from mirror.sync.planner_queries import KeepManifest, add_earlier_result, resolve_references
from mirror.transfer.calls import Calls
from mirror.util.cancellation import Work

LARGEST_BATCH = 64  # maximum number of references that one call resolves


class Batch:
    """A batch of references from one source, which are resolved together.

    lock: held while references are resolved, so that each reference is resolved once for all targets."""

    def __init__(self, references: list[SourceReference]) -> None:
        self.references = references
        self.lock = asyncio.Lock()


def make_batches(references: list[SourceReference], parallel: int) -> list[Batch]:
    """Divide references into batches, so that up to `parallel` batches can be resolved at the same time."""
    size = max(1, min(LARGEST_BATCH, -(-len(references) // max(1, parallel))))
    return [Batch(references[start : start + size]) for start in range(0, len(references), size)]


class SourceResolver:
    """Resolves references to versions at their sources. `Planner` describes the parameters."""

    def __init__(
        self,
        calls: Calls,
        hints: PlanHints,
        *,
        use_hints: bool,
        repeat_transforms: bool,
        keep_manifest: KeepManifest | None,
    ) -> None:
        self._calls = calls
        self._hints = hints
        self._use_hints = use_hints
        self._repeat_transforms = repeat_transforms
        self._keep_manifest = keep_manifest

    async def resolve(
        self, batch: Batch, references: Sequence[SourceReference], *, raise_common_error: bool = False
    ) -> None:
        """Resolve the references in a batch that have no version yet, and set their versions.

        raise_common_error: whether to raise an error that concerns all references, for example if the host is down.
        Otherwise, such an error becomes the version of each reference that could not be resolved."""
        async with batch.lock:
            unresolved = [reference for reference in references if reference.version is None]
            if not unresolved:
                return
            entry = unresolved[0].entry

            def run(work: Work) -> list[Version | MirrorError]:
                """Resolve the references on a worker thread, and add the results of earlier runs."""
                versions = resolve_references(
                    entry, unresolved, work, self._keep_manifest, raise_common_error=raise_common_error
                )
                if self._repeat_transforms:
                    return [
                        one if isinstance(one, MirrorError) else hide_digest(one, entry.platforms) for one in versions
                    ]
                return [
                    add_earlier_result(self._hints, one, entry.platforms, use_hints=self._use_hints) for one in versions
                ]

            for reference, version in zip(unresolved, await self._calls.call_host(entry.source.host, run), strict=True):
                reference.version = version
