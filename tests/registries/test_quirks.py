"""The scripted registry can imitate real registries: tokens, limits, blobs, listings, manifests.

Mounts and uploads are in test_quirks_uploads.py, connections in test_faults.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.registries.blobhost import BlobHost
from tests.registries.client import Client, sha256
from tests.registries.exchange import Reply, Request
from tests.registries.faults import FOREVER, shortened, without, wrong_bytes
from tests.registries.raw import once, stranger
from tests.registries.scripted import ScriptedRegistry
from tests.registries.tokens import TokenService
from tests.support.images import OCI_INDEX, OCI_MANIFEST, Graph


def filled(registry: ScriptedRegistry) -> tuple[str, str]:
    """Fill the repository `app`; return the digests of a blob and of the manifest `v1`."""
    graph = Graph("quirks")
    made = graph.image("v1")
    registry.load("app", graph)
    return next(iter(graph.blobs)), made.digest


# ---- 1. tokens


@pytest.mark.parametrize(
    ("options", "has"),
    [
        ({"life": 5}, {"token", "expires_in", "issued_at"}),
        ({"says_life": False}, {"token"}),
        ({"field": "access_token"}, {"access_token", "expires_in", "issued_at"}),
    ],
    ids=["life", "no life", "access_token"],
)
def test_the_response_of_a_token_service(options: dict[str, Any], has: set[str]) -> None:
    with TokenService(**options) as tokens, Client(tokens.realm.split("/")[2]) as client:
        response = client.ask("GET", "/auth/token?scope=repository:app:pull", want=(200,)).json()
    assert has == set(response)
    assert options.get("life") in (None, response.get("expires_in"))


def test_a_token_service_can_honour_only_the_last_scope() -> None:
    with TokenService(last_scope_only=True) as tokens, Client(tokens.realm.split("/")[2]) as client:
        path = "/auth/token?scope=repository:a:pull&scope=repository:b:pull"
        access, alive = tokens.access_of(client.ask("GET", path).json()["token"])
        assert (["b"], True) == ([entry["name"] for entry in access], alive)
        tokens.one_scope = True
        assert 403 == client.ask("GET", path).status
        assert 2 == len(tokens.asked)


def test_identity_tokens_are_issued_by_post() -> None:
    with TokenService(users={"acme": "secret"}) as tokens, Client(tokens.realm.split("/")[2]) as client:
        form = b"grant_type=password&username=acme&password=secret&access_type=offline&scope=repository:a:pull"
        first = client.ask("POST", "/auth/token", body=form, want=(200,)).json()
        form = f"grant_type=refresh_token&refresh_token={first['refresh_token']}&scope=repository:a:pull".encode()
        second = client.ask("POST", "/auth/token", body=form, want=(200,)).json()
        assert "pull" in tokens.access_of(second["access_token"])[0][0]["actions"]
        assert [False, True] == [asked.identity for asked in tokens.asked]


def test_challenges_have_the_needed_scope_or_a_placeholder(scripted: ScriptedFactory) -> None:
    registry = scripted(bearer=True)
    challenge = once(registry, "POST", "/v2/app/blobs/uploads/?mount=sha256:0&from=base").headers["www-authenticate"]
    assert 'scope="repository:app:pull,push repository:base:pull"' in challenge
    assert f'realm="{registry.url}/auth/token"' in challenge
    registry.features.placeholder_scope = "repository:user/image:pull"
    assert (
        'scope="repository:user/image:pull"' in once(registry, "GET", "/v2/app/tags/list").headers["www-authenticate"]
    )


def test_an_expired_token_is_a_challenge_or_a_plain_403(scripted: ScriptedFactory) -> None:
    registry = scripted(bearer=True)
    filled(registry)
    assert registry.tokens is not None
    registry.tokens.life = -1
    token = once(registry, "GET", "/auth/token?scope=repository:app:pull").json()["token"]
    response = once(registry, "GET", "/v2/app/tags/list", Authorization=f"Bearer {token}")
    assert 401 == response.status
    assert 'error="invalid_token"' in response.headers["www-authenticate"]
    expired = b"Your authorization token has expired. Reauthenticate and try again."
    registry.features.expired = Reply(403, (("Content-Type", "text/plain"),), expired)
    response = once(registry, "GET", "/v2/app/tags/list", Authorization=f"Bearer {token}")
    assert (403, expired) == (response.status, response.body)
    registry.tokens.life = 5
    token = once(registry, "GET", "/auth/token?scope=repository:app:pull").json()["token"]
    assert 200 == once(registry, "GET", "/v2/app/tags/list", Authorization=f"Bearer {token}").status


# ---- 2. limits of rate and quota


@pytest.mark.parametrize("wait", ["1", "Wed, 21 Oct 2065 07:28:00 GMT", None])
def test_429_can_have_any_retry_after_or_none(scripted: ScriptedFactory, wait: str | None) -> None:
    registry = scripted()
    filled(registry)
    headers = [("Content-Type", "text/plain"), *([("Retry-After", wait)] if wait else [])]
    registry.fault("GET tags", times=2, status=429, headers=headers, body=b"slow down\n")
    responses = [once(registry, "GET", "/v2/app/tags/list") for _ in range(3)]
    assert [429, 429, 200] == [response.status for response in responses]
    assert (wait, b"slow down\n") == (responses[0].headers.get("retry-after"), responses[0].body)


def test_a_quota_counts_get_but_not_head(scripted: ScriptedFactory) -> None:
    registry = scripted(quota=1)
    filled(registry)
    asked = ["HEAD", "GET", "HEAD", "GET"]
    responses = [once(registry, method, "/v2/app/manifests/v1") for method in asked]
    assert [200, 200, 200, 429] == [response.status for response in responses]
    assert ["1;w=21600", "0;w=21600"] == [response.headers["ratelimit-remaining"] for response in responses[:2]]


# ---- 8. blobs


def test_blobs_can_be_redirected_to_a_host_that_refuses_credentials(scripted: ScriptedFactory) -> None:
    registry = scripted()
    blob, _ = filled(registry)
    with BlobHost(registry.storage) as other, Client(other.host, agent="raw") as client:
        registry.features.blob_redirect = other.url_of
        response = once(registry, "GET", f"/v2/app/blobs/{blob}")
        assert (307, other.url_of(blob)) == (response.status, response.headers["location"])
        signed = response.headers["location"].removeprefix(f"http://{other.host}")
        assert registry.storage.bytes[blob] == client.ask("GET", signed).body
        assert 400 == client.ask("GET", signed, headers={"Authorization": "Bearer x"}).status
        assert 403 == client.ask("HEAD", signed).status
        part = client.ask("GET", signed, headers={"Range": "bytes=2-3"})
        assert (206, registry.storage.bytes[blob][2:4]) == (part.status, part.body)
        assert ["GET", "GET", "HEAD", "GET"] == [request.method for request in other.seen]


def test_bodies_can_be_wrong_truncated_or_complete_despite_a_range(scripted: ScriptedFactory) -> None:
    registry = scripted()
    blob, _ = filled(registry)
    path, data = f"/v2/app/blobs/{blob}", registry.storage.bytes[blob]
    registry.fault("GET blob", change=wrong_bytes)
    registry.fault("GET blob", nth=2, change=shortened(10))
    wrong, short = once(registry, "GET", path), once(registry, "GET", path)
    assert len(data) == len(wrong.body)
    assert data != wrong.body
    assert (data[:10], "10") == (short.body, short.headers["content-length"])
    part = once(registry, "GET", path, Range="bytes=5-")
    assert (206, data[5:], f"bytes 5-{len(data) - 1}/{len(data)}") == (
        part.status,
        part.body,
        part.headers["content-range"],
    )
    registry.features.ranges = False
    whole = once(registry, "GET", path, Range="bytes=5-")
    assert (200, data) == (whole.status, whole.body)


# ---- 9. listings


def tagged(registry: ScriptedRegistry, count: int) -> list[str]:
    """Give one image `count` tags; return their names."""
    graph = Graph("tags")
    made = graph.image()
    names = sorted(f"v{number:05}" for number in range(count))
    graph.tag(made.digest, *names)
    registry.load("app", graph)
    return names


@pytest.mark.parametrize("features", [{}, {"page": 50}, {"page": 50, "opaque_link": True}, {"page": 1000}], ids=str)
def test_pages_lead_to_every_tag(scripted: ScriptedFactory, features: dict[str, Any]) -> None:
    registry = scripted(**features)
    names = tagged(registry, 120)
    with stranger(registry) as client:
        assert names == client.tags("app")
    assert (3 if features.get("page") == 50 else 1) == registry.counts()["GET tags"]
    assert features.get("opaque_link", False) == ("next_page=" in registry.log[-1].path)


def test_a_page_can_have_fifty_thousand_tags(scripted: ScriptedFactory) -> None:
    registry = scripted()
    names = tagged(registry, 50_000)
    assert names == once(registry, "GET", "/v2/app/tags/list").json()["tags"]


def test_pages_can_have_no_link_absolute_links_loops_and_size_limits(scripted: ScriptedFactory) -> None:
    registry = scripted(page=2, link=False, max_n=1000)
    tagged(registry, 3)
    response = once(registry, "GET", "/v2/app/tags/list")
    assert (["v00000", "v00001"], None) == (response.json()["tags"], response.headers.get("link"))
    assert ["v00002"] == once(registry, "GET", "/v2/app/tags/list?last=v00001").json()["tags"]
    assert 413 == once(registry, "GET", "/v2/app/tags/list?n=1001").status
    registry.features.link = True
    registry.features.link_form = lambda path: "/v2/app/tags/list"
    assert '</v2/app/tags/list>; rel="next"' == once(registry, "GET", "/v2/app/tags/list").headers["link"]
    registry.features.link_form = lambda path: registry.url + path
    link = once(registry, "GET", "/v2/app/tags/list?n=1").headers["link"]
    assert f'<{registry.url}/v2/app/tags/list?last=v00000&n=1>; rel="next"' == link


def test_listings_can_be_refused_or_have_invalid_names(scripted: ScriptedFactory) -> None:
    registry = scripted()
    _, manifest = filled(registry)
    registry.fault("GET tags", status=403)
    registry.storage.make("app").tags["../../etc"] = manifest
    responses = [once(registry, "GET", "/v2/app/tags/list") for _ in range(2)]
    assert [403, 200] == [response.status for response in responses]
    assert ["../../etc", "v1"] == responses[1].json()["tags"]


# ---- 10. manifests


def test_tags_can_be_immutable(scripted: ScriptedFactory) -> None:
    registry = scripted(immutable_tags=True)
    filled(registry)
    body = registry.manifest("app", "v1").body
    response = once(registry, "PUT", "/v2/app/manifests/v1", body, Content_Type=OCI_MANIFEST)
    assert 400 == response.status
    assert "immutable" in response.json()["errors"][0]["message"]
    assert 201 == once(registry, "PUT", "/v2/app/manifests/v2", body, Content_Type=OCI_MANIFEST).status


@pytest.mark.parametrize(
    ("features", "status"),
    [({}, 400), ({"sparse_indexes": True}, 201), ({"media_types": (OCI_MANIFEST,)}, 415), ({"max_manifest": 9}, 413)],
    ids=str,
)
def test_an_index_can_be_accepted_without_its_children(
    scripted: ScriptedFactory, features: dict[str, Any], status: int
) -> None:
    registry, graph = scripted(**features), Graph("childless")
    index = graph.platforms("v1")
    body = graph.manifests[index.digest].data
    assert status == once(registry, "PUT", "/v2/app/manifests/v1", body, Content_Type=OCI_INDEX).status


def test_manifests_can_lack_a_digest_header_or_be_converted_for_old_clients(scripted: ScriptedFactory) -> None:
    graph = Graph("old")
    old = graph.schema1(name="app")
    registry = scripted(schema1_for=graph.manifests[old.digest].data.decode(), content_digest=False)
    _, manifest = filled(registry)
    new = once(registry, "GET", "/v2/app/manifests/v1", Accept=OCI_MANIFEST)
    assert (manifest, None) == (sha256(new.body), new.headers.get("docker-content-digest"))
    converted = once(registry, "GET", "/v2/app/manifests/v1")
    assert (old.media_type, graph.manifests[old.digest].data) == (converted.headers["content-type"], converted.body)


def test_methods_can_be_unsupported_and_repositories_must_be_created(scripted: ScriptedFactory) -> None:
    registry = scripted(needs_creation=True)
    _, manifest = filled(registry)
    assert 405 == once(registry, "DELETE", "/v2/app/manifests/v1").status
    assert 404 == once(registry, "GET", f"/v2/app/referrers/{manifest}").status
    refused = once(registry, "POST", "/v2/new/blobs/uploads/")
    assert (404, "NAME_UNKNOWN") == (refused.status, refused.json()["errors"][0]["code"])
    registry.create("new")
    assert 202 == once(registry, "POST", "/v2/new/blobs/uploads/").status
    assert 404 == once(registry, "GET", "/v2/new/tags/list").status
    registry.features.empty_is_unknown = False
    assert [] == once(registry, "GET", "/v2/new/tags/list").json()["tags"]


# ---- whatever else


def test_hooks_answer_requests_and_change_replies(scripted: ScriptedFactory) -> None:
    registry = scripted()
    filled(registry)

    def teapot(request: Request) -> Reply | None:
        return Reply(418) if request.method == "HEAD" else None

    registry.hook = teapot
    assert 418 == once(registry, "HEAD", "/v2/app/manifests/v1").status
    assert 200 == registry.manifest("app", "v1").status
    registry.fault("GET manifest", times=FOREVER, change=without("content-type"))
    assert "content-type" not in once(registry, "GET", "/v2/app/manifests/v1").headers
    registry.faults.clear()
    assert OCI_MANIFEST == once(registry, "GET", "/v2/app/manifests/v1").headers["content-type"]
    registry.fault("GET manifest", change=lambda _, reply: replace(reply, status=299))
    assert 299 == once(registry, "GET", "/v2/app/manifests/v1").status
