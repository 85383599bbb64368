"""Images made from a seed, the same for the same seed: graphs in memory.

A `Graph` collects blobs, manifests and tags. Each of its methods makes one thing and returns its descriptor.
`seeding.push` puts a graph into a registry, `seeding.seed` puts many. Layers are real tars in gzip of level 0.
Manifests have an unusual indentation, so that a test detects it if one is serialised again.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from tests.registries.client import sha256
from tests.support import schema1

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
EMPTY = "application/vnd.oci.empty.v1+json"

CREATED = "2020-09-13T12:26:40Z"
PLATFORMS = ("linux/amd64", "linux/arm64")
_POOL = 8 << 20  # bytes of random data that layers are cut from: generating new data would take most of the time


@dataclass(frozen=True, slots=True)
class Made:
    """The descriptor of a thing in a graph. extra: further members, such as `platform`."""

    media_type: str
    digest: str
    size: int
    extra: Mapping[str, Any] = field(default_factory=dict)

    def json(self, **more: Any) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size, **self.extra, **more}

    def bare(self) -> dict[str, Any]:
        """The descriptor without the extra members, as in `subject`."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True, slots=True)
class Body:
    """A manifest: its bytes, and the media type under which it is pushed."""

    media_type: str
    data: bytes


class Graph:
    """The content of one repository. Manifests are in the order in which a registry accepts them: children first."""

    def __init__(self, seed: str = "") -> None:
        self.seed = seed
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, Body] = {}
        self.tags: dict[str, str] = {}
        self._diff_ids: dict[str, str] = {}

    # ---- blobs

    def blob(self, data: bytes, media_type: str = "application/octet-stream") -> Made:
        digest = sha256(data)
        self.blobs[digest] = data
        return Made(media_type, digest, len(data))

    def layer(self, name: str = "layer", size: int = 3000, *, oci: bool = True) -> Made:
        """Make a tar of one random file of `size` bytes, whose name depends on seed and `name`."""
        data, diff_id = layer_bytes(f"{self.seed}/{name}", size)
        made = self.blob(data, OCI_LAYER if oci else DOCKER_LAYER)
        self._diff_ids[made.digest] = diff_id
        return made

    def empty_blob(self, *, oci: bool = True) -> Made:
        """Make a layer of zero bytes."""
        return self.blob(b"", OCI_LAYER if oci else DOCKER_LAYER)

    def foreign_layer(self, *urls: str, name: str = "foreign", size: int = 3000, oci: bool = True) -> Made:
        """Make a layer that is not among the blobs. Its bytes are `layer_bytes` of seed and name."""
        data, diff_id = layer_bytes(f"{self.seed}/{name}", size)
        self._diff_ids[sha256(data)] = diff_id
        return Made(OCI_FOREIGN if oci else DOCKER_FOREIGN, sha256(data), len(data), {"urls": list(urls)})

    # ---- manifests

    def raw(self, body: bytes, media_type: str, *tags: str, **extra: Any) -> Made:
        """Add any bytes as a manifest."""
        digest = sha256(body)
        self.manifests.setdefault(digest, Body(media_type, body))
        self.tag(digest, *tags)
        return Made(media_type, digest, len(body), extra)

    def tag(self, digest: str, *tags: str) -> None:
        self.tags.update(dict.fromkeys(tags, digest))

    def image(
        self,
        *tags: str,
        layers: Sequence[Made] | None = None,
        size: int = 3000,
        oci: bool = True,
        platform: str = "linux/amd64",
        label: str = "",
        twice: bool = False,
        subject: Made | None = None,
        annotations: Mapping[str, str] | None = None,
        created: str = CREATED,
    ) -> Made:
        """Make an image of `layers` (default: two of `size` bytes, of its own). twice: its first layer occurs twice."""
        if layers is None:
            own = f"{label}-{platform}-{'-'.join(tags)}"
            layers = [self.layer(f"{own}-{number}", size, oci=oci) for number in range(2)]
        layers = [*layers, layers[0]] if twice else list(layers)
        config = self.blob(
            oddly({**self._config(layers, platform, label), "created": created}), OCI_CONFIG if oci else DOCKER_CONFIG
        )
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST if oci else DOCKER_MANIFEST,
            "config": config.json(),
            "layers": [layer.json() for layer in layers],
        }
        if subject:
            document["subject"] = subject.bare()
        if annotations:
            document["annotations"] = dict(annotations)
        return self.raw(oddly(document), document["mediaType"], *tags, platform=platform_json(platform))

    def _config(self, layers: Sequence[Made], platform: str, label: str) -> dict[str, Any]:
        return {
            **platform_json(platform),
            "created": CREATED,
            "config": {"Labels": {"label": f"{self.seed} {label}"}},
            "rootfs": {"type": "layers", "diff_ids": [self._diff_ids.get(made.digest, made.digest) for made in layers]},
            "history": [{"created": CREATED, "created_by": f"layer {number}"} for number in range(len(layers))],
        }

    def artifact(
        self,
        *tags: str,
        kind: str = "application/vnd.example.thing.v1",
        texts: Sequence[bytes] | None = None,
        subject: Made | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Made:
        """Make an OCI 1.1 artifact with an empty config. texts: its layers (default: one made from the seed)."""
        texts = [f"thing of {self.seed}".encode()] if texts is None else texts
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": kind,
            "config": self.blob(b"{}", EMPTY).json(),
            "layers": [self.blob(text, "text/plain").json() for text in texts],
        }
        if subject:
            document["subject"] = subject.bare()
        if annotations:
            document["annotations"] = dict(annotations)
        return self.raw(oddly(document), OCI_MANIFEST, *tags, artifactType=kind)

    def index(self, *tags: str, children: Sequence[Made], oci: bool = True, subject: Made | None = None) -> Made:
        """Make an index over `children`, which may be indexes."""
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX if oci else DOCKER_LIST,
            "manifests": [child.json() for child in children],
        }
        if subject:
            document["subject"] = subject.bare()
        return self.raw(oddly(document), document["mediaType"], *tags)

    def platforms(
        self, *tags: str, label: str = "", size: int = 3000, oci: bool = True, platforms: Sequence[str] = PLATFORMS
    ) -> Made:
        """Make an index with an image of two layers for each platform."""
        own = label or "-".join(tags)
        children = [self.image(oci=oci, platform=platform, label=own, size=size) for platform in platforms]
        return self.index(*tags, children=children, oci=oci)

    def schema1(self, *tags: str, name: str = "app", layers: Sequence[Made] | None = None) -> Made:
        """Make a signed schema 1 manifest. Its digest is that of its payload, as registries report it."""
        layers = list(layers) if layers is not None else [self.layer("schema1-0", oci=False)]
        body = schema1.signed(name, tags[0] if tags else "latest", [made.digest for made in layers], self.seed)
        digest = sha256(schema1.payload(body))
        self.manifests.setdefault(digest, Body(schema1.MEDIA_TYPE, body))
        self.tag(digest, *tags)
        return Made(schema1.MEDIA_TYPE, digest, len(body))

    # ---- what belongs to an image

    def signature(self, subject: Made, text: str = "signature") -> Made:
        """Make a signature as cosign does: a manifest with the tag sha256-HEX.sig and a layer of cosign's type."""
        layer = replace(self.layer(text, 400), media_type="application/vnd.dev.cosign.simplesigning.v1+json")
        return self.image(f"{tag_of(subject)}.sig", layers=[layer], label=text)

    def referrer(self, subject: Made, text: str = "sbom", kind: str = "application/vnd.example.sbom.v1") -> Made:
        """Make an artifact with this `subject`, and the index with the tag sha256-HEX that lists all referrers."""
        made = self.artifact(kind=kind, texts=[text.encode()], subject=subject)
        old = self.tags.get(tag_of(subject))
        before = json.loads(self.manifests[old].data)["manifests"] if old else []
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*before, made.json()]}
        self.raw(oddly(document), OCI_INDEX, tag_of(subject))
        return made


def tag_of(subject: Made) -> str:
    """Return the tag of the referrers of a manifest without a referrers API: distribution-spec, "Referrers Tag
    Schema"."""
    return subject.digest.replace(":", "-")


def platform_json(platform: str) -> dict[str, str]:
    """Return a platform like `linux/arm/v7` as JSON."""
    system, architecture, *variant = platform.split("/")
    return {"architecture": architecture, "os": system, **({"variant": variant[0]} if variant else {})}


def oddly(document: Any) -> bytes:
    """Return JSON with an unusual indentation and a final newline."""
    return json.dumps(document, indent=3, separators=(" ,", ":  ")).encode() + b"\n"


def layer_bytes(name: str, size: int) -> tuple[bytes, str]:
    """Return the gzip of a tar with one incompressible file, and the digest of the tar. It depends only on `name` and
    `size`."""
    start = int.from_bytes(hashlib.sha256(f"{name} {size}".encode()).digest()[:8]) % _POOL
    content = (name.encode() + b"\n" + _pool()[start : start + size] + _pool() * (size // _POOL + 1))[:size]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        entry = tarfile.TarInfo(f"data-{hashlib.sha256(name.encode()).hexdigest()[:16]}")
        entry.size, entry.mtime = len(content), 1600000000
        archive.addfile(entry, io.BytesIO(content))
    tar = packed.getvalue()
    return gzip.compress(tar, 0, mtime=0), sha256(tar)


@cache
def _pool() -> bytes:
    return random.Random("layers").randbytes(_POOL)
