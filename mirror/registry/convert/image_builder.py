"""From the parts of an old image to a schema 2 image: config and manifest, the same bytes for the same parts.

The config is the JSON of the top image without what only v1 knows, with the digests of the layers and a history of
one entry an image. Sources: docker's image manifest v2 schema 2 and image specification v1.2; OCI image-spec v1.1,
config.md, for what must be there.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from datetime import date

from mirror.errors import Refused, printable
from mirror.oci.digest import Digest
from mirror.oci.manifest import DOCKER_MANIFEST, Manifest, parse_manifest
from mirror.oci.strictjson import Object, Value
from mirror.registry.convert.layers import Layer
from mirror.util.structs import Struct

CONVERTER = 2  # of the rules: another number, and everything is converted anew
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"
MAX_CONFIG = 8 << 20  # bytes

_log = logging.getLogger("mirror.convert")

# What v1 and schema 1 keep in the JSON and schema 2 elsewhere.
_GONE = ("id", "parent", "Size", "parent_id", "layer_id", "throwaway", "rootfs", "history")
# What readers of a config insist on the type of. The rest is kept as it is, known or not.
_TEXTS = ("architecture", "author", "comment", "container", "docker_version", "os")
_OBJECTS = ("config", "container_config")
_DEFAULTS = {"architecture": "amd64", "os": "linux"}
_NEVER = "0001-01-01T00:00:00Z"
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)", re.ASCII
)


class Step(Struct, frozen=True):
    """One entry of an image's history. layer: None: it changed no file."""

    history: Object
    layer: Layer | None


def history_of(document: Object) -> Object:
    """The entry of a history that the JSON of an image amounts to; what is empty or of a wrong type is left out."""
    created = document.get("created")
    entry: Object = {"created": created if _is_time(created) else _NEVER}
    for key in ("author", "comment"):
        text = document.get(key)
        if isinstance(text, str) and text:
            entry[key] = text
    container = document.get("container_config")
    command = container.get("Cmd") if isinstance(container, dict) else None
    if isinstance(command, list) and command and all(isinstance(word, str) for word in command):
        entry["created_by"] = " ".join(str(word) for word in command)
    return entry


def converted(top: Object, steps: Sequence[Step], what: str) -> tuple[bytes, Manifest]:
    """The config and the manifest of an image. top: its JSON, which is not changed; steps: the base first.

    Raises Refused (v1_invalid): what cannot be written as JSON, or is too big."""
    layers = [step.layer for step in steps if step.layer is not None]
    config = _config(top, what)
    config["rootfs"] = {"type": "layers", "diff_ids": [str(layer.diff_id) for layer in layers]}
    config["history"] = [
        step.history if step.layer is not None else {**step.history, "empty_layer": True} for step in steps
    ]
    body = _dumped(config, what)
    if len(body) > MAX_CONFIG:
        raise Refused(f"{what}: its config would be {len(body)} bytes long", code="v1_invalid")
    manifest: Object = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": _descriptor(CONFIG_TYPE, Digest.of(body), len(body)),
        "layers": [_descriptor(LAYER_TYPE, layer.digest, layer.size) for layer in layers],
    }
    return body, parse_manifest(_dumped(manifest, what), DOCKER_MANIFEST, what=what)


def _config(top: Object, what: str) -> Object:
    config = {key: value for key, value in top.items() if key not in _GONE}
    wrong = [key for key in _TEXTS if config.get(key) is not None and not isinstance(config[key], str)]
    wrong += [key for key in _OBJECTS if config.get(key) is not None and not isinstance(config[key], dict)]
    created = config.get("created")
    if created is not None and not _is_time(created):
        wrong.append("created")
    for key in wrong:
        del config[key]
    if wrong:
        text = f"{what}: left out what has a wrong type: {', '.join(wrong)}"
        _log.warning("convert", extra={"text": text})
    for key, default in _DEFAULTS.items():
        config[key] = config.get(key) or default
    return config


def _is_time(value: Value) -> bool:
    """Whether it is a time of RFC 3339, on a day that there is: readers in Go take a config with another for broken."""
    found = _TIME.fullmatch(value) if isinstance(value, str) else None
    try:
        return found is not None and bool(date.fromisoformat(found[1]))
    except ValueError:
        return False


def _descriptor(media_type: str, digest: Digest, size: int) -> Object:
    return {"mediaType": media_type, "digest": str(digest), "size": size}


def _dumped(document: Value, what: str) -> bytes:
    try:
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except ValueError as error:
        raise Refused(f"{what}: {printable(error, 120)}", code="v1_invalid") from None
