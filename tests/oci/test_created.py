"""The date of an image: which texts are dates, and where they are found."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.created import NO_DATE, date_in_config, date_in_manifest, parse_date
from mirror.oci.manifest import parse_manifest

SECOND = 1_000_000  # microseconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.5Z", 1.5),
        ("2024-02-29T12:34:56.123456789Z", 1709210096.123456),
        ("2024-02-29t12:34:56z", 1709210096),
        ("2024-02-29T14:34:56+02:00", 1709210096),
        ("2024-02-29T06:04:56-06:30", 1709210096),
        ("0001-01-01T00:00:00Z", -62135596800),
        ("9999-12-31T23:59:59Z", 253402300799),
    ],
)
def test_dates_of_rfc_3339_are_read(text: str, seconds: float) -> None:
    assert round(seconds * SECOND) == parse_date(text)


@pytest.mark.parametrize(
    "value",
    [
        *("", "yesterday", "2024-01-01", "2024-01-01T00:00:00", "2024-01-01 00:00:00Z", "20240101T000000Z"),
        *("2023-02-29T00:00:00Z", "2024-01-01T24:30:00Z", "2024-12-31T23:59:60Z", "0000-01-01T00:00:00Z"),
        *("2024-01-01T00:00:00+99:00", "2024-01-01T00:00:00Z ", "2024-01-01T00:00:00Z\n", "\u0662024-01-01T00:00:00Z"),
        *(f"2024-01-01T00:00:00.{'1' * 100}Z", None, 0, 1704067200, ["2024-01-01T00:00:00Z"]),
    ],
)
def test_other_values_are_no_date_and_before_all_dates(value: Any) -> None:
    assert NO_DATE == parse_date(value) < parse_date("0001-01-01T00:00:00Z")


@given(st.datetimes(timezones=st.timezones()).filter(lambda date: 2 < date.year < 9998))
def test_every_date_that_python_writes_is_read_exactly(date: Any) -> None:
    text = date.isoformat()
    if date.utcoffset().total_seconds() % 60 == 0:  # RFC 3339 has no offsets with seconds
        assert round(date.timestamp() * SECOND) == pytest.approx(parse_date(text), abs=100)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"\xff", b"[]", b'"2024-01-01T00:00:00Z"', b'{"created": {}}', b'{"created": 5}', b"[" * 10_000),
        b'{"created": "2024-01-01T00:00:00Z", "created": "2025-01-01T00:00:00Z"}',
    ],
)
def test_a_config_that_is_not_valid_has_no_date(body: bytes) -> None:
    assert NO_DATE == date_in_config(body)


def test_a_config_may_have_labels_that_differ_in_case() -> None:
    body = {"created": "1970-01-01T00:00:02Z", "config": {"Labels": {"a": "", "A": ""}}}
    assert 2 * SECOND == date_in_config(json.dumps(body).encode())


def test_a_manifest_has_the_date_of_its_annotation() -> None:
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [],
    }
    assert NO_DATE == date_in_manifest(parse_manifest(json.dumps(document).encode()))
    document["annotations"] = {"org.opencontainers.image.created": "1970-01-01T00:00:03Z"}
    assert 3 * SECOND == date_in_manifest(parse_manifest(json.dumps(document).encode()))


def test_a_schema_1_manifest_has_the_date_of_its_top_image() -> None:
    history = [
        {"v1Compatibility": json.dumps({"id": "b", "parent": "a", "created": "1970-01-01T00:00:05Z"})},
        {"v1Compatibility": json.dumps({"id": "a", "created": "1970-01-01T00:00:04Z"})},
    ]
    layers = [{"blobSum": f"sha256:{one * 64}"} for one in "ab"]
    document = {"schemaVersion": 1, "name": "app", "tag": "v1", "fsLayers": layers, "history": history}
    body = json.dumps(document).encode()
    manifest = parse_manifest(body, "application/vnd.docker.distribution.manifest.v1+json")
    assert 5 * SECOND == date_in_manifest(manifest)
