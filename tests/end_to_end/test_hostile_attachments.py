"""Sources that lie about attachments: each run is bounded, and an image is refused rather than reported as complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.registries.faults import FOREVER
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import OCI_INDEX, OCI_MANIFEST, Graph, Made, tag_of
from tests.support.oracle import assert_whole, walk_tag
from tests.support.signed import SBOM, SIGNATURE, listed_on
from tests.support.tool import MirrorTool

MOST_REQUESTS = 250  # at the source in a run


class Lie:
    """An image with an SBOM, about whose attachments the source lies. name: its tag."""

    def __init__(self, source: ScriptedRegistry, name: str, *, api: bool) -> None:
        self.source, self.graph, self._api = source, Graph(name), api
        self.image, self.other = self.graph.image(name), self.graph.image(f"other-{name}")
        if api:
            self.sbom = self.graph.artifact(subject=self.image, kind=SBOM)
        else:
            self.sbom = self.graph.referrer(self.image)
        source.load("app", self.graph)

    def add(self, **keys: Any) -> Made:
        made = self.graph.artifact(**{"kind": SIGNATURE, "texts": [b"more"], **keys})
        self.source.load("app", self.graph)
        return made

    def list(self, *entries: Any, subject: Made | None = None, link: str = "", **members: Any) -> None:
        """Serve these entries as the list of referrers."""
        subject = subject or self.image
        rows = [one.json() if isinstance(one, Made) else one for one in entries]
        body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": rows, **members}).encode()
        if not self._api:
            self.graph.raw(body, OCI_INDEX, tag_of(subject))
            self.source.load("app", self.graph)
            return
        headers = [("Content-Type", OCI_INDEX), *([("Link", f'<{link}>; rel="next"')] if link else [])]
        self.source.fault(
            "GET referrers",
            reference=subject.digest,
            status=200,
            headers=tuple(headers),
            body=body,
            times=FOREVER,
        )

    def path(self, repository: str = "app") -> str:
        return f"/v2/{repository}/referrers/{self.image.digest}"


def the_image_itself(lie: Lie) -> None:
    lie.list(lie.sbom, lie.image)


def a_cycle(lie: Lie) -> None:
    lie.list(lie.sbom)
    lie.list(lie.image, lie.sbom, subject=lie.sbom)


def the_attachment_of_another_image(lie: Lie) -> None:
    lie.list(lie.sbom, lie.add(subject=lie.other))


def an_image_without_a_subject(lie: Lie) -> None:
    lie.list(lie.sbom, lie.other)


def more_than_10000_entries(lie: Lie) -> None:
    lie.list(*({"mediaType": OCI_MANIFEST, "digest": f"sha256:{number:064x}", "size": 9} for number in range(10_001)))


def annotations_of_9_mib(lie: Lie) -> None:
    lie.list({**lie.sbom.json(), "annotations": {"note": "x" * (9 << 20)}})


def a_wrong_size(lie: Lie) -> None:
    lie.list({**lie.sbom.json(), "size": lie.sbom.size + 1})


def a_size_of_a_petabyte(lie: Lie) -> None:
    lie.list({**lie.sbom.json(), "size": 1 << 50})


def a_wrong_media_type(lie: Lie) -> None:
    lie.list({**lie.sbom.json(), "mediaType": OCI_INDEX})


def a_digest_that_is_a_path(lie: Lie) -> None:
    lie.list(lie.sbom, {**lie.sbom.json(), "digest": "sha256:../../../v2/secret/manifests/latest"})


def a_digest_that_does_not_exist(lie: Lie) -> None:
    lie.list(lie.sbom, {**lie.sbom.json(), "digest": f"sha256:{'0' * 64}"})


def another_manifest_under_the_digest(lie: Lie) -> None:
    body = lie.graph.manifests[lie.other.digest].data
    headers = (("Content-Type", OCI_MANIFEST),)
    lie.source.fault("GET manifest", reference=lie.sbom.digest, status=200, headers=headers, body=body, times=FOREVER)


def a_page_that_is_its_own_next_page(lie: Lie) -> None:
    lie.list(lie.sbom, link=lie.path())


def empty_pages_without_end(lie: Lie) -> None:
    number = iter(range(10**9))

    def next_page(request: Any, reply: Any) -> Any:
        headers = (("Content-Type", OCI_INDEX), ("Link", f'<{lie.path()}?n={next(number)}>; rel="next"'))
        body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
        return reply.__class__(200, headers=headers, body=body)

    lie.source.fault("GET referrers", reference=lie.image.digest, after=True, change=next_page, times=FOREVER)


def a_next_page_in_another_repository(lie: Lie) -> None:
    lie.list(lie.sbom, link=lie.path("secret"))


def a_next_page_on_another_host(lie: Lie) -> None:
    lie.list(lie.sbom, link=f"http://169.254.169.254{lie.path()}")


def attachments_of_attachments_without_end(lie: Lie) -> None:
    subject = lie.sbom
    for number in range(20):
        subject = lie.add(subject=subject, texts=[b"%d" % number])


def a_schema_1_image_under_the_tag_of_a_signature(lie: Lie) -> None:
    lie.graph.schema1(f"{tag_of(lie.image)}.sig")
    lie.source.load("app", lie.graph)


BY_TAG = (
    (the_image_itself, "manifest_invalid"),
    (more_than_10000_entries, "too_many"),
    (annotations_of_9_mib, "manifest_too_big"),
    (a_wrong_size, "size_mismatch"),
    (a_digest_that_is_a_path, "manifest_invalid"),
    (a_digest_that_does_not_exist, "not_found"),
)
BY_API = (
    *BY_TAG,
    (a_cycle, "manifest_invalid"),
    (the_attachment_of_another_image, "manifest_invalid"),
    (an_image_without_a_subject, "manifest_invalid"),
    (a_wrong_media_type, "type_mismatch"),
    (another_manifest_under_the_digest, "digest_mismatch"),
    (a_size_of_a_petabyte, "size_mismatch"),
    (a_page_that_is_its_own_next_page, "too_many"),
    (empty_pages_without_end, "too_many"),
    (a_next_page_in_another_repository, "unsafe_link"),
    (a_next_page_on_another_host, "unsafe_link"),
    (attachments_of_attachments_without_end, "too_deep"),
    (a_schema_1_image_under_the_tag_of_a_signature, "manifest_invalid"),
)


@pytest.mark.parametrize(("cases", "api"), [(BY_API, True), (BY_TAG, False)], ids=["api", "tags"])
def test_images_whose_source_lies_about_their_attachments_are_refused_and_the_others_are_copied(
    scripted: ScriptedFactory, mirror_run: MirrorTool, cases: Sequence[tuple[Callable[[Lie], None], str]], api: bool
) -> None:
    source, target = scripted("source", referrers=api), scripted("target", referrers=True)
    good = Lie(source, "good", api=api)  # without a lie
    for tell, _ in cases:
        tell(Lie(source, tell.__name__, api=api))
    tags = ["good", *(tell.__name__ for tell, _ in cases)]
    mirror_run.config(
        [{"source": f"{source.host}/app", "targets": [f"{target.host}/copy"], "tags": tags}], source, target
    )
    mirror_run.sync(expect=3)
    results = {image["source"].rpartition(":")[2]: image for image in mirror_run.report()["images"]}
    expected = {tell.__name__: ("failed", code) for tell, code in cases}
    found = {tag: (image["result"], image.get("error", {}).get("code")) for tag, image in results.items()}
    assert {"good": ("copied", None), **expected} == found
    assert ["good"] == target.tags("copy")
    assert {good.sbom.digest} == listed_on(target, "copy", good.image.digest, api=True)
    assert_whole(target)
    assert len(source.requests()) <= MOST_REQUESTS
    assert {"app"} == {seen.repository for seen in source.requests() if seen.repository}
    assert 3 == mirror_run("plan", mirror_run.config_file).code
    verified = mirror_run("verify", mirror_run.config_file)
    assert 1 == verified.code
    assert f"{len(cases)} images: {target.host}: the image is not on the target" in verified.text


def test_an_attached_index_is_copied_with_its_children_also_if_it_lists_the_image_itself(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source", referrers=True), scripted("target")
    graph = Graph("index")
    image = graph.image("v1")
    part = graph.image(label="part")
    attached = graph.index(children=[part, image], subject=image)
    of_part = graph.artifact(subject=part, kind=SIGNATURE)
    graph.tag(image.digest, f"{tag_of(image)}.sig")  # the image as its own signature
    source.load("app", graph)
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/copy"], "tags": ["v1"]}
    mirror_run.config([mirror], source, target)
    mirror_run.sync()
    assert {attached.digest} == listed_on(target, "copy", image.digest, api=False)
    assert {of_part.digest} == listed_on(target, "copy", part.digest, api=False)
    assert image.digest == walk_tag(target, "copy", f"{tag_of(image)}.sig").digest
    assert_whole(target)
    assert 0 == mirror_run("verify", mirror_run.config_file).code
