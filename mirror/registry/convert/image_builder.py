"""Builds the config and the manifest of a converted image. Equal inputs produce identical bytes.

The config is the JSON of the top image without the keys that only v1 uses, plus the digests of the layers and one
history entry per image. Sources: Docker's image manifest v2 schema 2 and image specification v1.2; OCI image-spec v1.1,
config.md, for required properties.
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

CONVERTER_VERSION = 2  # increased when the rules of the conversion change; all images are then converted again
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"
MAX_CONFIG = 8 << 20  # bytes

_log = logging.getLogger("mirror.convert")

# Keys of v1 and schema 1 that do not belong in a schema 2 config.
_DROPPED_KEYS = ("id", "parent", "Size", "parent_id", "layer_id", "throwaway", "rootfs", "history")
# Keys whose type is checked by programs that read a config. All other keys are kept unchanged.
_STRING_KEYS = ("architecture", "author", "comment", "container", "docker_version", "os")
_OBJECT_KEYS = ("config", "container_config")
_DEFAULTS = {"architecture": "amd64", "os": "linux"}
_ZERO_TIME = "0001-01-01T00:00:00Z"
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)", re.ASCII
)


class HistoryStep(Struct, frozen=True):
    """One step in the history of an image, and its layer. `layer` is None if the step changed no files."""

    history: Object
    layer: Layer | None


def history_entry(document: Object) -> Object:
    """Return the history entry for a v1 image with the JSON `document`. Omit values that are empty or invalid."""
    created = document.get("created")
    entry: Object = {"created": created if _is_time(created) else _ZERO_TIME}
    for key in ("author", "comment"):
        text = document.get(key)
        if isinstance(text, str) and text:
            entry[key] = text
    container = document.get("container_config")
    command = container.get("Cmd") if isinstance(container, dict) else None
    if isinstance(command, list) and command and all(isinstance(word, str) for word in command):
        entry["created_by"] = " ".join(str(word) for word in command)
    return entry


def build_image(document: Object, history: Sequence[HistoryStep], what: str) -> tuple[bytes, Manifest]:
    """Return the config and the manifest of an image.

    document: the JSON of the top image, which is not modified. history: the steps, starting with the base image. Raises
    Refused (v1_invalid) if the JSON cannot be encoded or the config is larger than MAX_CONFIG."""
    layers = [step.layer for step in history if step.layer is not None]
    config = _clean_config(document, what)
    config["rootfs"] = {"type": "layers", "diff_ids": [str(layer.diff_id) for layer in layers]}
    config["history"] = [
        step.history if step.layer is not None else {**step.history, "empty_layer": True} for step in history
    ]
    body = _encode_json(config, what)
    if len(body) > MAX_CONFIG:
        text = f"{what}: the converted config has {len(body)} bytes, more than the limit of {MAX_CONFIG}"
        raise Refused(text, code="v1_invalid")
    manifest: Object = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": _descriptor(CONFIG_TYPE, Digest.of(body), len(body)),
        "layers": [_descriptor(LAYER_TYPE, layer.digest, layer.size) for layer in layers],
    }
    return body, parse_manifest(_encode_json(manifest, what), DOCKER_MANIFEST, what=what)


def _clean_config(document: Object, what: str) -> Object:
    """Return a copy of `document` without v1 keys and invalid values. Add a missing architecture or OS."""
    config = {key: value for key, value in document.items() if key not in _DROPPED_KEYS}
    invalid = [key for key in _STRING_KEYS if config.get(key) is not None and not isinstance(config[key], str)]
    invalid += [key for key in _OBJECT_KEYS if config.get(key) is not None and not isinstance(config[key], dict)]
    created = config.get("created")
    if created is not None and not _is_time(created):
        invalid.append("created")
    for key in invalid:
        del config[key]
    if invalid:
        text = f"{what}: removed keys with invalid values from the config: {', '.join(invalid)}"
        _log.warning("convert", extra={"text": text})
    for key, default in _DEFAULTS.items():
        config[key] = config.get(key) or default
    return config


def _is_time(value: Value) -> bool:
    """Return whether `value` is a valid RFC 3339 time. Programs written in Go reject other values."""
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    try:
        return match is not None and bool(date.fromisoformat(match[1]))
    except ValueError:
        return False


def _descriptor(media_type: str, digest: Digest, size: int) -> Object:
    """Return a descriptor as a JSON object."""
    return {"mediaType": media_type, "digest": str(digest), "size": size}


def _encode_json(document: Value, what: str) -> bytes:
    """Encode `document` as JSON with sorted keys and without spaces. Raises Refused (v1_invalid) if this fails."""
    try:
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except ValueError as error:
        raise Refused(f"{what}: JSON encoding failed: {printable(error, 120)}", code="v1_invalid") from None
