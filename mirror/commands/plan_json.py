"""The JSON document that `mirror plan --json` prints (docs/operations.md, "The plan as JSON")."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from mirror.errors import printable
from mirror.output.report import FailedImage
from mirror.output.report.records import failure_fields
from mirror.selection.tag_rules import SelectionSummary
from mirror.sync.dry_run import PlannedCopy, PlanSummary
from mirror.sync.locked_selection import Drift
from mirror.util.shell_commands import insert_path

SCHEMA = 1


def plan_document(summary: PlanSummary, config: Path, *, exit_code: int, drifts: Sequence[Drift] | None) -> str:
    """Return the plan as JSON. drifts: the differences from the image lock; None without `--locked`."""
    copies = sorted(summary.changes, key=lambda change: (change.source, change.target))
    failures = sorted(summary.failures, key=lambda failed: (failed.source, failed.target, failed.failure.message))
    document: dict[str, object] = {
        "schema": SCHEMA,
        "config": printable(config),
        "exit": exit_code,
        "totals": {
            "images": {
                "copy": len(copies),
                "up-to-date": summary.up_to_date,
                "failed": len(failures),
                "skipped": summary.other_platforms,
            },
            "bytes": {"read": summary.bytes_to_read, "sent": summary.bytes_to_send},
            "requests": {"GET manifest": summary.manifests},
        },
        "images": [_copy_fields(change) for change in copies],
        "failures": [_failed_fields(failed, config) for failed in failures],
        "bundles_to_rebuild": list(summary.bundles_to_rebuild),
        "left_out": {
            "repositories": {name: dict(rules) for name, rules in sorted(summary.rejected_repositories.items())},
            "tags": {name: _selection_fields(one) for name, one in sorted(summary.selections.items())},
        },
        "unrecorded_tags": [
            {"target": printable(one.target), "repositories": one.repositories, "tags": one.tags}
            for one in summary.unrecorded
        ],
    }
    if drifts is not None:
        different = sorted(set(drifts), key=lambda drift: (drift.name, drift.kind.value))
        document["drift"] = [_drift_fields(drift) for drift in different]
    return json.dumps(document, indent=2)


def _copy_fields(change: PlannedCopy) -> dict[str, object]:
    """Return the object for an image that a sync would copy."""
    return {
        "source": printable(change.source, 2000),
        "target": printable(change.target, 2000),
        "action": "copy",
        "change": change.kind,
        "digest": change.digest,
        "old_digest": change.old_digest,
        "protocol": change.protocol,
        "bytes": change.size,
        "requests": None if change.size is None else {"GET manifest": change.manifests},
        "attachments": change.attachments,
    }


def _failed_fields(failed: FailedImage, config: Path) -> dict[str, object]:
    """Return the object for an image or repository that could not be planned. config: for commands in hints."""
    action = "conflict" if failed.result == "conflict" else "fail"
    return {
        "source": printable(failed.source, 2000),
        "target": printable(failed.target, 2000),
        "action": action,
        "error": failure_fields(failed.failure, partial(insert_path, config=config)),
    }


def _selection_fields(selection: SelectionSummary) -> dict[str, object]:
    """Return the object with the numbers of tags that a mirror selects, and that each rule leaves out."""
    ends = selection.wait_ends
    waits = datetime.fromtimestamp(ends, UTC).isoformat(timespec="seconds") if ends is not None else None
    return {"selected": selection.count, "by_rule": dict(selection.rejected), "next_tag_at": waits}


def _drift_fields(drift: Drift) -> dict[str, object]:
    """Return the object for one difference between the image lock and a source."""
    return {
        "source": printable(drift.name, 2000),
        "change": drift.kind.value,
        "locked": drift.locked,
        "current": drift.current,
    }
