"""The contents of the files index.json and oci-layout, for a layout that holds many repositories.

Each entry of index.json describes a root manifest:

* The annotation `org.opencontainers.image.ref.name` holds its name, `REPOSITORY:TAG`.
* Other tools write only the tag in this annotation. Such a tag is assigned to the repositories in `adopts`, and to the
  repository whose name is empty.
* A root without a name can be read by its digest.
* Entries that cannot be used are preserved unchanged.

If `adopts` contains the empty name, and every tag has a repository, the empty name refers to the only repository of the
index. Source: OCI image-spec v1.1, image-layout.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator

from mirror.errors import MirrorError, NotFound, Refused, printable
from mirror.layout.root import Root, make_root, parse_annotations, split_name, to_json
from mirror.oci import strictjson
from mirror.oci.descriptor import parse_descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, Manifest
from mirror.oci.strictjson import Object, Value
from mirror.util.cancellation import Work

MAX_BYTES = 64 << 20
MAX_NODES = 4_000_000
MAX_ROOTS = 200_000  # an index.json with more entries could exceed MAX_NODES when it is read again


class Index:
    """The root manifests that index.json lists, by repository and tag. Not thread-safe. Does no I/O.

    what: the name of the file, for messages. adopts: the repositories to which tags without a repository name are
    assigned."""

    def __init__(self, what: str, adopts: Collection[str] = ()) -> None:
        self._what = what
        self._adopts = frozenset(adopts)
        self._other_members: Object = {}  # other members of the JSON document
        # The roots of each repository, by tag. A tag with several roots is ambiguous.
        self._tags: defaultdict[str, dict[str, tuple[Root, ...]]] = defaultdict(dict)
        self._nameless: dict[tuple[str | None, Digest], Root] = {}
        self._sparse: set[Digest] = set()  # the digests that have, or had, a root with platforms
        self._opaque_entries: list[str] = []
        self._entry_errors: list[Refused] = []
        self._entry_count = 0

    @classmethod
    def parse(cls, data: bytes, what: str, adopts: Collection[str] = ()) -> Index:
        """Parse index.json. Raises Refused (bundle_invalid) if the document as a whole is invalid.

        An entry that cannot be used does not raise an error. Its error is recorded, and `tags` returns it."""
        document = strictjson.parse(data, what=what, code="bundle_invalid", nodes=MAX_NODES)
        entries = document.get("manifests") if isinstance(document, dict) else None
        if not isinstance(document, dict) or document.get("schemaVersion") != 2 or not isinstance(entries, list):
            raise Refused(f"{what} is not the index.json of a layout", code="bundle_invalid")
        if "layers" in document or "config" in document:
            raise Refused(
                f"{what} is ambiguous: it has the members of both an index and an image manifest", code="bundle_invalid"
            )
        index = cls(what, adopts)
        index._other_members = {key: value for key, value in document.items() if key != "manifests"}
        for number, entry in enumerate(entries):
            index._add(entry, f"{what}: manifests[{number}]")
        return index

    def _add(self, entry: Value, where: str) -> None:
        """Add one entry of index.json. If the entry is invalid, record the error. where: its position, for messages."""
        text = to_json(entry)
        self._entry_count += 1
        try:
            descriptor = parse_descriptor(entry, where)
            name, repository, platforms = parse_annotations(entry, where)
            if platforms:
                self._sparse.add(descriptor.digest)
            if name is None:
                self._nameless[repository, descriptor.digest] = Root(descriptor, repository, text, platforms)
                return
            parsed = split_name(name, where)
        except Refused as error:
            self._entry_errors.append(error)
            parsed = None
        if parsed is None:
            self._opaque_entries.append(text)
            return
        repository, tag = parsed
        tags = self._tags[repository]
        tags[tag] = (*tags.get(tag, ()), Root(descriptor, repository, text, platforms))

    # ---- reading

    def repositories(self) -> list[str]:
        """Return the names of all repositories, sorted. The empty name is not included."""
        tagged = {name for name, tags in self._tags.items() if name and tags}
        return sorted(tagged | {name for name, _ in self._nameless if name})

    def unnamed_errors(self) -> list[Refused]:
        """Return errors that explain why an index with entries has no repository, or an empty list if it has one.

        Without these errors, a mirror of all repositories would silently copy nothing. Tags without a repository are
        not an error if `adopts` is not empty."""
        if self.repositories() or (self._adopts and self._tags.get("")):
            return []
        count = self._entry_count - len(self._entry_errors)
        if not count:
            return list(self._entry_errors)
        hint = "another tool wrote it; name the repository in the source: oci:DIR:REPOSITORY or FILE.tar:REPOSITORY"
        return [*self._entry_errors, Refused(f"{self._what} names no repository", hint=hint, code="bundle_invalid")]

    def tags(self, repository: str) -> list[str | MirrorError]:
        """Return the sorted tags of a repository. The list also contains an error for each entry that cannot be used.

        Raises NotFound if the repository does not exist."""
        repository = self.effective_repository(repository)
        own, adopted = self._tags.get(repository, {}), self._adopted_tags(repository)
        found: list[str | MirrorError] = []
        for tag in sorted({*own, *adopted}):
            roots = own.get(tag) or adopted[tag]
            found.append(tag if len(roots) == 1 else self._ambiguous_error(repository, tag))
        found += self._entry_errors
        if not found and not any(name == repository for name, _ in self._nameless):
            raise self.repository_not_found(repository)
        return found

    def effective_repository(self, repository: str) -> str:
        """Replace an empty repository name by the name of the only repository. Return other names unchanged.

        An empty name is also returned unchanged if `adopts` does not contain it, if a tag has no repository name, or if
        there is not exactly one repository."""
        if repository or "" not in self._adopts or self._tags.get(""):
            return repository
        names = self.repositories()
        return names[0] if len(names) == 1 else ""

    def _adopted_tags(self, repository: str) -> dict[str, tuple[Root, ...]]:
        """Return the roots, by tag, of the tags without a repository name that are assigned to `repository`."""
        return self._tags.get("", {}) if repository in self._adopts else {}

    def find(self, repository: str, tag: str) -> Root:
        """Return the root that a tag refers to. Raises NotFound, or Refused if several entries have this tag."""
        repository = self.effective_repository(repository)
        roots = self._tags.get(repository, {}).get(tag) or self._adopted_tags(repository).get(tag)
        if roots is None:
            raise NotFound(f"{self._what} has no entry with the name {repository}:{tag}")
        if len(roots) > 1:
            raise self._ambiguous_error(repository, tag)
        return roots[0]

    def platforms(self, repository: str, reference: str) -> tuple[str, ...]:
        """Return the platforms that a sparse image contains, or an empty tuple for other images."""
        if ":" in reference and reference not in self._sparse:
            return ()
        if ":" not in reference:
            try:
                return self.find(repository, reference).platforms
            except (NotFound, Refused):
                return ()
        roots = [
            root
            for root in self.roots()
            if root.descriptor.digest == reference and root.repository in (repository, None, "")
        ]
        complete = any(not root.platforms for root in roots)
        return () if complete else tuple(sorted({platform for root in roots for platform in root.platforms}))

    @property
    def has_unusable_entries(self) -> bool:
        """Whether the index has entries that `mirror` cannot interpret. Such an entry may need any content."""
        return bool(self._opaque_entries)

    def roots(self) -> Iterator[Root]:
        """Iterate over all root manifests in the index. Those without a name come last."""
        for tags in self._tags.values():
            for roots in tags.values():
                yield from roots
        yield from self._nameless.values()

    def references(self) -> Iterator[tuple[str, Digest]]:
        """Yield the name (`REPOSITORY:TAG` or `REPOSITORY@DIGEST`) and the digest of each root manifest."""
        for repository, tags in self._tags.items():
            for tag, roots in tags.items():
                for root in roots:
                    yield f"{repository}:{tag}" if repository else tag, root.descriptor.digest
        for repository_or_none, digest in self._nameless:
            yield f"{repository_or_none or ''}@{digest}", digest

    def repository_not_found(self, repository: str) -> NotFound:
        """Return the error for a repository that does not exist."""
        known = self.repositories()
        hint = f"existing repositories: {', '.join(known[:10])}{', …' if len(known) > 10 else ''}" if known else ""
        if "" in self._tags and repository not in self._adopts:
            hint += f"{'; ' if hint else ''}some tags have no repository name"
        return NotFound(f"{self._what} has no repository {repository!r}", hint=hint)

    def _ambiguous_error(self, repository: str, tag: str) -> Refused:
        """Return the error for a tag with several roots."""
        return Refused(
            f"{self._what}: {repository}:{tag} is ambiguous, because several entries have this name",
            hint="remove all but one of these entries",
            code="bundle_invalid",
        )

    # ---- writing

    def put(self, repository: str, reference: str, manifest: Manifest, platforms: tuple[str, ...] = ()) -> None:
        """Add `manifest` as a root: with the tag `reference`, or without a name if `reference` is a digest.

        platforms: the platforms that a sparse image has; empty for a complete one. An existing root with this tag is
        replaced. Entries without a name that refer to children of `manifest` are removed. Raises Refused (too_many) if
        the index already has MAX_ROOTS entries."""
        if self._entry_count >= MAX_ROOTS:
            hint = "write further images to another layout"
            raise Refused(f"{self._what} has the maximum of {self._entry_count} entries", hint=hint, code="too_many")
        if platforms:
            self._sparse.add(manifest.digest)
        if ":" in reference:
            self._remove_unnamed(repository, manifest.digest)
            self._nameless[repository or None, manifest.digest] = make_root(manifest, repository, None, platforms)
        else:
            tags = self._tags[repository]
            self._entry_count -= len(tags.get(reference, ()))
            name = f"{repository}:{reference}" if repository else reference
            tags[reference] = (make_root(manifest, repository, name, platforms),)
            self._remove_unnamed(repository, manifest.digest)
        self._entry_count += 1
        for child in manifest.children:
            self._remove_unnamed(repository, child.digest)

    def _remove_unnamed(self, repository: str, digest: Digest) -> bool:
        """Remove the root that has this digest and no name. Return whether there was one."""
        removed = self._nameless.pop((repository or None, digest), None) is not None
        self._entry_count -= removed
        return removed

    def remove(self, repository: str, reference: str) -> bool:
        """Remove a tag, or all entries for a manifest if `reference` is a digest. Return whether anything was removed.

        If `repository` is in `adopts`, matching tags without a repository name are removed as well."""
        adopted = repository in self._adopts
        removed = [self._remove(name, reference) for name in ((repository, "") if adopted else (repository,))]
        return any(removed)

    def _remove(self, repository: str, reference: str) -> bool:
        """Remove a tag, or all entries for a digest, of exactly this repository name. Return whether any existed."""
        tags = self._tags.get(repository, {})
        if ":" in reference:
            removed = [tag for tag, roots in tags.items() if any(one.descriptor.digest == reference for one in roots)]
            nameless = self._remove_unnamed(repository, Digest.parse(reference))
        else:
            removed, nameless = [reference] if reference in tags else [], False
        for tag in removed:
            self._entry_count -= len(tags.pop(tag))
        return nameless or bool(removed)

    def render(self) -> bytes:
        """Return the content of index.json, with one root per line. Equal entries give equal bytes."""
        tagged = (
            root.text for _, tags in sorted(self._tags.items()) for _, roots in sorted(tags.items()) for root in roots
        )
        nameless = sorted(root.text for root in self._nameless.values())
        entries = ",\n".join([*tagged, *nameless, *self._opaque_entries])
        head = {"schemaVersion": 2, "mediaType": OCI_INDEX, **self._other_members}
        before = to_json(head)[:-1]
        return f'{before},"manifests":[\n{entries}\n]}}\n'.encode()


def find_repositories(
    digest: Digest, roots: Iterable[Root], read: Callable[[Digest], Manifest], work: Work
) -> tuple[set[str | None], set[str | None]]:
    """Return the repositories in which `digest` is a root, and the repositories in which an index refers to it.

    In these sets, None represents roots that do not name their repository. read: reads a manifest; missing and
    damaged manifests are treated as if they had no children. Raises Cancelled, LocalError."""
    children: dict[Digest, tuple[Digest, ...]] = {}
    as_root: set[str | None] = set()
    under_index: set[str | None] = set()
    todo = list(dict.fromkeys((root.repository, root.descriptor.digest) for root in roots))
    as_root.update(repository for repository, root in todo if root == digest)
    seen = set(todo)
    while todo:
        work.stop.raise_if_requested()
        repository, parent = todo.pop()
        if parent not in children:
            children[parent] = _children(parent, read)
        for child in children[parent]:
            if child == digest:
                under_index.add(repository)
            if (repository, child) not in seen:
                seen.add((repository, child))
                todo.append((repository, child))
    return as_root, under_index


def _children(digest: Digest, read: Callable[[Digest], Manifest]) -> tuple[Digest, ...]:
    """Return the digests of a manifest's children, or an empty tuple if the manifest is missing or damaged."""
    try:
        return tuple(child.digest for child in read(digest).children)
    except (NotFound, Refused):
        return ()


def check_version(data: bytes, what: str) -> None:
    """Raise Refused (bundle_invalid) unless `data` is the content of an oci-layout file with version 1."""
    document = strictjson.parse(data, what=what, code="bundle_invalid")
    version = document.get("imageLayoutVersion") if isinstance(document, dict) else None
    if not isinstance(version, str) or version.split(".")[0] != "1":
        raise Refused(
            f"{what}: imageLayoutVersion is {printable(version, 40)!r}, expected 1.0.0", code="bundle_invalid"
        )
