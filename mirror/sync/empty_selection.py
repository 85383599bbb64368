"""Detects rules that select nothing although the source has tags or repositories.

Rules for tags that select no tag are an error unless `allow-empty` is set. Rules for repositories that select no
repository are always an error, because it is unknown whether the intended repositories still exist.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from mirror.errors import Cancelled, MirrorError, NotFound, RemoteError
from mirror.selection.patterns import regex_for_shell_pattern
from mirror.selection.tag_rules import Selection, TagRules, select
from mirror.sync.plan_model import MirrorEntry
from mirror.util.cancellation import Work


def nothing_selected_error(entry: MirrorEntry, rejected: Mapping[str, int]) -> RemoteError:
    """Return the error for a mirror that selects no tag. rejected: the number of tags that each rule rejects."""
    what = f"no tag of {entry.name} is selected; tags left out: {_count_text(rejected)}"
    hint = _correction_hint((*entry.rules.include, *entry.rules.exclude), _tags_hint(rejected))
    return RemoteError(what, hint=hint, code="nothing_selected")


def _tags_hint(rejected: Mapping[str, int]) -> str:
    """Return a hint about how to correct rules that select no tag."""
    if rejected and all(rule.endswith("(no version)") for rule in rejected):
        return "no tag is a version: select tags with `include`, or by date with `newest: {count: N, by: created}`"
    if rejected.get("semver (pre-release)"):
        return "a suffix such as -alpine or -rc.1 makes a version a pre-release: select such tags with `include`"
    return "correct `tags`, or add `allow-empty: true` below `tags` if an empty selection is intended"


def no_repository_selected_error(entry: MirrorEntry, rejected: Mapping[str, int]) -> RemoteError:
    """Return the error for a wildcard that selects no repository.

    rejected: the number of repositories that each rule leaves out."""
    what = f"no repository of {entry.name} is selected; repositories left out: {_count_text(rejected)}"
    rules = entry.repository_rules
    hint = _correction_hint((*rules.include, *rules.exclude), "correct `repositories`")
    return RemoteError(what, hint=hint, code="nothing_selected")


def _count_text(rejected: Mapping[str, int]) -> str:
    """Return the number of names that each rule leaves out, as text for a message."""
    return ", ".join(f"{number} by {rule}" for rule, number in sorted(rejected.items()))


def is_empty(rules: TagRules, selection: Selection) -> bool:
    """Return whether the rules rejected all tags of a source that has tags, and `allow-empty` is not set."""
    return not selection.selected and bool(selection.rejected) and not rules.allow_empty


def _correction_hint(patterns: Iterable[str], otherwise: str) -> str:
    """Return a hint about how to correct patterns that select nothing.

    otherwise: the hint if none of the patterns looks like a shell pattern."""
    for text in patterns:
        regex = regex_for_shell_pattern(text)
        if regex is not None:
            return f"\"{text}\" looks like a shell pattern; the equivalent regular expression is '{regex}'"
    return otherwise


class WildcardSelection:
    """Tracks whether the rules of a wildcard mirror select any tag in any of its repositories. Not thread-safe."""

    def __init__(self, entry: MirrorEntry) -> None:
        self._entry = entry
        self._rejected: Counter[str] = Counter()
        self._may_be_nonempty = False  # a tag was selected, or a repository could not be listed

    def add(self, selection: Selection) -> None:
        """Add the selection of tags from one repository."""
        self._rejected.update(selection.rejected)
        self._may_be_nonempty = self._may_be_nonempty or bool(selection.selected)

    def add_failure(self, error: MirrorError) -> None:
        """Record that one repository could not be planned. A repository that does not exist is treated as empty."""
        if not isinstance(error, NotFound):
            self._may_be_nonempty = True

    @property
    def is_wrongly_empty(self) -> bool:
        """Whether the rules rejected all tags of all repositories so far, and `allow-empty` is not set.

        The value is False if any of these repositories could not be listed."""
        return not self._may_be_nonempty and bool(self._rejected) and not self._entry.rules.allow_empty

    def find_error(self, others: Sequence[str], work: Work) -> RemoteError | None:
        """Return an error if the rules select no tag in any repository, or None if a tag is or may be selected.

        others: the repositories that `--only` or the shard excludes. Their tags are listed, one repository after
        another, until a tag is selected or a list cannot be read. Blocks. Raises Cancelled."""
        for repository in others:
            try:
                tags = [tag for tag in self._entry.source.tags(repository, work) if isinstance(tag, str)]
            except Cancelled:
                raise
            except MirrorError as error:
                self.add_failure(error)
            else:
                self.add(select(self._entry.rules, tags))
            if not self.is_wrongly_empty:
                return None
        return nothing_selected_error(self._entry, self._rejected)
