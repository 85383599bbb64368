"""A Source that reads each tag list and each tag over v2 or over v1.

`fallback_policy` contains the rules that choose the protocol. `fallback_state` applies them and reads the tag lists.
Callers do not need to know the protocol, but `Version.protocol` states it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

from mirror.errors import AuthError, Cancelled, LocalError, MirrorError, NotFound, Refused, RemoteError, printable
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import is_tag
from mirror.registry.http.host_settings import V1Mode
from mirror.registry.v1.fallback_policy import ProtocolChoice, V2Read
from mirror.registry.v1.fallback_state import PER_TAG, NotV1Registry, ProtocolSelector, RepositoryState, combined_error
from mirror.store import BlobReader, Source, Version
from mirror.util.cancellation import Work

_log = logging.getLogger("mirror.protocol")


class FallbackSource:
    """A Source that reads one host over v2 or v1. Thread-safe; no lock is held across I/O.

    v2: a Source that reads the host over v2. selector: chooses the protocol for each repository, and provides
    access to the host over v1."""

    partial = False

    def __init__(self, v2: Source, selector: ProtocolSelector) -> None:
        self.host = v2.host
        self._v2 = v2
        self._selector = selector
        self._mode = selector.mode

    # ---- Source

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        """List the repositories over v2. With `v1: only`, raises RemoteError, since v1 cannot list them."""
        if self._mode is V1Mode.ONLY:
            what = f"{self.host}: the v1 protocol cannot list repositories"
            raise RemoteError(what, hint="configure one mirror for each repository", protocol="v1")
        return self._v2.repositories(prefix, work)

    def tags(self, repository: str, work: Work) -> Iterator[str | MirrorError]:
        """List the tags over v2 or v1, or over both if `v1: per-tag` is set."""
        state = self._selector.state(repository)
        v2_tags: set[str] = set()
        if self._mode is not V1Mode.ONLY:
            for name in self._selector.list_v2_tags(repository, state, work):
                if isinstance(name, str):
                    v2_tags.add(name)
                yield name
        if self._mode is V1Mode.ONLY or state.uses_v1:
            yield from self._check_tag_names(repository, self._selector.get_v1_tags(repository, state, work))
        elif self._mode is V1Mode.PER_TAG:
            state.v2_tags = frozenset(v2_tags)
            yield from self._list_v1_only_tags(repository, state, v2_tags, work)
        elif not v2_tags:
            text = f"{self.host}/{repository} has no tags over v2; {PER_TAG}"
            _log.info("v2_lists_no_tags", extra={"source": f"{self.host}/{repository}", "text": text})

    def resolve(self, repository: str, references: Sequence[str], work: Work) -> Iterator[Version | MirrorError]:
        """Resolve references over v2, or over v1 if v2 fails and the fallback policy allows v1."""
        state = self._selector.state(repository)
        v2_references = [reference for reference in references if not self._skips_v2(state, reference)]
        results: dict[str, Version | MirrorError] = {}
        listing_error: MirrorError | None = None
        try:
            for reference, v2_result in zip(
                v2_references, self._v2.resolve(repository, v2_references, work), strict=True
            ):
                results[reference] = v2_result
                if isinstance(v2_result, Version):
                    self._selector.record_v2_response(repository, state)
        except MirrorError as error:  # the error concerns all remaining references
            listing_error = error
            results = {reference: results.get(reference, error) for reference in v2_references}
        for reference in references:
            work.stop.raise_if_requested()
            result = self._resolve_reference(repository, state, reference, results.get(reference), work)
            if result is listing_error and listing_error is not None:
                raise listing_error
            yield result

    def read(self, repository: str, reference: str, work: Work) -> Version:
        """Read a reference over v2, or over v1 if v2 fails and the fallback policy allows v1."""
        state = self._selector.state(repository)
        v2_result: Version | MirrorError | None = None
        if not self._skips_v2(state, reference):
            try:
                v2_result = self._v2.read(repository, reference, work)
                self._selector.record_v2_response(repository, state)
            except MirrorError as error:
                v2_result = error
        result = self._resolve_reference(repository, state, reference, v2_result, work)
        if isinstance(result, MirrorError):
            raise result
        return result

    def manifest(self, repository: str, reference: str, work: Work) -> Manifest:
        """Read a manifest over v2."""
        return self._v2.manifest(repository, reference, work)

    def open_blob(self, repository: str, blob: Descriptor, work: Work, *, offset: int = 0) -> BlobReader:
        """Open a blob over v2."""
        return self._v2.open_blob(repository, blob, work, offset=offset)

    def omits_blob(self, blob: Descriptor) -> bool:
        """Return whether the v2 source is a partial source that leaves out `blob`."""
        return self._v2.omits_blob(blob)

    def referrers(self, repository: str, digest: Digest, work: Work) -> Iterable[Descriptor] | None:
        """Return the referrers of a manifest, requested over v2. There are none with `v1: only`."""
        return () if self._mode is V1Mode.ONLY else self._v2.referrers(repository, digest, work)

    # ---- one reference

    def _skips_v2(self, state: RepositoryState, reference: str) -> bool:
        """Return whether this reference is resolved over v1 only, without a v2 request."""
        if ":" in reference:  # a digest, which v1 does not know
            return self._mode is V1Mode.ONLY
        missing = state.v2_tags is not None and reference not in state.v2_tags
        return self._mode is V1Mode.ONLY or state.uses_v1 or missing

    def _resolve_reference(
        self,
        repository: str,
        state: RepositoryState,
        reference: str,
        v2_result: Version | MirrorError | None,
        work: Work,
    ) -> Version | MirrorError:
        """Return the version that a reference resolves to, or the error if it cannot be resolved.

        v2_result: the result of the v2 request; None if none was sent."""
        if isinstance(v2_result, Version | Cancelled):
            return v2_result
        if v2_result is not None:
            return self._fall_back(repository, state, reference, v2_result, work)
        try:
            return self._resolve_over_v1(repository, state, reference, work)
        except (NotFound, Refused) as error:
            return error

    def _fall_back(
        self, repository: str, state: RepositoryState, reference: str, v2_result: MirrorError, work: Work
    ) -> Version | MirrorError:
        """Resolve a reference over v1 after v2 failed, if the fallback policy allows v1. Else return the v2 error."""
        try:
            choice = self._choose_protocol(repository, state, reference, v2_result, work)
        except MirrorError as error:  # from the tag list, over either protocol
            return error.with_subject(f"{self.host}/{repository}")
        if choice is ProtocolChoice.V1:
            try:
                return self._resolve_over_v1(repository, state, reference, work)
            except MirrorError as error:
                only_v1 = state.uses_v1 or reference in (state.v1_tags or ())  # then the v2 error is irrelevant
                return error if only_v1 else combined_error(v2_result, error)
        if isinstance(v2_result, NotFound) and state.answered and self._mode is V1Mode.AUTO and ":" not in reference:
            v2_result.hint = v2_result.hint or PER_TAG
        if ":" in reference and isinstance(v2_result, NotFound) and not self._selector.speaks_v2:
            v2_result.hint = v2_result.hint or "v1 cannot read a manifest by digest: refer to the image by a tag"
        return v2_result

    def _choose_protocol(
        self, repository: str, state: RepositoryState, reference: str, error: MirrorError, work: Work
    ) -> ProtocolChoice:
        """Return the protocol choice for a reference after its v2 request failed with `error`.

        If the choice depends on the tag list, the list is requested. If that request fails, its error is raised."""
        operation = V2Read.DIGEST if ":" in reference else V2Read.TAG
        decision = self._selector.decide(operation, repository, state, error)
        if decision.choice is ProtocolChoice.LIST and not state.uses_v1:
            self._selector.probe_listing(repository, state, work, refused=isinstance(error, AuthError))
            decision = self._selector.decide(operation, repository, state, error)
        return ProtocolChoice.V1 if state.uses_v1 and operation is V2Read.TAG else decision.choice

    def _resolve_over_v1(self, repository: str, state: RepositoryState, reference: str, work: Work) -> Version:
        """Resolve a tag over v1. Raises NotFound if v1 does not list it, Refused if its image id is invalid."""
        what = f"{self.host}/{repository}{'@' if ':' in reference else ':'}{reference}"
        if ":" in reference:
            hint = "refer to the image by a tag, or remove `v1: only` for this registry"
            raise NotFound(f"{what}: the v1 protocol cannot read manifests by digest", hint=hint, protocol="v1")
        tags = self._selector.get_v1_tags(repository, state, work)
        if reference not in tags:
            raise NotFound(f"{what}: the v1 registry does not list this tag", status=404, protocol="v1")
        backend = self._selector.open_v1()
        try:
            image_id = backend.image_id(tags[reference], what)
        except Refused as error:
            error.protocol = "v1"
            raise
        transform = state.transforms.get(image_id)
        if transform is None:
            transform = state.transforms.setdefault(image_id, backend.transform(repository, image_id))
        return Version(None, protocol="v1", source_id=image_id, transform=transform, reason=state.reason)

    # ---- listings

    def _list_v1_only_tags(
        self, repository: str, state: RepositoryState, v2_tags: set[str], work: Work
    ) -> Iterator[str | MirrorError]:
        """Yield the tags that are listed over v1 but not over v2."""
        try:
            tags = self._selector.get_v1_tags(repository, state, work)
        except NotV1Registry as error:
            text = f"{self.host}/{repository}: `v1: per-tag` has no effect: {error}"
            _log.warning("no_v1", extra={"source": f"{self.host}/{repository}", "text": text})
        except NotFound:
            return
        except (Cancelled, LocalError):
            raise
        except MirrorError as error:
            yield error.with_subject(f"{self.host}/{repository}: listing the tags over v1")
        else:
            yield from self._check_tag_names(repository, (name for name in tags if name not in v2_tags))

    def _check_tag_names(self, repository: str, names: Iterable[str]) -> Iterator[str | MirrorError]:
        """Yield each valid tag in `names`, and a Refused error for each invalid tag."""
        for name in names:
            if is_tag(name):
                yield name
            else:
                what = f"{self.host}/{repository} lists a tag with an invalid name over v1: {printable(name, 80)!r}"
                yield Refused(what, code="ref_invalid")
