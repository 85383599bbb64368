"""An image with signatures and an SBOM, and the referrers that a registry lists for it."""

from __future__ import annotations

import json

from tests.registries.real import RealRegistry
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph, Made, tag_of
from tests.support.layouts import Served

SBOM, SIGNATURE = "application/spdx+json", "application/vnd.cncf.notary.signature"
Registry = RealRegistry | ScriptedRegistry | Served


class Signed:
    """An index with an SBOM, a signature of the SBOM, a signature of one platform, and a signature of cosign.

    listed: the referrers, by subject. tag: cosign's tag."""

    def __init__(self, *, index_tags: bool) -> None:
        self.graph = graph = Graph("signed")
        children = [graph.image(platform=platform) for platform in ("linux/amd64", "linux/arm64")]
        self.image, self.child = graph.index("3.20", children=children), children[0]
        sbom = self._refer(self.image, SBOM, index_tags)
        self.listed = {
            self.image.digest: {sbom.digest},
            sbom.digest: {self._refer(sbom, SIGNATURE, index_tags).digest},
            self.child.digest: {self._refer(self.child, SIGNATURE, index_tags).digest},
        }
        self.sbom = sbom
        self.tag = f"{tag_of(self.image)}.sig"
        graph.signature(self.image)
        graph.signature(graph.image("other"))  # is not selected

    def _refer(self, subject: Made, kind: str, index_tags: bool) -> Made:
        text = f"{kind} of {subject.digest}"
        if index_tags:
            return self.graph.referrer(subject, text, kind)
        return self.graph.artifact(kind=kind, texts=[text.encode()], subject=subject)

    def manifests(self) -> set[str]:
        """The digests of the attachments."""
        return {*(digest for group in self.listed.values() for digest in group), self.graph.tags[self.tag]}


def listed_on(registry: Registry, repository: str, subject: str, *, api: bool) -> set[str]:
    """Return the referrers that a registry lists: by its API, or in the index under the tag of the subject."""
    with registry.client() as client:
        path = f"/v2/{repository}/referrers/{subject}"
        response = client.ask("GET", path, repository=repository)
        assert api == (response.status == 200)
        if not api:
            response = client.manifest(repository, subject.replace(":", "-"))
        return {entry["digest"] for entry in json.loads(response.body).get("manifests", [])}
