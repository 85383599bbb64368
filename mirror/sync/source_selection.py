"""Selects the references that a run mirrors from a source: first by the names of tags, then by their digests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from mirror.errors import MirrorError, RemoteError
from mirror.selection.tag_rules import Selection, SelectionSummary, select
from mirror.sync.digest_rules import DigestRules, DigestSelection
from mirror.sync.empty_selection import WildcardSelection, is_empty, nothing_selected_error
from mirror.sync.plan_model import (
    MirrorEntry,
    PlanReceiver,
    RepositoryFilter,
    SourceReference,
    listed_version,
)
from mirror.sync.planner_queries import KeepTags, list_source_tags
from mirror.transfer.calls import Calls
from mirror.util.cancellation import Work


class SourceSelector:
    """Selects the references of mirrors at their sources. `Planner` describes the parameters."""

    def __init__(
        self,
        calls: Calls,
        receiver: PlanReceiver,
        digest_rules: DigestRules,
        *,
        only: RepositoryFilter,
        parallel: Mapping[str, int],
        use_hints: bool,
        keep_tags: KeepTags | None,
    ) -> None:
        self._calls = calls
        self._receiver = receiver
        self._digest_rules = digest_rules
        self._only = only
        self._parallel = parallel
        self._use_hints = use_hints
        self._keep_tags = keep_tags

    async def select(self, entry: MirrorEntry, wildcard_selection: WildcardSelection | None) -> list[SourceReference]:
        """Return the references that the run mirrors from a source.

        wildcard_selection: if the entry was expanded from a wildcard, the object to which the selection is added.
        Raises RemoteError (nothing_selected, tag_count), and the same errors as `list_source_tags` and
        `DigestRules.apply`."""
        rules = entry.rules
        rejected: Mapping[str, int] = {}
        found = DigestSelection([])
        if entry.locked is not None:
            references = [
                SourceReference(entry, image.digest, name, users=len(entry.targets))
                for name, image in sorted(entry.locked.get(entry.repository, {}).items())
            ]
        elif rules.digest is not None:
            names = rules.literal or (rules.digest,)
            references = [SourceReference(entry, rules.digest, name, users=len(entry.targets)) for name in names]
        elif rules.is_literal:
            references = self._make_references(entry, rules.literal or ())
        else:
            selection = await self._list_and_select(entry)
            if wildcard_selection is not None:
                wildcard_selection.add(selection)
            elif is_empty(rules, selection):
                raise nothing_selected_error(entry, selection.rejected)
            found = DigestSelection(self._make_references(entry, selection.selected))
            if rules.needs_digests:
                found = await self._digest_rules.apply(
                    entry, found.references, parallel=self._parallel.get(entry.source.host, 8)
                )
            _check_count(entry, found)
            references = found.references
            rejected = Counter(selection.rejected) + Counter({"min-age": len(found.waiting), "newest": found.older})
        references = [reference for reference in references if self._only.is_selected(reference.name)]
        waiting = tuple(reference.tag for reference in found.waiting)
        summary = SelectionSummary(len(references), rejected, found.until, found.dates_read, waiting)
        self._receiver.record_selection(entry, summary)
        return references

    def _make_references(self, entry: MirrorEntry, tags: Iterable[str]) -> list[SourceReference]:
        """Return a reference for each tag, with the version if the tag list contained a digest."""
        users = len(entry.targets)
        # The selection of platforms depends on the media type, which a list does not contain.
        trust_list = self._use_hints and entry.platforms is None
        return [
            SourceReference(entry, tag, tag, listed_version(tag) if trust_list else None, users=users) for tag in tags
        ]

    async def _list_and_select(self, entry: MirrorEntry) -> Selection:
        """List the tags of a source, and apply the rules that need only the names of tags."""

        def run(work: Work) -> tuple[Selection, list[MirrorError]]:
            """List and select the tags on a worker thread. Also return an error for each invalid tag."""
            tags, errors = list_source_tags(entry, work)
            if self._keep_tags is not None:
                self._keep_tags(entry, tags)
            return select(entry.rules, tags), errors

        selection, errors = await self._calls.call_host(entry.source.host, run)
        for error in errors:
            self._receiver.record_invalid_name(entry, error)
        return selection


def _check_count(entry: MirrorEntry, found: DigestSelection) -> None:
    """Raise RemoteError (tag_count) if too few or too many tags are selected.

    Tags that wait for `min-age` are counted for `min-tags`, because they are not missing at the source."""
    rules, selected, waiting = entry.rules, len(found.references), len(found.waiting)
    if selected + waiting < rules.min_tags:
        more = f", and {waiting} more {'waits' if waiting == 1 else 'wait'} for min-age"
        what = f"{_selected_text(entry, selected)}{more if waiting else ''}, but `min-tags` is {rules.min_tags}"
        hint = "the source may have lost tags, or its list may be incomplete: check it, or lower `min-tags`"
        raise RemoteError(what, hint=hint, code="tag_count")
    # Images that have already failed, for example because their date cannot be read, are not counted for `max-tags`.
    selected -= sum(isinstance(reference.version, MirrorError) for reference in found.references)
    if rules.max_tags is not None and selected > rules.max_tags:
        what = f"{_selected_text(entry, selected)}, but `max-tags` is {rules.max_tags}"
        hint = "select fewer tags, for example with `newest`, or raise `max-tags`"
        raise RemoteError(what, hint=hint, code="tag_count")


def _selected_text(entry: MirrorEntry, count: int) -> str:
    """Return the beginning of a message about the number of selected tags."""
    return f"{entry.name}: {count} {'tag is' if count == 1 else 'tags are'} selected"
