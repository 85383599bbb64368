"""Converts a file of another tool to a configuration that `mirror validate` accepts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from mirror import __version__
from mirror.config import ConfigErrors, ConfigProblem, load, yaml_reader
from mirror.config.peer_formats import recognize_tool
from mirror.errors import ConfigError, printable
from mirror.migration import dregsy, image_syncer, regsync, skopeo
from mirror.migration.conversion import Conversion
from mirror.migration.peer_file import NotConvertible, Note, ToolMapping
from mirror.migration.writer import format_note, write_configuration
from mirror.util.shell_commands import quote_path
from mirror.util.structs import Struct

MAX_HEADING = 4096  # bytes at the beginning of a file that contain the first line of the heading
_MIRROR = re.compile(r"mirrors\[(\d+)\]")
_HEADING = "Converted from"
_FIRST_COMMENT = re.compile(rf"# {_HEADING} .+, a configuration of [a-z-]+, by mirror [0-9]")


class Converted(Struct, frozen=True):
    """The result of a conversion: the text of the new file, and notes about its differences from the old file.

    mirrors: the number of mirrors in the new file. notes: each note, with its position in the old file. has_losses:
    whether the other tool copies images that a sync with the new file does not copy."""

    text: str
    mirrors: int
    notes: tuple[str, ...]
    has_losses: bool


def convert_file(tool: str, path: Path, destination: str | None, environment: Mapping[str, str]) -> Converted:
    """Convert a configuration file of another tool. If no entry can be converted, the result has no mirrors.

    tool: `regsync`, `skopeo`, `image-syncer` or `dregsy`. destination: for skopeo, whose files contain no targets, the
    repository prefix on the target. environment: the environment variables that the file may refer to. Raises
    ConfigError if the file is invalid, and LocalError if it cannot be read."""
    document = yaml_reader.read(path)
    if document.problems:
        raise ConfigErrors(document.problems)
    if "mirrors" in document.root.items:
        raise ConfigError(
            f"{printable(path)} is already a configuration of mirror", hint="use the file without converting it"
        )
    actual = recognize_tool(document.root)
    if actual not in (None, tool):
        hint = f"run `mirror convert --from {actual} {quote_path(path)}`"
        raise ConfigError(f"{printable(path)} looks like a file of {actual}, not of {tool}", hint=hint)
    if (destination is None) == (tool == "skopeo"):
        raise _destination_error(tool)
    top = ToolMapping(document.root, (), [])
    try:
        conversion = _convert(tool, top, path, destination, environment)
    except NotConvertible as error:
        raise ConfigError(format_note(error.note, printable(path))) from None
    name = printable(path.name)
    heading = [f"{_HEADING} {name}, a configuration of {tool}, by mirror {__version__}."]
    if any("referrers" not in dict(mirror.options) for mirror in conversion.mirrors):
        conversion.top["defaults"] = {"referrers": False}
        what = f"`referrers: false`: as with {tool}, signatures and SBOMs are not copied."
        heading.append(f"{what} To copy them, remove this setting.")
    heading.append(
        "`mirror plan` shows what a sync with this file would do. docs/migration.md describes the differences."
    )
    text = _write_valid(conversion, heading, name)
    notes = tuple(format_note(note, printable(path)) for note in conversion.all_notes())
    return Converted(text, len(conversion.mirrors), notes, conversion.has_losses)


def is_converted(beginning: bytes) -> bool:
    """Return whether a file was written by `mirror convert`. beginning: its first MAX_HEADING bytes."""
    text = re.sub(r"\s*\n#\s*", " ", beginning.decode("utf-8", "replace"))  # join the lines of the first comment
    return _FIRST_COMMENT.match(text) is not None


def _convert(
    tool: str, top: ToolMapping, path: Path, destination: str | None, environment: Mapping[str, str]
) -> Conversion:
    """Call the converter for the tool. Raises NotConvertible, ConfigError, LocalError."""
    if tool == "regsync":
        return regsync.convert(top, environment)
    if tool == "skopeo":
        return skopeo.convert(top, destination or "")
    if tool == "image-syncer":
        return image_syncer.convert(top, path, environment)
    return dregsy.convert(top)


def _destination_error(tool: str) -> ConfigError:
    """Return the error for a missing or superfluous `--destination`."""
    if tool == "skopeo":
        what = "a file of skopeo contains only sources"
        hint = "add the DESTINATION argument of `skopeo sync`: --destination HOST/PREFIX"
        return ConfigError(f"{what}, so `--destination` is required", hint=hint)
    return ConfigError(
        f"`--destination` is only for skopeo: a file of {tool} contains the targets", hint="leave it out"
    )


def _write_valid(conversion: Conversion, heading: list[str], file: str) -> str:
    """Return the text of the new file, without the mirrors that `mirror validate` would reject. Add a note for each."""
    while True:
        text = write_configuration(conversion, heading, file)
        problems = _find_problems(text) if conversion.mirrors else []
        rejected = {int(found[1]): problem for problem in problems if (found := _MIRROR.match(problem.path))}
        if not rejected:
            # The problem is outside of `mirrors`: for example, a setting of a registry needs a library that is not
            # installed. Keep the setting, because the mirrors need it.
            conversion.notes += [Note(1, problem.path, problem.message, lost=True) for problem in problems]
            return write_configuration(conversion, heading, file)
        for index, problem in rejected.items():
            conversion.notes += _leave_out(conversion, index, problem)
        conversion.mirrors = [one for index, one in enumerate(conversion.mirrors) if index not in rejected]


def _leave_out(conversion: Conversion, index: int, problem: ConfigProblem) -> list[Note]:
    """Return the notes for a mirror that is left out because of a problem. index: its index in the new file."""
    mirror = conversion.mirrors[index]

    def name_entry(found: re.Match[str]) -> str:
        """Return the name of an entry in the old file, which replaces its path in the new file."""
        return f"the entry on line {conversion.mirrors[int(found[1])].line}"

    what = _MIRROR.sub(name_entry, re.sub(r" \(line \d+\)", "", problem.message))
    return [*mirror.notes, Note(mirror.line, mirror.source, f"left out: {what}", lost=True)]


def _find_problems(text: str) -> list[ConfigProblem]:
    """Return the problems that `mirror validate` finds in a configuration."""
    with TemporaryDirectory(prefix="mirror-convert-") as folder:
        path = Path(folder) / "mirror.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            load(path, secrets=False)
        except ConfigErrors as error:
            return list(error.problems)
    return []
