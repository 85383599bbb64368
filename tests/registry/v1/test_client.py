"""A v1 registry as a source: requests, credentials, validation of responses, and deviations of real servers."""

from __future__ import annotations

import hashlib
import json
import lzma
import random
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import MirrorError, RemoteError
from mirror.registry.http import host_settings
from mirror.store import Version
from tests.conftest import ScriptedFactory
from tests.registries.certificates import Authority
from tests.registries.exchange import Reply, json_reply
from tests.registries.faults import FOREVER
from tests.registries.scripted import ScriptedRegistry
from tests.registries.v1 import V1, gz, tar
from tests.support.old_registries import QUICK, WORK, made, old_registry, opened, outcome, transform_of

LAYER = gz(tar(etc__os=b"old"))
BIG = tar(data=random.Random("v1").randbytes(3 << 20))


def world(scripted: ScriptedFactory, *layers: bytes, repository: str = "team/app", **how: Any) -> ScriptedRegistry:
    """Return a registry that has a repository with the tag `t`, an image of these layers."""
    server = V1(**how)
    ids = server.chain(*(layers or (LAYER,)))
    server.tag(repository, t=ids[-1])
    return old_registry(scripted, server)


def v1_of(registry: ScriptedRegistry) -> V1:
    if registry.v1 is None:
        raise LookupError("it does not speak v1")
    return registry.v1


def fetch_tag(registry: ScriptedRegistry, folder: Path, repository: str = "team/app", **options: Any) -> str:
    """Convert the tag `t` and return its digest, or the code and exit code of the error."""
    try:
        with opened(registry, folder, **options) as source:
            return made(transform_of(source, repository, "t")).root.digest
    except MirrorError as error:
        return f"{error.code} {error.exit_code}"


def paths(registry: ScriptedRegistry, part: str) -> list[str]:
    return [entry.path for entry in registry.log if entry.kind == f"GET v1-{part}"]


# ---- requests


def test_each_resource_is_requested_once(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, LAYER, b"", gz(tar(x=b"x")))
    assert fetch_tag(registry, tmp_path).startswith("sha256:")
    counts = {kind: count for kind, count in registry.counts().items() if "v1" in kind}
    once = dict.fromkeys(("GET v1-ping", "GET v1-index", "GET v1-tags", "GET v1-ancestry"), 1)
    assert once | {"GET v1-json": 3, "GET v1-layer": 3} == counts
    assert {"identity"} == {entry.header("Accept-Encoding") for entry in registry.log}


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("library", [False, True])
def test_a_name_without_a_slash_is_also_tried_under_library(
    scripted: ScriptedFactory, tmp_path: Path, library: bool, empty: bool
) -> None:
    name = "library/app" if library else "app"
    registry = world(scripted, repository=name, library=False, unknown_is_empty=empty)
    assert fetch_tag(registry, tmp_path, "app").startswith("sha256:")
    expected = ["/v1/repositories/app/tags", "/v1/repositories/library/app/tags"]
    assert expected[: 1 + library] == paths(registry, "tags")


def test_an_empty_tag_list_means_that_the_repository_does_not_exist(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, unknown_is_empty=True)
    with opened(registry, tmp_path, mode=host_settings.V1Mode.ONLY) as source:
        (error,) = outcome(source, "other/app")
    assert isinstance(error, MirrorError)
    assert ("not_found", 404) == (error.code, error.status)


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_registry_with_a_separate_index_needs_no_image_list(
    scripted: ScriptedFactory, tmp_path: Path, status: int
) -> None:
    registry = world(scripted)
    registry.fault("GET v1-index", status=status, times=FOREVER)
    assert fetch_tag(registry, tmp_path).startswith("sha256:")


def test_a_tag_list_in_the_format_of_docker_hub_is_read(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted)
    (image,) = v1_of(registry).images
    v1_of(registry).raw_tags = json.dumps([{"layer": image, "name": "t"}, {"layer": "12345678", "name": "u"}]).encode()
    with opened(registry, tmp_path) as source:
        first, second = outcome(source, "team/app")
    assert isinstance(first, Version)
    assert isinstance(second, MirrorError)
    assert "v1_invalid" == second.code


def test_tags_may_differ_only_in_case(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted)
    (image,) = v1_of(registry).images
    v1_of(registry).tag("team/app", V1=image, v1=image)
    with opened(registry, tmp_path) as source:
        assert ["V1", "t", "v1"] == sorted(str(name) for name in source.tags("team/app", WORK))


@pytest.mark.parametrize(
    "names", [("a", "a"), (None,), (1.0,), ("a", ["a"])], ids=["twice", "null", "a number", "a list"]
)
def test_an_ambiguous_tag_list_is_rejected(scripted: ScriptedFactory, tmp_path: Path, names: tuple[Any, ...]) -> None:
    registry = world(scripted)
    tags = [{"name": name, "layer": f"{number}" * 64} for number, name in enumerate(names)]
    v1_of(registry).raw_tags = json.dumps(tags).encode()
    with opened(registry, tmp_path) as source:
        (error,) = outcome(source, "team/app")
    assert isinstance(error, MirrorError)
    assert ("v1_invalid", 3) == (error.code, error.exit_code)


@pytest.mark.parametrize("body", [b"null", b"[1]", b'"x"', b"<html>", b'{"a": "b", "a": "c"}', b""])
def test_a_body_that_is_not_a_tag_list_is_an_error(scripted: ScriptedFactory, tmp_path: Path, body: bytes) -> None:
    registry = world(scripted)
    v1_of(registry).raw_tags = body
    with opened(registry, tmp_path) as source:
        (error,) = outcome(source, "team/app")
    assert isinstance(error, MirrorError)
    assert "over v1" in str(error)


# ---- credentials


@pytest.mark.parametrize("word", [False, True])
def test_an_index_issues_a_token_for_each_repository(scripted: ScriptedFactory, tmp_path: Path, word: bool) -> None:
    registry = world(scripted, tokens=True, token_word=word, standalone=False, users={"acme": "right"})
    other = v1_of(registry).image(LAYER, seed="other")
    v1_of(registry).tag("team/other", t=other)
    v1_of(registry).ping = json_reply(200, {"standalone": False})
    with opened(registry, tmp_path, login=("acme", "right")) as source:
        for repository in ("team/app", "team/other", "team/app"):
            made(transform_of(source, repository, "t"))
    sent = {entry.path: entry.header("Authorization") or "" for entry in registry.log if "/v1/" in entry.path}
    assert "" == sent.pop("/v1/_ping")
    for path, header in sent.items():
        kind = "Basic " if path.endswith("/images") else "Token signature="
        assert header.startswith(kind), path
    for repository in ("team/app", "team/other"):
        assert f'repository="{repository}"' in sent[f"/v1/repositories/{repository}/tags"]
    assert 'repository="team/other"' in sent[f"/v1/images/{other}/layer"]


def test_an_expired_token_is_renewed_once(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, tokens=True)
    registry.fault("GET v1-json", status=401, headers=[("WWW-Authenticate", "Token")])
    assert fetch_tag(registry, tmp_path).startswith("sha256:")
    assert 2 == registry.counts()["GET v1-index"]
    registry.fault("GET v1-json", status=401, headers=[("WWW-Authenticate", "Token")], times=FOREVER)
    registry.mark()
    assert "auth_failed 1" == fetch_tag(registry, tmp_path)
    assert 2 == registry.counts()["GET v1-json"]


def test_a_standalone_registry_over_tls_receives_basic_with_every_request(
    scripted: ScriptedFactory, tmp_path: Path, authority: Authority
) -> None:
    server = V1(users={"acme": "right"})
    server.tag("team/app", t=server.image(LAYER))
    registry = old_registry(scripted, server, tls=authority)
    assert fetch_tag(registry, tmp_path, login=("acme", "right")).startswith("sha256:")
    sent = [(entry.header("Authorization") or "")[:6] for entry in registry.log if entry.path.startswith("/v1/")]
    assert ["", *["Basic "] * (len(sent) - 1)] == sent


def test_an_unsolicited_token_is_ignored(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted)
    registry.fault("GET v1-tags", after=True, headers=[("X-Docker-Token", "planted")], times=FOREVER)
    registry.fault("GET v1-index", after=True, headers=[("X-Docker-Token", "x" * 60_000)], times=FOREVER)
    assert fetch_tag(registry, tmp_path).startswith("sha256:")
    assert {None} == {entry.header("Authorization") for entry in registry.log}


def test_cookies_are_returned_only_to_the_origin_that_set_them(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, cookie="session=abc")
    elsewhere = scripted(address="127.0.0.2")
    (image_id,) = v1_of(registry).images
    elsewhere.v1 = v1_of(registry)
    location = f"{elsewhere.url}/v1/images/{image_id}/layer"
    registry.fault("GET v1-layer", status=302, headers=[("Location", location)], times=FOREVER)
    elsewhere.hook = lambda request: Reply(200, (), LAYER)
    assert fetch_tag(registry, tmp_path).startswith("sha256:")
    assert {"session=abc"} == {entry.header("Cookie") for entry in registry.log if "/images/" in entry.path}
    assert [None] == [entry.header("Cookie") for entry in elsewhere.log]


def test_a_private_repository_without_credentials_is_an_auth_error(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, users={"acme": "right"})
    with opened(registry, tmp_path, mode=host_settings.V1Mode.ONLY) as source:
        (error,) = outcome(source, "team/app")
    assert isinstance(error, MirrorError)
    assert "auth_failed" == error.code
    assert "username and password" in error.hint


def test_a_wrong_password_costs_three_requests(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, users={"acme": "right"})
    with opened(registry, tmp_path, mode=host_settings.V1Mode.ONLY, login=("acme", "wrong-password")) as source:
        assert ["auth_failed"] == [one.code for one in outcome(source, "team/app") if isinstance(one, MirrorError)]
        outcome(source, "team/app", ["t"])
        outcome(source, "team/other")
    assert {"GET v1-ping": 1, "GET v1-index": 1, "GET v1": 1} == registry.counts()
    assert "/v1/users/" == registry.log[-1].path


def test_a_refusal_of_one_repository_does_not_affect_others(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, users={"acme": "right"})
    registry.fault("GET v1-index", repository="secret/app", times=FOREVER, status=401)
    with opened(registry, tmp_path, mode=host_settings.V1Mode.ONLY, login=("acme", "right")) as source:
        assert isinstance(outcome(source, "secret/app")[0], MirrorError)
        assert [] == [one for one in outcome(source, "team/app") if isinstance(one, MirrorError)]
        assert isinstance(outcome(source, "secret/app")[0], MirrorError)
    assert 1 == registry.counts()["GET v1"]


# ---- endpoints


def second_host(scripted: ScriptedFactory, registry: ScriptedRegistry) -> ScriptedRegistry:
    """Return another host that has the same images."""
    other = scripted(address="127.0.0.2")
    other.v1 = v1_of(registry)
    return other


@pytest.mark.parametrize("key", ["token_realms", "allow_hosts"])
def test_images_are_read_from_an_endpoint_that_is_configured(
    scripted: ScriptedFactory, tmp_path: Path, key: str
) -> None:
    registry = world(scripted, tokens=True, users={"acme": "right"})
    other = second_host(scripted, registry)
    v1_of(registry).endpoints = [other.host]
    options: dict[str, Any] = {key: frozenset({other.host}), "login": ("acme", "right")}
    assert fetch_tag(registry, tmp_path, **options).startswith("sha256:")
    assert {"GET v1-tags", "GET v1-ancestry", "GET v1-json", "GET v1-layer"} == set(other.counts())
    assert {"Token"} == {(entry.header("Authorization") or "").partition(" ")[0] for entry in other.log}


def test_an_endpoint_that_is_not_configured_is_rejected(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, tokens=True)
    other = second_host(scripted, registry)
    v1_of(registry).endpoints = [other.host]
    assert "unsafe_location 3" == fetch_tag(registry, tmp_path)
    assert [] == other.log


@pytest.mark.parametrize("host", ["http://x.example.com", "user@x.example.com", "169.254.169.254", "x.example.com/y"])
def test_an_invalid_endpoint_is_rejected(scripted: ScriptedFactory, tmp_path: Path, host: str) -> None:
    registry = world(scripted)
    v1_of(registry).endpoints = [host]
    assert "unsafe_location 3" == fetch_tag(registry, tmp_path)


def test_the_next_endpoint_is_used_if_one_fails(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted)
    other = second_host(scripted, registry)
    other.fault("GET v1-tags", status=500, times=FOREVER)
    v1_of(registry).endpoints = [other.host, registry.host]
    assert fetch_tag(registry, tmp_path, allow_hosts=frozenset({other.host})).startswith("sha256:")
    assert 1 == registry.counts()["GET v1-tags"]


# ---- layers, and the range responses of docker-registry


def test_an_interrupted_layer_download_is_resumed(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, BIG)
    expected = fetch_tag(registry, tmp_path / "whole")
    registry.mark()
    registry.fault("GET v1-layer", cut_after=1_500_000)
    registry.fault("GET v1-layer", nth=2, cut_after=1_200_000)
    assert expected == fetch_tag(registry, tmp_path / "cut")
    size = len(BIG)
    asked = [entry.header("Range") for entry in registry.log if entry.kind == "GET v1-layer"]
    assert [None, f"bytes=1500000-{size - 1}", f"bytes=2700000-{size - 1}"] == asked


@pytest.mark.parametrize("status", [None, 200, 400, 405, 416, 501])
def test_a_layer_download_that_cannot_be_resumed_starts_again(
    scripted: ScriptedFactory, tmp_path: Path, status: int | None
) -> None:
    """status: the response to a range request (200: the range is ignored); None: no range is requested."""
    registry = world(scripted, BIG, ranges=status is not None)
    registry.fault("GET v1-layer", cut_after=1_500_000)
    if status is not None:
        registry.fault("GET v1-layer", nth=2, status=status, body=BIG if status == 200 else b"")
    with opened(registry, tmp_path) as source:
        transform = transform_of(source, "team/app", "t")
        (part,) = transform.parts(WORK)
        with pytest.raises(RemoteError) as caught:
            transform.create_part(part, WORK)
        assert caught.value.retryable
        assert made(transform).root.digest.startswith("sha256:")


def test_a_download_that_breaks_one_byte_before_the_end_starts_again(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, BIG)
    registry.fault("GET v1-layer", cut_after=len(BIG) - 1)
    with opened(registry, tmp_path) as source:
        transform = transform_of(source, "team/app", "t")
        with pytest.raises(RemoteError):
            made(transform)
        assert made(transform).root.digest.startswith("sha256:")
    assert [None, None] == [entry.header("Range") for entry in registry.log if entry.kind == "GET v1-layer"]


def test_a_truncated_layer_without_a_length_is_rejected(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, BIG, ranges=False)
    short = Reply(200, (("Connection", "close"),), BIG[: 1 << 20], length=False)
    registry.fault("GET v1-layer", hook=lambda request: short, times=FOREVER)
    assert "truncated 1" == fetch_tag(registry, tmp_path)


def test_a_416_response_means_an_empty_layer(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, b"")
    assert fetch_tag(registry, tmp_path).startswith("sha256:")
    assert [416] == [entry.status for entry in registry.log if entry.kind == "GET v1-layer"]


def test_a_416_response_for_a_layer_with_bytes_is_an_error(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted)
    registry.fault("GET v1-layer", status=416, times=FOREVER)
    assert "bad_response 1" == fetch_tag(registry, tmp_path)


def test_a_416_response_for_a_layer_of_unknown_size_is_an_error(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, b"")
    hide_layer_sizes(registry)
    assert "bad_response 1" == fetch_tag(registry, tmp_path)


def hide_layer_sizes(registry: ScriptedRegistry, *, checksum: str | None = None) -> None:
    """Make the registry announce no layer sizes."""
    for image in v1_of(registry).images.values():
        image.size, image.checksum = None, checksum


def end_body_by_connection(registry: ScriptedRegistry, body: bytes) -> None:
    reply = Reply(200, (("Connection", "close"),), body, length=False)
    registry.fault("GET v1-layer", hook=lambda request: reply)


def test_a_plain_tar_delimited_only_by_the_connection_must_have_an_end_mark(
    scripted: ScriptedFactory, tmp_path: Path
) -> None:
    whole = tar(a=b"a", b=b"b", c=b"c")
    registry = world(scripted, whole)
    hide_layer_sizes(registry)
    end_body_by_connection(registry, whole)
    assert fetch_tag(registry, tmp_path / "whole").startswith("sha256:")
    end_body_by_connection(registry, whole[:1024])  # only the first file
    assert "v1_invalid 3" == fetch_tag(registry, tmp_path / "cut")


def test_a_wrong_checksum_does_not_prove_that_a_layer_is_complete(scripted: ScriptedFactory, tmp_path: Path) -> None:
    whole = tar(a=b"a", b=b"b", c=b"c")
    registry = world(scripted, whole)
    hide_layer_sizes(registry, checksum="sha256:" + "0" * 64)
    end_body_by_connection(registry, whole[:1024])
    assert "v1_invalid 3" == fetch_tag(registry, tmp_path, v1_checksums="warn")


@pytest.mark.parametrize("pack", [bytes, partial(lzma.compress, check=lzma.CHECK_NONE, preset=0)], ids=["plain", "xz"])
@pytest.mark.parametrize("checksum", [None, "sha256:" + "0" * 64], ids=["none", "only warned about"])
def test_a_layer_without_any_checksum_is_not_resumed(
    scripted: ScriptedFactory, tmp_path: Path, pack: Callable[[bytes], bytes], checksum: str | None
) -> None:
    registry = world(scripted, pack(BIG))
    (image,) = v1_of(registry).images.values()
    image.checksum = checksum
    registry.fault("GET v1-layer", cut_after=2 << 20)
    with opened(registry, tmp_path, v1_checksums="warn") as source:
        transform = transform_of(source, "team/app", "t")
        with pytest.raises(RemoteError) as caught:
            made(transform)
        assert caught.value.retryable
        made(transform)
    assert [None, None] == [entry.header("Range") for entry in registry.log if entry.kind == "GET v1-layer"]


@pytest.mark.parametrize("size", [1, len(LAYER) + 1])
def test_a_layer_of_another_size_than_announced_is_rejected(
    scripted: ScriptedFactory, tmp_path: Path, size: int
) -> None:
    registry = world(scripted)
    for image in v1_of(registry).images.values():
        image.size = size
    assert "v1_invalid 3" == fetch_tag(registry, tmp_path)


UPLOADING = b'{"error": "Image is being uploaded, retry later"}'


@pytest.mark.parametrize("part", ["ancestry", "json"])
def test_an_image_that_is_still_being_pushed_is_requested_again(
    scripted: ScriptedFactory, tmp_path: Path, part: str
) -> None:
    registry = world(scripted)
    registry.fault(f"GET v1-{part}", status=400, body=UPLOADING, times=QUICK.attempts - 1)
    assert fetch_tag(registry, tmp_path / "soon").startswith("sha256:")
    assert QUICK.attempts == registry.counts()[f"GET v1-{part}"]
    (image,) = v1_of(registry).images.values()
    image.uploading = True
    with opened(registry, tmp_path / "never") as source, pytest.raises(RemoteError) as caught:
        made(transform_of(source, "team/app", "t"))
    assert (400, True) == (caught.value.status, caught.value.retryable)
    assert "push" in caught.value.hint


def test_a_layer_that_is_still_being_pushed_is_a_retryable_error(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted)
    registry.fault("GET v1-layer", status=400, body=UPLOADING)
    with opened(registry, tmp_path) as source:
        transform = transform_of(source, "team/app", "t")
        (part,) = transform.parts(WORK)
        with pytest.raises(RemoteError) as caught:
            transform.create_part(part, WORK)
        assert (400, True) == (caught.value.status, caught.value.retryable)
        transform.create_part(part, WORK)


@pytest.mark.parametrize("part", ["ancestry", "json"])
@pytest.mark.parametrize("silent", [False, True], ids=["hangs up", "is silent"])
def test_no_response_for_an_image_gives_a_hint_that_it_may_be_incomplete(
    scripted: ScriptedFactory, tmp_path: Path, part: str, silent: bool
) -> None:
    registry, over = world(scripted), threading.Event()
    how: dict[str, Any] = {"stall": over} if silent else {"reset": True}
    registry.fault(f"GET v1-{part}", times=FOREVER, **how)
    with opened(registry, tmp_path, idle_timeout=0.2) as source, pytest.raises(RemoteError) as caught:
        made(transform_of(source, "team/app", "t"))
    over.set()
    assert QUICK.attempts <= registry.counts()[f"GET v1-{part}"]
    assert "incomplete" in caught.value.hint


@pytest.mark.parametrize("part", ["ancestry", "json", "layer"])
def test_a_missing_image_fails_its_tag(scripted: ScriptedFactory, tmp_path: Path, part: str) -> None:
    registry = world(scripted)
    registry.fault(f"GET v1-{part}", status=404, times=FOREVER)
    assert "not_found 1" == fetch_tag(registry, tmp_path)


# ---- checksums


def set_wrong_checksums(v1: V1) -> None:
    for image in v1.images.values():
        image.checksum = "sha256:" + "0" * 64


def test_a_wrong_checksum_is_rejected(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted)
    set_wrong_checksums(v1_of(registry))
    assert "v1_invalid 3" == fetch_tag(registry, tmp_path / "refused")
    assert fetch_tag(registry, tmp_path / "noted", v1_checksums="warn").startswith("sha256:")


@pytest.mark.parametrize("checksum", ["tarsum+sha256:" + "0" * 64, "md5:" + "0" * 32, "", "x,y", None])
def test_checksums_of_other_kinds_are_ignored(scripted: ScriptedFactory, tmp_path: Path, checksum: str | None) -> None:
    registry = world(scripted)
    for image in v1_of(registry).images.values():
        image.checksum = checksum
    assert fetch_tag(registry, tmp_path).startswith("sha256:")


def test_one_of_several_checksums_must_match(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted)
    for image in v1_of(registry).images.values():
        image.checksum = f"tarsum+sha256:{'0' * 64}, sha256:{'0' * 64}, {image.checksum}"
    assert fetch_tag(registry, tmp_path).startswith("sha256:")


# ---- malicious input


def set_ancestry(*change: str | None) -> Callable[[V1, list[str]], None]:
    """Set the ancestry of the top image: numbers of the chain, the base first, or other texts."""

    def apply(v1: V1, ids: list[str]) -> None:
        v1.ancestries[ids[-1]] = [ids[int(one)] if one and one.isdigit() else one for one in change]

    return apply


def change_json(**more: Any) -> Callable[[V1, list[str]], None]:
    """Change keys in the JSON of the top image; `...` removes a key."""

    def apply(v1: V1, ids: list[str]) -> None:
        image = v1.images[ids[-1]]
        changed = {key: value for key, value in (json.loads(image.json) | more).items() if value is not ...}
        set_image_json(v1, ids[-1], json.dumps(changed).encode())

    return apply


def replace_json(data: bytes) -> Callable[[V1, list[str]], None]:
    return lambda v1, ids: set_image_json(v1, ids[-1], data)


def set_image_json(v1: V1, image_id: str, data: bytes) -> None:
    image = v1.images[image_id]
    image.json, image.checksum = data, f"sha256:{hashlib.sha256(data + chr(10).encode() + image.layer).hexdigest()}"


def make_ancestry_too_long(v1: V1, ids: list[str]) -> None:
    v1.ancestries[ids[-1]] = [ids[-1], *(f"{number:064x}" for number in range(127))]


INVALID = {
    "ancestry empty": set_ancestry(),
    "ancestry of texts": lambda v1, ids: v1.ancestries.update({ids[-1]: "x"}),
    "ancestry with null": set_ancestry("2", None),
    "ancestry with a short id": set_ancestry("2", "abcdef"),
    "ancestry with a path": set_ancestry("2", "../../etc"),
    "ancestry with an upper-case id": set_ancestry("2", "A" * 64),
    "ancestry of another": set_ancestry("1", "0"),
    "ancestry turned round": set_ancestry("0", "1", "2"),
    "ancestry with a circle": set_ancestry("2", "1", "2"),
    "ancestry too short": set_ancestry("2", "1"),
    "ancestry that leaves one out": set_ancestry("2", "0"),
    "ancestry of 128": make_ancestry_too_long,
    "id differs": change_json(id="0" * 64),
    "id missing": change_json(id=...),
    "id twice": change_json(ID="0" * 64),
    "parent is no id": change_json(parent="x"),
    "parent is itself": lambda v1, ids: change_json(parent=ids[-1])(v1, ids),
    "parent missing": change_json(parent=...),
    "parent is another": change_json(parent="0" * 64),
    "rootfs in another case": change_json(RootFS={}),
    "not JSON": replace_json(b"x"),
    "a list": replace_json(b"[]"),
    "id twice in one case": lambda v1, ids: replace_json(b'{"id": "%s", "id": "%s"}' % ((ids[-1].encode(),) * 2))(
        v1, ids
    ),
    "parent in another case": change_json(Parent="x"),
    "half a character": change_json(x="\ud800"),
    "a number without end": replace_json(b'{"x": ' + b"9" * 5000 + b"}"),
    "NaN": replace_json(b'{"id": NaN}'),
    "not UTF-8": replace_json(b'{"id": "\xff"}'),
    "deep": replace_json(b'{"a":' * 100 + b"1" + b"}" * 100),
    "too big": replace_json(b'{"a": "' + b"x" * (9 << 20) + b'"}'),
    "a number beyond all": change_json(huge=1e400),
}


@pytest.mark.parametrize("change", INVALID.values(), ids=INVALID.keys())
def test_invalid_images_are_rejected_and_the_others_are_converted(
    scripted: ScriptedFactory, tmp_path: Path, change: Callable[[V1, list[str]], None]
) -> None:
    registry = world(scripted, LAYER, gz(tar(a=b"a")), gz(tar(b=b"b")))
    server = v1_of(registry)
    ids = list(server.images)
    well = server.image(LAYER, ids[0], seed="well")
    server.tag("team/app", well=well)
    change(server, ids)
    with opened(registry, tmp_path) as source:
        assert made(transform_of(source, "team/app", "well"))
        with pytest.raises(MirrorError) as caught:
            made(transform_of(source, "team/app", "t"))
    assert 3 == caught.value.exit_code
    assert caught.value.code in ("v1_invalid", "manifest_ambiguous")
    assert not any(".." in entry.path or "AAAA" in entry.path for entry in registry.log)


def test_a_server_that_never_responds_causes_a_timeout(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted)
    registry.fault("GET v1-ancestry", stall_after=0, times=FOREVER)
    assert "too_slow 1" == fetch_tag(registry, tmp_path, idle_timeout=0.2)


@pytest.mark.parametrize("where", ["http://127.0.0.2:9/x", "ftp://x/y"])
def test_an_unsafe_redirect_of_a_layer_is_rejected(scripted: ScriptedFactory, tmp_path: Path, where: str) -> None:
    registry = world(scripted)
    registry.fault("GET v1-layer", status=302, headers=[("Location", where)], times=FOREVER)
    assert fetch_tag(registry, tmp_path) in ("unsafe_redirect 3", "net_error 1")
