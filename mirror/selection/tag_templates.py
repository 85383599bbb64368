"""The tags that images get on a target, as in `HOST/REPOSITORY:{tag}-debian`, or `HOST/REPOSITORY:stable`."""

from __future__ import annotations

from mirror.selection.tag_rules import TagRules
from mirror.util.structs import Struct

TAG = "{tag}"
ANY_TAG = "any-tag-0"  # replaces `{tag}` while the other parts of a target are checked


class TagTemplate(Struct, frozen=True):
    """A template for the tags on a target: the text before and after the tag of the source.

    after: None if the template is a fixed tag, which is then `before`."""

    before: str = ""
    after: str | None = ""

    @property
    def is_fixed(self) -> bool:
        """Whether the template is a fixed tag, so that only a single image can use it."""
        return self.after is None

    def apply(self, tag: str) -> str:
        """Return the tag on the target for a tag at the source. The result may be too long for a tag.

        If `tag` is a digest, the image has no tag at the source, and gets a tag only if the template is fixed."""
        if self.after is None:
            return self.before
        return f"{self.before}{tag}{self.after}" if (self.before or self.after) and ":" not in tag else tag

    def source_tag(self, tag: str) -> str | None:
        """Return the tag at the source to which a tag on the target corresponds, or None if there is none.

        The template must not be fixed."""
        after = self.after or ""
        longer = len(tag) > len(self.before) + len(after)
        if not (longer and tag.startswith(self.before) and tag.endswith(after)):
            return None
        return tag[len(self.before) : len(tag) - len(after)]

    def may_share_tags(self, other: TagTemplate) -> bool:
        """Return whether two templates, neither of which is fixed, can result in the same tag."""
        after, other_after = self.after or "", other.after or ""
        prefixes_agree = self.before.startswith(other.before) or other.before.startswith(self.before)
        return prefixes_agree and (after.endswith(other_after) or other_after.endswith(after))

    def __str__(self) -> str:
        return self.before if self.after is None else f"{self.before}{TAG}{self.after}"


KEEP_TAG = TagTemplate()


def parse_tag_template(tag: str) -> TagTemplate:
    """Parse the tag of a target, in which ANY_TAG replaces `{tag}`, as a template."""
    before, given, after = tag.partition(ANY_TAG)
    return TagTemplate(before, after if given else None)


def common_tag(
    one: TagRules, other: TagRules, template: TagTemplate = KEEP_TAG, other_template: TagTemplate = KEEP_TAG
) -> str | None:
    """Return a tag that images of two selections may both get on a target, or None if there is no such tag.

    Return `*` if the tag depends on the tags at the source. template, other_template: the templates for the tags of the
    images that `one` and `other` select; KEEP_TAG for a mirror that reads the images."""
    known, other_known = known_tags(one, template), known_tags(other, other_template)
    if known is not None and other_known is not None:
        return next((tag for tag in known if tag in other_known), None)
    if known is not None:
        return next((tag for tag in known if _may_get(other, other_template, tag)), None)
    if other_known is not None:
        return next((tag for tag in other_known if _may_get(one, template, tag)), None)
    return "*" if template.may_share_tags(other_template) else None


def known_tags(rules: TagRules, template: TagTemplate) -> dict[str, None] | None:
    """Return the tags that the selected images get on a target, or None if these depend on the tags at the source."""
    if template.is_fixed:
        return {template.before: None}
    if not rules.is_literal:
        return None
    return {template.apply(tag): None for tag in rules.literal or ()}


def _may_get(rules: TagRules, template: TagTemplate, tag: str) -> bool:
    """Return whether an image that the rules select may get a given tag. The rules must not be literal."""
    source_tag = template.source_tag(tag)
    return source_tag is not None and rules.rejecting_rule(source_tag) is None
