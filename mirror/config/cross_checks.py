"""What no single mirror shows: mirrors onto themselves, two writers of one tag, circles (cycles.py: of wildcards)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mirror.config.cycles import Readers, check_growth
from mirror.config.mirrors import Draft
from mirror.config.problems import KeyPath
from mirror.config.tree import Document
from mirror.errors import printable
from mirror.oci.reference import Repository
from mirror.selection.locations import STREAM, is_bundle
from mirror.selection.tag_rules import overlap


def check(document: Document, drafts: Sequence[Draft], warnings: list[str]) -> None:
    """Note problems in `document`, and what is only odd in `warnings`."""
    _itself_or_twice(document, drafts)
    _bundles_both_ways(document, drafts)
    _different_bases(document, drafts)
    sure = [draft for draft in drafts if draft.sure]
    _two_writers(document, sure)
    _circles(document, sure, warnings)


def _itself_or_twice(document: Document, drafts: Sequence[Draft]) -> None:
    for draft in drafts:
        seen: set[Repository] = set()
        for target, path in zip(draft.mirror.targets, draft.target_paths, strict=True):
            if target == draft.mirror.source:
                document.add(path, f"would mirror onto itself: {target} is the source, too; give another repository")
            elif target in seen:
                document.add(path, f"{target} is given twice; remove one")
            seen.add(target)


def _bundles_both_ways(document: Document, drafts: Sequence[Draft]) -> None:
    """A bundle that is written is replaced as a whole: what this configuration reads from it would be lost."""
    readers = {
        draft.mirror.source.host: draft.mirror for draft in reversed(drafts) if is_bundle(draft.mirror.source.host)
    }
    for draft in drafts:
        for target, path in zip(draft.mirror.targets, draft.target_paths, strict=True):
            reader = readers.get(target.host)
            if reader is not None and target.host != STREAM and target != draft.mirror.source:
                what = "is a bundle, which is replaced as a whole, and"
                remedy = "use another file for one of them, or a layout (oci:DIR)"
                document.add(path, f"{printable(target.host)} {what} {reader.path} reads from it; {remedy}")


def _different_bases(document: Document, drafts: Sequence[Draft]) -> None:
    first: dict[str, Draft] = {}
    for draft in drafts:
        for target, path in zip(draft.mirror.targets, draft.target_paths, strict=True):
            earlier = first.setdefault(target.host, draft) if is_bundle(target.host) else draft
            if _real(earlier.mirror.base) != _real(draft.mirror.base):
                document.add(path, f"{earlier.mirror.path} writes this bundle with another `base`; give both the same")


def _real(path: Path | None) -> str | None:
    return None if path is None else os.path.realpath(path)


def _two_writers(document: Document, drafts: Sequence[Draft]) -> None:
    writers: dict[Repository, list[tuple[Draft, KeyPath]]] = defaultdict(list)
    for draft in drafts:
        for target, path in zip(draft.mirror.targets, draft.target_paths, strict=True):
            writers[target].append((draft, path))
    for target, found in writers.items():
        _one_writer_a_tag(document, target, found)


def _one_writer_a_tag(document: Document, target: Repository, found: list[tuple[Draft, KeyPath]]) -> None:
    named: dict[str, Draft] = {}
    open_ended: list[Draft] = []
    for draft, path in found:
        rules = draft.mirror.tags
        tags: Sequence[str] = () if rules.literal is None else rules.literal
        earlier, tag = next(((named[tag], tag) for tag in tags if tag in named), (None, ""))
        rivals = open_ended if rules.is_literal else [*open_ended, *dict.fromkeys(named.values())]
        for rival in rivals if earlier is None else ():
            shared = overlap(rules, rival.mirror.tags)
            if shared is not None:
                earlier, tag = rival, shared
                break
        if earlier is not None and earlier is not draft:
            what = f"tag {tag}" if tag != "*" else "the same tags"
            document.add(
                path,
                f"{draft.mirror.path} and {earlier.mirror.path} (line {earlier.mirror.place.line}) may both write "
                f"{what} of {target}; give each its own repository, or lists of different tags",
            )
        elif rules.is_literal:
            named.update(dict.fromkeys(tags, draft))
        else:
            open_ended.append(draft)


def _circles(document: Document, drafts: Sequence[Draft], warnings: list[str]) -> None:
    readers = Readers(drafts)
    feeds: dict[KeyPath, list[Draft]] = {}
    for draft in drafts:
        found = [
            reader
            for target in draft.mirror.targets
            for reader in readers.of(target)
            if reader is not draft and overlap(draft.mirror.tags, reader.mirror.tags) is not None
        ]
        feeds[draft.path] = list({reader.path: reader for reader in found}.values())
    literal = [draft for draft in drafts if not draft.mirror.wildcard]
    between_literal = {
        draft.path: [reader for reader in feeds[draft.path] if not reader.mirror.wildcard] for draft in literal
    }
    in_circle = _report_circles(document, literal, between_literal) | check_growth(document, drafts)
    for draft in drafts:
        warnings.extend(
            f"{reader.mirror.place}: {reader.mirror.path}: reads what {draft.mirror.path} writes: "
            "it may be one run behind"
            for reader in feeds[draft.path]
            if not {draft.path, reader.path} <= in_circle
        )


def _report_circles(document: Document, drafts: Sequence[Draft], feeds: dict[KeyPath, list[Draft]]) -> set[KeyPath]:
    """Depth first, without recursion; each circle is reported once. -> the mirrors that are part of one."""
    in_circle: set[KeyPath] = set()
    done: set[KeyPath] = set()
    for start in drafts:
        if start.path in done:
            continue
        way: dict[KeyPath, Draft] = {start.path: start}
        left = [iter(feeds[start.path])]
        while way:
            following = next(left[-1], None)
            if following is None:
                done.add(way.popitem()[0])
                left.pop()
            elif following.path in way:
                circle = list(way)[list(way).index(following.path) :]
                in_circle.update(circle)
                names = " → ".join(way[path].mirror.path for path in [*circle, following.path])
                document.add(
                    (*following.path, "source"), f"mirrors write in a circle: {names}; break it at one of them"
                )
            elif following.path not in done:
                way[following.path] = following
                left.append(iter(feeds[following.path]))
    return in_circle
