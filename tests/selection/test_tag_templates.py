"""The tags of images on a target, and whether two mirrors may write the same one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.selection.tag_rules import TagRules
from mirror.selection.tag_templates import KEEP_TAG, TagTemplate, common_tag

DIGEST = Digest(f"sha256:{'a' * 64}")
SUFFIX, PREFIX, FIXED = TagTemplate("", "-x"), TagTemplate("v", ""), TagTemplate("stable", None)


@pytest.mark.parametrize(
    ("template", "tag", "expected"),
    [
        (KEEP_TAG, "1", "1"),
        (SUFFIX, "1", "1-x"),
        (PREFIX, "1", "v1"),
        (TagTemplate("a-", "-b"), "1", "a-1-b"),
        (FIXED, "1", "stable"),
        (KEEP_TAG, DIGEST, DIGEST),
        (SUFFIX, DIGEST, DIGEST),
        (FIXED, DIGEST, "stable"),
    ],
)
def test_an_image_gets_the_tag_of_the_template(template: TagTemplate, tag: str, expected: str) -> None:
    assert expected == template.apply(tag)


@pytest.mark.parametrize(
    ("one", "template", "other", "other_template", "shared"),
    [
        (TagRules(), SUFFIX, TagRules(), KEEP_TAG, "*"),  # one source may have the tag `1`, the other one `1-x`
        (TagRules(), SUFFIX, TagRules(), TagTemplate("", "-y"), None),
        (TagRules(), SUFFIX, TagRules(), TagTemplate("", "y-x"), "*"),
        (TagRules(), PREFIX, TagRules(), TagTemplate("w", ""), None),
        (TagRules(), PREFIX, TagRules(), SUFFIX, "*"),
        (TagRules(), KEEP_TAG, TagRules(literal=("1",)), FIXED, "stable"),
        (TagRules(exclude=("stable",)), KEEP_TAG, TagRules(literal=("1",)), FIXED, None),
        (TagRules(include=("1",)), SUFFIX, TagRules(literal=("1-x", "2-x")), KEEP_TAG, "1-x"),
        (TagRules(include=("2",)), SUFFIX, TagRules(literal=("1-x", "2-y")), KEEP_TAG, None),
        (TagRules(), SUFFIX, TagRules(literal=("-x", "x")), KEEP_TAG, None),
        (TagRules(literal=("1",)), SUFFIX, TagRules(literal=("1-x",)), KEEP_TAG, "1-x"),
        (TagRules(literal=("1",)), SUFFIX, TagRules(literal=("1",)), KEEP_TAG, None),
        (TagRules(digest=DIGEST), FIXED, TagRules(), KEEP_TAG, "stable"),
        (TagRules(digest=DIGEST), KEEP_TAG, TagRules(), SUFFIX, None),
    ],
)
def test_mirrors_conflict_if_two_images_may_get_one_tag(
    one: TagRules, template: TagTemplate, other: TagRules, other_template: TagTemplate, shared: str | None
) -> None:
    assert shared == common_tag(one, other, template, other_template)
    assert shared == common_tag(other, one, other_template, template)


_TEXTS = st.text("ab-", max_size=3)


@given(_TEXTS, _TEXTS, _TEXTS, _TEXTS, st.text("ab-", min_size=1, max_size=4), st.text("ab-", min_size=1, max_size=4))
def test_templates_that_share_no_tag_never_give_the_same_one(
    before: str, after: str, other_before: str, other_after: str, tag: str, other_tag: str
) -> None:
    one, other = TagTemplate(before, after), TagTemplate(other_before, other_after)
    assert tag == one.source_tag(one.apply(tag))
    if one.apply(tag) == other.apply(other_tag):
        assert one.may_share_tags(other)
        assert other.may_share_tags(one)
