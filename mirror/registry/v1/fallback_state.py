"""Chooses between v2 and v1 for each repository of a host, by requesting tag lists.

The rules are in `fallback_policy`. This module sends the requests and stores what was observed. The choice for a
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
    ProtocolChoice,
    V2Read,
    classify_failure,
    decide,
)
from mirror.store import Source, Transform
from mirror.util.cancellation import Work
from mirror.util.config_key import registry_key
from mirror.util.single_flight import SingleFlight, copy_error
from mirror.util.structs import Struct, field

_log = logging.getLogger("mirror.protocol")

PER_TAG = "with `v1: per-tag`, tags that are available only over v1 are found too"


class NotV1Registry(RemoteError):
    """Raised if a host does not behave like a v1 registry, so that its v1 responses are not used."""

    code = "not_found"


class RepositoryState(Struct):
    """The state of one source repository in this run: the chosen protocol, the tags and the errors.

    Several threads use the state without a lock, so each change is a single assignment or `dict.setdefault`."""

    uses_v1: bool = False  # v1 was chosen for the whole repository
    reason: str = "this tag is available only over v1"
    answered: bool = False  # the registry has served the repository over v2 in this run
    answered_before: bool | None = None  # `answered` in an earlier run; None if not read from the state file yet
    probe_error: MirrorError | None = None  # the error if `probe_listing` could list the tags over neither protocol
    v2_tags: frozenset[str] | None = None  # the tags listed over v2; set only with `v1: per-tag`
    v1_tags: dict[str, Value] | None = None  # the image ids by tag, as listed over v1
    v1_error: MirrorError | None = None  # the error if the tags could not be listed over v1
    transforms: dict[str, Transform] = field(default_factory=dict)  # by image id
    logged_protocol: str = ""  # the protocol in the last log line


class V2Memory(Protocol):
    """A persistent record of the source repositories (`host/path`) that registries have served over v2."""

    def has_responded_over_v2(self, repository: str) -> bool:
        """Return whether the repository was served over v2 in an earlier run. Reads a file."""
        ...

    def record_v2_response(self, repository: str) -> None:
        """Record that the repository was served over v2."""
        ...


class V2Access(Protocol):
    """The state of v2 authorization for each repository on a host."""

    def has_sent_credentials(self, repository: str, work: Work) -> bool:
        """Return whether credentials for the repository were sent over v2."""
        ...

    def forget_refusal(self, repository: str) -> None:
        """Forget that access to the repository was refused over v2, so that requests for it are sent again."""
        ...


class V1Backend(Protocol):
    """The interface for reading a host over v1."""

    def is_v1_registry(self, repository: str, work: Work, *, ask_index: bool) -> bool:
        """Return whether the host behaves like a v1 registry.

        ask_index: whether a valid response of the index is sufficient if the host does not answer the v1 ping."""
        ...

    def tags(self, repository: str, work: Work) -> dict[str, Value]:
        """Return the image id for each tag in a repository. Neither tags nor ids are validated."""
        ...

    def withhold_credentials(self, repository: str) -> None:
        """Stop sending credentials for this repository over v1, because they were rejected over v2."""
        ...

    def image_id(self, listed_id: Value, what: str) -> str:
        """Return `listed_id`, an entry in a tag list, as an image id. Raises Refused if it is not a valid id."""
        ...

    def transform(self, repository: str, image_id: str) -> Transform:
        """Return a transform that converts the image to schema 2."""
        ...


class ProtocolSelector:
    """Chooses the protocol for each repository of one host. Thread-safe; no lock is held across I/O.

    v2: a Source that reads the host over v2. registry: the host's v2 client, which knows whether the host supports v2.
    open_v1: returns access to the host over v1, which is created at the first call. memory: the record of earlier runs;
    None if nothing is stored between runs."""

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
        self._listings: SingleFlight[tuple[str, str], None] = SingleFlight(f"a request for a tag list to {self.host}")

    @property
    def speaks_v2(self) -> bool:
        """Whether a response from the host stated the v2 API version."""
        return self._registry.speaks_v2

    def state(self, repository: str) -> RepositoryState:
        """Return the state of a repository, which is created on first use."""
        return self._repositories.setdefault(repository, RepositoryState())

    def record_v2_response(self, repository: str, state: RepositoryState) -> None:
        """Record that the registry has served the repository over v2, for this run and for later runs."""
        if not state.answered:
            state.answered = True
            if self._memory is not None:
                self._memory.record_v2_response(f"{self.host}/{repository}")
            self._log_protocol(repository, state, "v2", "the repository responds over v2")

    def _log_protocol(self, repository: str, state: RepositoryState, protocol: str, reason: str) -> None:
        """Log which protocol is used for a repository, and why. Repetitions are not logged."""
        if state.logged_protocol == protocol:
            return
        state.logged_protocol = protocol
        source = f"{self.host}/{repository}"
        also = f"; {PER_TAG}" if protocol == "v2" and state.answered and self.mode is V1Mode.AUTO else ""
        fields = {"source": source, "protocol": protocol, "reason": reason}
        how = "is read over v1" if protocol == "v1" else "is read only over v2"
        _log.info("protocol", extra=fields | {"text": f"{source} {how}: {reason}{also}"})

    def list_v2_tags(self, repository: str, state: RepositoryState, work: Work) -> Iterator[str | MirrorError]:
        """Yield the tags of a repository, as listed over v2.

        If v2 fails and v1 is chosen, yield nothing, and set `state.uses_v1`. Raises the v2 error if v1 is not chosen,
        and a combined error if v1 fails too."""
        has_names = False
        try:
            for name in self._v2.tags(repository, work):
                has_names = True
                self.record_v2_response(repository, state)
                yield name
            self.record_v2_response(repository, state)
        except MirrorError as error:
            if not self._try_v1(V2Read.LATER_PAGE if has_names else V2Read.LISTING, repository, state, error, work):
                raise

    def _try_v1(
        self, operation: V2Read, repository: str, state: RepositoryState, error: MirrorError, work: Work
    ) -> bool:
        """Choose v1 for a repository whose tags could not be listed over v2, if the fallback policy allows v1.

        Return whether v1 was chosen. error: the v2 error. Raises a combined error if v1 fails too."""
        decision = self.decide(operation, repository, state, error)
        if decision.choice is ProtocolChoice.PING:
            try:
                self._registry.ping(work.without_retries())
            except MirrorError as ping_error:
                if isinstance(ping_error, Cancelled):
                    raise
                if self.mode is V1Mode.AUTO:
                    key = registry_key(self.host, "v1")
                    error.hint = error.hint or f"if {self.host} supports only v1, set {key} to `only`"
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
        state.reason = decision.reason
        state.uses_v1 = True
        self._log_protocol(repository, state, "v1", decision.reason)
        return True

    def decide(
        self, operation: V2Read, repository: str, state: RepositoryState, error: MirrorError, *, pinged: bool = False
    ) -> Decision:
        """Return the next step after a v2 request failed with `error`.

        If the reason is a v2 response in an earlier run, add a hint to `error`. pinged: whether `/v2/` was requested
        after the failure; if no response has stated the API version by then, the host is assumed not to support v2."""
        if state.answered_before is None:
            memory = self._memory
            state.answered_before = memory is not None and memory.has_responded_over_v2(f"{self.host}/{repository}")
        speaks_v2 = self._registry.speaks_v2 or (False if pinged else None)
        observation = Observation(
            operation, classify_failure(error), self.mode, speaks_v2, state.answered, state.answered_before
        )
        decision = decide(observation)
        if decision.reason == ANSWERED_BEFORE:
            key = registry_key(self.host, "v1")
            hint = f"{ANSWERED_BEFORE}, so v1 is not used; to use v1, set {key} to `only`"
            error.hint = error.hint or hint
        return decision

    def get_v1_tags(self, repository: str, state: RepositoryState, work: Work) -> dict[str, Value]:
        """Return the image id for each tag, as listed over v1. The list is requested only once.

        Raises NotV1Registry if the host is not a v1 registry. The `protocol` of all errors is `v1`."""
        if state.v1_tags is None:
            if state.v1_error is not None:
                raise copy_error(state.v1_error)
            self._listings.share(("v1", repository), lambda: self._load_v1_tags(repository, state, work), work.stop)
        return state.v1_tags or {}

    def _load_v1_tags(self, repository: str, state: RepositoryState, work: Work) -> None:
        """Request the tags over v1, and store them or the error in `state`."""
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
        """Request the tag list to find out whether to read the repository over v2 or v1.

        Afterwards, either v1 has been chosen, or the registry has served the repository over v2. refused: whether
        access to a tag was refused over v2. If the list cannot be read, this call and later calls raise the error."""
        if state.probe_error is not None:
            raise copy_error(state.probe_error)
        self._listings.share(
            ("v2", repository), lambda: self._probe_listing(repository, state, work, refused=refused), work.stop
        )

    def _probe_listing(self, repository: str, state: RepositoryState, work: Work, *, refused: bool) -> None:
        """Request the tag list of a repository, unless its protocol is already known."""
        if state.uses_v1 or state.answered:
            return
        if refused and self._access.has_sent_credentials(repository, work):
            self.open_v1().withhold_credentials(repository)  # even if the tag list is allowed
        elif refused:
            # Without this, the authorizer would repeat the refusal and not send the request.
            self._access.forget_refusal(repository)
        try:
            for _ in self.list_v2_tags(repository, state, work):
                break
        except Cancelled:
            raise
        except MirrorError as error:
            state.probe_error = error
            raise


def combined_error(v2_error: MirrorError | None, v1_error: MirrorError) -> MirrorError:
    """Combine the errors from both protocols into one, with the text of the v2 error first.

    The code and exit code are those of the v2 error, unless the v1 error is a Refused. Return the v1 error alone if it
    is local or a cancellation, and the v2 error alone if the host is not a v1 registry."""
    if v2_error is None or isinstance(v1_error, Cancelled | LocalError):
        return v1_error
    if isinstance(v1_error, NotV1Registry):
        return v2_error
    leading = v1_error if isinstance(v1_error, Refused) else v2_error
    found = leading.with_text(f"{v2_error.what}; over v1: {v1_error.what}")
    found.hint, found.protocol = v2_error.hint or v1_error.hint, ""  # no single protocol
    return found
