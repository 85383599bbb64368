"""`mirror serve --writable` against the distribution-spec (v1.1.1): pushes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mirror.errors import ConfigError, LockBusy
from mirror.layout.directory import LayoutStore
from mirror.serve.server import parse_address, serve
from mirror.util.cancellation import Stop, Work
from tests.registries.client import Client, Response, sha256
from tests.serve.test_handlers import code_of
from tests.support.images import Graph
from tests.support.layouts import Served, lay
from tests.support.oracle import assert_whole, skopeo
from tests.support.seeding import push

DATA = bytes(range(256)) * 400
WORK = Work(Stop())


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return tmp_path / "layout"


@pytest.fixture
def served(layout: Path) -> Iterator[Served]:
    with Served(layout, writable=True) as server:
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with served.client() as made:
        yield made


def begin(client: Client, repository: str = "app") -> str:
    response = client.ask("POST", f"/v2/{repository}/blobs/uploads/", want=(202,))
    assert "0-0" == response.headers["range"]
    assert response.headers["docker-upload-uuid"] in response.headers["location"]
    return response.headers["location"]


def with_digest(location: str, digest: str) -> str:
    return f"{location}{'&' if urlsplit(location).query else '?'}digest={digest}"


def assert_there(client: Client, data: bytes, response: Response, repository: str = "app") -> None:
    digest = sha256(data)
    assert 201 == response.status
    assert digest == response.headers["docker-content-digest"]
    assert f"/v2/{repository}/blobs/{digest}" == response.headers["location"]
    assert data == client.blob(repository, digest).body


# ---- blobs


def test_a_blob_is_pushed_by_post_and_put(client: Client) -> None:
    assert_there(client, DATA, client.ask("PUT", with_digest(begin(client), sha256(DATA)), body=DATA))


def test_a_blob_is_pushed_by_one_post(client: Client) -> None:
    assert_there(client, DATA, client.ask("POST", f"/v2/app/blobs/uploads/?digest={sha256(DATA)}", body=DATA))


@pytest.mark.parametrize("last", [b"", DATA[9000:]], ids=["put-without-a-body", "last-piece-in-the-put"])
def test_a_blob_is_pushed_in_parts(client: Client, last: bytes) -> None:
    location = begin(client)
    end = len(DATA) - len(last)
    for start, stop in ((0, 5000), (5000, 9000), (9000, end))[: 2 if last else 3]:
        sent = {"Content-Range": f"{start}-{stop - 1}"}
        response = client.ask("PATCH", location, headers=sent, body=DATA[start:stop], want=(202,))
        assert f"0-{stop - 1}" == response.headers["range"]
        location = response.headers["location"]
        where = client.ask("GET", location, want=(204,))
        assert f"0-{stop - 1}" == where.headers["range"]
    assert_there(client, DATA, client.ask("PUT", with_digest(location, sha256(DATA)), body=last))


def test_a_part_out_of_order_is_refused_and_the_upload_continues(client: Client) -> None:
    location = begin(client)
    client.ask("PATCH", location, headers={"Content-Range": "0-99"}, body=DATA[:100], want=(202,))
    for text in ("200-299", "0-99", "junk"):
        response = client.ask("PATCH", location, headers={"Content-Range": text}, body=DATA[200:300])
        assert (416, "RANGE_INVALID", "0-99") == (response.status, code_of(response), response.headers["range"])
    for start in (200, 0):
        sent = {"Content-Range": f"{start}-{len(DATA) - 1}"}
        response = client.ask("PUT", with_digest(location, sha256(DATA)), headers=sent, body=DATA[start:])
        assert (416, "RANGE_INVALID", "0-99") == (response.status, code_of(response), response.headers["range"])
    sent = {"Content-Range": f"100-{len(DATA) - 1}"}
    assert_there(client, DATA, client.ask("PUT", with_digest(location, sha256(DATA)), headers=sent, body=DATA[100:]))


@pytest.mark.parametrize("data", [b"", b"x"])
def test_the_smallest_blobs_are_pushed(client: Client, data: bytes) -> None:
    assert_there(client, data, client.ask("PUT", with_digest(begin(client), sha256(data)), body=data))


def test_a_blob_may_have_a_sha512_digest(client: Client) -> None:
    digest = f"sha512:{hashlib.sha512(DATA).hexdigest()}"
    straight = begin(client)
    client.ask("PUT", with_digest(straight, digest), body=DATA, want=(201,))
    pieces = begin(client)
    client.ask("PATCH", pieces, body=DATA, want=(202,))
    client.ask("PUT", with_digest(pieces, digest), want=(201,))
    assert DATA == client.blob("app", digest).body


@pytest.mark.parametrize("pieces", [False, True])
def test_a_blob_with_another_digest_is_refused(client: Client, pieces: bool) -> None:
    location = begin(client)
    if pieces:
        client.ask("PATCH", location, body=DATA, want=(202,))
    response = client.ask("PUT", with_digest(location, sha256(b"other")), body=b"" if pieces else DATA)
    assert (400, "DIGEST_INVALID") == (response.status, code_of(response))
    assert not client.has_blob("app", sha256(b"other"))
    assert not client.has_blob("app", sha256(DATA))


@pytest.mark.parametrize("digest", ["", "sha256:1", "md5:d41d8cd98f00b204e9800998ecf8427e"])
def test_a_blob_without_a_digest_is_refused(client: Client, digest: str) -> None:
    response = client.ask("PUT", f"{begin(client)}?digest={digest}" if digest else begin(client), body=DATA)
    assert (400, "DIGEST_INVALID") == (response.status, code_of(response))


def test_a_deleted_or_finished_upload_session_does_not_exist(client: Client) -> None:
    done, deleted = begin(client), begin(client)
    client.ask("PUT", with_digest(done, sha256(DATA)), body=DATA, want=(201,))
    client.ask("DELETE", deleted, want=(204,))
    for location in (done, deleted, "/v2/app/blobs/uploads/none"):
        for method in ("GET", "PATCH", "PUT", "DELETE"):
            response = client.ask(method, location, body=b"x")
            assert (404, "BLOB_UPLOAD_UNKNOWN") == (response.status, code_of(response))


def test_unfinished_uploads_leave_no_files(layout: Path) -> None:
    with Served(layout, writable=True) as server, server.client() as client:
        client.ask("PATCH", begin(client), body=DATA, want=(202,))
        assert ["blobs", "index.json", "oci-layout"] == sorted(path.name for path in layout.iterdir())
    assert ["blobs", "index.json", "oci-layout"] == sorted(path.name for path in layout.iterdir())


# ---- mounts


def test_a_blob_is_mounted_from_a_repository_that_has_it(client: Client) -> None:
    client.put_blob("base", DATA)
    response = client.ask("POST", f"/v2/app/blobs/uploads/?mount={sha256(DATA)}&from=base")
    assert_there(client, DATA, response)


def test_a_blob_is_mounted_without_from(client: Client) -> None:
    client.put_blob("base", DATA)
    assert_there(client, DATA, client.ask("POST", f"/v2/app/blobs/uploads/?mount={sha256(DATA)}"))


@pytest.mark.parametrize(
    "query", [f"mount={sha256(b'?')}&from=base", f"mount={sha256(DATA)}&from=nowhere", f"mount={sha256(DATA)}&from=.."]
)
def test_a_mount_that_fails_opens_an_upload_session(client: Client, query: str) -> None:
    client.put_blob("base", DATA)
    response = client.ask("POST", f"/v2/app/blobs/uploads/?{query}", want=(202,))
    assert_there(
        client, b"new", client.ask("PUT", with_digest(response.headers["location"], sha256(b"new")), body=b"new")
    )


# ---- manifests


def test_a_manifest_is_pushed_and_read_back(client: Client) -> None:
    graph = Graph("pushed")
    made = graph.image("v1")
    for data in graph.blobs.values():
        client.put_blob("app", data)
    body = graph.manifests[made.digest]
    for reference in ("v1", made.digest):
        response = client.ask(
            "PUT", f"/v2/app/manifests/{reference}", headers={"Content-Type": body.media_type}, body=body.data
        )
        assert (201, made.digest) == (response.status, response.headers["docker-content-digest"])
        assert f"/v2/app/manifests/{made.digest}" == response.headers["location"]
        assert "oci-subject" not in response.headers
        assert body.data == client.manifest("app", reference).body


def test_the_subject_of_a_manifest_is_confirmed(client: Client) -> None:
    graph = Graph("subject")
    subject = Graph("elsewhere").image("v1")
    made = graph.artifact(subject=subject)
    for data in graph.blobs.values():
        client.put_blob("app", data)
    body = graph.manifests[made.digest]
    response = client.ask(
        "PUT", f"/v2/app/manifests/{made.digest}", headers={"Content-Type": body.media_type}, body=body.data
    )
    assert (201, subject.digest) == (response.status, response.headers["oci-subject"])
    listed = client.ask("GET", f"/v2/app/referrers/{subject.digest}").json()["manifests"]
    assert [made.digest] == [one["digest"] for one in listed]
    assert [] == client.ask("GET", f"/v2/other/referrers/{subject.digest}").json()["manifests"]


def test_an_invalid_manifest_is_refused(client: Client) -> None:
    graph = Graph("wrong")
    made = graph.image("v1")
    body = graph.manifests[made.digest]
    sent = {"Content-Type": body.media_type}
    cases = [
        ("v1", body.data, 404, "MANIFEST_BLOB_UNKNOWN"),
        (sha256(b"other"), body.data, 400, "DIGEST_INVALID"),
        ("v1", b"{", 400, "MANIFEST_INVALID"),
        ("v1", b"", 400, "MANIFEST_INVALID"),
        ("v1", b"[]", 400, "MANIFEST_INVALID"),
        (".bad", body.data, 400, "TAG_INVALID"),
        ("a" * 129, body.data, 400, "TAG_INVALID"),
        ("v1", b" " * (5 << 20), 413, "SIZE_INVALID"),
    ]
    for reference, data, status, code in cases:
        response = client.ask("PUT", f"/v2/app/manifests/{reference}", headers=sent, body=data)
        assert (status, code) == (response.status, code_of(response)), reference
    response = client.ask("PUT", "/v2/app/manifests/v1", headers={"Content-Type": "text/weird"}, body=body.data)
    assert (400, "MANIFEST_INVALID") == (response.status, code_of(response))
    assert [] == client.tags("app")


def test_a_tag_is_deleted_and_a_manifest_with_all_its_tags(layout: Path, served: Served, client: Client) -> None:
    graph = Graph("deleted")
    graph.platforms("v1", "v2")
    graph.image("v3")
    push(served, "app", graph)
    assert 202 == client.delete("app", "v3")
    assert ["v1", "v2"] == client.tags("app")
    assert 404 == client.delete("app", "v3")
    assert 202 == client.delete("app", graph.tags["v1"])
    assert [] == client.tags("app")
    response = client.ask("DELETE", f"/v2/app/blobs/{next(iter(graph.blobs))}")
    assert (405, "UNSUPPORTED") == (response.status, code_of(response))


def test_a_manifest_deleted_by_digest_is_no_longer_served(layout: Path) -> None:
    graph = Graph("deleted")
    image = graph.image("v1", "v2")
    with Served(layout, writable=True) as server, server.client() as client:
        push(server, "app", graph)
        assert 202 == client.delete("app", image.digest)
        for reference in (image.digest, "v1", "v2"):
            response = client.ask("GET", f"/v2/app/manifests/{reference}")
            assert (404, "MANIFEST_UNKNOWN") == (response.status, code_of(response))
        assert 404 == client.delete("app", image.digest)
    assert not (layout / "blobs" / "sha256" / image.digest[7:]).exists()
    with Served(layout, writable=True) as server, server.client() as client:
        assert 404 == client.ask("GET", f"/v2/app/manifests/{image.digest}").status
        push(server, "app", graph)
        assert 200 == client.ask("GET", f"/v2/app/manifests/{image.digest}").status


def test_a_manifest_in_two_repositories_is_deleted_from_one_only(served: Served, client: Client) -> None:
    graph = Graph("in both")
    index = graph.platforms("v1")
    child = next(digest for digest in graph.manifests if digest != index.digest)
    for name in ("app", "lib"):
        push(served, name, graph)
    client.put_manifest("app", "kept", graph.manifests[child].data, graph.manifests[child].media_type)
    assert 202 == client.delete("app", index.digest)
    assert (404, 200) == tuple(
        client.ask("GET", f"/v2/{name}/manifests/{index.digest}").status for name in ("app", "lib")
    )
    assert 202 == client.delete("app", child)
    assert (404, 200) == tuple(client.ask("HEAD", f"/v2/{name}/manifests/{child}").status for name in ("app", "lib"))
    assert index.digest == assert_whole(served).tags["lib", "v1"]
    push(served, "app", graph)
    assert 200 == client.ask("GET", f"/v2/app/manifests/{child}").status
    assert index.digest == assert_whole(served).tags["app", "v1"]


def test_a_manifest_below_an_index_of_its_repository_is_not_deleted(served: Served, client: Client) -> None:
    graph = Graph("a child")
    index = graph.platforms("v1")
    child = next(digest for digest in graph.manifests if digest != index.digest)
    push(served, "app", graph)
    response = client.ask("DELETE", f"/v2/app/manifests/{child}")
    assert (405, "UNSUPPORTED") == (response.status, code_of(response))
    assert index.digest == assert_whole(served).tags["app", "v1"]
    assert [202, 202] == [client.delete("app", digest) for digest in (index.digest, child)]


def test_tags_without_a_repository_in_the_layout_are_deleted_too(tmp_path: Path) -> None:
    graph = Graph("bare")
    image, other = graph.image("v1"), graph.image("v2")
    path = tmp_path / "bare"
    lay(path, app=graph)
    (path / "index.json").write_text((path / "index.json").read_text().replace('"app:v', '"v'))
    with Served(path, writable=True) as server, server.client() as client:
        assert ["v1", "v2"] == client.tags("bare")
        assert 202 == client.delete("bare", "v2")
        assert ["v1"] == client.tags("bare")
        assert [202, 202] == [client.delete("bare", one.digest) for one in (image, other)]
        assert [] == client.tags("bare")
    assert not (path / "blobs" / "sha256" / image.digest[7:]).exists()


# ---- clients, and what is left


def test_skopeo_pushes_and_pulls(served: Served, layout: Path, tmp_path: Path) -> None:
    graph = Graph("skopeo")
    index = graph.platforms("v1")
    made = lay(tmp_path / "made", app=graph)
    skopeo("copy", "--all", "--dest-tls-verify=false", f"oci:{made}:app:v1", f"docker://{served.host}/team/app:v1")
    assert index.digest == assert_whole(served).tags["team/app", "v1"]
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{served.host}/team/app:v1")
    assert graph.manifests[index.digest].data == raw.encode()


def test_pushed_images_exist_after_the_server_has_ended(layout: Path) -> None:
    graph = Graph("kept")
    graph.platforms("v1")
    with Served(layout, writable=True) as server:
        push(server, "app", graph)
    with Served(layout) as server:
        assert set(graph.blobs) | set(graph.manifests) == {digest for _, digest in assert_whole(server).objects}


def test_pushed_images_soon_appear_in_the_directory(layout: Path, served: Served) -> None:
    graph = Graph("seen")
    graph.image(*[f"v{number}" for number in range(20)])
    push(served, "app", graph)
    reader = LayoutStore(layout)
    try:
        waited = Stop()
        for _ in range(100):
            if 20 == len(json.loads((layout / "index.json").read_text())["manifests"]):
                break
            waited.sleep(0.05)
        assert 20 == len(list(reader.tags("app", WORK)))
    finally:
        reader.close()


def test_a_second_writable_server_is_refused(layout: Path, served: Served) -> None:
    with pytest.raises(LockBusy) as caught:
        Served(layout, writable=True).__enter__()
    assert 75 == caught.value.exit_code


def test_a_writable_server_listens_on_loopback_only(layout: Path) -> None:
    for listen in ("0.0.0.0:0", "[::]:0", "192.0.2.1:5000", "example.com:5000"):
        with pytest.raises(ConfigError):
            serve(layout, listen=listen, writable=True)
    assert not layout.exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:5000", ("127.0.0.1", 5000)),
        (":0", ("127.0.0.1", 0)),
        ("[::1]:80", ("::1", 80)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_a_listen_address_is_parsed(text: str, expected: tuple[str, int]) -> None:
    assert expected == parse_address(text)


@pytest.mark.parametrize("text", ["", "5000", "127.0.0.1", "127.0.0.1:", "host:65536", "http://host:80", "a b:1"])
def test_an_invalid_listen_address_is_a_usage_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_address(text)
