"""The parts that every command with registries needs: limits, clients, an event loop, and an orderly end."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from mirror.commands.options import Options, ReferenceFilter, Shard
from mirror.commands.stores import Stores
from mirror.config import Config, state_directory
from mirror.errors import SIGNALLED, Cancelled, ConfigError, LocalError, MirrorError, NotFound, printable
from mirror.limits import Limits
from mirror.output.redaction import Redactor
from mirror.selection.locations import STREAM, can_match, is_bundle, is_registry
from mirror.state.hints import State
from mirror.sync.bundle_bases import BundleBases
from mirror.sync.image_reader import ImageReader
from mirror.sync.manifest_bodies import ManifestBodies
from mirror.sync.manifest_graph import ManifestCache
from mirror.sync.plan_model import MirrorEntry, PlanReceiver
from mirror.sync.planner import Planner
from mirror.transfer.blob_locations import BlobLocations
from mirror.transfer.calls import CLOSE_TIMEOUT, Calls, new_loop
from mirror.transfer.tasks import Coro
from mirror.util.cancellation import Stop, Work
from mirror.util.files import local_error
from mirror.util.signals import Signals
from mirror.util.structs import Struct

# After a signal the process ends within 5 seconds. All cleanup shares this limit: a response that may open an upload
# session is awaited, and the session is deleted (both have their own limits, which fit in here). Then threads that
# hang are left behind: a name lookup, for example, cannot be interrupted.
LEAVING = 3.5  # seconds from the signal
GRACE = 1.5  # of these, for coroutines to end by themselves
AT_LEAST = 0.2  # seconds for threads that have nothing left to do

_log = logging.getLogger("mirror")


class RunContext(Struct, frozen=True):
    """The parts of a run; valid inside the block of `open_run`."""

    limits: Limits
    stop: Stop
    stores: Stores
    loop: asyncio.AbstractEventLoop
    calls: Calls
    entries: list[MirrorEntry]
    only: ReferenceFilter
    signals: Signals
    manifests: ManifestCache

    def planner(
        self,
        state: State,
        receiver: PlanReceiver,
        *,
        use_hints: bool = True,
        repeat_transforms: bool = False,
        repair: bool = False,
    ) -> Planner:
        """Create the planner of the run."""
        return Planner(
            self.calls,
            state,
            receiver,
            only=self.only,
            parallel=self.stores.parallel(),
            keep_manifest=self.manifests.add,
            use_hints=use_hints,
            repeat_transforms=repeat_transforms,
            repair=repair,
        )

    def bases(self, state: State) -> BundleBases:
        """Create the check for blobs that differential bundles leave out."""
        reader = ImageReader(self.calls, state, self.manifests)
        return BundleBases(
            self.calls,
            reader,
            BlobLocations(state, self.stores.mountable(), self.stores.wildcards()),
            self.stores.registries,
        )

    def must_copy_to(self, host: str, path: str) -> bool:
        """Return whether a mirror must copy something to this repository of a target."""
        return any(
            target.repository.host == host and can_match(path, target.repository.path)
            for entry in self.entries
            if not entry.rules.allow_empty
            for target in entry.targets
        )

    def run_problems(self, rest: str = "") -> list[tuple[str, MirrorError]]:
        """Return problems of the whole run, by name, after planning.

        These are patterns of --only that matched nothing, and sources that are incomplete. rest: what to say about the
        images that an incomplete source has."""
        hint = "no source has such a tag or repository, or the configuration leaves it out"
        for one in self.only.unused_in_this_shard():
            text = f"--only {printable(one, 80)} selects nothing in this shard; look at the others, too"
            _log.warning("only_idle", extra={"text": text})
        idle = [
            (one, NotFound(f"--only {printable(one, 80)} selects nothing", hint=hint))
            for one in self.only.unused_patterns()
        ]
        incomplete = self.stores.incomplete_sources()
        for _, error in incomplete:
            error.hint = f"{rest}; export again to add them" if rest else error.hint
        return [*idle, *incomplete]

    def check_no_partial_bundle(self, options: Options) -> None:
        """Raise ConfigError if `--only` or `--shard` selects a part of a bundle, which would then lack the rest."""
        for entry in self.entries:
            bundle = next((one.repository.host for one in entry.targets if is_bundle(one.repository.host)), None)
            if bundle is None or not (options.shard is not None or self.only.can_match(entry.name)):
                continue
            option = "--shard" if options.shard is not None else "--only" if options.only else "--only-from"
            raise ConfigError(
                f"{option}: {bundle} is a bundle, which always contains all images that the configuration selects",
                hint="leave it out: blobs that an earlier run has fetched are not fetched again. For a part, write a "
                "configuration with its own bundle, or export to a layout (oci:DIR), which keeps its other images",
            )

    def run_until_signal(self, steps: Coro[None], halt: Callable[[str], object] = str) -> int | None:
        """Run a coroutine to its end. Return the exit code of the signal that ended it, if one came.

        halt: called at a signal, before the stop that ends each wait of the coroutine, with the reason. Raises what the
        coroutine raises, unless there was a signal."""
        main = self.calls.tasks.start(steps)

        def end() -> None:
            reason = f"stopped by {self.signals.name}"
            halt(reason)
            self.stop.request(reason)
            self.loop.call_later(GRACE, main.cancel)

        self.signals.on_signal = end
        if self.signals.number is not None:
            end()
        self.loop.run_until_complete(asyncio.wait([main]))
        if self.signals.number is not None:
            self.calls.tasks.collect(main)
            return SIGNALLED + self.signals.number
        main.result()
        return None


def makes_bundle(config: Config) -> bool:
    """Return whether a target is a bundle."""
    return any(is_bundle(target.host) for mirror in config.mirrors for target in mirror.targets)


def spool_directory(config: Config, shard: Shard | None) -> Path:
    """Return the directory for blobs on their way to several targets and for results of conversions.

    Raises LocalError.

    Each lock has its own directory, even if configurations share `spool`, because it is cleaned when a run begins."""
    state = state_directory(config)
    part = str(shard) if shard is not None else ""
    if config.spool is None:
        return state / part / "spool"
    return config.spool / hashlib.sha256(os.fsencode(state.resolve())).hexdigest()[:16] / part


@contextmanager
def open_run(
    config: Config,
    options: Options,
    only: ReferenceFilter,
    redactor: Redactor,
    signals: Signals,
    state: State,
    *,
    writes: bool,
) -> Iterator[RunContext]:
    """Open the stores and create an event loop.

    At the end all threads are joined, except those that hang after a signal.

    writes: False: nothing will be written."""
    limits, stop = Limits(), Stop()
    spool = spool_directory(config, options.shard)
    with Stores(
        config, limits, redactor, spool, options.base, writes=writes, repair=options.repair, memory=state
    ) as stores:
        entries = stores.entries()
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
            yield RunContext(limits, stop, stores, loop, calls, entries, only, signals, manifests)
        finally:
            close_in_time(calls.close, signals)
            manifests.close()


def _check_patterns(only: ReferenceFilter, entries: list[MirrorEntry], config: Config) -> None:
    """Raise ConfigError if a pattern cannot match any source: it is probably a typing mistake."""
    unmatched = only.impossible_patterns(entry.name for entry in entries)
    if unmatched:
        like = f", like {entries[0].name}" if entries else ""
        raise ConfigError(
            f"--only {printable(unmatched[0], 80)} matches no source of {config.path}",
            hint=f"write HOST/REPOSITORY or HOST/REPOSITORY:TAG of a source{like}",
        )


def _check_sources(config: Config) -> None:
    """Raise ConfigError if a source bundle or layout does not exist, unless this configuration writes it."""
    written = {target.host for mirror in config.mirrors for target in mirror.targets}
    for host in dict.fromkeys(mirror.source.host for mirror in config.mirrors):
        if is_registry(host) or host == STREAM or host in written:
            continue
        try:
            Path(host.removeprefix("oci:")).stat()
        except (FileNotFoundError, NotADirectoryError):
            hint = f"it is a source of {config.path}: copy it to this machine, or correct its path"
            raise ConfigError(f"{host} does not exist", hint=hint) from None
        except OSError:
            continue  # opening it raises a better error


def seconds_left(signals: Signals) -> float:
    """Return the seconds that cleanup may still take, also if a signal comes later."""
    return LEAVING if signals.number is None else max(LEAVING - signals.seconds_since_signal(), AT_LEAST)


def close_in_time(close: Callable[[float], None], signals: Signals) -> None:
    """Let `close` join threads within the time that is left. After a signal, threads that hang are left behind."""
    if signals.number is None:
        close(CLOSE_TIMEOUT)
        return
    try:
        close(seconds_left(signals))
    except LocalError:
        # A thread hangs and cannot be interrupted. The process ends after the report and the log are written.
        signals.has_hung_threads = True


T = TypeVar("T")


def run_with_signals(run: Callable[[Work], T]) -> T:
    """Return the result of `run`, which runs on a thread.

    Raises its errors; after a signal Cancelled, with that exit code."""
    stop = Stop()
    with Signals() as signals, ThreadPoolExecutor(1, thread_name_prefix="command") as pool:
        future = pool.submit(run, Work(stop))
        future.add_done_callback(lambda _: signals.wake())
        while not future.done() and signals.number is None:
            signals.wait()
        if signals.number is not None:
            stop.request(f"stopped by {signals.name}")
        try:
            return future.result()
        except Cancelled as error:
            error.exit_code = SIGNALLED + (signals.number or 0)
            raise
