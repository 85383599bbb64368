"""Converts results and errors of images, mirrors and runs to the entries of reports and summaries."""

from __future__ import annotations

from mirror.errors import MirrorError
from mirror.oci.digest import Digest
from mirror.output.report import FailedImage, Failure, ImageEntry, Result
from mirror.store import Version
from mirror.sync.plan_model import MirrorEntry, PlanEntry
from mirror.util.structs import replace

DEFAULT_PROTOCOL = "v2"  # for an image whose source was not contacted


def image_entry(
    plan_entry: PlanEntry, result: Result, digest: Digest | None = None, error: MirrorError | None = None
) -> ImageEntry:
    """Return the report entry for one image on one target, without counts. digest: the digest on the target."""
    version = plan_entry.reference.version if isinstance(plan_entry.reference.version, Version) else None
    source_id = version.source_id if version else ""
    return ImageEntry(
        source=plan_entry.reference.name,
        target=plan_entry.name,
        result=result,
        digest=digest,
        error=Failure.from_error(error, *_hosts(plan_entry)) if error is not None else None,
        protocol=version.protocol if version else (error.protocol if error else "") or DEFAULT_PROTOCOL,
        source_digest=source_id if ":" in source_id and source_id != digest else None,
        v1_id=source_id if source_id and ":" not in source_id else None,
        mirror=plan_entry.reference.entry.mirror_name,
    )


def mirror_entry(failed: FailedImage, error: MirrorError, mirror: str = "") -> ImageEntry:
    """Return the report entry for the failure of a mirror. error: the error of `failed`. mirror: the mirror's name."""
    protocol = error.protocol or DEFAULT_PROTOCOL
    return ImageEntry(
        failed.source,
        failed.target,
        failed.result,
        protocol=protocol,
        error=failed.failure,
        is_image=failed.is_image,
        mirror=mirror,
    )


def image_failure(plan_entry: PlanEntry, error: MirrorError, *, on_target: bool = False) -> FailedImage:
    """Return the failure of one image on one target.

    on_target: whether an error that names no host concerns the image on the target."""
    failure = Failure.from_error(error, *_hosts(plan_entry))
    if on_target and not failure.host:
        failure = replace(failure, host=plan_entry.target.repository.host)
    return FailedImage(plan_entry.reference.name, plan_entry.name, failure_result(error), failure)


def mirror_failure(entry: MirrorEntry, error: MirrorError) -> FailedImage:
    """Return the failure of a mirror that cannot be planned, or whose source lists an invalid name."""
    hosts = (entry.source.host, *(target.repository.host for target in entry.targets))
    failure = Failure.from_error(error, *hosts)
    targets = ", ".join(str(target.repository) for target in entry.targets)
    return FailedImage(entry.name, targets, failure_result(error), failure, is_image=False)


def run_failure(name: str, error: MirrorError) -> FailedImage:
    """Return the failure of a source reference, a source, or a pattern of `--only`, identified only by its name."""
    failure = Failure.from_error(error, name.partition("/")[0])
    is_image = "@" in name or ":" in name.rpartition("/")[2]
    return FailedImage(name, "", failure_result(error), failure, is_image)


def _hosts(plan_entry: PlanEntry) -> tuple[str, str]:
    """Return the hosts of the source and of the target of an image."""
    return plan_entry.reference.entry.source.host, plan_entry.target.repository.host


def failure_result(error: MirrorError) -> Result:
    """Return the result of an image or mirror that failed with an error: `conflict` or `failed`."""
    return "conflict" if error.code in ("tag_immutable", "target_conflict") else "failed"
