"""Determines which tags target repositories have, from their tag lists and from the state."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial

from mirror.oci.digest import Digest
from mirror.oci.reference import ListedTag, Repository
from mirror.sync.plan_hints import PlanHints
from mirror.sync.plan_model import MirrorEntry, SourceReference, TargetEntry, wanted_platforms
from mirror.sync.planner_queries import list_target_tags, read_equal_tags, read_target_tags
from mirror.transfer.calls import Calls
from mirror.transfer.shared_tasks import SharedTasks
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE
from mirror.util.structs import Struct, field, replace

KeepTargetTags = Callable[[Repository, Collection[str]], None]


class TargetTags(Struct):
    """The tags of a target repository, as far as they are known from its tag list and the state.

    tags: the listed tags; None if they are not listed, so that each tag is requested by name.
    known_digests: the digests that are known without requesting the tags, by tag.
    known_equal: immutable tags that were equal to the source in an earlier run, with their digests.
    may_have_blobs: whether the repository may contain blobs; None if this is not known yet.
    damaged: tags whose manifest the target cannot return, with the digest that the target reports for each, if any.
    last_equal: like `known_equal`, but also set if hints are not trusted. Used only to repair damaged tags.
    sparse: the platforms of sparse images, by tag and digest, according to the state or to a store on disk."""

    tags: Collection[str] | None = None
    known_digests: Mapping[str, Digest] = field(default_factory=dict)
    known_equal: Mapping[str, Digest] = field(default_factory=dict)
    may_have_blobs: bool | None = None
    damaged: dict[str, str | None] = field(default_factory=dict)
    last_equal: Mapping[str, Digest] = field(default_factory=dict)
    sparse: dict[str, Mapping[Digest, str]] = field(default_factory=dict)

    def platforms(self, tag: str, digest: object) -> str | None:
        """Return the platforms of an image, separated by commas, or None if it is not known to be sparse."""
        return next((text for known, text in self.sparse.get(tag, {}).items() if known == digest), None)

    def damaged_digest(self, tag: str) -> str | None:
        """Return the digest that a damaged tag had, or None if it is unknown.

        The digest that the target reports takes precedence over the digest that an earlier run recorded."""
        return self.damaged.get(tag) or self.last_equal.get(tag)


class TargetTagReader:
    """Determines which tags target repositories have, from their tag lists and from the state.

    use_hints: whether to trust the state, and the digests in tag lists.
    repair: whether to determine the digests that damaged immutable tags had.
    keep_tags: called on a thread with each tag list of a target."""

    def __init__(
        self,
        calls: Calls,
        hints: PlanHints,
        *,
        use_hints: bool,
        repair: bool = False,
        keep_tags: KeepTargetTags | None = None,
    ) -> None:
        self._calls = calls
        self._blob_checks: SharedTasks[Repository, bool] = SharedTasks(calls.tasks)
        self._hints = hints
        self._use_hints = use_hints
        self._repair = repair
        self._keep_tags = keep_tags

    async def list_if_needed(self, entry: MirrorEntry, target: TargetEntry) -> TargetTags | None:
        """List the tags of a target if planning certainly needs them. Otherwise, return None without a request."""
        if entry.rules.is_literal or (target.exclusive and self._use_hints):
            return None
        return await self._list_tags(target)

    async def read(
        self,
        entry: MirrorEntry,
        target: TargetEntry,
        references: Sequence[SourceReference],
        listing: Awaitable[TargetTags | None],
    ) -> TargetTags:
        """Return the tags of a target, as far as the state and, if needed, its tag list contain them.

        references: the references that get these tags. listing: the task that runs `list_if_needed`."""
        name = str(target.repository)
        last_equal: dict[str, Digest] = {}
        if entry.rules.immutable and (self._use_hints or self._repair):
            last_equal = await self._calls.call(
                lambda work: read_equal_tags(self._hints, entry, target, references), policy=ONCE
            )
        sparse: dict[str, Mapping[Digest, str]] = {}
        if self._hints.has_sparse_images(name):
            sparse |= await self._calls.call(lambda work: self._hints.sparse_images(name), policy=ONCE)
        known_equal = {}
        if self._use_hints:
            wanted = wanted_platforms(entry)
            known_equal = {
                tag: digest for tag, digest in last_equal.items() if sparse.get(tag, {}).get(digest, wanted) == wanted
            }
        if target.exclusive and self._use_hints:
            known = await self._calls.call(
                lambda work: read_target_tags(self._hints, name, [target.tag_of(reference) for reference in references])
            )
            if known:
                # No other tool writes to this repository, so no request is sent for a tag in the state.
                return TargetTags(known_digests=known, known_equal=known_equal, may_have_blobs=True, sparse=sparse)
        if entry.rules.is_literal:
            return TargetTags(known_equal=known_equal, last_equal=last_equal, sparse=sparse)
        target_tags = await listing or await self._list_tags(target)
        return replace(target_tags, known_equal=known_equal, last_equal=last_equal, sparse=sparse)

    async def may_have_blobs(self, target: TargetEntry, target_tags: TargetTags) -> bool:
        """Return whether a target repository may contain blobs: it has tags, or an earlier run did not finish."""
        return await self._blob_checks.run(target.repository, lambda: self._check_for_blobs(target, target_tags))

    async def _check_for_blobs(self, target: TargetEntry, target_tags: TargetTags) -> bool:
        """Return whether a target repository may contain blobs. If this is not known yet, list its tags."""
        if target_tags.may_have_blobs is None:
            target_tags.may_have_blobs = bool((await self._list_tags(target)).may_have_blobs)
        return target_tags.may_have_blobs

    async def _list_tags(self, target: TargetEntry) -> TargetTags:
        """List the tags of a target on a worker thread, with a permit for its host."""
        run = partial(self._read_tags, target)
        return await self._calls.call_host(target.store.host, run)

    def _read_tags(self, target: TargetEntry, work: Work) -> TargetTags:
        """List the tags of a target. Blocks, so it runs on a worker thread."""
        tags = list_target_tags(target.store, target.repository.path, work)
        if tags is None:
            return TargetTags(may_have_blobs=True)
        if self._keep_tags is not None:
            self._keep_tags(target.repository, tags)
        digests = {str(tag): tag.digest for tag in tags if isinstance(tag, ListedTag)}
        # After a killed run, a repository may have blobs but no tag. Registries then respond with 404.
        return TargetTags(
            tags=tags,
            known_digests=digests if self._use_hints else {},
            may_have_blobs=bool(tags) or self._hints.is_unfinished(str(target.repository)),
        )
