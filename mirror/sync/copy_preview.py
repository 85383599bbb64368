"""Determines, for `plan` and `explain`, whether a sync would copy an image, without copying it."""

from __future__ import annotations

from mirror.errors import Cancelled, MirrorError
from mirror.oci.referrers import is_attachment_tag
from mirror.sync.image_reader import Image, ImageReader
from mirror.sync.plan_decisions import check_immutable
from mirror.sync.plan_model import Action, PlanEntry
from mirror.util.structs import replace


async def preview_copy(reader: ImageReader, plan_entry: PlanEntry) -> Image | None:
    """Read the manifests of an image that a sync would copy, and return the image with its attachments.

    Return None if the target has the image already, or if the image must be converted, which requires its layers.
    Raises the errors with which a sync would reject the image (not_signed, not_found, tag_immutable, target_conflict),
    OtherPlatform, and the errors of the stores."""
    reference, old = plan_entry.reference, plan_entry.old_digest
    version = await reader.resolve(reference)
    await reader.check_signature(reference)
    if version.transform is not None:
        return None
    graph = await reader.read_graph(reference)
    check_immutable(plan_entry, graph.root.digest)
    if graph.root.digest == old and not plan_entry.incomplete:
        return None
    if is_attachment_tag(plan_entry.tag) and old is not None:
        protection = reader.attachments.protection
        await protection.check_overwrite(reference.entry, plan_entry.target, plan_entry.tag, old, graph.root)
    return await reader.read_image(reference)


async def refine_plan_entry(reader: ImageReader, plan_entry: PlanEntry) -> PlanEntry:
    """Read the image of a plan entry, and return the entry with the action that a sync would take.

    The action COPY becomes FAIL if a sync would reject the image or cannot read it, and SKIP if the target already has
    the image. An entry with any other action is returned unchanged, without reading the image."""
    if plan_entry.action is not Action.COPY:
        return plan_entry
    try:
        image = await preview_copy(reader, plan_entry)
    except Cancelled:
        raise
    except MirrorError as error:
        return replace(plan_entry, action=Action.FAIL, error=error)
    version = await reader.resolve(plan_entry.reference)
    return plan_entry if image is not None or version.transform is not None else replace(plan_entry, action=Action.SKIP)
