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
        (TagRules(semver=(">=1.2",)), "1.3.0", "semver", True, "its version is in a range of `semver`"),
        (TagRules(semver=(">=1.2",)), "1.1.0", "semver", False, "its version is in no range of `semver`"),
        (
            TagRules(semver=(">=1.2",)),
            "1.3.0-rc.1",
            "semver (pre-release)",
            False,
            "it is a pre-release, which the ranges of `semver` do not select",
        ),
        (
            TagRules(semver=(">=1.2",)),
            "latest",
            "semver (no version)",
            False,
            "it is not a version, so `semver` leaves it out",
        ),
        (TagRules(newest=2), "latest", "newest (no version)", False, "it is not a version, so `newest` leaves it out"),
        (TagRules(newest=2), "1.0", "", True, "no rule leaves it out"),
        (
            TagRules(newest=2, by_created=True),
            f"sha256-{'ab' * 32}.sig",
            "newest (attachment)",
            False,
            "it is the tag of an attachment, so it is copied with its image, and `newest` leaves it out",
        ),
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
