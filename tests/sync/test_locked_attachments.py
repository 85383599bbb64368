"""Which locked attachments belong to the manifests that a target gets."""

from __future__ import annotations

from mirror.oci.digest import Digest
from mirror.sync.image_lock import LockedAttachment
from mirror.sync.locked_attachments import keep_attachments_below
from tests.registries.client import sha256


def digest(name: str) -> Digest:
    return Digest.parse(sha256(name.encode()))


def locked(name: str, subject: str, level: int = 1, tag: str = "") -> LockedAttachment:
    return LockedAttachment(digest(subject), digest(name), tag=tag, level=level)


def test_attachments_of_other_manifests_are_left_out_with_their_own_attachments() -> None:
    kept = [
        locked("sbom", "root"),
        locked("signature", "sbom", level=2),
        locked("index", "child"),
        locked("signature of a part", "part of the index", level=2),
    ]
    other = [locked("other sbom", "other child"), locked("other signature", "other sbom", level=2)]
    below = [digest("root"), digest("child")]
    assert set(kept) == set(keep_attachments_below([*reversed(kept), *reversed(other)], below))


def test_an_attachment_of_two_manifests_is_kept_for_the_one_that_the_target_gets() -> None:
    of_root, of_other = locked("same", "root", tag="a"), locked("same", "other child", tag="b")
    nested = locked("signature", "same", level=2)
    for order in ([of_root, of_other, nested], [nested, of_other, of_root]):
        assert {of_root, nested} == set(keep_attachments_below(order, [digest("root")]))
