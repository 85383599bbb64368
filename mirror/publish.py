"""Stores that have to be opened before the first write and closed after the last, and sources that are not whole.

A store that gathers (a bundle) is told of all its images before the first byte; what arrived there counts only when
the store has shown it. A partial source (a differential bundle) relies on blobs that the target has: whether it has
them is found out before anything is written.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence

from mirror.backoff import ONCE
from mirror.errors import MirrorError, Refused, RemoteError
from mirror.findings import Finding
from mirror.limits import Stop, Work
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.reading import Image, Reader
from mirror.store import Coming, Target
from mirror.tally import Tally
from mirror.transfer.manager import Manager
from mirror.transfer.placement import Inventory, Place
from mirror.transfer.scheduler import host_permit
from mirror.transfer.steps import Steps, settled
from mirror.transfer.watch import Watch

_NAMED = 4  # missing blobs that a message names

_log = logging.getLogger("mirror.publish")


class Publishing:
    """Opens and closes the targets of a run. Thread-safe; only steps wait."""

    def __init__(self, manager: Manager, reader: Reader, inventory: Inventory, targets: Mapping[str, Target]) -> None:
        self._manager = manager
        self._reader = reader
        self._inventory = inventory
        self._targets = targets
        self._lock = threading.Lock()
        self._begun: set[str] = set()
        self._failed: dict[str, MirrorError] = {}  # by host: why what was gathered cannot be shown
        self._held: defaultdict[str, list[tuple[Finding, Digest, Tally]]] = defaultdict(list)

    def begin(self, host: str, images: Sequence[Coming] = ()) -> Steps[None]:
        """Open the target once, before its first write."""

        def run(work: Work) -> None:
            if host not in self._begun:
                self._targets[host].begin(images, work)
                with self._lock:
                    self._begun.add(host)

        if host not in self._begun:
            yield self._manager.transfer(("open", host), run, needs=(host_permit(host),), policy=ONCE)

    def gather(self, host: str, findings: Sequence[Finding]) -> Steps[dict[Finding, MirrorError]]:
        """Tell the target of all that will come. -> those that cannot come, since they could not be read."""
        errors: dict[Finding, MirrorError] = {}
        coming = []
        for finding, image in (yield from self._images(findings)):
            if isinstance(image, MirrorError):
                errors[finding] = image
            else:
                graph = image.graph
                coming.append(
                    Coming(finding.target.place.path, finding.reading.tag, tuple(graph.manifests()), graph.blobs)
                )
        if coming:
            yield from self.begin(host, coming)
        return errors

    def _images(self, findings: Sequence[Finding]) -> Steps[list[tuple[Finding, Image | MirrorError]]]:
        reads = [self._manager.spawn(self._reader.image(one.reading), name=f"gather {one.name}") for one in findings]
        found: list[tuple[Finding, Image | MirrorError]] = []
        for finding, read in zip(findings, (yield settled(reads)), strict=True):
            if read.error is not None and not isinstance(read.error, MirrorError):
                raise read.error
            found.append((finding, read.error if read.error is not None else read.result()))
        return found

    # ---- partial sources

    def missing(self, findings: Sequence[Finding]) -> Steps[dict[Finding, MirrorError]]:
        """What a partial source relies on and the targets do not have. -> the error of every finding, if any lacks."""
        errors: dict[Finding, MirrorError] = {}
        wanted: dict[tuple[Place, Digest], Descriptor] = {}
        for finding, image in (yield from self._images(findings)):
            if isinstance(image, MirrorError):
                errors[finding] = image
                continue
            for blob in image.graph.blobs:
                if finding.reading.entry.source.lacks(blob):
                    wanted[finding.target.place, blob.digest] = blob
        lacking = yield from self._look(wanted)
        if lacking:
            source = findings[0].reading.entry.source.host
            for place, digest in lacking:
                text = f"{source} relies on {digest}, which is missing in {place}"
                _log.warning("base_missing", extra={"target": str(place), "digest": digest, "text": text})
            every = list(dict.fromkeys(digest for _, digest in lacking))
            more = f" and {len(every) - _NAMED} more, which the log names" if len(every) > _NAMED else ""
            error = Refused(
                f"{source} relies on {len(every)} blobs that are missing: {', '.join(every[:_NAMED])}{more}",
                hint="import what it is based on first, or export without `base`",
                code="bundle_incomplete",
            )
            errors = {finding: errors.get(finding, error) for finding in findings}
        return errors

    def _look(self, wanted: Mapping[tuple[Place, Digest], Descriptor]) -> Steps[list[tuple[Place, Digest]]]:
        """Ask each place, and for what is not there its siblings, from which it can be mounted. -> what is nowhere."""
        answers = yield [self._ask(place, blob) for (place, _), blob in wanted.items()]
        lacking = []
        for ((place, digest), blob), there in zip(wanted.items(), answers, strict=True):
            if there:
                self._inventory.add(place, digest)
            elif not (yield from self._at_a_sibling(place, blob)):
                lacking.append((place, digest))
        return lacking

    def _at_a_sibling(self, place: Place, blob: Descriptor) -> Steps[bool]:
        if self._inventory.holder(place, blob.digest) is not None:
            return True
        for sibling in self._inventory.siblings(place):
            if (yield self._ask(sibling, blob)):
                self._inventory.add(sibling, blob.digest)
                return True
        return False

    def _ask(self, place: Place, blob: Descriptor) -> Watch[bool]:
        store = self._targets[place.host]
        return self._manager.transfer(
            ("look", place, blob.digest),
            lambda work: store.has_blob(place.path, blob, work),
            needs=(host_permit(place.host),),
            policy=ONCE,
        )

    # ---- the end

    def hold(self, finding: Finding, digest: Digest, tally: Tally) -> bool:
        """Keep a result back until its target has shown it; False: there is no need to."""
        host = finding.target.place.host
        if not self._targets[host].gathers:
            return False
        with self._lock:
            self._held[host].append((finding, digest, tally))
        return True

    def failed(self, host: str, error: MirrorError) -> None:
        """Something of what a gathering target was told of does not come."""
        with self._lock:
            if host in self._begun and self._targets[host].gathers:
                self._failed.setdefault(host, error)

    def finish(self) -> Steps[list[tuple[Finding, Digest, Tally, MirrorError | None]]]:
        """Close all that was opened. -> the results that were held back, with the error where a target fails."""
        results = []
        for host in sorted(self._begun):
            error = yield from self._closed(host)
            for finding, digest, tally in self._held.pop(host, ()):
                results.append((finding, digest, tally, error))
            if error is not None and not self._targets[host].gathers:
                raise error
        return results

    def _closed(self, host: str) -> Steps[MirrorError | None]:
        cause = self._failed.get(host)
        try:
            yield self._manager.transfer(
                object(),
                lambda work: self._targets[host].finish(whole=cause is None, work=work),
                needs=(host_permit(host),),
                policy=ONCE,
            )
        except MirrorError as error:
            return error
        finally:
            with self._lock:
                self._begun.discard(host)
        if cause is None:
            return None
        return RemoteError(
            f"{host} was not made: {cause.what}",
            hint="what arrived is kept; run again",
            code="bundle_incomplete",
            retryable=cause.retryable,
        )

    def close(self) -> None:
        """Close what a stop left open. Does I/O; after the manager has come to rest."""
        for host in sorted(self._begun):
            self._targets[host].finish(whole=False, work=Work(Stop()))
