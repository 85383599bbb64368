"""Converts Go templates and environment variables in the files of other tools, because `mirror` expands neither.

In references, variables are replaced by their current values. A password is replaced by a reference to its variable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from mirror.migration.peer_file import ToolMapping

_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)
_CALL = re.compile(r"\(?\s*(env|file)\s+(?:\"([^\"\\]+)\"|`([^`]+)`)\s*\)?(?:\s*\|\s*trimSpace)?")
_FIELD = re.compile(r"\.Sync\.(Source|Type)")
# The documentation of regsync contains this example: `index (split .Sync.Source "gcr.io/") 1`.
_PART = re.compile(r"index\s+\(\s*split\s+\.Sync\.(Source|Type)\s+\"([^\"\\]+)\"\s*\)\s+(\d{1,3})")
_SHELL = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")


def secret_of_template(text: str) -> dict[str, str] | None:
    """Return `{env: NAME}` or `{file: PATH}` for a single template that reads a variable or a file, otherwise None."""
    action = _ACTION.fullmatch(text.strip())
    call = _CALL.fullmatch(action[1]) if action else None
    return {call[1]: call[2] or call[3]} if call else None


def has_template(text: str) -> bool:
    """Return whether a text contains a Go template."""
    return "{{" in text


def secret_of_variable(text: str) -> dict[str, str] | None:
    """Return `{env: NAME}` for a text that is a single shell variable, such as `$NAME` or `${NAME}`, otherwise None."""
    found = _SHELL.fullmatch(text)
    return {"env": found[1] or found[2]} if found else None


def expand_template(
    peer: ToolMapping, key: str, text: str, environment: Mapping[str, str], fields: Mapping[str, str]
) -> str:
    """Replace the templates in a reference or user name by their current values, and add a note for each variable.

    fields: the values of `.Sync.Source` and `.Sync.Type`. Raises NotConvertible if a template cannot be replaced."""

    def replacement(found: re.Match[str]) -> str:
        """Return the value of one template."""
        call, field = _CALL.fullmatch(found[1]), _FIELD.fullmatch(found[1])
        if field is not None and field[1] in fields:
            return fields[field[1]]
        part = _PART.fullmatch(found[1])
        if part is not None and part[1] in fields:
            parts = fields[part[1]].split(part[2])
            if int(part[3]) < len(parts):
                return parts[int(part[3])]
        if call is None or call[1] != "env":
            peer.reject(key, "left out: this template is not supported; replace it with its value, and convert again")
        return _current_value(peer, key, call[2] or call[3], environment)

    return _ACTION.sub(replacement, text) if has_template(text) else text


def expand_variables(peer: ToolMapping, key: str, text: str, environment: Mapping[str, str]) -> str:
    """Replace the shell variables in a reference or user name by their current values, and add a note for each.

    Raises NotConvertible if a variable is not set."""
    return _SHELL.sub(lambda found: _current_value(peer, key, found[1] or found[2], environment), text)


def _current_value(peer: ToolMapping, key: str, name: str, environment: Mapping[str, str]) -> str:
    """Return the value of an environment variable, and add a note. Raises NotConvertible if it is not set."""
    value = environment.get(name)
    if not value:
        what = "left out: `mirror` does not expand variables, and the environment variable"
        peer.reject(key, f"{what} {name} is not set; set it, and convert again")
    peer.note(key, f"{name} was replaced by its current value, because `mirror` does not expand variables")
    return value
