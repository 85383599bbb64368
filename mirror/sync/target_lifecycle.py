"""Opens each target before the first write, and closes it after the last write.

Most targets can be written to at any time. For a bundle, all images must be known before the first byte is written, and
the file appears only when it is finished. An existing bundle is replaced only by a complete bundle: if a tag list, a
manifest or a blob cannot be fetched, the existing bundle stays unchanged. If no bundle exists yet, the complete images
are published, and the inventory of the bundle lists the missing images.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Sized
from functools import partial

from mirror.errors import MirrorError, NotFound, OtherPlatform, RemoteError
from mirror.store import ExpectedImage, Target
from mirror.sync.image_reader import Image, ImageReader
from mirror.sync.manifest_graph import ManifestGraph
from mirror.sync.plan_model import PlanEntry, reference_suffix
from mirror.transfer.calls import Calls
from mirror.transfer.shared_tasks import SharedTasks
from mirror.util.cancellation import Stop, Work

_MOST_NAMES = 4  # maximum number of missing images that a message names

_log = logging.getLogger("mirror.sync")


class NotReplacedError(RemoteError):
    """The error for a bundle that was not replaced and still has its previous content."""


class TargetLifecycle:
    """Opens and closes the targets of a run. Each target is identified by its host.

    must_copy_to: a function that returns whether any mirror must copy an image to the repository with a given host and
    path."""

    def __init__(
        self,
        calls: Calls,
        reader: ImageReader,
        targets: Mapping[str, Target],
        must_copy_to: Callable[[str, str], bool] = lambda host, path: False,
    ) -> None:
        self._must_copy_to = must_copy_to
        self._calls = calls
        self._reader = reader
        self._targets = targets
        self._open_hosts: set[str] = set()
        self._openings: SharedTasks[str, None] = SharedTasks(calls.tasks)
        # For bundles, by host: `_missing` has the missing images and repositories by name, `_missing_at_begin` has the
        # names that were already missing when the bundle was opened, and `_expected` has the images that will be
        # written.
        self._missing: defaultdict[str, dict[str, MirrorError]] = defaultdict(dict)
        self._missing_at_begin: dict[str, set[str]] = {}
        self._expected: defaultdict[str, dict[PlanEntry, tuple[ExpectedImage, ...]]] = defaultdict(dict)

    def add_missing(self, host: str, name: str, error: MirrorError) -> None:
        """Record that a bundle will lack an image or repository that it should contain, and why.

        Other kinds of targets are ignored. Images that are skipped because of their platform are not missing. name: the
        name of the image or repository in the bundle."""
        if self._targets[host].needs_all_images and not isinstance(error, OtherPlatform):
            self._missing[host].setdefault(name, error)

    def missing_images(self, host: str) -> dict[str, MirrorError]:
        """Return the images and repositories that a bundle lacks, by name, each with the error."""
        return dict(self._missing[host])

    async def begin(self, host: str, images: Sequence[ExpectedImage] = ()) -> None:
        """Open a target unless this has been done already. Raises the same errors as `Target.begin`.

        images: if the target is a bundle, all images that will be written to it."""
        if host not in self._open_hosts:
            await self._openings.run(host, lambda: self._open(host, images))

    async def _open(self, host: str, images: Sequence[ExpectedImage]) -> None:
        """Open a target for writing. images: if the target is a bundle, all images that will be written to it."""
        missing = self.missing_images(host).keys()

        def run(work: Work) -> None:
            """Open the target, and record that it must be closed. Runs on a worker thread."""
            self._targets[host].begin(images, work, missing=missing)
            self._open_hosts.add(host)  # set on this thread, because a stop does not interrupt it

        self._missing_at_begin[host] = set(missing)
        await self._calls.call_host(host, run)

    async def begin_with_images(self, host: str, plan_entries: Sequence[PlanEntry]) -> dict[PlanEntry, MirrorError]:
        """Read all images that are planned for a bundle, and open the bundle to write these images.

        Return an error for each image that cannot be read. The bundle is written without the latter images."""
        errors: dict[PlanEntry, MirrorError] = {}
        expected = self._expected[host]
        images = await self._reader.read_images([plan_entry.reference for plan_entry in plan_entries])
        for plan_entry, image in zip(plan_entries, images, strict=True):
            error = image if isinstance(image, MirrorError) else _unknown_size_error(plan_entry, image.graph)
            if error is not None:
                errors[plan_entry] = error
                self.add_missing(host, name_on_target(plan_entry), error)
            elif not isinstance(image, MirrorError):
                expected[plan_entry] = _expected_images(plan_entry, image)
        if not self.missing_images(host):
            await self._mark_vanished_repositories(
                host, {plan_entry.target.repository.path for plan_entry in plan_entries}
            )
        if expected:
            await self.begin(host, [one for group in expected.values() for one in group])
        return errors

    async def _mark_vanished_repositories(self, host: str, planned: Collection[str]) -> None:
        """Mark repositories of an existing bundle as missing if mirrors must copy to them but no image is planned.

        planned: the repositories for which an image is planned. A repository may lack planned images if, for example,
        the source returns an empty tag list, or a catalog without this repository."""
        run = partial(_list_repositories, self._targets[host])
        for name in await self._calls.call_host(host, run) or ():
            if isinstance(name, str) and name not in planned and self._must_copy_to(host, name):
                what = f"the bundle contains {name}, but the mirror no longer selects any tag of {name}"
                self.add_missing(host, name, RemoteError(what, code="nothing_selected"))

    # ---- the end

    async def finish(self, written: Collection[PlanEntry], *, incomplete: bool) -> dict[str, MirrorError]:
        """Close all open targets. Return an error for each target that was not closed or not replaced, by host.

        written: the images that were written to bundles.
        incomplete: whether an incomplete bundle may be published if no bundle exists yet."""
        errors: dict[str, MirrorError] = {}
        for host in sorted(self._open_hosts):
            images = [plan_entry for plan_entry in written if plan_entry.target.repository.host == host]
            error = await self._finish_target(host, images if incomplete else ())
            if error is not None:
                errors[host] = error
        return errors

    async def _finish_target(self, host: str, images: Sequence[PlanEntry]) -> MirrorError | None:
        """Close one target. Return an error if it could not be closed or was not replaced.

        images: the images with which an incomplete bundle may be published."""
        missing = self.missing_images(host)

        def run(work: Work) -> MirrorError | None:
            """Finish the target. Return an error if it is a bundle that is not published. Runs on a worker thread."""
            self._open_hosts.discard(host)  # on this thread: if the call never runs, `close` closes the target
            if not missing:
                self._targets[host].finish(whole=True, work=work)
                return None
            return self._finish_incomplete(host, missing, images, work)

        try:
            return await self._calls.call_host(host, run)
        except MirrorError as error:
            return error

    def _finish_incomplete(
        self, host: str, missing: Mapping[str, MirrorError], written: Sequence[PlanEntry], work: Work
    ) -> MirrorError | None:
        """Publish an incomplete bundle, unless it would replace an existing bundle.

        Return an error if the bundle is not published."""
        store, cause = self._targets[host], next(iter(missing.values()))
        names = f"{', '.join(list(missing)[:_MOST_NAMES])}{_more_text(missing)}"
        advice = _completion_hint(host, missing.values())
        if _list_repositories(store, work) is not None:
            store.finish(whole=False, work=work)
            if cause.code == "nothing_selected":  # no image has this error, so it is not repeated for each of them
                what = f"{host} was not replaced: {cause.what}"
                return NotReplacedError(what, hint=advice, code="bundle_incomplete", retryable=cause.retryable)
            state = "is still incomplete" if store.incomplete else "stays as it is"
            text = f"{host} {state}: {names} could not be fetched, and only a complete bundle may replace it ({advice})"
            _log.warning("bundle_incomplete", extra={"target": host, "lacking": sorted(missing), "text": text})
            first = next(iter(missing))
            what = f"the image was fetched and kept, but {host} {state}, because {first} could not be fetched"
            return NotReplacedError(what, code="bundle_incomplete", retryable=cause.retryable)
        images = [one for plan_entry in written for one in self._expected[host][plan_entry]]
        missed_later = missing.keys() - self._missing_at_begin[host]
        if missed_later or not images:
            store.finish(whole=False, work=work)
        if not images:
            what = f"{host} was not written: {cause.what}"
            return RemoteError(what, hint=advice, code="bundle_incomplete", retryable=cause.retryable)
        if missed_later:
            store.begin(images, work, missing=missing.keys())
        store.finish(whole=True, work=work)
        text = f"{host} is incomplete: it lacks {names}, as its inventory states"
        _log.warning("bundle_incomplete", extra={"target": host, "lacking": sorted(missing), "text": text})
        return None

    def close(self) -> None:
        """Close the targets that a stopped run left open. Blocks. Call this only after all writes have ended."""
        for host in sorted(self._open_hosts):
            self._targets[host].finish(whole=False, work=Work(Stop()))


def name_on_target(plan_entry: PlanEntry) -> str:
    """Return the name of an image on its target, without the host: `REPOSITORY:TAG` or `REPOSITORY@DIGEST`."""
    return plan_entry.target.repository.path + reference_suffix(plan_entry.tag)


def _completion_hint(host: str, causes: Iterable[MirrorError]) -> str:
    """Return a hint about how to complete a bundle. causes: the errors for the missing images."""
    causes = list(causes)
    if causes[0].code == "nothing_selected":
        return f"if this is intended, delete {host}, or set `allow-empty: true` for the mirror; then run again"
    if all(cause.is_transient for cause in causes):
        return "run the same command again; content that was fetched is kept"
    return (
        "push the missing content to the source, or exclude it in the configuration; content that was fetched is kept"
    )


def _more_text(names: Sized) -> str:
    """Return the end of a list of names in a message, such as ` and 3 more`, or an empty string for a short list."""
    return f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""


def _expected_images(plan_entry: PlanEntry, image: Image) -> tuple[ExpectedImage, ...]:
    """Return the entries of a bundle for an image: each attachment under its digest or tag, then the image itself."""
    parts = [(one.ref.reference, one.graph) for one in image.attachments]
    parts.append((plan_entry.tag, image.graph))
    repository = plan_entry.target.repository.path
    return tuple(
        ExpectedImage(repository, reference, tuple(graph.manifests()), graph.blobs, graph.left_out)
        for reference, graph in parts
    )


def _unknown_size_error(plan_entry: PlanEntry, graph: ManifestGraph) -> MirrorError | None:
    """Return an error if the size of a blob is unknown, because a bundle needs all sizes before the first write."""
    if all(blob.size is not None for blob in graph.blobs):
        return None
    return RemoteError(
        f"{plan_entry.reference.name} is a schema 1 image, which does not contain the layer sizes that a bundle needs",
        hint="set `schema1: convert` for this mirror",
        code="manifest_invalid",
    )


def _list_repositories(store: Target, work: Work) -> list[str | MirrorError] | None:
    """Return the repositories of a store, or None if the store does not exist yet."""
    try:
        return list(store.repositories("", work))
    except NotFound:
        return None
