"""Checks for conflicts between mirrors, such as two mirrors that write the same tag, and cycles of mirrors.

The module `cycles` checks cycles that include wildcards.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mirror.config.cycles import Readers, check_wildcard_cycles
from mirror.config.mirrors import Draft
from mirror.config.problems import KeyPath
from mirror.config.target_tags import check_target_tags
from mirror.config.tree import Document
from mirror.errors import printable
from mirror.oci.reference import Repository
from mirror.selection.locations import STREAM, is_bundle
from mirror.selection.repository_rules import RepositoryRules
from mirror.selection.tag_templates import KEEP_TAG, TagTemplate, common_tag, known_tags


def check(document: Document, drafts: Sequence[Draft], warnings: list[str]) -> None:
    """Check all mirrors for conflicts. Add problems to `document`, and warnings about valid settings to `warnings`."""
    _check_targets(document, drafts)
    _check_bundles(document, drafts)
    _check_bases(document, drafts)
    _check_intervals(document, drafts)
    with_valid_rules = [draft for draft in drafts if draft.has_valid_rules]
    check_target_tags(document, with_valid_rules)
    _check_writers(document, with_valid_rules)
    _check_cycles(document, with_valid_rules, warnings)


def _check_targets(document: Document, drafts: Sequence[Draft]) -> None:
    """Check that no mirror lists its own source as a target, or lists a target twice.

    The module `target_tags` checks targets whose tags differ from those of the source."""
    for draft in drafts:
        seen: set[tuple[Repository, TagTemplate]] = set()
        for target, template, path in draft.targets():
            if target == draft.mirror.source and template == KEEP_TAG:
                document.add(path, f"would mirror onto itself: {target} is also the source; use another repository")
            elif (target, template) in seen:
                document.add(path, f"{target} is listed twice; remove one of the entries")
            seen.add((target, template))


def _check_bundles(document: Document, drafts: Sequence[Draft]) -> None:
    """Check that no bundle is both a source and a target, because writing a bundle replaces its whole content."""
    readers = {
        draft.mirror.source.host: draft.mirror for draft in reversed(drafts) if is_bundle(draft.mirror.source.host)
    }
    for draft in drafts:
        for target, template, path in draft.targets():
            reader = readers.get(target.host)
            is_reported = target == draft.mirror.source and template == KEEP_TAG
            if reader is not None and target.host != STREAM and not is_reported:
                what = "is a bundle, which each run replaces as a whole, but"
                remedy = "use a different file for the source or the target, or use a layout (oci:DIR)"
                document.add(path, f"{printable(target.host)} {what} {reader.path} also reads from it; {remedy}")


def _check_bases(document: Document, drafts: Sequence[Draft]) -> None:
    """Check that all mirrors that write the same bundle have the same base."""
    first: dict[str, Draft] = {}
    for draft in drafts:
        for target, path in zip(draft.mirror.targets, draft.target_paths, strict=True):
            earlier = first.setdefault(target.host, draft) if is_bundle(target.host) else draft
            if _real_path(earlier.mirror.base) != _real_path(draft.mirror.base):
                what = f"{earlier.mirror.path} writes this bundle with a different `base`"
                document.add(path, f"{what}; set the same `base` for both mirrors")


def _check_intervals(document: Document, drafts: Sequence[Draft]) -> None:
    """Check that all mirrors that write the same bundle have the same interval, because each run writes all of it."""
    first: dict[str, Draft] = {}
    for draft in drafts:
        for target, path in zip(draft.mirror.targets, draft.target_paths, strict=True):
            earlier = first.setdefault(target.host, draft) if is_bundle(target.host) else draft
            if earlier.mirror.every != draft.mirror.every:
                what = f"{earlier.mirror.path} writes this bundle with a different `every`"
                document.add(path, f"{what}; set the same `every` for both mirrors")


def _real_path(path: Path | None) -> str | None:
    """Return a path with symbolic links resolved, or None if the path is None."""
    return None if path is None else os.path.realpath(path)


def _check_writers(document: Document, drafts: Sequence[Draft]) -> None:
    """Check that no two mirrors can write the same tag in a repository.

    Two wildcards with different rules for repositories may select different repositories, so they are not compared
    here. A run checks the repositories that they select."""
    writers: dict[Repository, list[tuple[Draft, TagTemplate, KeyPath]]] = defaultdict(list)
    for draft in drafts:
        for target, template, path in draft.targets():
            writers[target].append((draft, template, path))
    for target, found in writers.items():
        reported: set[KeyPath] = set()
        for rules in dict.fromkeys(draft.mirror.repositories for draft, _, _ in found):
            comparable = [one for one in found if one[0].mirror.repositories in (rules, RepositoryRules())]
            _check_writers_of_repository(document, target, comparable, reported)


def _check_writers_of_repository(
    document: Document,
    target: Repository,
    found: list[tuple[Draft, TagTemplate, KeyPath]],
    reported: set[KeyPath],
) -> None:
    """Check that no two of the mirrors in `found`, which all write to `target`, can write the same tag.

    reported: the key paths of targets that have been reported; they are not reported again."""
    named: dict[str, tuple[Draft, TagTemplate]] = {}
    open_ended: list[tuple[Draft, TagTemplate]] = []
    for draft, template, path in found:
        rules = draft.mirror.tags
        tags = known_tags(rules, template)
        earlier, tag = next(((named[tag][0], tag) for tag in tags or () if tag in named), (None, ""))
        rivals = open_ended if tags is not None else [*open_ended, *dict.fromkeys(named.values())]
        for rival, rival_template in rivals if earlier is None else ():
            shared = common_tag(rules, rival.mirror.tags, template, rival_template)
            if shared is not None:
                earlier, tag = rival, shared
                break
        if earlier is not None and earlier is not draft:
            if path in reported:
                continue
            reported.add(path)
            what = f"tag {tag}" if tag != "*" else "the same tags"
            document.add(
                path,
                f"{draft.mirror.path} and {earlier.mirror.path} (line {earlier.mirror.position.line}) may both write "
                f"{what} of {target}; use different target repositories, or list different tags",
            )
        elif tags is not None:
            named.update(dict.fromkeys(tags, (draft, template)))
        else:
            open_ended.append((draft, template))


def _check_cycles(document: Document, drafts: Sequence[Draft], warnings: list[str]) -> None:
    """Report each cycle of mirrors, and warn about each mirror that reads from a target of another mirror."""
    readers = Readers(drafts)
    feeds: dict[KeyPath, list[Draft]] = {}
    for draft in drafts:
        found = [
            reader
            for target, template, _ in draft.targets()
            for reader in readers.readers_of(target)
            if reader is not draft and common_tag(draft.mirror.tags, reader.mirror.tags, template) is not None
        ]
        feeds[draft.path] = list({reader.path: reader for reader in found}.values())
    literal = [draft for draft in drafts if not draft.mirror.wildcard]
    between_literal = {
        draft.path: [reader for reader in feeds[draft.path] if not reader.mirror.wildcard] for draft in literal
    }
    in_cycle = _report_cycles(document, literal, between_literal) | check_wildcard_cycles(document, drafts)
    for draft in drafts:
        warnings.extend(
            f"{reader.mirror.position}: {reader.mirror.path}: reads from a target of {draft.mirror.path}, "
            "so its own targets may be one run behind"
            for reader in feeds[draft.path]
            if not {draft.path, reader.path} <= in_cycle
        )


def _report_cycles(document: Document, drafts: Sequence[Draft], feeds: dict[KeyPath, list[Draft]]) -> set[KeyPath]:
    """Report each cycle of mirrors once, and return the key paths of the mirrors in cycles.

    feeds: maps the key path of a mirror to the mirrors that read from its targets. The search is depth-first."""
    in_cycle: set[KeyPath] = set()
    done: set[KeyPath] = set()
    for start in drafts:
        if start.path in done:
            continue
        chain: dict[KeyPath, Draft] = {start.path: start}
        left = [iter(feeds[start.path])]
        while chain:
            following = next(left[-1], None)
            if following is None:
                done.add(chain.popitem()[0])
                left.pop()
            elif following.path in chain:
                cycle = list(chain)[list(chain).index(following.path) :]
                in_cycle.update(cycle)
                names = " → ".join(chain[path].mirror.path for path in [*cycle, following.path])
                document.add((*following.path, "source"), f"mirrors form a cycle: {names}; remove one of them")
            elif following.path not in done:
                chain[following.path] = following
                left.append(iter(feeds[following.path]))
    return in_cycle
