"""Rules that select the attachments of images."""

from __future__ import annotations

import pytest

from mirror.selection.attachment_rules import AttachmentRules

SBOM = {"sbom", "application/spdx+json"}
SIGNATURE = {"signature", "application/vnd.cncf.notary.signature"}


@pytest.mark.parametrize(
    ("rules", "sbom", "signature"),
    [
        (AttachmentRules(), True, True),
        (AttachmentRules(include=("sbom",)), True, False),
        (AttachmentRules(include=("application/spdx+json",)), True, False),
        (AttachmentRules(exclude=("signature",)), True, False),
        (AttachmentRules(include=("sbom", "signature"), exclude=("application/spdx+json",)), False, True),
        (AttachmentRules(include=("text/plain",)), False, False),
    ],
)
def test_an_attachment_is_selected_by_its_type_or_by_a_short_name(
    rules: AttachmentRules, sbom: bool, signature: bool
) -> None:
    assert (sbom, signature) == (rules.selects(SBOM), rules.selects(SIGNATURE))


@pytest.mark.parametrize(
    ("root", "children", "missing"),
    [
        ([SBOM, SIGNATURE], [], ""),
        ([SBOM], [], "signature"),
        ([], [], "signature"),
        ([SBOM], [[SIGNATURE], [SIGNATURE, SBOM]], ""),
        ([SBOM], [[SIGNATURE], []], "signature"),
        ([], [[SIGNATURE, SBOM], [SBOM, SIGNATURE]], ""),
        ([SIGNATURE], [[SBOM], []], "sbom"),
    ],
)
def test_an_index_or_each_of_its_platforms_must_have_what_is_required(
    root: list[set[str]], children: list[list[set[str]]], missing: str
) -> None:
    assert missing == AttachmentRules(require=("signature", "sbom")).missing(root, children)


def test_the_key_changes_with_the_rules_but_not_with_recheck() -> None:
    keys = [
        AttachmentRules().key,
        AttachmentRules(include=("sbom",)).key,
        AttachmentRules(exclude=("sbom",)).key,
        AttachmentRules(require=("sbom",)).key,
        AttachmentRules(include=("sbom", "signature")).key,
    ]
    assert len(keys) == len(set(keys))
    assert AttachmentRules(include=("a/b", "sbom")).key == AttachmentRules(include=("sbom", "a/b"), recheck=1.0).key
