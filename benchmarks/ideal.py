"""The ideal replay: a baseline that does a cold copy with the fewest requests and the least work.

It knows the content of the source in advance, so it makes no decisions, and checks and hashes nothing. It moves blobs
from socket to socket inside the kernel. `replay` does this in a separate process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.job import Job
from tests.registries.client import Client, Registry

_REPLAY = Path(__file__).with_name("replay.py")


def commands(job: Job, source: Registry, folder: Path) -> list[list[str]]:
    """Write the plan of a job with one target to `folder`, and return the command line that replays it."""
    plan = folder / "plan.json"
    with source.client() as client:
        document = {"source": job.source, "target": job.targets[0], **_plan(client, job)}
    plan.write_text(json.dumps(document), encoding="utf-8")
    return [[sys.executable, "-I", "-S", str(_REPLAY), str(plan)]]


def _plan(client: Client, job: Job) -> dict[str, Any]:
    """Read the images of a job, and return the requests that copy them, as a JSON object.

    listings: repositories whose tags are listed. manifests: [repository, digest, media type, references under which the
    manifest is pushed], children first. blobs: [digest, size in bytes, repositories]; blobs of the most repositories
    come first, and among these the largest."""
    manifests: dict[tuple[str, str], tuple[str, list[str]]] = {}
    blobs: dict[str, tuple[int, list[str]]] = {}
    for repository, tags in job.images.items():
        for tag in tags:
            _walk(client, repository, tag, manifests, blobs)
    listed = [[repository, digest, *found] for (repository, digest), found in manifests.items()]
    order = sorted(blobs.items(), key=lambda blob: (-len(blob[1][1]), -blob[1][0]))
    return {
        "listings": list(job.images),
        "manifests": listed,
        "blobs": [[digest, size, homes] for digest, (size, homes) in order],
    }


def _walk(
    client: Client,
    repository: str,
    reference: str,
    manifests: dict[tuple[str, str], tuple[str, list[str]]],
    blobs: dict[str, tuple[int, list[str]]],
) -> None:
    """Read a manifest, and add it, its children and its blobs to `manifests` and `blobs`."""
    response = client.manifest(repository, reference)
    digest, document = response.headers["docker-content-digest"], response.json()
    if (repository, digest) not in manifests:
        for child in document.get("manifests", []):
            _walk(client, repository, child["digest"], manifests, blobs)
        for blob in _blobs(document):
            homes = blobs.setdefault(blob["digest"], (blob["size"], []))[1]
            if repository not in homes:
                homes.append(repository)
        manifests[repository, digest] = (response.headers["content-type"], [])
    references = manifests[repository, digest][1]
    if reference not in references:
        references.append(reference)


def _blobs(document: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Return the descriptors of the config and layers of a manifest; none for an index."""
    return [document["config"], *document["layers"]] if "config" in document else []
