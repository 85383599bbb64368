"""A registry that costs little, so that a benchmark shows the cost of the tool: benchmarks/fastregistry, in Go."""

from __future__ import annotations

from pathlib import Path

from benchmarks.tools import find
from tests.registries.process import RegistryProcess

PROGRAM = "fastregistry"


class FastRegistry(RegistryProcess):
    """Holds `repositories` × `tags` images without layers, always the same ones, in memory; it can only be read."""

    def __init__(self, root: Path, name: str, *, repositories: int, tags: int) -> None:
        super().__init__(root, name)
        self._size = {"-repositories": repositories, "-tags": tags}

    def command(self) -> list[str]:
        program = find(PROGRAM)
        if program is None:
            raise RuntimeError(f"{PROGRAM} is not installed: run `make bench-tools`")
        options = [word for option, number in self._size.items() for word in (option, str(number))]
        return [program, "-listen", self.host, *options]
