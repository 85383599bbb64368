"""Reads the date on which an image was created from its config, its manifest or its schema 1 history.

The date is written by the build, so it may be missing or wrong. A wrong date is not a reason to reject an image.
Sources: OCI image-spec v1.1, config.md and annotations.md; RFC 3339.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from mirror.errors import Refused
from mirror.oci import strictjson
from mirror.oci.manifest import Kind, Manifest
from mirror.oci.strictjson import Value

NO_DATE = -(1 << 62)
"""The date of an image without a valid date. It is earlier than all other dates."""

_ANNOTATION = "org.opencontainers.image.created"
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
_LONGEST = 64  # characters of a date
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_date(value: Value) -> int:
    """Convert an RFC 3339 date to microseconds since the epoch. Return NO_DATE if `value` is not a valid date."""
    if not isinstance(value, str) or len(value) > _LONGEST or not _RFC3339.fullmatch(value):
        return NO_DATE
    try:
        return (datetime.fromisoformat(value.upper()) - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):  # for example February 30, or a leap second, which datetime does not support
        return NO_DATE


def date_in_config(body: bytes) -> int:
    """Return the date in the config of an image, in microseconds since the epoch, or NO_DATE."""
    return parse_date(_read_object(body).get("created"))


def date_in_manifest(manifest: Manifest) -> int:
    """Return the date in the annotations or the schema 1 history of a manifest, in microseconds, or NO_DATE."""
    document = _read_object(manifest.body)
    if manifest.kind is not Kind.SCHEMA1:
        annotations = document.get("annotations")
        return parse_date(annotations.get(_ANNOTATION)) if isinstance(annotations, dict) else NO_DATE
    history = document.get("history")
    top = history[0] if isinstance(history, list) and history else None  # the image itself; its ancestors follow
    text = top.get("v1Compatibility") if isinstance(top, dict) else None
    return date_in_config(text.encode("utf-8", "replace")) if isinstance(text, str) else NO_DATE


def _read_object(body: bytes) -> strictjson.Object:
    """Return the JSON object in `body`, or an empty object if the JSON is invalid."""
    try:
        document = strictjson.parse(body, what="document", fold=False)
    except Refused:
        return {}
    return document if isinstance(document, dict) else {}
