"""Whether targets hold what they should: the registries are asked, never the tool."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.traffic import Content
from tests.registries.client import MANIFEST_TYPES, Client, Registry
from tests.support.oracle import snapshot

Wanted = Iterable[tuple[str, str]]  # repository, tag


def names_equal(content: Content, wanted: Wanted, targets: Iterable[Registry]) -> bool:
    """Every wanted tag names on each target the digest that it has at the source. A registry takes a manifest only if
    all it refers to is there, and a blob only if its digest is right; so this is nearly all there is to ask."""
    return all(_names_equal(content, wanted, target) for target in targets)


def _names_equal(content: Content, wanted: Wanted, target: Registry) -> bool:
    with target.client() as client:
        return all(_digest(client, repository, tag) == content.tags[repository, tag] for repository, tag in wanted)


def _digest(client: Client, repository: str, tag: str) -> str | None:
    accept = {"Accept": ", ".join(MANIFEST_TYPES)}
    answer = client.ask("HEAD", f"/v2/{repository}/manifests/{tag}", headers=accept, repository=repository)
    return answer.headers.get("docker-content-digest") if answer.status == 200 else None


def whole(content: Content, wanted: Wanted, targets: Iterable[Registry]) -> bool:
    """The same, and everything below is read and hashed."""
    for target in targets:
        taken = snapshot(target, sorted({repository for repository, _ in wanted}))
        if taken.problems or any(taken.tags.get(name) != content.tags[name] for name in wanted):
            return False
    return True
