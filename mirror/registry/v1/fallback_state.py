"""What is known of a host's repositories by either protocol, and the listings that decide between the two.

The rules are in `choice`; here is the memory of what was seen, and the asking. What has been chosen for a repository
stays for the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Protocol

from mirror.errors import AuthError, Cancelled, LocalError, MirrorError, Refused, RemoteError
from mirror.oci.strictjson import Value
from mirror.registry.client import RegistryV2
from mirror.registry.http.host_settings import V1
from mirror.registry.v1.fallback_policy import (
    ANSWERED_BEFORE,
    Decision,
    Observation,
    Operation,
    Verdict,
    decide,
    failure_of,
)
from mirror.store import Source, Transform
from mirror.util.cancellation import Work
from mirror.util.config_key import registry_key
from mirror.util.single_flight import Flights, again
from mirror.util.structs import Struct, field

_log = logging.getLogger("mirror.protocol")

PER_TAG = "`v1: per-tag` would look for tags that may exist on v1 only"


class NoV1(RemoteError):
    """The host does not answer as a v1 registry does: what it says by v1 is not believed."""

    code = "not_found"


class Known(Struct):
    """What is known of one repository. Attributes are set whole, each by the leader of a flight."""

    v1: bool = False  # v1 was chosen for all of it
    error: MirrorError | None = None  # what v2 said then
    reason: str = "only v1 has this tag"
    listed: bool = False  # v2 has answered for it
    answered_before: bool | None = None  # v2 answered for it in an earlier run; None: the state was not asked
    failed: MirrorError | None = None  # neither can be had
    v2_tags: frozenset[str] | None = None  # those that v2 lists, where v1 is asked for the others
    v1_tags: dict[str, Value] | None = None
    v1_error: MirrorError | None = None
    transforms: dict[str, Transform] = field(default_factory=dict)  # by image id
    told: str = ""  # the protocol that the log was told of


class V2Memory(Protocol):
    """What earlier runs learned of source repositories (`host/path`)."""

    def has_v2_answered(self, repository: str) -> bool:
        """Whether v2 answered for it. Does I/O."""
        ...

    def note_v2_answer(self, repository: str) -> None:
        """v2 answered for it."""
        ...


class Access(Protocol):
    """What the v2 side knows of our credentials."""

    def showed(self, repository: str, work: Work) -> bool:
        """Whether v2 was shown credentials for it."""
        ...

    def reconsider(self, repository: str) -> None:
        """Forget that v2 refused it for good, for one more request."""
        ...


class Old(Protocol):
    """The v1 side of a host."""

    def speaks(self, repository: str, work: Work, *, ask_index: bool) -> bool:
        """Whether the host answers as a v1 registry does."""
        ...

    def tags(self, repository: str, work: Work) -> dict[str, Value]:
        """Tags, and what is listed as their images, unchecked."""
        ...

    def withhold(self, repository: str) -> None:
        """Show no credentials for it: v2 has refused them."""
        ...

    def image_id(self, listed: Value, what: str) -> str:
        """Of a tag. Raises Refused: it is none."""
        ...

    def transform(self, repository: str, image_id: str) -> Transform:
        """Makes the image new."""
        ...


class Protocols:
    """Both protocols of one host. Thread-safe; no lock is held across I/O.

    v2: what answers by v2; registry: the client behind it, which knows what the host has shown; old: opens the other
    side, if it is not open yet; access: who we are to v2; memory: None: nothing is known of earlier runs."""

    def __init__(
        self,
        v2: Source,
        registry: RegistryV2,
        old: Callable[[], Old],
        mode: V1,
        access: Access,
        memory: V2Memory | None = None,
    ) -> None:
        self.host = registry.host
        self._v2 = v2
        self._registry = registry
        self.old = old
        self.mode = mode
        self._access = access
        self._memory = memory
        self._repositories: dict[str, Known] = {}
        self._flights: Flights[tuple[str, str], None] = Flights(f"a list of tags of {self.host}")

    @property
    def speaks_v2(self) -> bool:
        """Whether an answer of the host has shown it."""
        return self._registry.speaks_v2

    def known(self, repository: str) -> Known:
        return self._repositories.setdefault(repository, Known())

    def answered(self, repository: str, known: Known) -> None:
        if not known.listed:
            known.listed = True
            if self._memory is not None:
                self._memory.note_v2_answer(f"{self.host}/{repository}")
            self._tell(repository, known, "v2", "v2 answers for it")

    def _tell(self, repository: str, known: Known, protocol: str, reason: str) -> None:
        if known.told == protocol:
            return
        known.told = protocol
        source = f"{self.host}/{repository}"
        also = f"; {PER_TAG}" if protocol == "v2" and known.listed and self.mode is V1.AUTO else ""
        fields = {"source": source, "protocol": protocol, "reason": reason}
        how = "is read by v1" if protocol == "v1" else "stays with v2"
        _log.info("protocol", extra=fields | {"text": f"{source} {how}: {reason}{also}"})

    def listed_by_v2(self, repository: str, known: Known, work: Work) -> Iterator[str | MirrorError]:
        """The tags that v2 lists; none if v1 was chosen, which `known` then says. Raises as both of them."""
        begun = False
        try:
            for name in self._v2.tags(repository, work):
                begun = True
                self.answered(repository, known)
                yield name
            self.answered(repository, known)
        except MirrorError as error:
            if not self._falls_back(Operation.LATER if begun else Operation.LISTING, repository, known, error, work):
                raise

    def _falls_back(self, operation: Operation, repository: str, known: Known, error: MirrorError, work: Work) -> bool:
        """After a listing by v2 that failed: choose v1, if the rules say so and it has the repository."""
        decision = self.decide(operation, repository, known, error)
        if decision.verdict is Verdict.PING:
            try:
                self._registry.ping(work.once())
            except MirrorError as silent:
                if isinstance(silent, Cancelled):
                    raise
                if self.mode is V1.AUTO:
                    key = registry_key(self.host, "v1")
                    error.hint = error.hint or f"if {self.host} speaks only v1, set {key} to only"
                return False  # who does not answer cannot show anything: it may well speak v2
            decision = self.decide(operation, repository, known, error, pinged=True)
        if decision.verdict is not Verdict.V1:
            self._tell(repository, known, "v2", decision.reason)
            return False
        if isinstance(error, AuthError) and self._access.showed(repository, work):
            self.old().withhold(repository)
        try:
            self.tags_of_v1(repository, known, work)
        except MirrorError as trouble:
            if isinstance(trouble, NoV1):
                self._tell(repository, known, "v2", f"{decision.reason}, and the host does not speak v1")
                return False
            raise both(error, trouble) from error
        known.error, known.reason = error, decision.reason
        known.v1 = True
        self._tell(repository, known, "v1", decision.reason)
        return True

    def decide(
        self, operation: Operation, repository: str, known: Known, error: MirrorError, *, pinged: bool = False
    ) -> Decision:
        """What the rules say of a failure of v2. If an earlier run is the reason, `error` gets a hint that says so."""
        if known.answered_before is None:
            memory = self._memory
            known.answered_before = memory is not None and memory.has_v2_answered(f"{self.host}/{repository}")
        speaks = self._registry.speaks_v2 or (False if pinged else None)
        seen = Observation(operation, failure_of(error), self.mode, speaks, known.listed, known.answered_before)
        decision = decide(seen)
        if decision.reason == ANSWERED_BEFORE:
            key = registry_key(self.host, "v1")
            hint = f"it answered by v2 in an earlier run, so v1 is not used; if v1 is what you want, set {key} to only"
            error.hint = error.hint or hint
        return decision

    def tags_of_v1(self, repository: str, known: Known, work: Work) -> dict[str, Value]:
        """Asked once. Raises NoV1, and what the client raised, all of `v1`."""
        if known.v1_tags is None:
            if known.v1_error is not None:
                raise again(known.v1_error)
            self._flights.share(("v1", repository), lambda: self._ask_v1(repository, known, work), work.stop)
        return known.v1_tags or {}

    def _ask_v1(self, repository: str, known: Known, work: Work) -> None:
        if known.v1_tags is not None:
            return
        try:
            old = self.old()
            if not old.speaks(repository, work, ask_index=not self._registry.speaks_v2):
                raise NoV1(f"{self.host} does not answer as a v1 registry does")
            known.v1_tags = old.tags(repository, work)
        except MirrorError as error:
            error.protocol = "v1"
            if not isinstance(error, Cancelled):
                known.v1_error = error
            raise
        if self.mode is V1.ONLY:
            known.reason = "`v1: only`"
            self._tell(repository, known, "v1", known.reason)

    def probe(self, repository: str, known: Known, work: Work, *, refused: bool) -> None:
        """Ask for the listing, only to see whether there is one. Then v1 was chosen, or v2 has answered.

        Raises what the listing raised, and what it raised the last time."""
        if known.failed is not None:
            raise again(known.failed)
        self._flights.share(
            ("v2", repository), lambda: self._probe(repository, known, work, refused=refused), work.stop
        )

    def _probe(self, repository: str, known: Known, work: Work, *, refused: bool) -> None:
        if known.v1 or known.listed:
            return
        if refused and self._access.showed(repository, work):
            self.old().withhold(repository)  # whatever the list answers
        elif refused:
            # Whose credentials are wrong will not be let in to the list either: that costs no request.
            self._access.reconsider(repository)
        try:
            for _ in self.listed_by_v2(repository, known, work):
                break
        except Cancelled:
            raise
        except MirrorError as error:
            known.failed = error
            raise


def both(by_v2: MirrorError | None, by_v1: MirrorError) -> MirrorError:
    """One error of two, that of v2 first; a refusal for safety stays one."""
    if by_v2 is None or isinstance(by_v1, Cancelled | LocalError):
        return by_v1
    if isinstance(by_v1, NoV1):
        return by_v2
    leading = by_v1 if isinstance(by_v1, Refused) else by_v2
    found = leading.told(f"{by_v2.what}; by v1: {by_v1.what}")
    found.hint, found.protocol = by_v2.hint or by_v1.hint, ""  # it is of neither alone
    return found
