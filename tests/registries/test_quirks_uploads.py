"""The scripted registry can imitate real registries: mounts, chunks, Locations, commits (see test_quirks.py)."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.registries.certificates import Authority
from tests.registries.client import sha256
from tests.registries.raw import once
from tests.registries.test_quirks import filled

UPLOADS = "/v2/app/blobs/uploads/"


# ---- 3. mounts


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405])
def test_a_mount_can_be_refused(scripted: ScriptedFactory, status: int) -> None:
    registry = scripted()
    blob, _ = filled(registry)
    registry.fault("POST mount", status=status)
    path = f"/v2/other/blobs/uploads/?mount={blob}&from=app"
    assert [status, 201] == [once(registry, "POST", path).status for _ in range(2)]


def test_mounts_can_open_a_session_falsely_succeed_or_need_a_manifest(scripted: ScriptedFactory) -> None:
    registry = scripted(mounts=False)
    blob, _ = filled(registry)
    path = f"/v2/other/blobs/uploads/?mount={blob}&from=app"
    response = once(registry, "POST", path)
    assert 202 == response.status
    assert [registry.uploads[0].id] == [response.headers["docker-upload-uuid"]]
    registry.features.mounts = registry.features.mount_after_manifest = True
    registry.storage.add_blob("app", sha256(b"loose"), b"loose")
    loose = f"/v2/other/blobs/uploads/?mount={sha256(b'loose')}&from=app"
    assert [201, 202] == [once(registry, "POST", mount).status for mount in (path, loose)]
    registry.fault("POST mount", status=201, headers=[("Location", f"/v2/third/blobs/{blob}")])
    assert 201 == once(registry, "POST", path.replace("other", "third")).status
    assert not registry.has_blob("third", blob)


# ---- 4. chunks


@pytest.mark.parametrize(
    ("features", "fault", "size", "status", "moved_to"),
    [
        ({}, {}, 10, 202, "0-9"),
        ({}, {"status": 201, "after": True}, 10, 201, "0-9"),
        ({}, {"accept": 0}, 10, 416, "0-0"),
        ({}, {"status": 416}, 10, 416, None),
        ({}, {"status": 404}, 10, 404, None),
        ({"max_body": 9}, {}, 10, 413, None),
        ({"max_chunk": 4 << 20}, {}, (4 << 20) + 1, 416, None),
        ({"min_chunk": 5 << 20}, {}, 10, 400, None),
        ({"chunks": False}, {}, 10, 405, None),
    ],
    ids=str,
)
def test_chunk_sizes_and_their_order_are_checked(
    scripted: ScriptedFactory,
    features: dict[str, Any],
    fault: dict[str, Any],
    size: int,
    status: int,
    moved_to: str | None,
) -> None:
    registry = scripted(**features)
    if fault:
        registry.fault("PATCH upload", **fault)
    opened = once(registry, "POST", UPLOADS)
    assert features.get("min_chunk") in (None, int(opened.headers.get("oci-chunk-min-length", 0)))
    response = once(registry, "PATCH", opened.headers["location"], b"x" * size, Content_Range=f"0-{size - 1}")
    assert (status, moved_to) == (response.status, response.headers.get("range"))


@pytest.mark.parametrize(("accept", "range_said"), [(0, "0-0"), (4, "0-3")])
def test_only_a_part_of_a_stream_can_be_accepted(scripted: ScriptedFactory, accept: int, range_said: str) -> None:
    registry = scripted()
    registry.fault("PATCH upload", accept=accept)
    opened = once(registry, "POST", UPLOADS)
    response = once(registry, "PATCH", opened.headers["location"], b"x" * 10)
    assert (202, range_said, accept) == (response.status, response.headers["range"], len(registry.uploads[0].data))


def test_a_replica_can_lack_an_upload_session(scripted: ScriptedFactory) -> None:
    registry = scripted()
    registry.fault("PATCH upload", nth=2, status=404)
    location = once(registry, "POST", UPLOADS).headers["location"]
    statuses = []
    for _ in range(3):
        response = once(registry, "PATCH", location, b"x")
        location = response.headers.get("location", location)
        statuses.append(response.status)
    assert [202, 404, 202] == statuses


def test_413_can_be_html_from_a_proxy(scripted: ScriptedFactory) -> None:
    registry = scripted(max_body=9)
    location = once(registry, "POST", UPLOADS).headers["location"]
    response = once(registry, "PUT", f"{location}&digest={sha256(b'0123456789')}", b"0123456789")
    assert (413, "text/html") == (response.status, response.headers["content-type"])
    assert response.body.startswith(b"<html>")


# ---- 5. Locations


@pytest.mark.parametrize(
    ("said", "pattern"),
    [
        (None, r"/v2/app/blobs/uploads/session-1\?_state=1"),
        (lambda path: f"http://registry.example.com{path}", r"http://registry\.example\.com/v2/app/.*"),
        (lambda path: f"//127.0.0.2:1{path}", r"//127\.0\.0\.2:1/v2/app/.*"),
    ],
    ids=["relative", "http behind https", "other host"],
)
def test_locations_can_have_many_forms(
    scripted: ScriptedFactory, authority: Authority, said: Any, pattern: str
) -> None:
    registry = scripted(tls=authority, locations=said)
    assert re.fullmatch(pattern, once(registry, "POST", UPLOADS).headers["location"])


def test_upload_sessions_can_change_their_location_with_each_response(scripted: ScriptedFactory) -> None:
    registry = scripted(upload_prefix="/artifacts-uploads/namespaces/")
    first = once(registry, "POST", UPLOADS).headers["location"]
    second = once(registry, "PATCH", first, b"abc").headers["location"]
    assert first.startswith("/artifacts-uploads/namespaces/app/session-1")
    assert first != second
    assert 404 == once(registry, "PATCH", first, b"abc").status
    assert 201 == once(registry, "PUT", f"{second}&digest={sha256(b'abc')}").status
    assert ["POST upload", "PATCH upload", "PATCH upload", "PUT upload"] == [seen.kind for seen in registry.requests()]


def test_upload_sessions_can_need_cookies(scripted: ScriptedFactory) -> None:
    registry = scripted()
    registry.fault("POST upload", after=True, headers=[("Set-Cookie", "route=replica-2; Path=/")])
    response = once(registry, "POST", UPLOADS)
    assert (202, "route=replica-2; Path=/") == (response.status, response.headers["set-cookie"])
    once(registry, "PATCH", response.headers["location"], b"x", Cookie="route=replica-2")
    assert "route=replica-2" == registry.log[-1].header("cookie")


# ---- 6. the closing PUT


def test_a_commit_with_a_lost_response_is_carried_out_and_then_404(scripted: ScriptedFactory) -> None:
    registry = scripted()
    lost = registry.fault("PUT upload", after=True, reset=True)
    path = f"{once(registry, 'POST', UPLOADS).headers['location']}&digest={sha256(b'abc')}"
    with pytest.raises(ConnectionResetError):
        once(registry, "PUT", path, b"abc")
    assert lost.fired.is_set()
    assert registry.has_blob("app", sha256(b"abc"))
    assert 404 == once(registry, "PUT", path, b"abc").status


def test_a_commit_can_be_slow_or_need_a_body(scripted: ScriptedFactory) -> None:
    registry = scripted(empty_commit=False)
    slow = registry.fault("PUT upload", nth=2, delay=0.15)
    location = once(registry, "PATCH", once(registry, "POST", UPLOADS).headers["location"], b"abc").headers["location"]
    assert 500 == once(registry, "PUT", f"{location}&digest={sha256(b'abc')}").status
    assert 201 == once(registry, "PUT", f"{location}&digest={sha256(b'abcd')}", b"d").status
    entry = registry.log[-1]
    assert 1 == slow.hits
    assert entry.ended - entry.time >= 0.15


# ---- 7. asking how far an upload is


@pytest.mark.parametrize("status", [204, 400, 404, 405])
def test_the_status_of_an_upload_session(scripted: ScriptedFactory, status: int) -> None:
    registry = scripted(upload_status=status)
    location = once(registry, "PATCH", once(registry, "POST", UPLOADS).headers["location"], b"abc").headers["location"]
    response = once(registry, "GET", location)
    assert (status, "0-2" if status == 204 else None) == (response.status, response.headers.get("range"))
