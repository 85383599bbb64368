"""Runs benchmarks/fastregistry, a registry in Go that uses so little CPU time that the cost of the tools dominates."""

from __future__ import annotations

from pathlib import Path

from benchmarks.tools import find
from tests.registries.process import RegistryProcess

PROGRAM = "fastregistry"


class FastRegistry(RegistryProcess):
    """A read-only registry that holds the same images in every run, in memory.

    It has `repositories` repositories with `tags` tags each. Each tag is an image without layers."""

    def __init__(self, root: Path, name: str, *, repositories: int, tags: int) -> None:
        super().__init__(root, name)
        self._size = {"-repositories": repositories, "-tags": tags}

    def command(self) -> list[str]:
        """Return the command line. Raises RuntimeError if the program is not installed."""
        program = find(PROGRAM)
        if program is None:
            raise RuntimeError(f"{PROGRAM} is not installed: run `make bench-tools`")
        options = [word for option, number in self._size.items() for word in (option, str(number))]
        return [program, "-listen", self.host, *options]
