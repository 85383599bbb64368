"""Recognizes the configuration files of other tools, which `mirror convert` converts."""

from __future__ import annotations

import re

from mirror.config.tree import Mapping, Node, Scalar, Sequence

_SKOPEO_KEYS = {"images", "images-by-tag-regex", "images-by-semver"}
_REFERENCE = re.compile(r"[A-Za-z0-9._:-]+(?:/[\w./:@,${}-]+)?(?:/.*/)?")


def recognize_tool(root: Mapping) -> str | None:
    """Return the name of the tool whose configuration a file probably is, or None if `mirror` may read the file."""
    keys = set(root.items)
    if keys & {"mirrors", "registries"}:
        return None
    if isinstance(root.items.get("sync"), Sequence):
        return "regsync"
    if isinstance(root.items.get("tasks"), Sequence) and keys & {"relay", "skopeo", "docker", "lister", "tasks"}:
        return "dregsy"
    blocks = [node for node in root.items.values() if isinstance(node, Mapping)]
    if keys and len(blocks) == len(keys) and any(_SKOPEO_KEYS & set(block.items) for block in blocks):
        return "skopeo"
    images = root.items.get("images") if keys <= {"auth", "images"} else root
    if isinstance(images, Mapping) and images.items and all(map(_is_rule, images.items.items())):
        return "image-syncer"
    return None


def _is_rule(item: tuple[str, Node]) -> bool:
    """Return whether a key and its value look like a rule of image-syncer: a source and its destinations."""
    source, node = item
    targets = node.items if isinstance(node, Sequence) else [node]
    texts = [one.text for one in targets if isinstance(one, Scalar)]
    is_reference = _REFERENCE.fullmatch(source) is not None and ("/" in source or ":" in source)
    return is_reference and len(texts) == len(targets) > 0 and all("/" in text for text in texts)
