"""Stores that have to be opened before the first write and closed after the last.

A store that gathers (a bundle) is told of all its images before the first byte; what arrived there counts only when
the store has shown it. What is there is replaced only by a complete one: whatever could not be fetched, from the
listing of a repository to the last blob, keeps it as it is. Where nothing is there, what is whole is shown, and says
that it is incomplete.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Sized
from functools import partial

from mirror.errors import MirrorError, NotFound, RemoteError
from mirror.oci.digest import Digest
from mirror.store import ExpectedImage, Target
from mirror.sync.image_reader import Image, ImageReader
from mirror.sync.plan_model import Action, PlanEntry, reference_suffix
from mirror.sync.recorder import BlobCounts
from mirror.transfer.calls import Calls
from mirror.transfer.permits import host_permit
from mirror.transfer.shared import Shared
from mirror.util.cancellation import Stop, Work
from mirror.util.retry_policy import ONCE
from mirror.util.structs import Struct, replace

_NAMED = 4  # missing images that a message names

_log = logging.getLogger("mirror.publish")


class Held(Struct, frozen=True):
    """A result that counts only when its target has been closed.

    error: why it does not count after all; replaced: False: the target holds what it held before, which is equal."""

    plan_entry: PlanEntry
    digest: Digest
    counts: BlobCounts
    error: MirrorError | None = None
    replaced: bool = True


class TargetLifecycle:
    """Opens and closes the targets of a run.

    needs: whether a mirror of the configuration has to bring something to a repository (host, path) of a target."""

    def __init__(
        self,
        calls: Calls,
        reader: ImageReader,
        targets: Mapping[str, Target],
        needs: Callable[[str, str], bool] = lambda host, path: False,
    ) -> None:
        self._needs = needs
        self._calls = calls
        self._reader = reader
        self._targets = targets
        self._begun: set[str] = set()
        self._openings: Shared[str, None] = Shared(calls.tasks)
        # By host, of those that gather: what the target lacks, by its name there; the images that it will get.
        self._lacking: defaultdict[str, dict[str, MirrorError]] = defaultdict(dict)
        self._known: dict[str, set[str]] = {}  # what it was known to lack when it was begun
        self._coming: defaultdict[str, dict[PlanEntry, ExpectedImage]] = defaultdict(dict)
        self._held: defaultdict[str, list[Held]] = defaultdict(list)

    def note_missing(self, host: str, name: str, error: MirrorError) -> None:
        """A target that gathers does not get something that it was to have. name: what it would be called there."""
        if self._targets[host].needs_all_images:
            self._lacking[host].setdefault(name, error)

    def missing_images(self, host: str) -> dict[str, MirrorError]:
        """What a target that gathers does not get, by its name there."""
        return dict(self._lacking[host])

    async def begin(self, host: str, images: Sequence[ExpectedImage] = ()) -> None:
        """Open the target once, before its first write."""
        if host not in self._begun:
            await self._openings.run(host, lambda: self._open(host, images))

    async def _open(self, host: str, images: Sequence[ExpectedImage]) -> None:
        missing = self.missing_images(host).keys()

        def run(work: Work) -> None:
            self._targets[host].begin(images, work, missing=missing)
            self._begun.add(host)  # also if a stop comes: it has to be closed

        self._known[host] = set(missing)
        await self._calls.call(run, needs=(host_permit(host),), policy=ONCE)

    async def begin_with_images(self, host: str, plan_entries: Sequence[PlanEntry]) -> dict[PlanEntry, MirrorError]:
        """Tell the target of all that will come. -> those that cannot come, since they could not be read."""
        errors: dict[PlanEntry, MirrorError] = {}
        coming = self._coming[host]
        images = await self._reader.read_images([one.reference for one in plan_entries])
        for plan_entry, image in zip(plan_entries, images, strict=True):
            error = image if isinstance(image, MirrorError) else _unknown_size_error(plan_entry, image)
            if error is not None:
                errors[plan_entry] = error
                self.note_missing(host, name_on_target(plan_entry), error)
            elif not isinstance(image, MirrorError):
                graph = image.graph
                coming[plan_entry] = ExpectedImage(
                    plan_entry.target.repository.path, plan_entry.reference.tag, tuple(graph.manifests()), graph.blobs
                )
        if not self.missing_images(host):
            await self._note_vanished_repositories(host, {one.target.repository.path for one in plan_entries})
        if coming:
            await self.begin(host, list(coming.values()))
        return errors

    async def _note_vanished_repositories(self, host: str, named: Collection[str]) -> None:
        """A repository that is there, that a mirror has to fill, and of which nothing is selected any more: its source
        may have answered with an empty list, or a catalog without it."""
        run = partial(_list_repositories, self._targets[host])
        for name in await self._calls.call(run, needs=(host_permit(host),), policy=ONCE) or ():
            if isinstance(name, str) and name not in named and self._needs(host, name):
                what = f"it holds {name}, of which no tag is selected any more"
                self.note_missing(host, name, RemoteError(what, code="nothing_selected"))

    # ---- the end

    def hold_result(self, plan_entry: PlanEntry, digest: Digest, counts: BlobCounts) -> bool:
        """Keep a result back until its target has shown it; False: there is no need to."""
        host = plan_entry.target.repository.host
        if not self._targets[host].needs_all_images:
            return False
        self._held[host].append(Held(plan_entry, digest, counts))
        return True

    async def finish(self, *, incomplete: bool, believe: bool = True) -> tuple[list[Held], list[MirrorError]]:
        """Close all that was opened. -> the results that were held back; the errors of other targets.

        incomplete: show also what is not complete, where nothing is there yet; believe: an equal tag says that its
        image is there."""
        results: list[Held] = []
        errors: list[MirrorError] = []
        for host in sorted(self._begun):
            held = self._held.pop(host, [])
            error = await self._finish_target(host, [one.plan_entry for one in held], incomplete=incomplete)
            kept = isinstance(error, NotReplaced) and believe and not self._targets[host].partial
            for one in held:
                equal = kept and one.plan_entry.action is Action.SKIP
                results.append(replace(one, error=None if equal else error, replaced=not equal))
            if error is not None and not self._targets[host].needs_all_images:
                errors.append(error)
        return results, errors

    async def _finish_target(self, host: str, arrived: Sequence[PlanEntry], *, incomplete: bool) -> MirrorError | None:
        lacking = self.missing_images(host)

        def run(work: Work) -> MirrorError | None:
            self._begun.discard(host)  # if it is not reached, `close` closes it
            if not lacking:
                self._targets[host].finish(whole=True, work=work)
                return None
            return self._finish_incomplete(host, lacking, arrived if incomplete else (), work)

        try:
            return await self._calls.call(run, needs=(host_permit(host),), policy=ONCE)
        except MirrorError as error:
            return error

    def _finish_incomplete(
        self, host: str, lacking: Mapping[str, MirrorError], arrived: Sequence[PlanEntry], work: Work
    ) -> MirrorError | None:
        """Show what is whole, unless that would replace something. -> why nothing is shown."""
        store, cause = self._targets[host], next(iter(lacking.values()))
        names = f"{', '.join(list(lacking)[:_NAMED])}{_more_text(lacking)}"
        advice = _advice(host, lacking.values())
        if _list_repositories(store, work) is not None:
            store.finish(whole=False, work=work)
            if cause.code == "nothing_selected":  # no image failed by it that says so
                what = f"{host} stays as it is: {cause.what}"
                return NotReplaced(what, hint=advice, code="bundle_incomplete", retryable=cause.retryable)
            state = "is still incomplete" if store.incomplete else "stays as it is"
            text = f"{host} {state}: {names} could not be fetched, and only a complete one takes its place ({advice})"
            _log.warning("bundle_incomplete", extra={"target": host, "lacking": sorted(lacking), "text": text})
            what = f"it was fetched and kept, but {host} {state}, since {next(iter(lacking))} could not be fetched"
            return NotReplaced(what, code="bundle_incomplete", retryable=cause.retryable)
        images = [self._coming[host][plan_entry] for plan_entry in arrived]
        late = lacking.keys() - self._known[host]
        if late or not images:
            store.finish(whole=False, work=work)
        if not images:
            return RemoteError(
                f"{host} was not made: {cause.what}", hint=advice, code="bundle_incomplete", retryable=cause.retryable
            )
        if late:
            store.begin(images, work, missing=lacking.keys())
        store.finish(whole=True, work=work)
        text = f"{host} is incomplete: according to its own inventory, it lacks {names}"
        _log.warning("bundle_incomplete", extra={"target": host, "lacking": sorted(lacking), "text": text})
        return None

    def close(self) -> None:
        """Close what a stop left open. Does I/O; after the threads have ended."""
        for host in sorted(self._begun):
            self._targets[host].finish(whole=False, work=Work(Stop()))


class NotReplaced(RemoteError):
    """A target that gathers still holds what it held before."""


def name_on_target(plan_entry: PlanEntry) -> str:
    """What an image is called in a store that gathers."""
    return plan_entry.target.repository.path + reference_suffix(plan_entry.reference.tag)


def _advice(host: str, causes: Iterable[MirrorError]) -> str:
    """What to do, so that a run makes a complete bundle. A run as it was helps only if all causes may pass."""
    causes = list(causes)
    if causes[0].code == "nothing_selected":
        return f"if that is right, remove {host}, or set `allow-empty: true` for that mirror; then run again"
    if all(cause.is_transient for cause in causes):
        return "what arrived is kept: run again"
    return "what arrived is kept: push at the source what is missing there, or leave it out of the configuration"


def _more_text(names: Sized) -> str:
    return f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""


def _unknown_size_error(plan_entry: PlanEntry, image: Image) -> MirrorError | None:
    """Why an image cannot come into a store that has to know all sizes beforehand."""
    if all(blob.size is not None for blob in image.graph.blobs):
        return None
    return RemoteError(
        f"{plan_entry.reference.name} is a schema 1 image: it lacks the sizes of its layers, which a bundle needs",
        hint="set `schema1: convert` for this mirror",
        code="manifest_invalid",
    )


def _list_repositories(store: Target, work: Work) -> list[str | MirrorError] | None:
    """The repositories of a store; None: there is no store yet."""
    try:
        return list(store.repositories("", work))
    except NotFound:
        return None
