"""Sets up the limits, the stores and the event loop of a command, and shuts them down in order."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mirror.commands.options import Options, ReferenceFilter
from mirror.commands.stores import Stores
from mirror.config import Config, state_directory
from mirror.errors import Cancelled, ConfigError, LocalError, MirrorError, NotFound, printable
from mirror.limits import Limits
from mirror.output.progress import Progress
from mirror.output.redaction import Redactor
from mirror.registry.v1.fallback_state import V2Memory
from mirror.selection.locations import STREAM, is_bundle, is_registry
from mirror.selection.repository_rules import can_match
from mirror.state.hints import State
from mirror.sync.bundle_bases import BundleBases
from mirror.sync.image_lock import read_image_lock
from mirror.sync.image_reader import ImageReader
from mirror.sync.locked_mirrors import lock_entries
from mirror.sync.locked_selection import ReferenceCollector
from mirror.sync.manifest_bodies import ManifestBodies
from mirror.sync.manifest_graph import ManifestCache
from mirror.sync.plan_model import MirrorEntry, PlanReceiver, RepositoryFilter, SourceReference
from mirror.sync.planner import Planner
from mirror.sync.signature_checker import SignatureChecker
from mirror.sync.tag_protection import TagProtection
from mirror.sync.target_tags import KeepTargetTags
from mirror.transfer.calls import CLOSE_TIMEOUT, Calls, new_loop
from mirror.transfer.tasks import Coro
from mirror.util.cancellation import Stop
from mirror.util.files import local_error
from mirror.util.signals import Signals
from mirror.util.structs import Struct

# After a signal or the deadline, the process ends within 5 seconds, and all cleanup together takes at most
# CLEANUP_SECONDS. Cleanup waits for responses that may open an upload session, and deletes these sessions. Both steps
# have shorter time limits. Threads that still hang after that are abandoned: for example, a name lookup cannot be
# interrupted.
CLEANUP_SECONDS = 3.5  # seconds from the signal or the deadline
CANCEL_AFTER_SECONDS = 1.5  # seconds from the signal or the deadline until remaining coroutines are cancelled
MIN_CLEANUP_SECONDS = 0.2  # seconds that cleanup may always take, even after CLEANUP_SECONDS has passed

_log = logging.getLogger("mirror")


class RunContext(Struct, frozen=True):
    """The objects that all parts of a run share. They are valid until the `with` block of `open_run` exits.

    run: the id of the run."""

    limits: Limits
    stop: Stop
    stores: Stores
    loop: asyncio.AbstractEventLoop
    calls: Calls
    entries: list[MirrorEntry]
    only: ReferenceFilter
    signals: Signals
    manifests: ManifestCache
    signatures: SignatureChecker
    config: Config
    progress: Progress
    redact: Redactor
    run: str

    def planner(
        self,
        state: State,
        receiver: PlanReceiver,
        reader: ImageReader | None = None,
        *,
        use_hints: bool = True,
        repeat_transforms: bool = False,
        repair: bool = False,
        only: RepositoryFilter | None = None,
        receive_references: Callable[[Sequence[SourceReference]], None] | None = None,
        reread_dates: bool = False,
        keep_target_tags: KeepTargetTags | None = None,
    ) -> Planner:
        """Create the planner for the run. receiver: the object to which the planner passes the plan entries.

        reader: reads the images of the run, and keeps the tags of attachments from the tag lists that are read.
        only: the filter to use instead of the one for `--only` and `--shard`. The others are described in `Planner`."""
        return Planner(
            self.calls,
            state,
            receiver,
            only=only or self.only,
            parallel=self.stores.parallel(),
            manifests=self.manifests,
            keep_tags=reader.attachments.tags.keep if reader is not None else None,
            use_hints=use_hints,
            repeat_transforms=repeat_transforms,
            repair=repair,
            receive_references=receive_references,
            reread_dates=reread_dates,
            keep_target_tags=keep_target_tags,
        )

    def image_reader(self, state: State, *, all_attachments: bool = False) -> ImageReader:
        """Create the object that reads images and their attachments for the run.

        all_attachments: whether to find also those attachments whose tags are mirrored like the tags of images."""
        protection = TagProtection(
            self.calls,
            self.manifests,
            state.attachment_tags,
            lambda source: any(entry.may_read(source) for entry in self.entries),
        )
        is_selected = self.only.is_selected if not all_attachments else lambda reference: False
        return ImageReader(
            self.calls, state, self.manifests, self.signatures, protection, is_selected, progress=self.progress
        )

    async def plan_all(self, planner: Planner, mirrors: Container[int] | None = None) -> None:
        """Plan the mirrors with `planner`, and begin the next phase of the progress.

        mirrors: the numbers of the mirrors to plan; None for all."""
        await planner.plan_all(self.entries, mirrors)
        self.progress.end_planning()

    def source_planner(self, state: State, reader: ImageReader, collector: ReferenceCollector) -> Planner:
        """Create a planner that resolves the selected references at their sources, and does not plan targets.

        reader: see `planner`. collector: receives the resolved references."""
        return self.planner(state, collector, reader, use_hints=False, receive_references=collector.receive)

    def bases(self, state: State, reader: ImageReader) -> BundleBases:
        """Create the object that checks whether targets have the blobs that a differential bundle leaves out."""
        return BundleBases(
            self.calls,
            reader,
            self.stores.blob_locations(state),
            self.stores.registries,
        )

    def must_copy_to(self, host: str, path: str) -> bool:
        """Return whether a mirror that must select at least one tag (no `allow-empty`) copies to a repository."""
        return any(
            target.repository.host == host and can_match(path, target.repository.path, entry.repository_rules)
            for entry in self.entries
            if not entry.rules.allow_empty
            for target in entry.targets
        )

    def run_problems(self, rest: str = "") -> list[tuple[str, MirrorError]]:
        """Return the errors that concern no single image, each with the name of a pattern or source.

        These are errors for `--only` patterns that matched nothing, and for incomplete sources. This method also logs a
        warning for each pattern that may match in another shard. Call it after planning. rest: the clause about the
        other images that begins the hint for an incomplete source."""
        hint = "no source has such a tag or repository, or the tag rules of the configuration exclude it"
        for one in self.only.unused_in_this_shard():
            text = f"--only {printable(one, 80)} selects nothing in this shard; check the reports of the other shards"
            _log.warning("only_idle", extra={"text": text})
        idle = [
            (one, NotFound(f"--only {printable(one, 80)} selects nothing", hint=hint))
            for one in self.only.unused_patterns()
        ]
        incomplete = self.stores.incomplete_sources()
        for _, error in incomplete:
            error.hint = f"{rest}; export again to add the missing images" if rest else error.hint
        return [*idle, *incomplete]

    def check_no_partial_bundle(self, options: Options) -> None:
        """Raise ConfigError if `--only` or `--shard` would select only some of the images of a bundle.

        A bundle is always written as a whole, so the new one would lack all other images."""
        for entry in self.entries:
            bundle = next((one.repository.host for one in entry.targets if is_bundle(one.repository.host)), None)
            if bundle is None or not (options.shard is not None or self.only.can_match(entry.name)):
                continue
            option = "--shard" if options.shard is not None else "--only" if options.only else "--only-from"
            raise ConfigError(
                f"{option} cannot be used: the target {bundle} is a bundle, which must contain all selected images",
                hint="leave the option out; blobs that an earlier run fetched are not fetched again. To export only "
                "some images, use a configuration with another bundle as its target, or export to a layout (oci:DIR), "
                "which keeps its other images",
            )

    def run_until_signal(self, coroutine: Coro[None], halt: Callable[[Cancelled], object] = str) -> int | None:
        """Run a coroutine until it ends, or until a signal or the deadline ends it.

        Return the exit code for the signal or the deadline, or None if there was neither. In the latter case, an
        exception of the coroutine is raised. halt: a function that is called with the reason when a signal arrives or
        the deadline is reached, before the stop is requested. The stop ends all waits in the coroutine."""
        main, signals = self.calls.tasks.start(coroutine), self.signals

        def end() -> None:
            """Request the stop, and cancel the coroutine if it has not ended after CANCEL_AFTER_SECONDS seconds."""
            error = signals.error()
            self.progress.set_phase("stopping")
            halt(error)
            self.stop.request(error.what, code=error.code)
            self.loop.call_later(CANCEL_AFTER_SECONDS, main.cancel)

        def expire() -> None:
            """End the run because of the deadline, unless a signal has ended it."""
            if not signals.has_ended_run:
                signals.reach_deadline()
                end()

        signals.on_signal = end
        if signals.has_ended_run:
            end()
        elif signals.deadline is not None:
            timer = self.loop.call_later(max(0.0, signals.deadline - time.monotonic()), expire)
            main.add_done_callback(lambda _: timer.cancel())
        self.loop.run_until_complete(asyncio.wait([main]))
        if signals.has_ended_run:
            self.calls.tasks.collect(main)
            return signals.exit_code
        main.result()
        return None


def makes_bundle(config: Config) -> bool:
    """Return whether any target of the configuration is a bundle."""
    return any(is_bundle(target.host) for mirror in config.mirrors for target in mirror.targets)


def spool_directory(config: Config, folder: str = "") -> Path:
    """Return the directory of a run for temporary files, such as blobs that are sent to several targets.

    folder: the folder of the run in the state directory. Runs with different locks have different directories, even
    if their configurations share `spool`, because a run deletes old files in its directory. Raises LocalError if the
    state directory cannot be determined."""
    state = state_directory(config)
    if config.spool is None:
        return state / folder / "spool"
    return config.spool / hashlib.sha256(os.fsencode(state.resolve())).hexdigest()[:16] / folder


@contextmanager
def open_run(
    config: Config,
    options: Options,
    only: ReferenceFilter,
    redactor: Redactor,
    signals: Signals,
    state: State,
    progress: Progress,
    *,
    run: str,
    writes: bool,
    on_request: Callable[[], object] | None = None,
    memory: V2Memory | None = None,
) -> Iterator[RunContext]:
    """Return a context manager that opens the stores and an event loop, and yields them as a RunContext.

    When the `with` block exits, all threads are joined, except those that hang after a signal. run: the id of the run.
    writes: False if the command only reads. on_request: called on any thread after each request that was sent. memory:
    which repositories responded over v2 in earlier runs; by default, those in `state`. Raises ConfigError,
    LocalError."""
    limits, stop = Limits(on_request=on_request), Stop()
    progress.set_host_source(limits.waiting_hosts)
    spool = spool_directory(config, options.folder)
    with Stores(
        config, limits, redactor, spool, options.base, writes=writes, repair=options.repair, memory=memory or state
    ) as stores:
        entries = stores.entries()
        if options.locked is not None:
            entries = lock_entries(entries, read_image_lock(options.locked), printable(options.locked))
        _check_patterns(only, entries, config)
        _check_sources(config)
        parallel = config.parallel
        signals.free_pipe()
        try:
            loop = new_loop()
        except OSError as error:
            raise local_error("open", "an event loop", error) from error
        signals.wake_loop(loop)
        calls = Calls(loop, limits, stop, downloads=parallel.downloads, uploads=parallel.uploads)
        manifests = ManifestCache(calls, bodies=ManifestBodies(spool / "manifests" if writes else None))
        try:
            signatures = SignatureChecker(calls, manifests)
            yield RunContext(
                limits,
                stop,
                stores,
                loop,
                calls,
                entries,
                only,
                signals,
                manifests,
                signatures,
                config,
                progress,
                redactor,
                run,
            )
        finally:
            close_in_time(calls.close, signals)
            manifests.close()


def _check_patterns(only: ReferenceFilter, entries: list[MirrorEntry], config: Config) -> None:
    """Raise ConfigError if an `--only` pattern cannot match any source, because it is probably a typo."""
    unmatched = only.impossible_patterns(entry.name for entry in entries)
    if unmatched:
        like = f", like {entries[0].name}" if entries else ""
        raise ConfigError(
            f"--only {printable(unmatched[0], 80)} matches no source of {config.path}",
            hint=f"a pattern must match HOST/REPOSITORY or HOST/REPOSITORY:TAG of a source{like}",
        )


def _check_sources(config: Config) -> None:
    """Raise ConfigError if a source bundle or layout does not exist, unless a mirror of the configuration writes it."""
    written = {target.host for mirror in config.mirrors for target in mirror.targets}
    for host in dict.fromkeys(mirror.source.host for mirror in config.mirrors):
        if is_registry(host) or host == STREAM or host in written:
            continue
        try:
            Path(host.removeprefix("oci:")).stat()
        except (FileNotFoundError, NotADirectoryError):
            hint = f"{config.path} names it as a source: copy it to this machine, or correct the path"
            raise ConfigError(f"{host} does not exist", hint=hint) from None
        except OSError:
            continue  # opening it raises a better error


def seconds_left(signals: Signals) -> float:
    """Return how many seconds cleanup may still take. The full limit applies if the run was not ended early."""
    if not signals.has_ended_run:
        return CLEANUP_SECONDS
    return max(CLEANUP_SECONDS - signals.seconds_since_end(), MIN_CLEANUP_SECONDS)


def close_in_time(close: Callable[[float], None], signals: Signals) -> None:
    """Call `close` with the number of seconds for which it may wait for threads to end.

    After a signal or the deadline, threads that still hang are abandoned. Otherwise, they cause a LocalError."""
    try:
        close(seconds_left(signals) if signals.has_ended_run else CLOSE_TIMEOUT)
    except LocalError:
        # A thread hangs and cannot be interrupted. The process ends after the report and the log are written.
        signals.has_hung_threads = True
        if not signals.has_ended_run:
            raise
