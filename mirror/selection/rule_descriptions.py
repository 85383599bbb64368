"""Describes which rule of a mirror selects a tag or leaves it out. `mirror explain` prints the description."""

from __future__ import annotations

from mirror.errors import printable
from mirror.selection.patterns import compile_pattern
from mirror.selection.tag_rules import TagRules
from mirror.util.structs import Struct


class RuleDescription(Struct, frozen=True):
    """The rule that selects a tag, or leaves it out because of its name.

    rule: as in the configuration, such as `exclude PATTERN`; empty if there is none. selects: whether the tag is
    selected; a rule that depends on the image may still leave it out. text: the reason, as a clause."""

    rule: str
    selects: bool
    text: str


def describe_rule(rules: TagRules, name: str) -> RuleDescription:
    """Describe the rule that selects or leaves out a tag, or an image without a tag if `name` is a digest."""
    if rules.digest is not None:
        names = rules.literal or (rules.digest,)
        return RuleDescription("source", name in names, f"the source of the mirror is the digest {rules.digest}")
    if ":" in name:
        return RuleDescription("tags", False, "the mirror selects tags, not digests")
    rejecting = rules.rejecting_rule(name)
    if rejecting is None:
        return _describe_selecting(rules, name)
    return RuleDescription(rejecting, False, _describe_rejecting(rules, rejecting))


def _describe_selecting(rules: TagRules, tag: str) -> RuleDescription:
    """Describe the rule that selects a tag."""
    if rules.is_literal:
        return RuleDescription("tags", True, "it is in the list of tags")
    matching = next((text for text in rules.include if compile_pattern(text).matches(tag)), None)
    if matching is not None:
        return RuleDescription("include", True, f"it matches the pattern {printable(matching, 80)} of `include`")
    if rules.semver:
        return RuleDescription("semver", True, "its version is in a range of `semver`")
    if rules.exclude:
        return RuleDescription("exclude", True, "it matches no pattern of `exclude`")
    return RuleDescription("", True, "no rule leaves it out")


_REASONS = {
    "semver": "its version is in no range of `semver`",
    "semver (no version)": "it is not a version, so `semver` leaves it out",
    "semver (pre-release)": "it is a pre-release, which the ranges of `semver` do not select",
    "newest (no version)": "it is not a version, so `newest` leaves it out",
    "newest (attachment)": "it is the tag of an attachment, so it is copied with its image, and `newest` leaves it out",
}


def _describe_rejecting(rules: TagRules, rejecting: str) -> str:
    """Return the reason why a rule leaves out a tag, as a clause. rejecting: a result of `TagRules.rejecting_rule`."""
    rule, _, pattern = rejecting.partition(" ")
    if rule == "tags":
        return "it is not in the list of tags"
    if rule == "include":
        return f"it matches no pattern of `include` ({', '.join(printable(text, 80) for text in rules.include)})"
    if rule == "exclude":
        return f"it matches the pattern {printable(pattern, 80)} of `exclude`"
    return _REASONS[rejecting]
