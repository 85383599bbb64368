"""Which mirror of a configuration gets the images of which mirror in an image lock."""

from __future__ import annotations

import pytest

from mirror.errors import ConfigError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.selection.tag_rules import TagRules
from mirror.selection.tag_templates import TagTemplate
from mirror.sync.image_lock import ImageLock, LockedImage, LockedMirror
from mirror.sync.locked_mirrors import lock_entries
from mirror.sync.plan_model import MirrorEntry, TargetEntry
from tests.support.stores import MemoryStore

SOURCE, TARGET = MemoryStore("a.example.com"), MemoryStore("b.example.com")


def entry(number: int, repository: str, *targets: str, wildcard: bool = False) -> MirrorEntry:
    copies = tuple(TargetEntry(TARGET, Repository(TARGET.host, target)) for target in targets)
    return MirrorEntry(SOURCE, repository, TagRules(), copies, wildcard=wildcard, number=number)


def locked(source: str, *targets: str, tag: str = "v1", repository: str = "app") -> LockedMirror:
    """Return a locked mirror with one image, whose digest depends on the tag."""
    names = tuple(f"{TARGET.host}/{target}" for target in targets)
    image = LockedImage(Digest.of(tag.encode()))
    return LockedMirror(f"{SOURCE.host}/{source}", names, {repository: {tag: image}})


def tags(entries: list[MirrorEntry], lock: ImageLock) -> list[list[str]]:
    """Return the locked tags that each of the entries gets."""
    return [
        [tag for images in (one.locked or {}).values() for tag in images]
        for one in lock_entries(entries, lock, "my.lock")
    ]


def test_a_mirror_gets_its_locked_images_although_its_targets_and_its_position_have_changed() -> None:
    entries = [entry(0, "web", "web"), entry(1, "app", "app", "second/app")]
    lock = ImageLock("", (locked("app", "app"), locked("web", "web", tag="v2", repository="web")))
    assert [["v2"], ["v1"]] == tags(entries, lock)


def test_mirrors_of_one_source_are_told_apart_by_their_targets() -> None:
    entries = [entry(0, "app", "two"), entry(1, "app", "one")]
    lock = ImageLock("", (locked("app", "one", tag="v1"), locked("app", "two", tag="v2")))
    assert [["v2"], ["v1"]] == tags(entries, lock)
    with pytest.raises(ConfigError, match=r"have different mirrors of a\.example\.com/app"):
        lock_entries([entries[0], entry(1, "app", "three")], lock, "my.lock")
    with pytest.raises(ConfigError, match=r"have different mirrors of a\.example\.com/app"):
        lock_entries([entries[0]], lock, "my.lock")


def test_mirrors_of_one_source_and_target_are_paired_in_their_order() -> None:
    entries = [entry(0, "app", "copy"), entry(1, "app", "copy")]
    lock = ImageLock("", (locked("app", "copy", tag="v1"), locked("app", "copy", tag="v2")))
    assert [["v1"], ["v2"]] == tags(entries, lock)


@pytest.mark.parametrize("repository", ["team", "other/app", "", "teams/app"])
def test_a_locked_repository_that_the_source_does_not_contain_is_refused(repository: str) -> None:
    wildcard = entry(0, "team", "{repository}", wildcard=True)
    lock = ImageLock("", (locked("team/*", "{repository}", repository="team/app"),))
    assert [["v1"]] == tags([wildcard], lock)
    lock = ImageLock("", (locked("team/*", "{repository}", repository=repository),))
    with pytest.raises(ConfigError, match="cannot contain the repository"):
        lock_entries([wildcard], lock, "my.lock")


def test_a_lock_with_which_two_mirrors_would_write_one_tag_is_refused() -> None:
    """The rules of the configuration may have changed since: in the lock, they had other tags."""
    entries = [entry(0, "team", "{repository}", wildcard=True), entry(1, "other", "app")]
    lock = ImageLock(
        "",
        (
            locked("team/*", "{repository}", tag="v1", repository="team/app"),
            locked("other", "app", tag="v2", repository="other"),
        ),
    )
    assert [["v1"], ["v2"]] == tags(entries, lock)
    lock = ImageLock("", (lock.mirrors[0], locked("other", "app", tag="v1", repository="other")))
    with pytest.raises(ConfigError, match=r"images of \S+/team/app and \S+/other would both be copied to \S+/app:v1"):
        lock_entries(entries, lock, "my.lock")


def test_locked_tags_are_compared_as_targets_write_them() -> None:
    def into_app(number: int, repository: str, template: TagTemplate) -> MirrorEntry:
        target = TargetEntry(TARGET, Repository(TARGET.host, "app"), tags=template)
        return MirrorEntry(SOURCE, repository, TagRules(), (target,), number=number)

    lock = ImageLock("", (locked("one", "app", repository="one"), locked("two", "app", repository="two")))
    plain, suffixed = into_app(0, "one", TagTemplate()), into_app(1, "two", TagTemplate("", "-debian"))
    assert [["v1"], ["v1"]] == tags([plain, suffixed], lock)
    fixed = into_app(1, "two", TagTemplate("v1", None))
    with pytest.raises(ConfigError, match=r"would both be copied to \S+/app:v1"):
        lock_entries([plain, fixed], lock, "my.lock")
    images = {"one": {name: LockedImage(Digest.of(name.encode())) for name in ("v1", "v2")}}
    lock = ImageLock("", (LockedMirror(f"{SOURCE.host}/one", (), images),))
    with pytest.raises(ConfigError, match=r"images of \S+/one and \S+/one would both be copied to \S+/app:stable"):
        lock_entries([into_app(0, "one", TagTemplate("stable", None))], lock, "my.lock")


def test_a_lock_must_contain_the_mirrors_of_the_configuration_and_no_other() -> None:
    one, two = entry(0, "app", "app"), entry(1, "web", "web")
    lock = ImageLock("", (locked("app", "app"),))
    with pytest.raises(ConfigError, match=r"does not contain the mirror of a\.example\.com/web") as caught:
        lock_entries([one, two], lock, "my.lock")
    assert "`mirror lock CONFIG`" in caught.value.hint
    with pytest.raises(ConfigError, match=r"contains a mirror of \S+/app, but the configuration does not"):
        lock_entries([], lock, "my.lock")
