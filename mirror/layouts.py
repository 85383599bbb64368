"""The layouts of a run: one store for each directory that the configuration uses."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from mirror.config import Config
from mirror.errors import MirrorError
from mirror.layout.directory import LayoutStore

PREFIX = "oci:"


class Layouts:
    """Opened lazily: making this touches no disk. A directory that is read and written is one store."""

    def __init__(self, config: Config) -> None:
        adopts: defaultdict[str, set[str]] = defaultdict(set)
        written: set[str] = set()
        for mirror in config.mirrors:
            if not mirror.wildcard:
                adopts[mirror.source.host].add(mirror.source.path)
            written |= {target.host for target in mirror.targets}
        read = {mirror.source.host for mirror in config.mirrors}
        stores = {
            host: LayoutStore(Path(host.removeprefix(PREFIX)), adopts=adopts[host], new=host in written)
            for host in sorted(read | written)
            if host.startswith(PREFIX)
        }
        self.sources = {host: store for host, store in stores.items() if host in read}
        self.targets = {host: store for host, store in stores.items() if host in written}
        self.hosts = sorted(stores)

    def incomplete(self) -> list[tuple[str, MirrorError]]:
        """A layout does not say what it was to have."""
        return []

    def close(self) -> None:
        for store in {*self.sources.values(), *self.targets.values()}:
            store.close()
