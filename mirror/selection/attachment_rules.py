"""The rules for attachments of images: which are copied, which must exist, and when they are requested again."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mirror.util.structs import Struct

DEFAULT_RECHECK = 24 * 3600.0  # seconds


class AttachmentRules(Struct, frozen=True):
    """The rules for the attachments of a mirror's images.

    include, exclude: copy the attachments with a name in `include`, except those with a name in `exclude`. An empty
    `include` selects every attachment. A name is an artifact type, or the short name of a kind (`oci.referrers.KINDS`).
    require: an image must have an attachment with each of these names.
    recheck: seconds after which the attachments of an image that has not changed are requested again."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    recheck: float = DEFAULT_RECHECK

    @property
    def has_filter(self) -> bool:
        """Whether `include` or `exclude` is set, so that the selection depends on the names of an attachment."""
        return bool(self.include or self.exclude)

    @property
    def key(self) -> str:
        """A string that identifies the attachments which the rules select and require."""
        lists = (self.include, self.exclude, self.require)
        return "" if not any(lists) else " ".join(",".join(sorted(names)) or "-" for names in lists)

    def selects(self, names: Collection[str]) -> bool:
        """Return whether the rules select an attachment. names: the artifact type and short name of the attachment."""
        return (not self.include or any(name in names for name in self.include)) and not any(
            name in names for name in self.exclude
        )

    def missing(self, on_root: Iterable[Collection[str]], on_children: Collection[Collection[Collection[str]]]) -> str:
        """Return the first required name for which an image has no attachment, or an empty string if there is none.

        on_root: the names of each attachment of the root manifest. on_children: for each platform of an index, the
        names of each attachment of its manifest. Either the index or the manifest of each platform must have a required
        attachment."""
        root = list(on_root)
        for name in self.require:
            on_all = bool(on_children) and all(any(name in names for names in child) for child in on_children)
            if not on_all and not any(name in names for names in root):
                return name
        return ""
