"""The index.json of a layout that holds many repositories: its roots, by repository and tag; and its oci-layout file.

The name of a root, `org.opencontainers.image.ref.name`, is `REPOSITORY:TAG`. A name that is a tag only, as other tools
write it, belongs to whatever repository is asked for it (`adopts`), and to the one called ``; if that is asked for and
there are no such names, it is the only repository that there is. A root without a name can be reached by its digest.
Entries that we cannot use are kept as they are. Source: OCI image-spec v1.1, image-layout.md.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator

from mirror.errors import ConfigError, MirrorError, NotFound, Refused, printable
from mirror.layout.inventory import REF_NAME
from mirror.oci import strictjson
from mirror.oci.descriptor import Descriptor, parse_descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, Manifest
from mirror.oci.reference import Reference, is_path, is_tag
from mirror.oci.strictjson import Object, Value
from mirror.util.cancellation import Work
from mirror.util.structs import Struct

MAX_BYTES = 64 << 20
MAX_NODES = 4_000_000
MAX_ROOTS = 200_000  # what we write stays readable by ourselves
OF_REPOSITORY = "mirror.repository"  # annotation of a root without a name: where it was put


class Root(Struct, frozen=True):
    """An entry of index.json. repository: None: of none in particular; text: as it is written."""

    descriptor: Descriptor
    repository: str | None
    text: str


class Index:
    """Not thread-safe, does no I/O. what: for messages; adopts: repositories that have the tags without one."""

    def __init__(self, what: str, adopts: Collection[str] = ()) -> None:
        self._what = what
        self._adopts = frozenset(adopts)
        self._rest: Object = {}  # other members of the document
        self._tags: defaultdict[str, dict[str, tuple[Root, ...]]] = defaultdict(dict)  # more than one: ambiguous
        self._nameless: dict[tuple[str | None, Digest], Root] = {}
        self._kept: list[str] = []
        self._wrong: list[Refused] = []
        self._count = 0

    @classmethod
    def parse(cls, data: bytes, what: str, adopts: Collection[str] = ()) -> Index:
        """Raises Refused (bundle_invalid). What is wrong with one entry is told when tags are listed."""
        document = strictjson.parse(data, what=what, code="bundle_invalid", nodes=MAX_NODES)
        entries = document.get("manifests") if isinstance(document, dict) else None
        if not isinstance(document, dict) or document.get("schemaVersion") != 2 or not isinstance(entries, list):
            raise Refused(f"{what} is not the index of a layout", code="bundle_invalid")
        if "layers" in document or "config" in document:
            raise Refused(f"{what} can be read as an index and as an image", code="bundle_invalid")
        index = cls(what, adopts)
        index._rest = {key: value for key, value in document.items() if key != "manifests"}
        for number, entry in enumerate(entries):
            index._add(entry, f"{what}: manifests[{number}]")
        return index

    def _add(self, entry: Value, where: str) -> None:
        text = _written(entry)
        self._count += 1
        try:
            descriptor = parse_descriptor(entry, where)
            name, repository = _annotations(entry, where)
            if name is None:
                self._nameless[repository, descriptor.digest] = Root(descriptor, repository, text)
                return
            place = _split(name, where)
        except Refused as error:
            self._wrong.append(error)
            place = None
        if place is None:
            self._kept.append(text)
            return
        repository, tag = place
        tags = self._tags[repository]
        tags[tag] = (*tags.get(tag, ()), Root(descriptor, repository, text))

    # ---- reading

    def repositories(self) -> list[str]:
        """Those that have a name."""
        named = {name for name, tags in self._tags.items() if name and tags}
        return sorted(named | {name for name, _ in self._nameless if name})

    def strays(self) -> list[Refused]:
        """Why there are images and no repository: who wants all of them would else pass over every one in silence."""
        if self.repositories() or (self._adopts and self._tags.get("")):
            return []
        count = self._count - len(self._wrong)
        if not count:
            return list(self._wrong)
        hint = "another tool made it; give it a name, as in DIR:REPOSITORY or FILE.tar:REPOSITORY, as a source"
        return [*self._wrong, Refused(f"{self._what} names no repository", hint=hint, code="bundle_invalid")]

    def tags(self, repository: str) -> list[str | MirrorError]:
        """In order; what cannot be used is an error in its place. Raises NotFound: there is no such repository."""
        repository = self._meant(repository)
        own, bare = self._tags.get(repository, {}), self._bare(repository)
        found: list[str | MirrorError] = []
        for tag in sorted({*own, *bare}):
            roots = own.get(tag) or bare[tag]
            found.append(tag if len(roots) == 1 else self._ambiguous(repository, tag))
        found += self._wrong
        if not found and not any(name == repository for name, _ in self._nameless):
            raise self.unknown(repository)
        return found

    def _meant(self, repository: str) -> str:
        if repository or "" not in self._adopts or self._tags.get(""):
            return repository
        names = self.repositories()
        return names[0] if len(names) == 1 else ""

    def _bare(self, repository: str) -> dict[str, tuple[Root, ...]]:
        return self._tags.get("", {}) if repository in self._adopts else {}

    def find(self, repository: str, tag: str) -> Root:
        """Raises NotFound; Refused: the name is there more than once."""
        repository = self._meant(repository)
        roots = self._tags.get(repository, {}).get(tag) or self._bare(repository).get(tag)
        if roots is None:
            raise NotFound(f"{self._what} does not name {repository}:{tag}")
        if len(roots) > 1:
            raise self._ambiguous(repository, tag)
        return roots[0]

    def roots(self) -> Iterator[Root]:
        for tags in self._tags.values():
            for roots in tags.values():
                yield from roots
        yield from self._nameless.values()

    def references(self) -> Iterator[tuple[str, Digest]]:
        """What each image is called here, `REPOSITORY:TAG` or `REPOSITORY@DIGEST`, and its root."""
        for repository, tags in self._tags.items():
            for tag, roots in tags.items():
                for root in roots:
                    yield f"{repository}:{tag}" if repository else tag, root.descriptor.digest
        for repository_or_none, digest in self._nameless:
            yield f"{repository_or_none or ''}@{digest}", digest

    def unknown(self, repository: str) -> NotFound:
        """The error for a repository that is not there."""
        known = self.repositories()
        hint = f"it has: {', '.join(known[:10])}{', …' if len(known) > 10 else ''}" if known else ""
        if "" in self._tags and repository not in self._adopts:
            hint += f"{'; and ' if hint else 'it has '}names without a repository"
        return NotFound(f"{self._what} has no repository {repository!r}", hint=hint)

    def _ambiguous(self, repository: str, tag: str) -> Refused:
        return Refused(
            f"{self._what} names {repository}:{tag} more than once: which one is meant cannot be told",
            hint="remove all but one of these entries",
            code="bundle_invalid",
        )

    # ---- writing

    def put(self, repository: str, reference: str, manifest: Manifest) -> None:
        """Make `manifest` a root, under a tag or, for a digest, without a name; what it refers to is none any more.

        Raises Refused (too_many)."""
        if self._count >= MAX_ROOTS:
            raise Refused(f"{self._what} has {self._count} entries, more than fit", code="too_many")
        if ":" in reference:
            self._take_nameless(repository, manifest.digest)
            self._nameless[repository or None, manifest.digest] = _root(manifest, repository, None)
        else:
            tags = self._tags[repository]
            self._count -= len(tags.get(reference, ()))
            tags[reference] = (_root(manifest, repository, f"{repository}:{reference}" if repository else reference),)
            self._take_nameless(repository, manifest.digest)
        self._count += 1
        for child in manifest.children:
            self._take_nameless(repository, child.digest)

    def _take_nameless(self, repository: str, digest: Digest) -> bool:
        gone = self._nameless.pop((repository or None, digest), None) is not None
        self._count -= gone
        return gone

    def remove(self, repository: str, reference: str) -> bool:
        """Remove a tag, or by a digest the root without a name and all tags of it. -> whether it was there.

        A repository that adopts the names without a repository loses those as well."""
        adopted = repository in self._adopts
        removed = [self._remove(name, reference) for name in ((repository, "") if adopted else (repository,))]
        return any(removed)

    def _remove(self, repository: str, reference: str) -> bool:
        tags = self._tags.get(repository, {})
        if ":" in reference:
            gone = [tag for tag, roots in tags.items() if any(one.descriptor.digest == reference for one in roots)]
            nameless = self._take_nameless(repository, Digest.parse(reference))
        else:
            gone, nameless = [reference] if reference in tags else [], False
        for tag in gone:
            self._count -= len(tags.pop(tag))
        return nameless or bool(gone)

    def render(self) -> bytes:
        """The document, each root on a line of its own, the same for the same content."""
        named = (
            root.text for _, tags in sorted(self._tags.items()) for _, roots in sorted(tags.items()) for root in roots
        )
        nameless = sorted(root.text for root in self._nameless.values())
        entries = ",\n".join([*named, *nameless, *self._kept])
        head = {"schemaVersion": 2, "mediaType": OCI_INDEX, **self._rest}
        before = _written(head)[:-1]
        return f'{before},"manifests":[\n{entries}\n]}}\n'.encode()


def _written(value: Value) -> str:
    return json.dumps(value, separators=(",", ":"))


def _root(manifest: Manifest, repository: str, name: str | None) -> Root:
    descriptor = Descriptor(manifest.digest, manifest.size, manifest.media_type)
    annotations = {REF_NAME: name} if name is not None else {OF_REPOSITORY: repository} if repository else {}
    entry: Object = {
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": manifest.size,
        "annotations": dict(annotations),
    }
    return Root(descriptor, repository if name is not None else repository or None, _written(entry))


def _annotations(entry: Value, where: str) -> tuple[str | None, str | None]:
    """-> the name, and for what has none: the repository."""
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    if annotations is None:
        return None, None
    if not isinstance(annotations, dict):
        raise Refused(f"{where}: annotations is not an object", code="bundle_invalid")
    name, repository = annotations.get(REF_NAME), annotations.get(OF_REPOSITORY)
    if name is not None and not isinstance(name, str):
        raise Refused(f"{where} has a name that is no text", code="bundle_invalid")
    return name, repository if is_path(repository) and isinstance(repository, str) else None


def _split(name: str, where: str) -> tuple[str, str] | None:
    """Repository and tag of a name; None: it names something in a way of its own (`host:5000/app:v1`).

    Raises Refused: it breaks every grammar."""
    repository, colon, tag = name.rpartition(":")
    if is_tag(tag) and (is_path(repository) if colon else True):
        return repository, tag
    try:
        Reference.parse(name)
    except ConfigError:
        raise Refused(f"{where} has a name that is none: {printable(name, 80)!r}", code="ref_invalid") from None
    return None


def holders(
    digest: Digest, roots: Iterable[Root], read: Callable[[Digest], Manifest], work: Work
) -> tuple[set[str | None], set[str | None]]:
    """-> the repositories in which `digest` is a root, and those in which an index refers to it.

    None: a root of no repository in particular. read: reads a manifest; what is missing or damaged leads nowhere.
    Raises Cancelled, LocalError."""
    children: dict[Digest, tuple[Digest, ...]] = {}
    named: set[str | None] = set()
    below: set[str | None] = set()
    todo = list(dict.fromkeys((root.repository, root.descriptor.digest) for root in roots))
    named.update(repository for repository, root in todo if root == digest)
    seen = set(todo)
    while todo:
        work.stop.check()
        repository, parent = todo.pop()
        if parent not in children:
            children[parent] = _children(parent, read)
        for child in children[parent]:
            if child == digest:
                below.add(repository)
            if (repository, child) not in seen:
                seen.add((repository, child))
                todo.append((repository, child))
    return named, below


def _children(digest: Digest, read: Callable[[Digest], Manifest]) -> tuple[Digest, ...]:
    try:
        return tuple(child.digest for child in read(digest).children)
    except (NotFound, Refused):
        return ()


def check_version(data: bytes, what: str) -> None:
    """Raises Refused (bundle_invalid) unless `data` is an oci-layout file of version 1."""
    document = strictjson.parse(data, what=what, code="bundle_invalid")
    version = document.get("imageLayoutVersion") if isinstance(document, dict) else None
    if not isinstance(version, str) or version.split(".")[0] != "1":
        raise Refused(f"{what}: imageLayoutVersion is {printable(version, 40)!r}, want 1.0.0", code="bundle_invalid")
