"""Checks the content of targets with requests to the registries, independently of the tools."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.traffic import Content
from tests.registries.client import MANIFEST_TYPES, Client, Registry
from tests.support.oracle import snapshot

Wanted = Iterable[tuple[str, str]]  # repository, tag


def tags_equal(content: Content, wanted: Wanted, targets: Iterable[Registry]) -> bool:
    """Return whether every wanted tag has the same digest on each target as at the source.

    A registry accepts a manifest only if it has everything that the manifest refers to, and a blob only if its digest
    is right. So equal digests of tags nearly prove that the content is equal."""
    return all(_tags_equal_on(content, wanted, target) for target in targets)


def _tags_equal_on(content: Content, wanted: Wanted, target: Registry) -> bool:
    with target.client() as client:
        return all(_digest(client, repository, tag) == content.tags[repository, tag] for repository, tag in wanted)


def _digest(client: Client, repository: str, tag: str) -> str | None:
    """Return the digest of a tag; None if the registry does not have the tag."""
    accept = {"Accept": ", ".join(MANIFEST_TYPES)}
    response = client.ask("HEAD", f"/v2/{repository}/manifests/{tag}", headers=accept, repository=repository)
    return response.headers.get("docker-content-digest") if response.status == 200 else None


def content_equal(content: Content, wanted: Wanted, targets: Iterable[Registry]) -> bool:
    """Return whether every wanted tag has the same digest on each target, and all content below it is intact.

    For this, every manifest and blob is read and hashed."""
    for target in targets:
        found = snapshot(target, sorted({repository for repository, _ in wanted}))
        if found.problems or any(found.tags.get(name) != content.tags[name] for name in wanted):
            return False
    return True
