"""Recognizes shell variables in paths and locations. They are errors, because `mirror` does not expand them."""

from __future__ import annotations

import re

VARIABLE = re.compile(r"\$\{?[A-Za-z_]")  # a shell variable
NO_VARIABLES = "shell variables such as $HOME are not expanded: write their values"


def replace_home(text: str) -> str:
    """Return a path in which `~` replaces the shell variable HOME."""
    return text.replace("${HOME}", "~").replace("$HOME", "~")
