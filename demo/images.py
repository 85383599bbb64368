"""Builds multi-architecture images as an OCI image layout that other tools can push."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.programs import Program
from tests.registries.client import sha256

Json = dict[str, Any]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CREATED = "2024-01-01T00:00:00Z"  # constant, so that the same inputs give the same digests
_MTIME = 1704067200


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of an image.

    data: the tar, compressed with gzip. diff_id: the digest of the uncompressed tar. made_by: the text for the history
    of the image."""

    data: bytes
    diff_id: str
    made_by: str


def base_layer() -> Layer:
    """Return a base layer with users, an os-release file and empty folders. It contains no programs or libraries."""
    files = [
        ("etc/passwd", b"root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n", 0o644),
        ("etc/group", b"root:x:0:\nnobody:x:65534:\n", 0o644),
        ("etc/os-release", b'NAME="Demo"\nID=demo\nVERSION_ID=1\nPRETTY_NAME="Demo base 1"\n', 0o644),
        ("etc/nsswitch.conf", b"hosts: files dns\n", 0o644),
    ]
    return _layer(["etc", "root", "tmp", "usr", "usr/bin"], files, made_by="demo base")


def program_layer(program: Program) -> Layer:
    """Return a layer with /usr/bin/NAME and the licences of the program."""
    documents = f"usr/share/doc/{program.name}"
    files = [(f"usr/bin/{program.name}", program.binary, 0o755)]
    files += [(f"{documents}/{name}", text, 0o644) for name, text in program.licences]
    folders = ["usr", "usr/bin", "usr/share", "usr/share/doc", documents]
    return _layer(folders, files, made_by=f"{program.name} {program.version}")


def _layer(folders: Iterable[str], files: Iterable[tuple[str, bytes, int]], *, made_by: str) -> Layer:
    """Return a layer with folders and files. files: path, content and mode of each."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for folder in folders:
            member = tarfile.TarInfo(folder)
            member.type, member.mode, member.mtime = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755, _MTIME
            tar.addfile(member)
        for name, data, mode in files:
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(data), mode, _MTIME
            tar.addfile(member, io.BytesIO(data))
    return Layer(gzip.compress(buffer.getvalue(), 6, mtime=0), sha256(buffer.getvalue()), made_by)


class Layout:
    """A new OCI image layout in a directory, to which images can be added."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)
        self._entries: dict[str, Json] = {}
        self.blobs: set[str] = set()  # digests of configs and layers, not of manifests
        (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def add_image(self, architecture: str, layers: Iterable[Layer], *, entrypoint: str, version: str) -> Json:
        """Add a manifest for one platform, and return its descriptor with the platform."""
        layers = list(layers)
        config = {
            "created": CREATED,
            "architecture": architecture,
            "os": "linux",
            "config": {"User": "65534:65534", "Env": ["PATH=/usr/bin"], "Entrypoint": [entrypoint], "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created": CREATED, "created_by": layer.made_by} for layer in layers],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self._put(_json(config), CONFIG),
            "layers": [self._put(layer.data, LAYER) for layer in layers],
            "annotations": {"org.opencontainers.image.version": version},
        }
        platform = {"architecture": architecture, "os": "linux"}
        return self._put(_json(manifest), MANIFEST) | {"platform": platform}

    def add_index(self, images: Iterable[Json]) -> Json:
        """Add an index of images, and return its descriptor."""
        return self._put(_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(images)}), INDEX)

    def tag(self, name: str, root: Json) -> None:
        """Let a tag refer to a root manifest or index. An existing tag is moved."""
        entry = {key: root[key] for key in ("mediaType", "digest", "size")}
        self._entries[name] = entry | {"annotations": {"org.opencontainers.image.ref.name": name}}
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(self._entries.values())}
        (self.root / "index.json").write_bytes(_json(index))

    def read(self, digest: str) -> bytes:
        """Return the bytes of a blob or manifest."""
        return (self._blobs / digest.removeprefix("sha256:")).read_bytes()

    def _put(self, data: bytes, media_type: str) -> Json:
        """Write a blob or manifest, and return its descriptor."""
        digest = sha256(data)
        (self._blobs / digest.removeprefix("sha256:")).write_bytes(data)
        if media_type in (CONFIG, LAYER):
            self.blobs.add(digest)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _json(value: Json) -> bytes:
    return json.dumps(value, indent=2).encode()
