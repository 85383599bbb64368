"""`mirror serve` against the distribution-spec (v1.1.1): pulls and listings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.registries.client import Client, Response, sha256
from tests.support.guards import keep
from tests.support.images import EMPTY, OCI_INDEX, Graph
from tests.support.layouts import Served, lay, pack
from tests.support.oracle import assert_whole, skopeo, skopeo_copy_to_dir, walk_tag

ABSENT = sha256(b"absent")
DATA = bytes(range(256)) * 1000


def stock() -> Graph:
    graph = Graph("served")
    index = graph.platforms("v1", "latest")
    graph.image("v2", oci=False)
    graph.artifact("notes", texts=[DATA, b""])
    graph.artifact(subject=index, texts=[b"sbom"], kind="application/vnd.example.sbom", annotations={"by": "test"})
    graph.artifact(subject=index, texts=[b"signature"], kind="application/vnd.example.signature")
    return graph


@pytest.fixture(scope="module")
def graph() -> Graph:
    return stock()


@pytest.fixture(scope="module")
def layout(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay(tmp_path_factory.mktemp("served") / "layout", app=graph, team__web=graph)


@pytest.fixture(scope="module")
def bundle(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("packed") / "export.tar", app=graph, team__web=graph)


@pytest.fixture(params=["layout", "bundle"])
def served(request: pytest.FixtureRequest, layout: Path, bundle: Path) -> Iterator[Served]:
    with Served(layout if request.param == "layout" else bundle) as server:
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with served.client() as made:
        yield made


def code_of(response: Response) -> str:
    """Return the code of an error document, and check its format."""
    assert "application/json" == response.headers["content-type"]
    (error,) = response.json()["errors"]
    assert {"code", "message", "detail"} == error.keys()
    return str(error["code"])


@pytest.mark.parametrize("path", ["/v2/", "/v2"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_version_check_succeeds(client: Client, method: str, path: str) -> None:
    response = client.ask(method, path)
    assert 200 == response.status
    assert "registry/2.0" == response.headers["docker-distribution-api-version"]


# ---- manifests


@pytest.mark.parametrize("repository", ["app", "team/web"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_manifest_is_served_with_its_bytes_media_type_and_digest(
    client: Client, graph: Graph, method: str, repository: str
) -> None:
    for reference, digest in (*graph.tags.items(), *((digest, digest) for digest in graph.manifests)):
        body = graph.manifests[digest]
        response = client.ask(method, f"/v2/{repository}/manifests/{reference}")
        assert 200 == response.status
        assert body.media_type == response.headers["content-type"]
        assert digest == response.headers["docker-content-digest"]
        assert str(len(body.data)) == response.headers["content-length"]
        assert (body.data if method == "GET" else b"") == response.body


def test_a_manifest_with_a_matching_etag_is_not_sent_again(client: Client, graph: Graph) -> None:
    digest = graph.tags["v1"]
    response = client.ask("GET", "/v2/app/manifests/v1", headers={"If-None-Match": f'"{digest}"'})
    assert (304, b"") == (response.status, response.body)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v2/app/manifests/missing", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/app/manifests/{ABSENT}", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/missing/manifests/{ABSENT}", 404, "NAME_UNKNOWN"),
        ("/v2/app/manifests/.bad", 404, "MANIFEST_UNKNOWN"),
        ("/v2/app/manifests/sha256:short", 400, "DIGEST_INVALID"),
        ("/v2/app/manifests/md5:d41d8cd98f00b204e9800998ecf8427e", 400, "DIGEST_INVALID"),
        (f"/v2/app/blobs/{ABSENT}", 404, "BLOB_UNKNOWN"),
        (f"/v2/missing/blobs/{ABSENT}", 404, "NAME_UNKNOWN"),
        ("/v2/app/blobs/sha256:short", 400, "DIGEST_INVALID"),
        ("/v2/App/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/a/../b/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/%2e%2e/%2e%2e/etc/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/app%00/tags/list", 400, "NAME_INVALID"),
        ("/v2/missing/tags/list", 404, "NAME_UNKNOWN"),
        ("/v2/app/tags/list?n=many", 400, "PAGINATION_NUMBER_INVALID"),
        ("/v2/_catalog?n=-1", 400, "PAGINATION_NUMBER_INVALID"),
        ("/v2/app/referrers/v1", 400, "DIGEST_INVALID"),
        ("/v2/app/blobs/uploads/there-is-none", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("/v2/app", 404, "NAME_UNKNOWN"),
        ("/v2/app/tags", 404, "NAME_UNKNOWN"),
        ("/v1/_ping", 404, "NAME_UNKNOWN"),
        ("/", 404, "NAME_UNKNOWN"),
    ],
)
def test_missing_content_gets_the_error_code_of_the_spec(client: Client, path: str, status: int, code: str) -> None:
    response = client.ask("GET", path)
    assert (status, code) == (response.status, code_of(response))
    head = client.ask("HEAD", path)
    assert (status, b"", response.headers["content-length"]) == (head.status, head.body, head.headers["content-length"])


# ---- blobs


def test_a_blob_is_not_served_as_a_manifest(client: Client, graph: Graph) -> None:
    for digest in graph.blobs:
        response = client.ask("GET", f"/v2/app/manifests/{digest}")
        assert (404, "MANIFEST_UNKNOWN") == (response.status, code_of(response)), digest


def test_a_blob_is_served_completely(client: Client, graph: Graph) -> None:
    for digest, data in graph.blobs.items():
        response = client.ask("GET", f"/v2/app/blobs/{digest}")
        assert (200, data) == (response.status, response.body)
        assert (digest, "bytes") == (response.headers["docker-content-digest"], response.headers["accept-ranges"])
        head = client.ask("HEAD", f"/v2/app/blobs/{digest}")
        assert (200, b"", str(len(data))) == (head.status, head.body, head.headers["content-length"])


SIZE = len(DATA)


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-", (0, SIZE)),
        ("bytes=1000-1999", (1000, 2000)),
        (f"bytes={SIZE - 1}-", (SIZE - 1, SIZE)),
        (f"bytes=5-{SIZE + 100}", (5, SIZE)),
        ("bytes=-7", (SIZE - 7, SIZE)),
        (f"bytes=-{SIZE + 7}", (0, SIZE)),
        ("bytes=100000-", (100000, SIZE)),
    ],
)
def test_a_range_of_a_blob_is_served(client: Client, asked: str, part: tuple[int, int]) -> None:
    first, end = part
    response = client.ask("GET", f"/v2/app/blobs/{sha256(DATA)}", headers={"Range": asked})
    assert (206, DATA[first:end]) == (response.status, response.body)
    assert f"bytes {first}-{end - 1}/{SIZE}" == response.headers["content-range"]


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "bytes=", "bytes=-", "bytes=9-5", "lines=0-1", "bytes=a-b"])
def test_an_invalid_range_gets_the_whole_blob(client: Client, asked: str) -> None:
    response = client.ask("GET", f"/v2/app/blobs/{sha256(DATA)}", headers={"Range": asked})
    assert (200, DATA) == (response.status, response.body)


@pytest.mark.parametrize(
    ("data", "asked"), [(DATA, f"bytes={SIZE}-"), (DATA, "bytes=-0"), (b"", "bytes=0-"), (b"", "bytes=-1")]
)
def test_a_range_beyond_the_end_gets_416(client: Client, data: bytes, asked: str) -> None:
    response = client.ask("GET", f"/v2/app/blobs/{sha256(data)}", headers={"Range": asked})
    assert (416, "RANGE_INVALID") == (response.status, code_of(response))
    assert f"bytes */{len(data)}" == response.headers["content-range"]


# ---- listings


def pages(client: Client, path: str, key: str) -> list[list[str]]:
    found = []
    while path:
        response = client.ask("GET", path, want=(200,))
        found.append(response.json()[key])
        link = response.headers.get("link", "")
        assert not link or link.endswith('>; rel="next"')
        path = link[1 : link.index(">")] if link else ""
    return found


def test_tags_are_listed_in_lexical_order(client: Client, graph: Graph) -> None:
    response = client.ask("GET", "/v2/team/web/tags/list")
    assert {"name": "team/web", "tags": sorted(graph.tags)} == response.json()
    assert "link" not in response.headers


def test_tags_are_listed_in_pages(client: Client, graph: Graph) -> None:
    tags = sorted(graph.tags)
    assert [tags[:2], tags[2:]] == pages(client, "/v2/app/tags/list?n=2", "tags")
    assert [[tag] for tag in tags] == pages(client, "/v2/app/tags/list?n=1", "tags")
    assert [tags] == pages(client, f"/v2/app/tags/list?n={len(tags)}", "tags")
    assert [tags[1:]] == pages(client, f"/v2/app/tags/list?last={tags[0]}", "tags")
    assert [tags] == pages(client, "/v2/app/tags/list?last=a", "tags"), "`last` need not be a tag"
    assert [[]] == pages(client, f"/v2/app/tags/list?n=5&last={tags[-1]}", "tags")
    assert [[]] == pages(client, "/v2/app/tags/list?n=0", "tags")


def test_the_catalog_is_listed_in_pages(client: Client) -> None:
    assert [["app", "team/web"]] == pages(client, "/v2/_catalog", "repositories")
    assert [["app"], ["team/web"]] == pages(client, "/v2/_catalog?n=1", "repositories")


# ---- referrers


def referrers(client: Client, digest: str, query: str = "") -> tuple[list[dict[str, Any]], Response]:
    response = client.ask("GET", f"/v2/app/referrers/{digest}{query}", want=(200,))
    document = response.json()
    assert (OCI_INDEX, 2, OCI_INDEX) == (
        response.headers["content-type"],
        document["schemaVersion"],
        document["mediaType"],
    )
    return document["manifests"], response


def test_referrers_are_listed_with_artifact_type_and_annotations(client: Client, graph: Graph) -> None:
    found, response = referrers(client, graph.tags["v1"])
    assert {"application/vnd.example.sbom", "application/vnd.example.signature"} == {
        one["artifactType"] for one in found
    }
    assert [{"by": "test"}] == [one["annotations"] for one in found if "annotations" in one]
    for one in found:
        assert len(graph.manifests[one["digest"]].data) == one["size"]
    assert "oci-filters-applied" not in response.headers


def test_referrers_are_filtered_by_artifact_type(client: Client, graph: Graph) -> None:
    found, response = referrers(client, graph.tags["v1"], "?artifactType=application%2Fvnd.example.sbom")
    assert ["application/vnd.example.sbom"] == [one["artifactType"] for one in found]
    assert "artifactType" == response.headers["oci-filters-applied"]
    assert [] == referrers(client, graph.tags["v1"], "?artifactType=other")[0]


def test_a_missing_manifest_has_no_referrers(client: Client) -> None:
    assert [] == referrers(client, ABSENT)[0]


def test_the_artifact_type_may_be_the_media_type_of_the_config(tmp_path: Path) -> None:
    graph = Graph("image as a referrer")
    subject = graph.image("v1")
    graph.image(subject=subject, label="about")
    with Served(lay(tmp_path / "layout", app=graph)) as server, server.client() as client:
        (found,), _ = referrers(client, subject.digest)
    assert "application/vnd.oci.image.config.v1+json" == found["artifactType"]
    assert EMPTY != found["artifactType"]


# ---- it only reads


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/app/blobs/uploads/"),
        ("POST", f"/v2/app/blobs/uploads/?mount={ABSENT}&from=team/web"),
        ("POST", f"/v2/app/blobs/uploads/?digest={ABSENT}"),
        ("PUT", f"/v2/app/blobs/uploads/x?digest={ABSENT}"),
        ("PATCH", "/v2/app/blobs/uploads/x"),
        ("DELETE", "/v2/app/blobs/uploads/x"),
        ("PUT", "/v2/app/manifests/v1"),
        ("DELETE", "/v2/app/manifests/v1"),
        ("DELETE", f"/v2/app/blobs/{ABSENT}"),
        ("POST", "/v2/"),
        ("OPTIONS", "/v2/app/tags/list"),
    ],
)
def test_a_read_only_server_refuses_every_write(
    served: Served, client: Client, graph: Graph, method: str, path: str
) -> None:
    response = client.ask(method, path, body=b"x" * 1000)
    assert (405, "UNSUPPORTED") == (response.status, code_of(response))
    assert not {"PUT", "POST", "PATCH", "DELETE"} & set(response.headers["allow"].split(", "))
    assert sorted(graph.tags) == client.tags("app"), "and the connection can be used on"


# ---- clients


def test_every_tag_that_is_served_is_complete(served: Served, graph: Graph) -> None:
    taken = assert_whole(served)
    assert {(name, tag) for name in ("app", "team/web") for tag in graph.tags} == set(taken.tags)


def test_skopeo_reads_every_tag(served: Served, graph: Graph, tmp_path: Path) -> None:
    for tag in ("v1", "v2", "notes"):
        folder = skopeo_copy_to_dir(served, "app", tag, tmp_path / tag)
        assert graph.manifests[graph.tags[tag]].data == (folder / "manifest.json").read_bytes()
    listed = json.loads(skopeo("list-tags", "--tls-verify=false", f"docker://{served.host}/app"))
    assert sorted(graph.tags) == sorted(listed["Tags"])


def test_fifty_concurrent_readers_get_complete_images(served: Served) -> None:
    def read(number: int) -> list[str]:
        return walk_tag(served, "app" if number % 2 else "team/web", "notes" if number % 3 else "v1").problems

    with keep(), ThreadPoolExecutor(50, thread_name_prefix="reader") as pool:
        assert [[]] * 50 == list(pool.map(read, range(50)))
