"""Who writes what: two mirrors must not write one tag of one target repository; with wildcards only a catalog tells."""

from __future__ import annotations

import threading
from collections import defaultdict

from mirror.errors import Refused
from mirror.findings import Entry
from mirror.selection import overlap
from mirror.transfer.placement import Place


class Claims:
    """The target repositories of a run, with the mirrors that write there. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._writers: defaultdict[Place, list[Entry]] = defaultdict(list)

    def claim(self, entry: Entry) -> Refused | None:
        """Note what an entry writes. -> why it must not, if another one may write the same."""
        with self._lock:
            for target in entry.targets:
                for other in self._writers[target.place]:
                    if overlap(entry.rules, other.rules):
                        return Refused(
                            f"{entry.name} and {other.name} would write the same tags of {target.place}",
                            hint="give one of them another target, or other tags",
                            code="config_invalid",
                        )
                self._writers[target.place].append(entry)
        return None
