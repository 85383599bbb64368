"""The state of a host's repositories under both protocols, and the tag lists that decide between them.

The rules are in `fallback_policy`; this module remembers what was observed and sends the requests. The choice for a
repository holds until the end of the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Protocol

from mirror.errors import AuthError, Cancelled, LocalError, MirrorError, Refused, RemoteError
from mirror.oci.strictjson import Value
from mirror.registry.client import RegistryV2
from mirror.registry.http.host_settings import V1Mode
from mirror.registry.v1.fallback_policy import (
    ANSWERED_BEFORE,
    Decision,
    Observation,
    Operation,
    ProtocolChoice,
    classify_failure,
    decide,
)
from mirror.store import Source, Transform
from mirror.util.cancellation import Work
from mirror.util.config_key import registry_key
from mirror.util.single_flight import SingleFlight, copy_error
from mirror.util.structs import Struct, field

_log = logging.getLogger("mirror.protocol")

PER_TAG = "with `v1: per-tag`, tags that exist only on v1 are found too"


class NotV1Registry(RemoteError):
    """The host does not behave like a v1 registry, so its v1 responses are not used."""

    code = "not_found"


class RepositoryState(Struct):
    """What is known of one repository. Only the thread that makes a shared call sets attributes, each as a whole."""

    uses_v1: bool = False  # v1 was chosen for the whole repository
    v2_error: MirrorError | None = None  # then: the error of v2
    reason: str = "only v1 has this tag"
    answered: bool = False  # v2 has answered for it in this run
    answered_before: bool | None = None  # v2 answered in an earlier run; None: the state was not read yet
    probe_error: MirrorError | None = None  # neither protocol could list the tags
    v2_tags: frozenset[str] | None = None  # the tags that v2 lists, with `v1: per-tag`
    v1_tags: dict[str, Value] | None = None
    v1_error: MirrorError | None = None
    transforms: dict[str, Transform] = field(default_factory=dict)  # by image id
    logged_protocol: str = ""  # the protocol in the last log line


class V2Memory(Protocol):
    """What earlier runs learned of source repositories (`host/path`)."""

    def has_v2_answered(self, repository: str) -> bool:
        """Return whether v2 answered for the repository. Does I/O."""
        ...

    def note_v2_response(self, repository: str) -> None:
        """Record that v2 answered for the repository."""
        ...


class V2Access(Protocol):
    """The use of credentials by the v2 side."""

    def has_sent_credentials(self, repository: str, work: Work) -> bool:
        """Return whether credentials for the repository were sent to v2."""
        ...

    def forget_refusal(self, repository: str) -> None:
        """Allow one more request to the repository, although v2 refused access for good."""
        ...


class V1Backend(Protocol):
    """The v1 side of a host."""

    def is_v1_registry(self, repository: str, work: Work, *, ask_index: bool) -> bool:
        """Return whether the host behaves like a v1 registry."""
        ...

    def tags(self, repository: str, work: Work) -> dict[str, Value]:
        """Return a map from tag to image id, both unchecked."""
        ...

    def withhold_credentials(self, repository: str) -> None:
        """Send no credentials for this repository, because v2 rejected them."""
        ...

    def image_id(self, listed_id: Value, what: str) -> str:
        """Check the image id that is listed for a tag. Raises Refused."""
        ...

    def transform(self, repository: str, image_id: str) -> Transform:
        """Return the conversion of one image."""
        ...


class ProtocolSelector:
    """Chooses the protocol of each repository of one host. Thread-safe; no lock is held across I/O.

    v2: the Source that uses v2. registry: its client, which knows whether the host supports v2. open_v1: opens the v1
    side on first use. access: the use of credentials by v2. memory: None if nothing is stored between runs."""

    def __init__(
        self,
        v2: Source,
        registry: RegistryV2,
        open_v1: Callable[[], V1Backend],
        mode: V1Mode,
        access: V2Access,
        memory: V2Memory | None = None,
    ) -> None:
        self.host = registry.host
        self._v2 = v2
        self._registry = registry
        self.open_v1 = open_v1
        self.mode = mode
        self._access = access
        self._memory = memory
        self._repositories: dict[str, RepositoryState] = {}
        self._flights: SingleFlight[tuple[str, str], None] = SingleFlight(f"a list of tags of {self.host}")

    @property
    def speaks_v2(self) -> bool:
        """Whether a response of the host named the API version of v2."""
        return self._registry.speaks_v2

    def state(self, repository: str) -> RepositoryState:
        """Return the state of a repository, which is created on first use."""
        return self._repositories.setdefault(repository, RepositoryState())

    def note_v2_response(self, repository: str, state: RepositoryState) -> None:
        """Record that v2 answered for the repository, in the state too."""
        if not state.answered:
            state.answered = True
            if self._memory is not None:
                self._memory.note_v2_response(f"{self.host}/{repository}")
            self._log_protocol(repository, state, "v2", "v2 answers for the repository")

    def _log_protocol(self, repository: str, state: RepositoryState, protocol: str, reason: str) -> None:
        """Log the protocol of a repository, once for each change."""
        if state.logged_protocol == protocol:
            return
        state.logged_protocol = protocol
        source = f"{self.host}/{repository}"
        also = f"; {PER_TAG}" if protocol == "v2" and state.answered and self.mode is V1Mode.AUTO else ""
        fields = {"source": source, "protocol": protocol, "reason": reason}
        how = "is read by v1" if protocol == "v1" else "stays with v2"
        _log.info("protocol", extra=fields | {"text": f"{source} {how}: {reason}{also}"})

    def list_by_v2(self, repository: str, state: RepositoryState, work: Work) -> Iterator[str | MirrorError]:
        """Yield the tags that v2 lists; nothing if v1 was chosen, as `state` then shows. Raises the errors of both
        protocols."""
        has_names = False
        try:
            for name in self._v2.tags(repository, work):
                has_names = True
                self.note_v2_response(repository, state)
                yield name
            self.note_v2_response(repository, state)
        except MirrorError as error:
            if not self._try_v1(
                Operation.LATER_PAGE if has_names else Operation.LISTING, repository, state, error, work
            ):
                raise

    def _try_v1(
        self, operation: Operation, repository: str, state: RepositoryState, error: MirrorError, work: Work
    ) -> bool:
        """After the tag list of v2 failed: choose v1 if the rules allow it and v1 has the repository. Return whether it
        does."""
        decision = self.decide(operation, repository, state, error)
        if decision.choice is ProtocolChoice.PING:
            try:
                self._registry.ping(work.without_retries())
            except MirrorError as silent:
                if isinstance(silent, Cancelled):
                    raise
                if self.mode is V1Mode.AUTO:
                    key = registry_key(self.host, "v1")
                    error.hint = error.hint or f"if {self.host} supports only v1, set {key} to only"
                return False  # without a response it is unknown whether the host supports v2
            decision = self.decide(operation, repository, state, error, pinged=True)
        if decision.choice is not ProtocolChoice.V1:
            self._log_protocol(repository, state, "v2", decision.reason)
            return False
        if isinstance(error, AuthError) and self._access.has_sent_credentials(repository, work):
            self.open_v1().withhold_credentials(repository)
        try:
            self.get_v1_tags(repository, state, work)
        except MirrorError as v1_error:
            if isinstance(v1_error, NotV1Registry):
                self._log_protocol(repository, state, "v2", f"{decision.reason}, and the host does not support v1")
                return False
            raise combined_error(error, v1_error) from error
        state.v2_error, state.reason = error, decision.reason
        state.uses_v1 = True
        self._log_protocol(repository, state, "v1", decision.reason)
        return True

    def decide(
        self, operation: Operation, repository: str, state: RepositoryState, error: MirrorError, *, pinged: bool = False
    ) -> Decision:
        """Return what to do about a failure of v2.

        If the reason is an earlier run, `error` gets a hint that says so. pinged: `/v2/` was requested without
        success."""
        if state.answered_before is None:
            memory = self._memory
            state.answered_before = memory is not None and memory.has_v2_answered(f"{self.host}/{repository}")
        speaks_v2 = self._registry.speaks_v2 or (False if pinged else None)
        observation = Observation(
            operation, classify_failure(error), self.mode, speaks_v2, state.answered, state.answered_before
        )
        decision = decide(observation)
        if decision.reason == ANSWERED_BEFORE:
            key = registry_key(self.host, "v1")
            hint = f"v2 answered in an earlier run, so v1 is not used; to read the repository by v1, set {key} to only"
            error.hint = error.hint or hint
        return decision

    def get_v1_tags(self, repository: str, state: RepositoryState, work: Work) -> dict[str, Value]:
        """Return the tags that v1 lists, which are requested once. Raises NotV1Registry and errors with the protocol
        v1."""
        if state.v1_tags is None:
            if state.v1_error is not None:
                raise copy_error(state.v1_error)
            self._flights.share(("v1", repository), lambda: self._load_v1_tags(repository, state, work), work.stop)
        return state.v1_tags or {}

    def _load_v1_tags(self, repository: str, state: RepositoryState, work: Work) -> None:
        """Request the tags by v1, and store them or the error."""
        if state.v1_tags is not None:
            return
        try:
            backend = self.open_v1()
            if not backend.is_v1_registry(repository, work, ask_index=not self._registry.speaks_v2):
                raise NotV1Registry(f"{self.host} does not behave like a v1 registry")
            state.v1_tags = backend.tags(repository, work)
        except MirrorError as error:
            error.protocol = "v1"
            if not isinstance(error, Cancelled):
                state.v1_error = error
            raise
        if self.mode is V1Mode.ONLY:
            state.reason = "`v1: only`"
            self._log_protocol(repository, state, "v1", state.reason)

    def probe_listing(self, repository: str, state: RepositoryState, work: Work, *, refused: bool) -> None:
        """Request the tag list to find out whether there is one. Afterwards v1 was chosen, or v2 has answered.

        refused: v2 refused access to a tag. Raises the error of the list; later calls raise the same error."""
        if state.probe_error is not None:
            raise copy_error(state.probe_error)
        self._flights.share(
            ("v2", repository), lambda: self._probe_listing(repository, state, work, refused=refused), work.stop
        )

    def _probe_listing(self, repository: str, state: RepositoryState, work: Work, *, refused: bool) -> None:
        """Request the tag list, unless the protocol is known already."""
        if state.uses_v1 or state.answered:
            return
        if refused and self._access.has_sent_credentials(repository, work):
            self.open_v1().withhold_credentials(repository)  # whatever the result of the list is
        elif refused:
            # Without this, the authorizer would repeat the refusal and not send the request.
            self._access.forget_refusal(repository)
        try:
            for _ in self.list_by_v2(repository, state, work):
                break
        except Cancelled:
            raise
        except MirrorError as error:
            state.probe_error = error
            raise


def combined_error(by_v2: MirrorError | None, by_v1: MirrorError) -> MirrorError:
    """Combine the errors of both protocols into one, that of v2 first. A Refused of v1 determines the code and exit
    code."""
    if by_v2 is None or isinstance(by_v1, Cancelled | LocalError):
        return by_v1
    if isinstance(by_v1, NotV1Registry):
        return by_v2
    leading = by_v1 if isinstance(by_v1, Refused) else by_v2
    found = leading.with_text(f"{by_v2.what}; by v1: {by_v1.what}")
    found.hint, found.protocol = by_v2.hint or by_v1.hint, ""  # it belongs to both
    return found
