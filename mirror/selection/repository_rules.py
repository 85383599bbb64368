"""The rules that select repositories under a wildcard source, by the part of their names that the `*` matches."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from mirror.errors import ConfigError
from mirror.selection.locations import MATCHED
from mirror.selection.patterns import compile_pattern, has_alternative, rejecting_rule
from mirror.util.structs import Struct

# Parts of a pattern that depend on the text before or after them, so that the pattern cannot be split there.
_ASSERTION = re.compile(r"\$|\^|\\[AbBzQ]")


class RepositoryRules(Struct, frozen=True):
    """The rules with which a wildcard mirror selects repositories.

    A pattern is a regular expression that must match the whole part of the name that the `*` stands for. A repository
    is selected if a pattern of `include` matches this part and no pattern of `exclude` does. An empty `include` matches
    every repository. `compile_pattern` has checked the patterns."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Return whether there is any rule."""
        return bool(self.include or self.exclude)

    def select(self, names: Iterable[str], prefix: str = "") -> tuple[list[str], Mapping[str, int]]:
        """Return the selected names, in the given order, and the number of names that each rule leaves out.

        prefix: the part of each name before the `*`."""
        if not self:
            return list(names), {}
        rejected: Counter[str] = Counter()
        selected = []
        for name in names:
            rule = self.rejecting_rule(name.removeprefix(prefix))
            if rule is None:
                selected.append(name)
            else:
                rejected[rule] += 1
        return selected, rejected

    def rejecting_rule(self, matched: str) -> str | None:
        """Return the rule that leaves out a repository, or None if the rules select it.

        matched: the part of the name that the `*` matched."""
        return rejecting_rule(matched, self.include, self.exclude)

    def selects(self, matched: str) -> bool:
        """Return whether the rules select a repository. matched: the part of the name that the `*` matched."""
        return self.rejecting_rule(matched) is None

    def may_select(self, before: str, after: str) -> bool:
        """Return whether the rules may select a name that consists of `before`, one or more characters, and `after`.

        False is certain. True may be wrong, because only simple patterns under `exclude` are analyzed, such as
        `copy/.*`, `(old|new)/.*` and `.*-copy`."""
        if self.include and not any(compile_pattern(text).may_match_prefix(before) for text in self.include):
            return False
        return not any(_matches_all(text, before, after) for text in self.exclude)


def can_match(path: str, template: str, rules: RepositoryRules | None = None) -> bool:
    """Return whether a path matches a template, in which `{repository}` stands for one or more characters.

    rules: if given, these must select the characters that `{repository}` matches."""
    before, matched, after = template.partition(MATCHED)
    if not matched:
        return path == template
    if not path.startswith(before) or not path.endswith(after) or len(path) <= len(before) + len(after):
        return False
    return rules is None or rules.selects(path[len(before) : len(path) - len(after)])


def _matches_all(pattern: str, before: str, after: str) -> bool:
    """Return whether a pattern certainly matches every text that begins with `before` and ends with `after`.

    This is the case if the pattern is `P.*`, and `P` matches a beginning of `before`; or if it is `.*P`, and `P`
    matches an end of `after`."""
    # With an alternative outside of parentheses, the `.*` belongs to only one of the alternatives.
    if _ASSERTION.search(pattern) or has_alternative(pattern):
        return False
    head, tail = pattern.removesuffix(".*"), pattern.removeprefix(".*")
    return (head != pattern and _matches_any(head, (before[:end] for end in range(len(before) + 1)))) or (
        tail != pattern and _matches_any(tail, (after[start:] for start in range(len(after) + 1)))
    )


def _matches_any(part: str, texts: Iterable[str]) -> bool:
    """Return whether a part of a pattern is itself a valid pattern and matches any of the texts.

    A part is not valid if it ends with a backslash or within a class or group, or begins with a repetition. The pattern
    must not be split there."""
    try:
        pattern = compile_pattern(part)
    except ConfigError:
        return False
    return any(pattern.matches(text) for text in texts)
