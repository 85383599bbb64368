"""Scenarios in which a tool copies to empty registries for the first time."""

from __future__ import annotations

from benchmarks.scenarios.base import MIB, SLOW, RealScenario, Scale, content_of
from benchmarks.traffic import Content
from tests.registries.real import RealRegistry
from tests.support.seeding import seed


class Cold(RealScenario):
    name = "cold"
    title = "Cold: 10 repositories × 6 tags into an empty registry"
    note = (
        "Each tag is an index of two platforms with 4 layers of 1 MiB each. Half of the layers are in all repositories."
    )
    with_ideal = True

    def seed(self, source: RealRegistry) -> Content:
        return ten_repositories(source, self.scale)


class ThreeTargets(Cold):
    name = "three-targets"
    title = "Cold, into three empty registries"
    note = (
        "The content is that of the first scenario. A tool that supports only one target at a time reads the source "
        "once per target."
    )
    target_count = 3
    with_ideal = False


class ColdManyTags(RealScenario):
    name = "many-tags"
    runs = SLOW
    title = "Cold: 1,000 tags of 50 images"
    note = (
        "The source has one repository. Each image has 20 tags and is an index of two platforms with 2 layers of "
        "64 KiB each."
    )

    def seed(self, source: RealRegistry) -> Content:
        return thousand_tags(source, self.scale.count(1000))


def ten_repositories(source: RealRegistry, scale: Scale) -> Content:
    """Push 10 repositories with 6 tags each to the source, and return the content. With `quick`, push fewer."""
    repositories, size = scale.count(10), scale.count(MIB)
    return content_of(seed(source, "team/app", repositories=repositories, images=6, layer_size=size, index=True))


def thousand_tags(source: RealRegistry, tags: int) -> Content:
    """Push one repository with `tags` tags to the source, 20 for each image, and return the content."""
    seeded = seed(source, "team/app", images=tags // 20, tags=tags, layers=2, layer_size=65_536, index=True)
    return content_of(seeded)
