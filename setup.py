"""Builds the package with its shell completions and its manual page. The metadata is in setup.cfg."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.build import build

# The build runs with an import path that does not contain this directory.
sys.path.insert(0, str(Path(__file__).resolve().parent))


class GenerateFiles(Command):
    """Write the shell completions and the manual page below the build directory, and list them as data files.

    An editable installation does not get these files."""

    description = "generate shell completions and the manual page from the command-line parser"
    user_options = ()

    def initialize_options(self) -> None:
        self.build_base: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_base", "build_base"))

    def run(self) -> None:
        if self.editable_mode or self.build_base is None:
            return
        # Imported here because a source distribution is built without the libraries that this module imports.
        from tools.generated_files import generate_files  # noqa: PLC0415

        base = Path(self.build_base)
        data_files: list[tuple[str, list[str]]] = []
        for name, text in generate_files().items():
            path = base / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            data_files.append((str(Path(name).parent), [str(path)]))
        self.distribution.data_files = data_files

    def get_source_files(self) -> list[str]:
        return ["tools/__init__.py", "tools/generated_files.py"]

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Build(build):
    """The `build` command of setuptools, with `generate_files` as its last step."""

    sub_commands: ClassVar = [*build.sub_commands, ("generate_files", None)]


setup(cmdclass={"build": Build, "generate_files": GenerateFiles})
