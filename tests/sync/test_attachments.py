"""Which attachments of an image are found and read, with how many requests, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import pytest

from mirror.errors import AuthError, NotFound, Refused, Unreachable
from mirror.limits import Limits
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST, Manifest, parse_manifest
from mirror.oci.reference import Repository
from mirror.selection.attachment_rules import AttachmentRules
from mirror.selection.tag_rules import TagRules
from mirror.store import Transform, TransformPart, TransformResult, Version
from mirror.sync.attachment_search import AttachmentRef
from mirror.sync.attachments import Attachment, AttachmentReader
from mirror.sync.image_lock import LockedImage
from mirror.sync.manifest_graph import ManifestCache
from mirror.sync.plan_model import Action, MirrorEntry, PlanEntry, SourceReference, TargetEntry
from mirror.sync.platform_reader import PlatformReader
from mirror.sync.tag_protection import TagProtection
from mirror.transfer.calls import Calls, new_loop
from mirror.util.cancellation import Stop, Work
from mirror.util.structs import replace
from tests.support.stores import AttachmentTags, MemoryStore

SBOM, SIGNATURE = "application/spdx+json", "application/vnd.cncf.notary.signature"
T = TypeVar("T")


class World:
    """A source with an image, and a target."""

    def __init__(self) -> None:
        self.source, self.target = MemoryStore("source"), MemoryStore("target")
        self.children = [self.add(label=name) for name in ("amd64", "arm64")]
        self.root = self.add_index("v1", self.children)
        self.rules = TagRules(("v1",))
        self.transform: Transform | None = None
        self.source_id = ""

    def add(
        self, *tags: str, subject: Manifest | None = None, kind: str = "", label: str = "", size: int | None = None
    ) -> Manifest:
        """Add a manifest without layers to the source."""
        config = self.source.add("app", f"config {label} {kind} {subject and subject.digest}".encode())
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "text/plain", "digest": config.digest, "size": config.size},
            "layers": [],
        }
        document |= {"artifactType": kind} if kind else {}
        document |= {"subject": entry(subject)} if subject else {}
        return self._put(document, *tags)

    def add_index(self, tag: str, children: list[Manifest], subject: Manifest | None = None) -> Manifest:
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry(child) for child in children]}
        document |= {"subject": entry(subject)} if subject else {}
        return self._put(document, *([tag] if tag else []))

    def _put(self, document: Mapping[str, Any], *tags: str) -> Manifest:
        manifest = parse_manifest(json.dumps(document).encode())
        for reference in (manifest.digest, *tags):
            self.source.manifests["app"][reference] = manifest
        return manifest

    def reference(self, rules: AttachmentRules | None = None) -> SourceReference:
        target = TargetEntry(self.target, Repository("target", "copy"))
        entry = MirrorEntry(self.source, "app", self.rules, (target,), attachments=rules or AttachmentRules())
        version = Version(
            self.root.digest, source_id=self.source_id, transform=self.transform, media_type=self.root.media_type
        )
        return SourceReference(entry, "v1", "v1", version, users=1)

    def read(self, rules: AttachmentRules | None = None) -> list[Attachment]:
        """Read the attachments of the image as for a copy."""

        async def read(reader: AttachmentReader, manifests: ManifestCache) -> list[Attachment]:
            reference = self.reference(rules)
            graph = await manifests.read_graph(self.source, "app", "v1")
            return list(await reader.read_all(reference, graph))

        return list(self.run(read))

    def find_for(self, *entries: MirrorEntry) -> list[list[AttachmentRef]]:
        """Find the attachments of the image for several mirrors of one run."""

        async def find(reader: AttachmentReader, manifests: ManifestCache) -> list[list[AttachmentRef]]:
            found = []
            for one in entries:
                reference = replace(self.reference(), entry=one)
                plan_entry = PlanEntry(reference, one.targets[0], Action.SKIP, self.root.digest, recheck=True)
                found.append(list(await reader.find_for_target(plan_entry, self.root.digest)))
            return found

        return list(self.run(find))

    def find(self) -> list[AttachmentRef]:
        """Find the attachments of the image as for an image that the target has."""

        async def find(reader: AttachmentReader, manifests: ManifestCache) -> list[AttachmentRef]:
            reference = self.reference()
            target = reference.entry.targets[0]
            plan_entry = PlanEntry(reference, target, Action.SKIP, self.root.digest, recheck=True)
            return list(await reader.find_for_target(plan_entry, self.root.digest))

        return list(self.run(find))

    def run(self, run: Any) -> Any:
        loop = new_loop()
        calls = Calls(loop, Limits(), Stop())
        try:
            manifests = ManifestCache(calls)
            coroutine: Coroutine[Any, Any, Any] = run(
                AttachmentReader(
                    calls,
                    manifests,
                    PlatformReader(calls, manifests),
                    TagProtection(calls, manifests, AttachmentTags(), lambda source: True),
                ),
                manifests,
            )
            return loop.run_until_complete(coroutine)
        finally:
            calls.close()


def entry(manifest: Manifest) -> dict[str, Any]:
    return {"mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size}


def tag_of(manifest: Manifest, suffix: str = "") -> str:
    return f"sha256-{manifest.digest.hex}{suffix}"


def digests(found: list[Attachment]) -> list[Digest]:
    return [one.graph.root.digest for one in found]


@pytest.fixture
def world() -> World:
    return World()


def test_attachments_of_the_image_come_before_attachments_of_attachments(world: World) -> None:
    sbom = world.add(subject=world.root, kind=SBOM)
    nested = world.add(subject=sbom, kind=SIGNATURE)
    child = world.add(subject=world.children[1], kind=SIGNATURE)
    cosign = world.add(tag_of(world.root, ".sig"), label="cosign")
    of_cosign = world.add(tag_of(cosign, ".att"), label="attestation of a signature")
    found = world.read()
    assert {sbom.digest, cosign.digest, child.digest} == set(digests(found)[:3])
    assert {nested.digest, of_cosign.digest} == set(digests(found)[3:])
    assert [1, 1, 1, 2, 2] == [one.ref.level for one in found]
    asked = Counter(verb for verb, _, _ in world.source.asked)
    assert {"tags": 1, "referrers": 8, "manifest": 8} == asked


class AnyTransform:
    """Implements Transform; it is not run."""

    identity = "any"

    def parts(self, work: Work) -> Sequence[TransformPart]:
        raise AssertionError

    def create_part(self, part: TransformPart, work: Work) -> None:
        raise AssertionError

    def build_image(self, work: Work) -> TransformResult:
        raise AssertionError


def test_a_root_that_a_transform_changed_has_no_attachments_but_its_children_have(world: World) -> None:
    world.add(subject=world.root, kind=SBOM)
    signature = world.add(subject=world.children[0], kind=SIGNATURE)
    world.transform, world.source_id = AnyTransform(), Digest.of(b"the index at the source")
    assert [signature.digest] == digests(world.read())
    world.source_id = world.root.digest  # nothing was changed
    assert 2 == len(world.read())


@pytest.mark.parametrize("converts", [False, True])
def test_no_referrers_are_requested_for_a_converted_image_that_is_not_at_the_source(
    world: World, converts: bool
) -> None:
    """An immutable tag that is up to date is not resolved, so that it is not known whether the image was converted."""
    converted = world.root
    del world.source.manifests["app"][converted.digest]
    world.target.manifests["copy"][converted.digest] = converted
    signature = world.add(subject=world.children[0], kind=SIGNATURE)

    async def find(reader: AttachmentReader, manifests: ManifestCache) -> list[AttachmentRef]:
        known = world.reference()
        reference = SourceReference(replace(known.entry, converts_schema1=converts), "v1", "v1", users=1)
        plan_entry = PlanEntry(reference, known.entry.targets[0], Action.SKIP, converted.digest, recheck=True)
        return list(await reader.find_for_target(plan_entry, converted.digest))

    assert [signature.digest] == [ref.descriptor.digest for ref in world.run(find)]
    assert converts == (("app", converted.digest) not in world.source.verbs("referrers"))


def test_children_of_an_attached_index_may_have_attachments(world: World) -> None:
    part = world.add(label="part")
    attached = world.add_index("", [part], subject=world.root)
    signature = world.add(subject=part, kind=SIGNATURE)
    assert {attached.digest, signature.digest} == set(digests(world.read()))


def test_a_source_without_lists_is_asked_for_the_tags_that_exist(world: World) -> None:
    world.source.lists_referrers = False
    sbom = world.add(subject=world.root, kind=SBOM)
    other = world.add(subject=world.children[0], kind=SIGNATURE)
    world.add_index(tag_of(world.root), [sbom])
    world.add_index(tag_of(world.children[0]), [other])
    assert {sbom.digest, other.digest} == set(digests(world.read()))


def test_without_tags_of_attachments_only_the_root_is_asked_about(world: World) -> None:
    world.source.lists_referrers = False
    world.add("v2", label="another image")
    assert [] == world.find()
    assert [("tags", "app", ""), ("referrers", "app", world.root.digest)] == world.source.asked
    assert [] == world.target.asked


def test_the_index_of_an_unchanged_image_is_read_from_the_target_or_else_from_the_source(world: World) -> None:
    signature = world.add(subject=world.children[0], kind=SIGNATURE)
    world.target.manifests["copy"][world.root.digest] = world.root
    assert [signature.digest] == [ref.descriptor.digest for ref in world.find()]
    assert [] == world.source.verbs("manifest")
    world.target.manifests.clear()
    assert [signature.digest] == [ref.descriptor.digest for ref in world.find()]
    assert [("app", world.root.digest)] == world.source.verbs("manifest")


def test_tags_that_cannot_be_listed_are_requested_by_name(world: World) -> None:
    cosign = world.add(tag_of(world.root, ".sig"), label="cosign")
    denied = AuthError("no", code="auth_denied", status=403)
    world.source.fault = lambda verb, *_: denied if verb == "tags" else None
    assert [cosign.digest] == digests(world.read())


@pytest.mark.parametrize("verb", ["tags", "referrers"])
def test_a_failed_request_is_not_an_image_without_attachments(world: World, verb: str) -> None:
    world.source.fault = lambda asked, *_: Unreachable("no route") if asked == verb else None
    with pytest.raises(Unreachable, match="source/app:v1: its signatures and other artifacts cannot be read: no route"):
        world.read()


def test_a_listed_attachment_that_does_not_exist_is_an_error(world: World) -> None:
    gone = Descriptor(Digest.of(b"gone"), 10, OCI_MANIFEST)
    world.source.false_lists[world.root.digest] = [gone]
    with pytest.raises(NotFound, match="referrers: false"):
        world.read()


def test_tags_that_the_mirror_selects_are_left_to_it(world: World) -> None:
    world.source.lists_referrers = False
    world.rules = TagRules()
    sbom = world.add(subject=world.root, kind=SBOM)
    world.add_index(tag_of(world.root), [sbom])
    world.add(tag_of(world.root, ".sig"), label="cosign")
    assert [] == world.read(AttachmentRules(require=("sbom", "signature")))


@pytest.mark.parametrize("rules", [TagRules(min_age=3600.0), TagRules(newest=1, by_created=True)])
def test_tags_that_the_mirror_may_leave_out_later_are_not_left_to_it(world: World, rules: TagRules) -> None:
    world.rules = rules
    cosign = world.add(tag_of(world.root, ".sig"), label="cosign")
    assert [cosign.digest] == digests(world.read())


def test_the_rules_select_by_type_and_leave_out_what_belongs_to_it(world: World) -> None:
    sbom = world.add(subject=world.root, kind=SBOM)
    of_sbom = world.add(subject=sbom, kind=SIGNATURE)
    signature = world.add(subject=world.root, kind=SIGNATURE)
    cosign = world.add(tag_of(world.root, ".sig"), label="cosign")
    assert {sbom.digest} == set(digests(world.read(AttachmentRules(include=("sbom",)))))
    assert {signature.digest, cosign.digest} == set(digests(world.read(AttachmentRules(exclude=(SBOM,)))))
    assert {sbom.digest, of_sbom.digest, cosign.digest} >= set(
        digests(world.read(AttachmentRules(include=("signature", "sbom"), exclude=(SIGNATURE,))))
    )


def test_a_list_without_types_is_filtered_by_the_manifests(world: World) -> None:
    world.source.lists_referrers = False
    sbom, signature = (world.add(subject=world.root, kind=kind) for kind in (SBOM, SIGNATURE))
    world.add_index(tag_of(world.root), [sbom, signature])
    assert [sbom.digest] == digests(world.read(AttachmentRules(include=("sbom",))))


def test_an_image_without_a_required_attachment_is_refused(world: World) -> None:
    world.add(subject=world.root, kind=SBOM)
    world.add(subject=world.children[0], kind=SIGNATURE)
    rules = AttachmentRules(require=("sbom", "signature"))
    with pytest.raises(Refused, match="source/app:v1 has no signature at the source") as caught:
        world.read(rules)
    assert "not_found" == caught.value.code
    world.add(subject=world.children[1], kind=SIGNATURE)
    assert 3 == len(world.read(rules))


def test_mirrors_of_one_source_share_a_search_only_if_they_mirror_the_same_tags(world: World) -> None:
    cosign = world.add(tag_of(world.root, ".sig"), label="cosign")
    all_tags = world.reference().entry
    entries = [
        replace(all_tags, rules=TagRules(), number=0),
        replace(all_tags, rules=TagRules(), number=1),
        replace(all_tags, rules=TagRules(exclude=("sha.*",)), number=2),
        replace(all_tags, rules=TagRules(), number=3, locked={"app": {"v1": LockedImage(world.root.digest)}}),
    ]
    found = world.find_for(*entries)
    assert [[], [], [cosign.digest], [cosign.digest]] == [[ref.descriptor.digest for ref in refs] for refs in found]
    # Each of three searches sends a request for the root and its two children, and if needed for cosign's artifact.
    assert 3 * 3 + 2 == len(world.source.verbs("referrers"))


# ---- hostile sources


def test_attachments_in_a_circle_are_read_once(world: World) -> None:
    one = world.add(subject=world.root, kind=SBOM)
    two = world.add(subject=one, kind=SIGNATURE)
    first, second = (Descriptor(made.digest, made.size, made.media_type) for made in (one, two))
    world.source.false_lists = {one.digest: [second, first], two.digest: [first]}
    assert [one.digest, two.digest] == digests(world.read())


def test_an_artifact_that_belongs_to_another_image_is_refused(world: World) -> None:
    other = world.add(label="other")
    foreign = world.add(subject=other, kind=SIGNATURE)
    world.source.false_lists[world.root.digest] = [Descriptor(foreign.digest, foreign.size, foreign.media_type)]
    with pytest.raises(Refused, match=f"its subject is {other.digest}") as caught:
        world.read()
    assert "manifest_invalid" == caught.value.code


@pytest.mark.parametrize(
    ("descriptor", "code"),
    [
        (lambda one: Descriptor(one.digest, one.size + 1, one.media_type), "size_mismatch"),
        (lambda one: Descriptor(one.digest, one.size, OCI_INDEX), "type_mismatch"),
    ],
    ids=["size", "type"],
)
def test_an_artifact_that_differs_from_its_entry_is_refused(world: World, descriptor: Any, code: str) -> None:
    one = world.add(subject=world.root, kind=SIGNATURE)
    world.source.false_lists[world.root.digest] = [descriptor(one)]
    with pytest.raises(Refused) as caught:
        world.read()
    assert code == caught.value.code


def test_attachments_are_nested_at_most_16_levels_deep(world: World) -> None:
    subject = world.root
    for level in range(16):
        subject = world.add(subject=subject, kind=SIGNATURE, label=str(level))
    assert 16 == len(world.read())
    world.add(subject=subject, kind=SIGNATURE)
    with pytest.raises(Refused) as caught:
        world.read()
    assert "too_deep" == caught.value.code


def test_an_image_has_at_most_10000_attachments(world: World) -> None:
    entries = [
        Descriptor(Digest.of(str(number).encode()), 10, OCI_MANIFEST, artifact_type=SBOM) for number in range(10_001)
    ]
    world.source.false_lists[world.root.digest] = entries
    with pytest.raises(Refused, match="more than 10000") as caught:
        world.read()
    assert "too_many" == caught.value.code
    assert [("app", world.root.digest)] == world.source.verbs("referrers")


def test_a_tag_with_another_kind_of_manifest_is_not_a_list(world: World) -> None:
    world.source.lists_referrers = False
    world.add(tag_of(world.root), label="an image with this tag")
    assert [] == world.read()
