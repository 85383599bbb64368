"""Checks the tags of targets: each image must get a valid tag, and no two images of a mirror may get the same tag."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mirror.config.mirrors import Draft
from mirror.config.problems import quote_value
from mirror.config.tree import Document, Scalar
from mirror.oci.reference import Repository, is_tag, tag_hint
from mirror.selection.tag_rules import TagRules
from mirror.selection.tag_templates import KEEP_TAG, TAG, TagTemplate, common_tag


def check_target_tags(document: Document, drafts: Sequence[Draft]) -> None:
    """Check that each image gets a valid, unique tag on each target. Add problems to the document."""
    for draft in drafts:
        earlier: list[tuple[Repository, TagTemplate]] = []
        for target, template, path in draft.targets():
            node = document.node(path)
            written = node.text if isinstance(node, Scalar) else ""
            for problem in _problems(draft, target, template, written, earlier):
                document.add(path, problem)
                break
            earlier.append((target, template))


def _problems(
    draft: Draft,
    target: Repository,
    template: TagTemplate,
    written: str,
    earlier: Sequence[tuple[Repository, TagTemplate]],
) -> Iterator[str]:
    """Yield the problems with the tags of one target.

    written: the target in the configuration. earlier: the targets of the mirror that precede it."""
    rules = draft.mirror.tags
    if TAG in written and rules.literal is None and rules.digest is not None:
        yield f"the source has a digest, but no tag to use for {TAG}; write the tag for the target"
    if template.is_fixed and not _selects_one(rules):
        what = f"would give all images the tag {template}, but the mirror may select several images"
        yield f"{what}; write {quote_value(written.removesuffix(f':{template}'))} to keep their tags, or select one tag"
    for tag in rules.literal or ():
        result = template.apply(tag)
        if not is_tag(result):
            yield f"the tag {tag} becomes {quote_value(result)}; {tag_hint(result)}"
    if target == draft.mirror.source and template != KEEP_TAG and common_tag(rules, rules, template) is not None:
        what = f"would mirror onto itself: {target} is also the source, and the next run may copy the new tags again"
        yield f"{what}; use another repository, or list the tags of the source under `tags`"
    for other_template in [one for other, one in earlier if other == target and one != template]:
        shared = common_tag(rules, rules, template, other_template)
        if shared is not None:
            which = f"the tag {shared}" if shared != "*" else "the same tag"
            yield f"{target} is listed twice, and two images may get {which} there; use different tags"


def _selects_one(rules: TagRules) -> bool:
    """Return whether tag rules select exactly one image."""
    return len(rules.literal) == 1 if rules.literal is not None else rules.digest is not None
