"""The sentence for each rule of a mirror that selects a tag or leaves it out."""

from __future__ import annotations

import pytest

from mirror.oci.digest import Digest
from mirror.selection.rule_descriptions import describe_rule
from mirror.selection.tag_rules import TagRules, select

DIGEST, OTHER = Digest.of(b"one"), Digest.of(b"other")


@pytest.mark.parametrize(
    ("rules", "name", "rule", "selects", "text"),
    [
        (TagRules(), "v1", "", True, "no rule leaves it out"),
        (TagRules(), DIGEST, "tags", False, "the mirror selects tags, not digests"),
        (TagRules(literal=("v1",)), "v1", "tags", True, "it is in the list of tags"),
        (TagRules(literal=("v1",)), "v2", "tags", False, "it is not in the list of tags"),
        (TagRules(include=("v.*", "w")), "v1", "include", True, "it matches the pattern v.* of `include`"),
        (TagRules(include=("v.*", "w")), "x", "include", False, "it matches no pattern of `include` (v.*, w)"),
        (TagRules(exclude=("rc",)), "v1", "exclude", True, "it matches no pattern of `exclude`"),
        (TagRules(exclude=("a", "r.*")), "rc", "exclude r.*", False, "it matches the pattern r.* of `exclude`"),
        (TagRules(include=(".*",), exclude=("a b",)), "a", "include", True, "it matches the pattern .* of `include`"),
        (TagRules(digest=DIGEST), DIGEST, "source", True, f"the source of the mirror is the digest {DIGEST}"),
        (TagRules(digest=DIGEST), OTHER, "source", False, f"the source of the mirror is the digest {DIGEST}"),
        (TagRules(("v1",), DIGEST), "v1", "source", True, f"the source of the mirror is the digest {DIGEST}"),
        (TagRules(("v1",), DIGEST), "v2", "source", False, f"the source of the mirror is the digest {DIGEST}"),
    ],
)
def test_the_rule_that_decides_about_a_tag_is_described(
    rules: TagRules, name: str, rule: str, selects: bool, text: str
) -> None:
    found = describe_rule(rules, name)
    assert (rule, selects, text) == (found.rule, found.selects, found.text)
    if not rules.is_literal and ":" not in name:
        assert selects == bool(select(rules, [name]).selected)
