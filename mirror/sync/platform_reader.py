"""Applies the platforms of a mirror to an image, before any content of other platforms is read.

The entries of an index contain their platforms (`oci/platform_filter.py`). For an image without an index, only the
config contains the platform, so the config is read. This is done once for each digest in a run, and the result is
recorded in the state.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from mirror.errors import OtherPlatform
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Kind, Manifest
from mirror.oci.platform import Platform
from mirror.oci.platform_filter import (
    FilteredIndex,
    PlatformFilter,
    config_of,
    filter_index,
    nested_indexes,
    parse_config_platform,
)
from mirror.store import LeftOut, Source
from mirror.sync.manifest_graph import (
    MAX_DEPTH,
    ManifestCache,
    ManifestGraph,
    check_count,
    check_descriptor,
    too_deep_error,
)
from mirror.sync.plan_model import PlanEntry, SourceReference, selected_platforms
from mirror.transfer.blob_request import BlobSource
from mirror.transfer.calls import Calls
from mirror.transfer.downloads import BlobDownload, BufferedBlob
from mirror.transfer.permits import DOWNLOADS, host_permit
from mirror.transfer.shared_tasks import SharedTasks
from mirror.transfer.tasks import run_group
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE

MAX_CONFIG = 8 << 20  # bytes; the platform of an image with a larger config is treated as unknown
_KNOWN_PLATFORMS = 20_000  # maximum number of configs whose platforms are kept in memory


def left_out_of(filtered: FilteredIndex, wanted: PlatformFilter | None) -> LeftOut | None:
    """Return the parts that a sparse image leaves out, or None if there are none or the index was replaced."""
    if wanted is None or not wanted.sparse or not filtered.left_out:
        return None
    return LeftOut(tuple(map(str, wanted.platforms)), filtered.indexes, filtered.left_out)


class PlatformReader:
    """Selects the platforms of images. Must be used on the event loop.

    manifests: reads nested indexes, each once from each host."""

    def __init__(self, calls: Calls, manifests: ManifestCache) -> None:
        self._calls = calls
        self._manifests = manifests
        self._reads: SharedTasks[tuple[str, Digest], Platform | None] = SharedTasks(calls.tasks)
        self._known: OrderedDict[tuple[str, Digest], Platform | None] = OrderedDict()  # by host and config

    async def filter(self, source: Source, repository: str, root: Manifest, wanted: PlatformFilter) -> FilteredIndex:
        """Return the part of an image that is for the wanted platforms.

        Raises OtherPlatform if the image has no index and is for a platform that is not wanted, RemoteError (not_found)
        if an index has none of the wanted platforms, and the errors from reading nested indexes or the config."""
        if root.kind is Kind.INDEX:
            nested = await self._read_nested(source, repository, root)
            what = f"{source.host}/{repository}@{root.digest}"
            return await self._calls.call(lambda work: filter_index(root, nested, wanted, what), policy=ONCE)
        platform = await self._read_platform(source, repository, root)
        if platform is not None and not wanted.selects(platform):
            raise OtherPlatform(f"the image is for {platform}, which is not in `platforms` ({wanted})")
        return FilteredIndex(root)

    async def read_target_graph(self, plan_entry: PlanEntry) -> ManifestGraph:
        """Read the graph of an image on a target, without the parts that a sparse image leaves out on purpose."""
        target, reference = plan_entry.target, plan_entry.reference
        store, repository = target.store, target.repository.path
        root = await self._manifests.read_root(store, repository, plan_entry.tag)
        foreign = reference.entry.foreign_layers
        left_out = await self.find_left_out(reference, store, repository, root)
        return await self._manifests.read_graph(
            store, repository, root.digest, root, foreign_layers=foreign, left_out=left_out
        )

    async def find_left_out(
        self, reference: SourceReference, store: Source, repository: str, root: Manifest
    ) -> LeftOut | None:
        """Return the parts that a sparse copy of an image leaves out on purpose, or None if there are none.

        store, repository: the repository from which the root was read and the nested indexes are read. Raises the same
        errors as `filter`."""
        wanted = selected_platforms(reference.entry, reference.version)
        if wanted is None or not wanted.sparse or root.kind is not Kind.INDEX:
            return None
        return left_out_of(await self.filter(store, repository, root, wanted), wanted)

    async def _read_nested(self, source: Source, repository: str, root: Manifest) -> dict[Digest, Manifest]:
        """Read the nested indexes that have no platform, at all levels. Raises the same errors as `read_graph`."""
        nested: dict[Digest, Manifest] = {}
        level = [root]
        for _ in range(MAX_DEPTH + 1):
            children = await self._list_nested(level)
            wanted = {digest: child for digest, child in children.items() if digest not in nested}
            if not wanted:
                return nested
            check_count(len(nested) + len(wanted), f"{source.host}/{repository}", root.digest)
            level = await run_group(
                self._manifests.read(source, repository, digest, child.size) for digest, child in wanted.items()
            )
            for child, descriptor in zip(level, wanted.values(), strict=True):
                check_descriptor(child, descriptor, f"{source.host}/{repository}")
                nested[child.digest] = child
        raise too_deep_error(f"{source.host}/{repository}", root.digest)

    async def _list_nested(self, manifests: Sequence[Manifest]) -> dict[Digest, Descriptor]:
        """Return the children of indexes that may be nested indexes without a platform, by digest."""
        indexes = [manifest for manifest in manifests if manifest.kind is Kind.INDEX]

        def parse(work: Work) -> dict[Digest, Descriptor]:
            """Parse the indexes. Runs on a worker thread."""
            work.stop.raise_if_requested()
            return {child.digest: child for index in indexes for child in nested_indexes(index)}

        return await self._calls.call(parse, policy=ONCE) if indexes else {}

    async def _read_platform(self, source: Source, repository: str, image: Manifest) -> Platform | None:
        """Return the platform in the config of an image, or None if the config contains none or is too large."""
        config = config_of(image)
        if config is None or config.size is None or config.size > MAX_CONFIG:
            return None
        key = (source.host, config.digest)
        if key not in self._known:
            self._known[key] = await self._reads.run(key, lambda: self._read_config(source, repository, config))
            if len(self._known) > _KNOWN_PLATFORMS:
                self._known.popitem(last=False)
        return self._known[key]

    async def _read_config(self, source: Source, repository: str, config: Descriptor) -> Platform | None:
        """Read a config, verify its digest, and return the platform in it, or None."""

        def read(work: Work) -> Platform | None:
            """Read the config. Runs on a worker thread."""
            download = BlobDownload(config, [BlobSource(source, repository)])
            return parse_config_platform(BufferedBlob.read_from(download, config.size or 0, work).content)

        return await self._calls.call(read, needs=(host_permit(source.host), DOWNLOADS))
