"""Converts regular expressions of other tools, which search within a tag, to patterns, which match the whole tag.

The tools are written in Go, so their regular expressions have the syntax of RE2, which patterns also have.
"""

from __future__ import annotations

import re
from contextlib import suppress

from mirror.errors import ConfigError
from mirror.selection.patterns import compile_pattern, has_alternative

_END = re.compile(r"(?<!\\)(?:\\\\)*\$\Z")


def pattern_for_search(expression: str) -> str:
    """Return a pattern that matches exactly the texts in which `expression` finds a match.

    Raises ConfigError if the expression is invalid or too long."""
    if expression.rfind(r"\Q") > expression.rfind(r"\E"):
        expression += r"\E"  # the end of the expression also ends a quotation
    compile_pattern(f".*(?:{expression}).*")
    # Outside of groups, `^` and `$` belong to only one alternative of `a|b`. `\Q` may quote any other character.
    if not has_alternative(expression) and r"\Q" not in expression:
        simple = _strip_anchors(expression)
        with suppress(ConfigError):  # for example for a repeated anchor: `^*`
            if simple and compile_pattern(simple):
                return simple
    return f".*(?:{expression}).*"


def complete_anchors(expression: str) -> str:
    """Add `^` and `$` to an expression where they are missing at its ends, as dregsy does."""
    start = "" if expression.startswith("^") else "^"
    return f"{start}{expression}" if expression.endswith("$") else f"{start}{expression}$"


def pattern_for_text(text: str) -> str:
    """Return the pattern that matches only `text`."""
    return re.sub(r"[^\w/-]", lambda found: f"\\{found.group()}", text, flags=re.ASCII)


def _strip_anchors(expression: str) -> str:
    """Remove the anchors at the ends of an expression, and add `.*` at each end that has no anchor.

    The expression must not contain a `|` outside of groups."""
    start, rest = ("", expression[1:]) if expression.startswith("^") else (".*", expression)
    end, rest = ("", rest[:-1]) if _END.search(rest) else (".*", rest)
    start = "" if rest.startswith(".*") and not rest.startswith((".*?", ".*+")) else start
    end = "" if rest.endswith(".*") and not rest.endswith(r"\.*") else end
    return f"{start}{rest}{end}"
