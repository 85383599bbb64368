"""A source made of a v2 and a v1 one: each listing and each tag is answered by one of them.

The rules are in `choice`, the listings in `protocols`. Nothing behind this source can tell which protocol was used,
but by what a version says of itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

from mirror.errors import AuthError, Cancelled, LocalError, MirrorError, NotFound, Refused, RemoteError, printable
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import is_tag
from mirror.registry.http.host_settings import V1
from mirror.registry.v1.fallback_policy import Operation, Verdict
from mirror.registry.v1.fallback_state import PER_TAG, Known, NoV1, Protocols, both
from mirror.store import BlobReader, Source, Version
from mirror.util.cancellation import Work

_log = logging.getLogger("mirror.protocol")


class FallbackSource:
    """Implements Source. Thread-safe; no lock is held across I/O.

    v2: what answers by v2; protocols: which of the two is to be asked, and the other side."""

    partial = False

    def __init__(self, v2: Source, protocols: Protocols) -> None:
        self.host = v2.host
        self._v2 = v2
        self._protocols = protocols
        self._mode = protocols.mode

    # ---- Source

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        if self._mode is V1.ONLY:
            what = f"{self.host}: v1 has no list of repositories"
            raise RemoteError(what, hint="write one mirror for each", protocol="v1")
        return self._v2.repositories(prefix, work)

    def tags(self, repository: str, work: Work) -> Iterator[str | MirrorError]:
        known = self._protocols.known(repository)
        found: set[str] = set()
        if self._mode is not V1.ONLY:
            for name in self._protocols.listed_by_v2(repository, known, work):
                if isinstance(name, str):
                    found.add(name)
                yield name
        if self._mode is V1.ONLY or known.v1:
            yield from self._checked(repository, self._protocols.tags_of_v1(repository, known, work))
        elif self._mode is V1.PER_TAG:
            known.v2_tags = frozenset(found)
            yield from self._further(repository, known, found, work)
        elif not found:
            text = f"{self.host}/{repository}: v2 lists no tags; {PER_TAG}"
            _log.info("v2_lists_no_tags", extra={"source": f"{self.host}/{repository}", "text": text})

    def resolve(self, repository: str, references: Sequence[str], work: Work) -> Iterator[Version | MirrorError]:
        known = self._protocols.known(repository)
        by_v2 = [reference for reference in references if not self._goes_to_v1(known, reference)]
        answers: dict[str, Version | MirrorError] = {}
        raised: MirrorError | None = None
        try:
            for reference, answer in zip(by_v2, self._v2.resolve(repository, by_v2, work), strict=True):
                answers[reference] = answer
                if isinstance(answer, Version):
                    self._protocols.answered(repository, known)
        except MirrorError as error:  # it concerns all that are left
            raised = error
            answers = {reference: answers.get(reference, error) for reference in by_v2}
        for reference in references:
            work.stop.check()
            found = self._settled(repository, known, reference, answers.get(reference), work)
            if found is raised and raised is not None:
                raise raised
            yield found

    def read(self, repository: str, reference: str, work: Work) -> Version:
        known = self._protocols.known(repository)
        answer: Version | MirrorError | None = None
        if not self._goes_to_v1(known, reference):
            try:
                answer = self._v2.read(repository, reference, work)
                self._protocols.answered(repository, known)
            except MirrorError as error:
                answer = error
        found = self._settled(repository, known, reference, answer, work)
        if isinstance(found, MirrorError):
            raise found
        return found

    def manifest(self, repository: str, reference: str, work: Work) -> Manifest:
        return self._v2.manifest(repository, reference, work)

    def open_blob(self, repository: str, blob: Descriptor, work: Work, *, offset: int = 0) -> BlobReader:
        return self._v2.open_blob(repository, blob, work, offset=offset)

    def lacks(self, blob: Descriptor) -> bool:
        return self._v2.lacks(blob)

    def referrers(self, repository: str, digest: Digest, work: Work) -> Iterable[Descriptor]:
        return self._v2.referrers(repository, digest, work)

    # ---- one reference

    def _goes_to_v1(self, known: Known, reference: str) -> bool:
        """Whether v2 need not be asked."""
        if ":" in reference:  # a digest, which v1 knows nothing of
            return self._mode is V1.ONLY
        missing = known.v2_tags is not None and reference not in known.v2_tags
        return self._mode is V1.ONLY or known.v1 or missing

    def _settled(
        self, repository: str, known: Known, reference: str, by_v2: Version | MirrorError | None, work: Work
    ) -> Version | MirrorError:
        """What a reference names. by_v2: the answer of v2; None: it was not asked."""
        if isinstance(by_v2, Version | Cancelled):
            return by_v2
        if by_v2 is not None:
            return self._recovered(repository, known, reference, by_v2, work)
        try:
            return self._by_v1(repository, known, reference, work)
        except (NotFound, Refused) as error:
            return error

    def _recovered(
        self, repository: str, known: Known, reference: str, by_v2: MirrorError, work: Work
    ) -> Version | MirrorError:
        """What becomes of a reference that v2 failed at: it is had by v1, or the error stays."""
        try:
            verdict = self._verdict(repository, known, reference, by_v2, work)
        except MirrorError as error:  # of the listing, and perhaps of v1
            return error.about(f"{self.host}/{repository}")
        if verdict is Verdict.V1:
            try:
                return self._by_v1(repository, known, reference, work)
            except MirrorError as error:
                listed = known.v1 or reference in (known.v1_tags or ())  # then v2 has no say
                return error if listed else both(by_v2, error)
        if isinstance(by_v2, NotFound) and known.listed and self._mode is V1.AUTO and ":" not in reference:
            by_v2.hint = by_v2.hint or PER_TAG
        if ":" in reference and isinstance(by_v2, NotFound) and not self._protocols.speaks_v2:
            by_v2.hint = by_v2.hint or "what is named by digest never comes from v1"
        return by_v2

    def _verdict(self, repository: str, known: Known, reference: str, error: MirrorError, work: Work) -> Verdict:
        """What is done about a reference that v2 failed at. Raises what the listing raised, if that was asked for."""
        operation = Operation.DIGEST if ":" in reference else Operation.TAG
        decision = self._protocols.decide(operation, repository, known, error)
        if decision.verdict is Verdict.LIST and not known.v1:
            self._protocols.probe(repository, known, work, refused=isinstance(error, AuthError))
            decision = self._protocols.decide(operation, repository, known, error)
        return Verdict.V1 if known.v1 and operation is Operation.TAG else decision.verdict

    def _by_v1(self, repository: str, known: Known, reference: str, work: Work) -> Version:
        what = f"{self.host}/{repository}{'@' if ':' in reference else ':'}{reference}"
        if ":" in reference:
            hint = "name a tag, or change `v1: only`"
            raise NotFound(f"{what}: the v1 protocol knows no digests", hint=hint, protocol="v1")
        tags = self._protocols.tags_of_v1(repository, known, work)
        if reference not in tags:
            raise NotFound(f"{what} does not exist (v1)", status=404, protocol="v1")
        old = self._protocols.old()
        try:
            image_id = old.image_id(tags[reference], what)
        except Refused as error:
            error.protocol = "v1"
            raise
        transform = known.transforms.get(image_id)
        if transform is None:
            transform = known.transforms.setdefault(image_id, old.transform(repository, image_id))
        return Version(None, protocol="v1", source_id=image_id, transform=transform, reason=known.reason)

    # ---- listings

    def _further(self, repository: str, known: Known, found: set[str], work: Work) -> Iterator[str | MirrorError]:
        """The tags that only v1 has."""
        try:
            tags = self._protocols.tags_of_v1(repository, known, work)
        except NoV1 as error:
            _log.warning("no_v1", extra={"source": f"{self.host}/{repository}", "text": f"{error} (`v1: per-tag`)"})
        except NotFound:
            return
        except (Cancelled, LocalError):
            raise
        except MirrorError as error:
            yield error.about(f"{self.host}/{repository}: the tags by v1")
        else:
            yield from self._checked(repository, (name for name in tags if name not in found))

    def _checked(self, repository: str, names: Iterable[str]) -> Iterator[str | MirrorError]:
        for name in names:
            if is_tag(name):
                yield name
            else:
                what = f"{self.host}/{repository} lists a tag with a hostile name (v1): {printable(name, 80)!r}"
                yield Refused(what, code="ref_invalid")
