"""What a plan reads from stores, and what the state answers instead. Does I/O: call it on a thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias, TypeGuard

from mirror.errors import AuthError, Cancelled, MirrorError, NotFound, RateLimited, Refused, RemoteError
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Repository
from mirror.store import DAMAGED, Source, Version
from mirror.sync.plan_model import MirrorEntry, PlanHints, SourceReference, TargetEntry
from mirror.util.cancellation import Work
from mirror.util.structs import Struct, replace

_log = logging.getLogger("mirror.plan")

Note: TypeAlias = Callable[[Source, str, Manifest], object]
Named: TypeAlias = Digest | MirrorError | None
"""What a target's reference names; None: nothing, or nothing that matters. An error: it cannot be told."""


class Names(Struct):
    """Repositories or tags that a source lists. usable: sorted; refused: why others cannot be used."""

    usable: list[str]
    refused: list[MirrorError]


def catalog(entry: MirrorEntry, work: Work) -> Names:
    """The repositories that a wildcard matches."""
    prefix = f"{entry.repository}/" if entry.repository else ""
    return _sorted(entry.source.repositories(prefix, work))


def listed(entry: MirrorEntry, work: Work) -> Names:
    """The tags of a source. Raises NotFound with a hint."""
    try:
        names = list(entry.source.tags(entry.repository, work))
    except NotFound as error:
        hint = "check its name and the credentials; a repository without any tag looks the same on some registries"
        what = f"{entry.name} has no list of tags: {error.what}"
        raise NotFound(what, hint=error.hint or hint, status=404, protocol=error.protocol) from error
    if not names and not entry.rules.allow_empty:
        text = f"{entry.name} lists no tags"
        _log.warning("no_tags", extra={"source": entry.name, "text": text})
    return _sorted(names)


def listed_at_target(store: Source, repository: str, work: Work) -> set[str] | None:
    """The tags that a target lists. None: its list cannot be read, which is only advice: ask for each tag by name.

    Raises Refused (unless `too_many`: pages that do not advance, or a list that is too large), RateLimited, LocalError,
    Cancelled."""
    try:
        return {name for name in store.tags(repository, work) if isinstance(name, str)}
    except NotFound:
        return set()
    except RateLimited:
        raise
    except (RemoteError, Refused) as error:
        if isinstance(error, Refused) and error.code != "too_many":
            raise
        target = f"{store.host}/{repository}"
        text = f"the tags of {target} cannot be listed, so each is asked for by name: {error}"
        _log.warning("target_not_listed", extra={"target": target, "code": error.code, "text": text})
        return None


def _sorted(names: Iterable[str | MirrorError]) -> Names:
    found = Names([], [])
    for name in names:
        if isinstance(name, MirrorError):
            found.refused.append(name)
        else:
            found.usable.append(name)
    found.usable.sort()
    return found


def answered(
    store: Source, repository: str, references: Sequence[str], work: Work, note: Note | None = None
) -> list[Version | MirrorError]:
    """One for each of `references`. What ends the asking is the answer for those that were not asked for yet.

    A manifest that had to be read for an answer is given to `note`, and not kept: there may be very many."""
    answers: list[Version | MirrorError] = []
    try:
        for answer in store.resolve(repository, references, work):
            if isinstance(answer, Version) and answer.manifest is not None:
                if note is not None:
                    note(store, repository, answer.manifest)
                answers.append(replace(answer, manifest=None))
            else:
                answers.append(answer)
    except Cancelled:
        raise
    except MirrorError as error:
        answers += [error] * (len(references) - len(answers))
    return answers


def named(answer: Version | MirrorError, *, certain: bool) -> Named:
    """certain: it matters what a reference names that answers with an error. If it does not, 5xx does not keep us from
    pushing it again: a tag whose link is empty answers so for ever, and that cures it."""
    if isinstance(answer, Version):
        return answer.digest
    return None if isinstance(answer, NotFound) or (is_broken(answer) and not certain) else answer


def is_broken(answer: Version | MirrorError) -> TypeGuard[MirrorError]:
    """Whether a target cannot give what a reference names, in a way that a push may cure: its copy may be damaged."""
    if isinstance(answer, Refused):
        return answer.code in DAMAGED
    if not isinstance(answer, MirrorError) or isinstance(answer, NotFound | AuthError | RateLimited):
        return False
    return answer.status is not None


def recalled_tags(memory: PlanHints, repository: str, references: Sequence[str]) -> dict[str, Digest]:
    found = {reference: memory.target_tag(repository, reference) for reference in references}
    return {reference: digest for reference, digest in found.items() if digest is not None}


def settled_tags(
    memory: PlanHints, entry: MirrorEntry, target: TargetEntry, references: Sequence[SourceReference]
) -> dict[str, Digest]:
    """Immutable tags that this source and this target had with one digest in an earlier run, and that the target has
    not been seen with another one since."""
    found = {}
    for reference in references:
        if entry.rules.is_immutable(reference.tag):
            digest = memory.target_tag(str(target.repository), reference.tag)
            if digest is not None and digest == memory.source_tag(equal_to(entry, target.repository), reference.tag):
                found[reference.tag] = digest
    return found


def equal_to(entry: MirrorEntry, repository: Repository) -> str:
    """The name under which the state keeps the digests that a source had when it was equal to a target repository.

    For each target its own: one that differs from the source is not equal because another one once was."""
    return f"{entry.name} {repository}"


def with_result(memory: PlanHints, version: Version | MirrorError) -> Version | MirrorError:
    """With what a transform made of it last time: the only digest that a target can be compared with."""
    if isinstance(version, MirrorError) or version.transform is None:
        return version
    return replace(version, digest=memory.transform_digest(version.transform.identity))
