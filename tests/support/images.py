"""Images made of nothing, the same for the same seed: graphs in memory, and how they get into a registry.

A `Graph` collects blobs, manifests and tags; its methods make one thing each and return a descriptor. Graphs get into a
registry by `seeding.push`, many at once by `seeding.seed`. Layers are real tars in gzip of level 0, manifests are
indented as nobody indents: what re-serialises a manifest, shows.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
_POOL = 8 << 20  # bytes of random data from which layers are cut: making fresh ones would be most of the time


@dataclass(frozen=True, slots=True)
class Made:
    """The descriptor of something in a graph. extra: further members, as `platform`."""

    media_type: str
    digest: str
    size: int
    extra: Mapping[str, Any] = field(default_factory=dict)

    def json(self, **more: Any) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size, **self.extra, **more}

    def bare(self) -> dict[str, Any]:
        """As a subject names it."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True, slots=True)
class Body:
    """A manifest: its bytes, and the type under which it is pushed."""

    media_type: str
    data: bytes


class Graph:
    """What one repository holds. Manifests are kept in the order in which a registry takes them: children first."""

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
        """A tar of one random file of `size` bytes, named after seed and name."""
        data, diff_id = layer_bytes(f"{self.seed}/{name}", size)
        made = self.blob(data, OCI_LAYER if oci else DOCKER_LAYER)
        self._diff_ids[made.digest] = diff_id
        return made

    def empty_blob(self, *, oci: bool = True) -> Made:
        """A layer of no bytes at all."""
        return self.blob(b"", OCI_LAYER if oci else DOCKER_LAYER)

    def foreign_layer(self, *urls: str, name: str = "foreign", size: int = 3000, oci: bool = True) -> Made:
        """A layer that is somewhere else: not among the blobs. Its bytes are `layer_bytes` of seed and name."""
        data, diff_id = layer_bytes(f"{self.seed}/{name}", size)
        self._diff_ids[sha256(data)] = diff_id
        return Made(OCI_FOREIGN if oci else DOCKER_FOREIGN, sha256(data), len(data), {"urls": list(urls)})

    # ---- manifests

    def raw(self, body: bytes, media_type: str, *tags: str, **extra: Any) -> Made:
        """Any bytes as a manifest."""
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
    ) -> Made:
        """An image of `layers` (default: two of `size` bytes, of its own). twice: its first layer is there again."""
        if layers is None:
            own = f"{label}-{platform}-{'-'.join(tags)}"
            layers = [self.layer(f"{own}-{number}", size, oci=oci) for number in range(2)]
        layers = [*layers, layers[0]] if twice else list(layers)
        config = self.blob(oddly(self._config(layers, platform, label)), OCI_CONFIG if oci else DOCKER_CONFIG)
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
        """An OCI 1.1 artifact: an empty config, `texts` (default: one of the seed) as layers."""
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
        """An index over `children`, which may be indexes."""
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
        """An index with an image of two layers for each platform."""
        own = label or "-".join(tags)
        children = [self.image(oci=oci, platform=platform, label=own, size=size) for platform in platforms]
        return self.index(*tags, children=children, oci=oci)

    def schema1(self, *tags: str, name: str = "app", layers: Sequence[Made] | None = None) -> Made:
        """A signed manifest of docker's schema 1. Its digest is that of its payload, as registries say it."""
        layers = list(layers) if layers is not None else [self.layer("schema1-0", oci=False)]
        body = schema1.signed(name, tags[0] if tags else "latest", [made.digest for made in layers], self.seed)
        digest = sha256(schema1.payload(body))
        self.manifests.setdefault(digest, Body(schema1.MEDIA_TYPE, body))
        self.tag(digest, *tags)
        return Made(schema1.MEDIA_TYPE, digest, len(body))

    # ---- what belongs to an image

    def signature(self, subject: Made, text: str = "signature") -> Made:
        """What cosign leaves: an image under the tag sha256-HEX.sig."""
        return self.image(f"{tag_of(subject)}.sig", layers=[self.layer(text, 400)], label=text)

    def referrer(self, subject: Made, text: str = "sbom", kind: str = "application/vnd.example.sbom.v1") -> Made:
        """An artifact about `subject`, and the index under the tag sha256-HEX that names all of them."""
        made = self.artifact(kind=kind, texts=[text.encode()], subject=subject)
        old = self.tags.get(tag_of(subject))
        before = json.loads(self.manifests[old].data)["manifests"] if old else []
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*before, made.json()]}
        self.raw(oddly(document), OCI_INDEX, tag_of(subject))
        return made


def tag_of(subject: Made) -> str:
    """Where the referrers of a manifest are without a referrers API: distribution-spec, "Referrers Tag Schema"."""
    return subject.digest.replace(":", "-")


def platform_json(platform: str) -> dict[str, str]:
    """`linux/arm/v7` as a descriptor has it."""
    system, architecture, *variant = platform.split("/")
    return {"architecture": architecture, "os": system, **({"variant": variant[0]} if variant else {})}


def oddly(document: Any) -> bytes:
    """JSON in an indentation that nobody uses, with a line end at the end."""
    return json.dumps(document, indent=3, separators=(" ,", ":  ")).encode() + b"\n"


def layer_bytes(name: str, size: int) -> tuple[bytes, str]:
    """A gzip of a tar of one incompressible file, and the digest of the tar: a function of `name` and `size` alone."""
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
