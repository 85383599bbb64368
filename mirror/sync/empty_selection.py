"""Tag rules that select nothing although the source has tags: an error, unless `allow-empty` says that this may be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from mirror.errors import Cancelled, MirrorError, NotFound, RemoteError
from mirror.selection.patterns import regex_for_shell_pattern
from mirror.selection.tag_rules import Selection, TagRules, select
from mirror.sync.plan_model import MirrorEntry
from mirror.util.cancellation import Work


def nothing_selected(entry: MirrorEntry, rejected: Mapping[str, int]) -> RemoteError:
    """The error of a mirror whose rules reject every tag. rejected: how many tags each rule left out."""
    left_out = ", ".join(f"{number} by {rule}" for rule, number in sorted(rejected.items()))
    what = f"no tag of {entry.name} is selected; left out: {left_out}"
    return RemoteError(what, hint=_hint(entry.rules), code="nothing_selected")


def is_empty(rules: TagRules, selection: Selection) -> bool:
    """Whether the rules rejected every tag that there is, and must not."""
    return not selection.selected and bool(selection.rejected) and not rules.allow_empty


def _hint(rules: TagRules) -> str:
    for text in (*rules.include, *rules.exclude):
        instead = regex_for_shell_pattern(text)
        if instead is not None:
            return f"\"{text}\" looks like a shell pattern; a regular expression for it is '{instead}'"
    return "correct `tags`, or add `allow-empty: true` to it if selecting nothing is right"


class WildcardSelection:
    """What the rules of one wildcard mirror selected of its repositories. Used by one thread at a time."""

    def __init__(self, entry: MirrorEntry) -> None:
        self._entry = entry
        self._rejected: Counter[str] = Counter()
        self._open = False  # something was selected, or a repository could not be listed

    def add(self, selection: Selection) -> None:
        """Count what was selected of one repository."""
        self._rejected.update(selection.rejected)
        self._open = self._open or bool(selection.selected)

    def failed(self, error: MirrorError) -> None:
        """Note that one repository could not be planned. One that does not exist has no tags."""
        if not isinstance(error, NotFound):
            self._open = True

    @property
    def is_empty(self) -> bool:
        """Whether every repository so far was listed, and every tag rejected."""
        return not self._open and bool(self._rejected) and not self._entry.rules.allow_empty

    def error(self, others: Sequence[str], work: Work) -> RemoteError | None:
        """The error if no repository has a selected tag; None if one has, or it cannot be determined.

        others: repositories that `--only` or the shard leaves out; they are listed until one has a selected tag.
        Does I/O. Raises Cancelled."""
        for repository in others:
            try:
                listed = [tag for tag in self._entry.source.tags(repository, work) if isinstance(tag, str)]
            except Cancelled:
                raise
            except MirrorError as error:
                self.failed(error)
            else:
                self.add(select(self._entry.rules, listed))
            if not self.is_empty:
                return None
        return nothing_selected(self._entry, self._rejected)
