"""The layouts and bundles of a run: a store for each directory, file or standard stream in the configuration."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from mirror.config import Config
from mirror.errors import ConfigError, MirrorError
from mirror.layout.base_inventory import BaseInventory
from mirror.layout.bundle.store import BundleStore
from mirror.layout.directory import LayoutStore
from mirror.layout.inventory import read_inventory
from mirror.selection.locations import STREAM, is_bundle


class BundleStores:
    """The bundles that a configuration reads or writes.

    Bundles are opened on first use. Inventories that serve as bases are read immediately. Raises ConfigError if a base
    cannot be read, or if `base` is given but no target is a bundle."""

    def __init__(self, config: Config, spool: Path, base: Path | None, *, repair: bool = False) -> None:
        """Create the bundle stores of a configuration, and read their bases. spool: a directory for data from pipes.

        base: an inventory to use instead of those in the configuration. repair: whether to recreate damaged bundles."""
        if base is not None and not any(is_bundle(target.host) for one in config.mirrors for target in one.targets):
            raise ConfigError("--base is only for bundles, but no target is a bundle", hint="leave the option out")
        adopts: defaultdict[str, set[str]] = defaultdict(set)
        bases: dict[str, Path | None] = {}  # by the host name of the bundle that is written
        for mirror in config.mirrors:
            adopts[mirror.source.host] |= set() if mirror.wildcard else {mirror.source.path}
            bases |= {target.host: base or mirror.base for target in mirror.targets if is_bundle(target.host)}
        inventories = {path: BaseInventory(read_inventory(path)) for path in set(bases.values()) if path is not None}
        self.sources: dict[str, BundleStore] = {}
        self.targets: dict[str, BundleStore] = {}
        for host in sorted(name for name in {*adopts, *bases} if is_bundle(name)):
            file = Path(host) if host != STREAM else None
            inventory = inventories.get(bases.get(host) or Path())
            store = BundleStore(
                file, host, spool=spool, base=inventory, adopts=adopts.get(host, ()), new=host in bases, repair=repair
            )
            if host in bases:
                self.targets[host] = store
            if host in adopts:
                # Standard input and standard output are different bundles.
                differ = file is None and host in bases
                self.sources[host] = BundleStore(None, host, spool=spool, adopts=adopts[host]) if differ else store
        self.hosts = sorted({*self.sources, *self.targets})

    def incomplete_sources(self) -> list[tuple[str, MirrorError]]:
        """Return the sources that lack images from their own inventory, each with an error.

        Only sources that were read are checked."""
        return [
            (host, error) for host, store in self.sources.items() if (error := store.incomplete_error()) is not None
        ]

    def close(self) -> None:
        """Close all bundles. Raises LocalError."""
        for store in {*self.sources.values(), *self.targets.values()}:
            store.close()


def check_bases(config: Config, *, must_exist: bool) -> list[str]:
    """Check the inventories that serve as bases for bundles. Return a warning for each missing inventory.

    Raises ConfigError for an invalid inventory. must_exist: whether a missing inventory, too, raises ConfigError."""
    warnings = []
    exports = [one for one in config.mirrors if any(is_bundle(target.host) for target in one.targets)]
    for mirror in {one.base: one for one in reversed(exports)}.values():
        if mirror.base is None:
            continue
        if not must_exist and not _exists(mirror.base):
            warnings.append(f"{mirror.position}: {mirror.path}: the base {mirror.base} does not exist; a run needs it")
        else:
            read_inventory(mirror.base)
    return warnings


def _exists(path: Path) -> bool:
    """Return whether a path exists, or True if this cannot be determined."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # reading it raises a better error
    return True


PREFIX = "oci:"


class LayoutStores:
    """The layouts of a configuration, opened on first use. A layout that is both source and target is opened once."""

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

    def incomplete_sources(self) -> list[tuple[str, MirrorError]]:
        """Return an empty list, because a layout contains no inventory that could list missing images."""
        return []

    def close(self) -> None:
        """Close all layouts."""
        for store in {*self.sources.values(), *self.targets.values()}:
            store.close()
