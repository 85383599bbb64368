"""Parses secrets, which are written as `{env: NAME}` or `{file: PATH}`, or as plain strings."""

from __future__ import annotations

import re
import stat

from mirror.config.section import Section
from mirror.registry.http.host_settings import Secret
from mirror.util.shell_commands import quote_path

VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}|\$[A-Z_][A-Z0-9_]*")
_READABLE_BY_ALL = 0o004


def build_secret(section: Section, key: str, *, warn_if_plain: bool) -> Secret | None:
    """Return the secret under a key, or None if the key is missing. Report problems. The secret is read on first use.

    warn_if_plain: whether to add a warning if the configuration contains the secret itself."""
    plain = section.text(key)
    variable = VARIABLE.fullmatch(plain) if plain is not None else None
    if variable and variable["name"]:
        section.add_problem(f"variables are not expanded; write {{env: {variable['name']}}}", below=key)
    elif variable:  # a string without braces may be a password, so the message does not show it
        section.add_problem("variables are not expanded; write {env: NAME} with the name of the variable", below=key)
    elif plain is not None and warn_if_plain:
        section.add_warning(f"the {key} is in plain text; use {{env: NAME}} or {{file: PATH}} instead", below=key)
    if plain is not None:
        return Secret("the configuration", plain=plain)
    where = section.section(key)
    env, file = where.text("env"), where.file("file")
    if env is not None:
        return Secret(f"env {env}", env=env)
    if file is None:
        return None
    try:
        mode = file.stat().st_mode
    except OSError:
        return Secret(f"file {file}", file=file)  # the caller reports it if the secret is needed
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
        where.add_problem(f"{file} is {kind}; set `file` to the file that contains the {key}", below="file")
    elif mode & _READABLE_BY_ALL:
        section.add_warning(f"all users can read {file}; run `chmod 600 {quote_path(file)}`", below=key)
    return Secret(f"file {file}", file=file)
