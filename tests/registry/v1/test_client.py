"""A v1 registry as a source: what is asked, as whom, what is believed, and what real servers get wrong."""

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
    """A repository with a tag `t` on a chain of these layers."""
    speaks = V1(**how)
    ids = speaks.chain(*(layers or (LAYER,)))
    speaks.tag(repository, t=ids[-1])
    return old_registry(scripted, speaks)


def v1_of(registry: ScriptedRegistry) -> V1:
    if registry.v1 is None:
        raise LookupError("it does not speak v1")
    return registry.v1


def fetched(registry: ScriptedRegistry, folder: Path, repository: str = "team/app", **options: Any) -> str:
    """The digest of what becomes of `t`, or the code and exit code of the error."""
    try:
        with opened(registry, folder, **options) as source:
            return made(transform_of(source, repository, "t")).root.digest
    except MirrorError as error:
        return f"{error.code} {error.exit_code}"


def paths(registry: ScriptedRegistry, part: str) -> list[str]:
    return [entry.path for entry in registry.log if entry.kind == f"GET v1-{part}"]


# ---- what is asked


def test_each_thing_is_asked_for_once(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, LAYER, b"", gz(tar(x=b"x")))
    assert fetched(registry, tmp_path).startswith("sha256:")
    counts = {kind: count for kind, count in registry.counts().items() if "v1" in kind}
    once = dict.fromkeys(("GET v1-ping", "GET v1-index", "GET v1-tags", "GET v1-ancestry"), 1)
    assert once | {"GET v1-json": 3, "GET v1-layer": 3} == counts
    assert {"identity"} == {entry.header("Accept-Encoding") for entry in registry.log}


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("library", [False, True])
def test_a_name_without_a_slash_is_also_looked_for_below_library(
    scripted: ScriptedFactory, tmp_path: Path, library: bool, empty: bool
) -> None:
    name = "library/app" if library else "app"
    registry = world(scripted, repository=name, library=False, unknown_is_empty=empty)
    assert fetched(registry, tmp_path, "app").startswith("sha256:")
    expected = ["/v1/repositories/app/tags", "/v1/repositories/library/app/tags"]
    assert expected[: 1 + library] == paths(registry, "tags")


def test_tags_of_nothing_at_all_are_a_repository_that_is_not_there(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, unknown_is_empty=True)
    with opened(registry, tmp_path, mode=host_settings.V1.ONLY) as source:
        (error,) = outcome(source, "other/app")
    assert isinstance(error, MirrorError)
    assert ("not_found", 404) == (error.code, error.status)


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_registry_beside_its_index_has_no_list_of_images(
    scripted: ScriptedFactory, tmp_path: Path, status: int
) -> None:
    registry = world(scripted)
    registry.fault("GET v1-index", status=status, times=FOREVER)
    assert fetched(registry, tmp_path).startswith("sha256:")


def test_the_old_list_of_tags_is_read(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted)
    (image,) = v1_of(registry).images
    v1_of(registry).raw_tags = json.dumps([{"layer": image, "name": "t"}, {"layer": "12345678", "name": "u"}]).encode()
    with opened(registry, tmp_path) as source:
        first, second = outcome(source, "team/app")
    assert isinstance(first, Version)
    assert isinstance(second, MirrorError)
    assert "v1_invalid" == second.code


def test_tags_may_differ_by_case_only(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted)
    (image,) = v1_of(registry).images
    v1_of(registry).tag("team/app", V1=image, v1=image)
    with opened(registry, tmp_path) as source:
        assert ["V1", "t", "v1"] == sorted(str(name) for name in source.tags("team/app", WORK))


@pytest.mark.parametrize(
    "names", [("a", "a"), (None,), (1.0,), ("a", ["a"])], ids=["twice", "null", "a number", "a list"]
)
def test_an_old_list_of_tags_that_can_be_read_in_two_ways_is_refused(
    scripted: ScriptedFactory, tmp_path: Path, names: tuple[Any, ...]
) -> None:
    registry = world(scripted)
    tags = [{"name": name, "layer": f"{number}" * 64} for number, name in enumerate(names)]
    v1_of(registry).raw_tags = json.dumps(tags).encode()
    with opened(registry, tmp_path) as source:
        (error,) = outcome(source, "team/app")
    assert isinstance(error, MirrorError)
    assert ("v1_invalid", 3) == (error.code, error.exit_code)


@pytest.mark.parametrize("body", [b"null", b"[1]", b'"x"', b"<html>", b'{"a": "b", "a": "c"}', b""])
def test_what_is_no_list_of_tags_is_an_error(scripted: ScriptedFactory, tmp_path: Path, body: bytes) -> None:
    registry = world(scripted)
    v1_of(registry).raw_tags = body
    with opened(registry, tmp_path) as source:
        (error,) = outcome(source, "team/app")
    assert isinstance(error, MirrorError)
    assert "by v1" in str(error)


# ---- who we are


@pytest.mark.parametrize("word", [False, True])
def test_an_index_gives_a_token_for_each_repository(scripted: ScriptedFactory, tmp_path: Path, word: bool) -> None:
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


def test_a_token_that_ran_out_is_renewed_once(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, tokens=True)
    registry.fault("GET v1-json", status=401, headers=[("WWW-Authenticate", "Token")])
    assert fetched(registry, tmp_path).startswith("sha256:")
    assert 2 == registry.counts()["GET v1-index"]
    registry.fault("GET v1-json", status=401, headers=[("WWW-Authenticate", "Token")], times=FOREVER)
    registry.mark()
    assert "auth_failed 1" == fetched(registry, tmp_path)
    assert 2 == registry.counts()["GET v1-json"]


def test_a_standalone_registry_over_tls_gets_basic_with_every_request(
    scripted: ScriptedFactory, tmp_path: Path, authority: Authority
) -> None:
    speaks = V1(users={"acme": "right"})
    speaks.tag("team/app", t=speaks.image(LAYER))
    registry = old_registry(scripted, speaks, tls=authority)
    assert fetched(registry, tmp_path, login=("acme", "right")).startswith("sha256:")
    sent = [(entry.header("Authorization") or "")[:6] for entry in registry.log if entry.path.startswith("/v1/")]
    assert ["", *["Basic "] * (len(sent) - 1)] == sent


def test_a_token_that_nobody_asked_for_is_ignored(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted)
    registry.fault("GET v1-tags", after=True, headers=[("X-Docker-Token", "planted")], times=FOREVER)
    registry.fault("GET v1-index", after=True, headers=[("X-Docker-Token", "x" * 60_000)], times=FOREVER)
    assert fetched(registry, tmp_path).startswith("sha256:")
    assert {None} == {entry.header("Authorization") for entry in registry.log}


def test_cookies_go_back_to_who_set_them(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, cookie="session=abc")
    elsewhere = scripted(address="127.0.0.2")
    (image_id,) = v1_of(registry).images
    elsewhere.v1 = v1_of(registry)
    location = f"{elsewhere.url}/v1/images/{image_id}/layer"
    registry.fault("GET v1-layer", status=302, headers=[("Location", location)], times=FOREVER)
    elsewhere.hook = lambda request: Reply(200, (), LAYER)
    assert fetched(registry, tmp_path).startswith("sha256:")
    assert {"session=abc"} == {entry.header("Cookie") for entry in registry.log if "/images/" in entry.path}
    assert [None] == [entry.header("Cookie") for entry in elsewhere.log]


def test_a_private_repository_without_credentials_says_so(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, users={"acme": "right"})
    with opened(registry, tmp_path, mode=host_settings.V1.ONLY) as source:
        (error,) = outcome(source, "team/app")
    assert isinstance(error, MirrorError)
    assert "auth_failed" == error.code
    assert "username and password" in error.hint


def test_a_wrong_password_costs_two_requests(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, users={"acme": "right"})
    with opened(registry, tmp_path, mode=host_settings.V1.ONLY, login=("acme", "wrong-password")) as source:
        assert ["auth_failed"] == [one.code for one in outcome(source, "team/app") if isinstance(one, MirrorError)]
        outcome(source, "team/app", ["t"])
    assert {"GET v1-ping": 1, "GET v1-index": 1} == registry.counts()


# ---- endpoints


def beside(scripted: ScriptedFactory, registry: ScriptedRegistry) -> ScriptedRegistry:
    """Another host that has the same images."""
    other = scripted(address="127.0.0.2")
    other.v1 = v1_of(registry)
    return other


@pytest.mark.parametrize("key", ["token_realms", "allow_hosts"])
def test_images_are_had_from_a_host_that_the_operator_listed(
    scripted: ScriptedFactory, tmp_path: Path, key: str
) -> None:
    registry = world(scripted, tokens=True, users={"acme": "right"})
    other = beside(scripted, registry)
    v1_of(registry).endpoints = [other.host]
    options: dict[str, Any] = {key: frozenset({other.host}), "login": ("acme", "right")}
    assert fetched(registry, tmp_path, **options).startswith("sha256:")
    assert {"GET v1-tags", "GET v1-ancestry", "GET v1-json", "GET v1-layer"} == set(other.counts())
    assert {"Token"} == {(entry.header("Authorization") or "").partition(" ")[0] for entry in other.log}


def test_an_endpoint_that_nobody_listed_is_refused(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, tokens=True)
    other = beside(scripted, registry)
    v1_of(registry).endpoints = [other.host]
    assert "unsafe_location 3" == fetched(registry, tmp_path)
    assert [] == other.log


@pytest.mark.parametrize("host", ["http://x.example.com", "user@x.example.com", "169.254.169.254", "x.example.com/y"])
def test_an_odd_endpoint_is_refused(scripted: ScriptedFactory, tmp_path: Path, host: str) -> None:
    registry = world(scripted)
    v1_of(registry).endpoints = [host]
    assert "unsafe_location 3" == fetched(registry, tmp_path)


def test_the_next_endpoint_is_asked_where_one_is_ill(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted)
    other = beside(scripted, registry)
    other.fault("GET v1-tags", status=500, times=FOREVER)
    v1_of(registry).endpoints = [other.host, registry.host]
    assert fetched(registry, tmp_path, allow_hosts=frozenset({other.host})).startswith("sha256:")
    assert 1 == registry.counts()["GET v1-tags"]


# ---- layers, and what docker-registry makes of ranges


def test_a_layer_that_breaks_off_is_gone_on_with(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, BIG)
    expected = fetched(registry, tmp_path / "whole")
    registry.mark()
    registry.fault("GET v1-layer", cut_after=1_500_000)
    registry.fault("GET v1-layer", nth=2, cut_after=1_200_000)
    assert expected == fetched(registry, tmp_path / "cut")
    size = len(BIG)
    asked = [entry.header("Range") for entry in registry.log if entry.kind == "GET v1-layer"]
    assert [None, f"bytes=1500000-{size - 1}", f"bytes=2700000-{size - 1}"] == asked


@pytest.mark.parametrize("status", [None, 200, 400, 405, 416, 501])
def test_a_layer_that_cannot_be_gone_on_with_is_read_again(
    scripted: ScriptedFactory, tmp_path: Path, status: int | None
) -> None:
    """status: the answer to a range: it is ignored, or refused; None: none is asked for."""
    registry = world(scripted, BIG, ranges=status is not None)
    registry.fault("GET v1-layer", cut_after=1_500_000)
    if status is not None:
        registry.fault("GET v1-layer", nth=2, status=status, body=BIG if status == 200 else b"")
    with opened(registry, tmp_path) as source:
        transform = transform_of(source, "team/app", "t")
        (part,) = transform.parts(WORK)
        with pytest.raises(RemoteError) as caught:
            transform.make(part, WORK)
        assert caught.value.retryable
        assert made(transform).root.digest.startswith("sha256:")


def test_a_cut_one_byte_before_the_end_is_read_again(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, BIG)
    registry.fault("GET v1-layer", cut_after=len(BIG) - 1)
    with opened(registry, tmp_path) as source:
        transform = transform_of(source, "team/app", "t")
        with pytest.raises(RemoteError):
            made(transform)
        assert made(transform).root.digest.startswith("sha256:")
    assert [None, None] == [entry.header("Range") for entry in registry.log if entry.kind == "GET v1-layer"]


def test_a_layer_without_a_length_that_is_short_is_not_believed(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, BIG, ranges=False)
    short = Reply(200, (("Connection", "close"),), BIG[: 1 << 20], length=False)
    registry.fault("GET v1-layer", hook=lambda request: short, times=FOREVER)
    assert "truncated 1" == fetched(registry, tmp_path)


def test_an_empty_layer_is_answered_with_416(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, b"")
    assert fetched(registry, tmp_path).startswith("sha256:")
    assert [416] == [entry.status for entry in registry.log if entry.kind == "GET v1-layer"]


def test_a_416_for_a_layer_that_has_bytes_is_an_error(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted)
    registry.fault("GET v1-layer", status=416, times=FOREVER)
    assert "bad_response 1" == fetched(registry, tmp_path)


def test_a_416_for_a_layer_of_a_size_that_nobody_told_is_an_error(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted, b"")
    nobody_says(registry)
    assert "bad_response 1" == fetched(registry, tmp_path)


def nobody_says(registry: ScriptedRegistry, *, checksum: str | None = None) -> None:
    """Nothing announces how long the layers are."""
    for image in v1_of(registry).images.values():
        image.size, image.checksum = None, checksum


def ended_by_its_connection(registry: ScriptedRegistry, body: bytes) -> None:
    reply = Reply(200, (("Connection", "close"),), body, length=False)
    registry.fault("GET v1-layer", hook=lambda request: reply)


def test_a_plain_tar_that_only_the_end_of_the_connection_ends_has_to_show_its_own_end(
    scripted: ScriptedFactory, tmp_path: Path
) -> None:
    whole = tar(a=b"a", b=b"b", c=b"c")
    registry = world(scripted, whole)
    nobody_says(registry)
    ended_by_its_connection(registry, whole)
    assert fetched(registry, tmp_path / "whole").startswith("sha256:")
    ended_by_its_connection(registry, whole[:1024])  # the first file, and no more
    assert "v1_invalid 3" == fetched(registry, tmp_path / "cut")


def test_a_checksum_that_does_not_fit_vouches_for_nothing(scripted: ScriptedFactory, tmp_path: Path) -> None:
    whole = tar(a=b"a", b=b"b", c=b"c")
    registry = world(scripted, whole)
    nobody_says(registry, checksum="sha256:" + "0" * 64)
    ended_by_its_connection(registry, whole[:1024])
    assert "v1_invalid 3" == fetched(registry, tmp_path, v1_checksums="warn")


@pytest.mark.parametrize("pack", [bytes, partial(lzma.compress, check=lzma.CHECK_NONE)], ids=["plain", "xz"])
@pytest.mark.parametrize("checksum", [None, "sha256:" + "0" * 64], ids=["none", "only warned about"])
def test_where_nothing_would_show_that_a_rest_is_of_another_layer_no_rest_is_asked_for(
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
def test_a_layer_of_another_size_than_announced_is_refused(
    scripted: ScriptedFactory, tmp_path: Path, size: int
) -> None:
    registry = world(scripted)
    for image in v1_of(registry).images.values():
        image.size = size
    assert "v1_invalid 3" == fetched(registry, tmp_path)


UPLOADING = b'{"error": "Image is being uploaded, retry later"}'


@pytest.mark.parametrize("part", ["ancestry", "json"])
def test_an_image_that_is_still_being_pushed_is_asked_for_again(
    scripted: ScriptedFactory, tmp_path: Path, part: str
) -> None:
    registry = world(scripted)
    registry.fault(f"GET v1-{part}", status=400, body=UPLOADING, times=QUICK.attempts - 1)
    assert fetched(registry, tmp_path / "soon").startswith("sha256:")
    assert QUICK.attempts == registry.counts()[f"GET v1-{part}"]
    (image,) = v1_of(registry).images.values()
    image.uploading = True
    with opened(registry, tmp_path / "never") as source, pytest.raises(RemoteError) as caught:
        made(transform_of(source, "team/app", "t"))
    assert (400, True) == (caught.value.status, caught.value.retryable)
    assert "a push of this image has not ended" in caught.value.hint


def test_a_layer_that_is_still_being_pushed_may_be_had_later(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted)
    registry.fault("GET v1-layer", status=400, body=UPLOADING)
    with opened(registry, tmp_path) as source:
        transform = transform_of(source, "team/app", "t")
        (part,) = transform.parts(WORK)
        with pytest.raises(RemoteError) as caught:
            transform.make(part, WORK)
        assert (400, True) == (caught.value.status, caught.value.retryable)
        transform.make(part, WORK)


@pytest.mark.parametrize("part", ["ancestry", "json"])
@pytest.mark.parametrize("silent", [False, True], ids=["hangs up", "is silent"])
def test_a_server_that_has_no_answer_for_an_image_may_lack_a_part_of_it(
    scripted: ScriptedFactory, tmp_path: Path, part: str, silent: bool
) -> None:
    registry, over = world(scripted), threading.Event()
    how: dict[str, Any] = {"stall": over} if silent else {"reset": True}
    registry.fault(f"GET v1-{part}", times=FOREVER, **how)
    with opened(registry, tmp_path, idle_timeout=0.2) as source, pytest.raises(RemoteError) as caught:
        made(transform_of(source, "team/app", "t"))
    over.set()
    assert QUICK.attempts <= registry.counts()[f"GET v1-{part}"]
    assert "the image may not be whole there" in caught.value.hint


@pytest.mark.parametrize("part", ["ancestry", "json", "layer"])
def test_an_image_that_is_not_there_fails_its_tag(scripted: ScriptedFactory, tmp_path: Path, part: str) -> None:
    registry = world(scripted)
    registry.fault(f"GET v1-{part}", status=404, times=FOREVER)
    assert "not_found 1" == fetched(registry, tmp_path)


# ---- checksums


def wrong(v1: V1) -> None:
    for image in v1.images.values():
        image.checksum = "sha256:" + "0" * 64


def test_a_checksum_that_does_not_fit_is_refused(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted)
    wrong(v1_of(registry))
    assert "v1_invalid 3" == fetched(registry, tmp_path / "refused")
    assert fetched(registry, tmp_path / "noted", v1_checksums="warn").startswith("sha256:")


@pytest.mark.parametrize("said", ["tarsum+sha256:" + "0" * 64, "md5:" + "0" * 32, "", "x,y", None])
def test_checksums_of_other_kinds_are_passed_over(scripted: ScriptedFactory, tmp_path: Path, said: str | None) -> None:
    registry = world(scripted)
    for image in v1_of(registry).images.values():
        image.checksum = said
    assert fetched(registry, tmp_path).startswith("sha256:")


def test_one_of_several_checksums_has_to_fit(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted)
    for image in v1_of(registry).images.values():
        image.checksum = f"tarsum+sha256:{'0' * 64}, sha256:{'0' * 64}, {image.checksum}"
    assert fetched(registry, tmp_path).startswith("sha256:")


# ---- hostile input


def ancestry(*change: str | None) -> Callable[[V1, list[str]], None]:
    """What the top's ancestry says: numbers of the chain, the base first, or other texts."""

    def apply(v1: V1, ids: list[str]) -> None:
        v1.ancestries[ids[-1]] = [ids[int(one)] if one and one.isdigit() else one for one in change]

    return apply


def document(**more: Any) -> Callable[[V1, list[str]], None]:
    """More members of the top's JSON; `...` takes one away."""

    def apply(v1: V1, ids: list[str]) -> None:
        image = v1.images[ids[-1]]
        changed = {key: value for key, value in (json.loads(image.json) | more).items() if value is not ...}
        rewrite(v1, ids[-1], json.dumps(changed).encode())

    return apply


def raw(data: bytes) -> Callable[[V1, list[str]], None]:
    return lambda v1, ids: rewrite(v1, ids[-1], data)


def rewrite(v1: V1, image_id: str, data: bytes) -> None:
    image = v1.images[image_id]
    image.json, image.checksum = data, f"sha256:{hashlib.sha256(data + chr(10).encode() + image.layer).hexdigest()}"


def long(v1: V1, ids: list[str]) -> None:
    v1.ancestries[ids[-1]] = [ids[-1], *(f"{number:064x}" for number in range(127))]


HOSTILE = {
    "ancestry empty": ancestry(),
    "ancestry of texts": lambda v1, ids: v1.ancestries.update({ids[-1]: "x"}),
    "ancestry with null": ancestry("2", None),
    "ancestry with a short id": ancestry("2", "abcdef"),
    "ancestry with a path": ancestry("2", "../../etc"),
    "ancestry with an upper-case id": ancestry("2", "A" * 64),
    "ancestry of another": ancestry("1", "0"),
    "ancestry turned round": ancestry("0", "1", "2"),
    "ancestry with a circle": ancestry("2", "1", "2"),
    "ancestry too short": ancestry("2", "1"),
    "ancestry that leaves one out": ancestry("2", "0"),
    "ancestry of 128": long,
    "id differs": document(id="0" * 64),
    "id missing": document(id=...),
    "id twice": document(ID="0" * 64),
    "parent is no id": document(parent="x"),
    "parent is itself": lambda v1, ids: document(parent=ids[-1])(v1, ids),
    "parent missing": document(parent=...),
    "parent is another": document(parent="0" * 64),
    "rootfs in another case": document(RootFS={}),
    "not JSON": raw(b"x"),
    "a list": raw(b"[]"),
    "id twice in one case": lambda v1, ids: raw(b'{"id": "%s", "id": "%s"}' % ((ids[-1].encode(),) * 2))(v1, ids),
    "parent in another case": document(Parent="x"),
    "half a character": document(x="\ud800"),
    "a number without end": raw(b'{"x": ' + b"9" * 5000 + b"}"),
    "NaN": raw(b'{"id": NaN}'),
    "not UTF-8": raw(b'{"id": "\xff"}'),
    "deep": raw(b'{"a":' * 100 + b"1" + b"}" * 100),
    "too big": raw(b'{"a": "' + b"x" * (9 << 20) + b'"}'),
    "a number beyond all": document(huge=1e400),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_images_are_refused_and_the_others_arrive(
    scripted: ScriptedFactory, tmp_path: Path, change: Callable[[V1, list[str]], None]
) -> None:
    registry = world(scripted, LAYER, gz(tar(a=b"a")), gz(tar(b=b"b")))
    speaks = v1_of(registry)
    ids = list(speaks.images)
    well = speaks.image(LAYER, ids[0], seed="well")
    speaks.tag("team/app", well=well)
    change(speaks, ids)
    with opened(registry, tmp_path) as source:
        assert made(transform_of(source, "team/app", "well"))
        with pytest.raises(MirrorError) as caught:
            made(transform_of(source, "team/app", "t"))
    assert 3 == caught.value.exit_code
    assert caught.value.code in ("v1_invalid", "manifest_ambiguous")
    assert not any(".." in entry.path or "AAAA" in entry.path for entry in registry.log)


def test_a_server_that_never_answers_is_given_up(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = world(scripted)
    registry.fault("GET v1-ancestry", stall_after=0, times=FOREVER)
    assert "too_slow 1" == fetched(registry, tmp_path, idle_timeout=0.2)


@pytest.mark.parametrize("where", ["http://127.0.0.2:9/x", "ftp://x/y"])
def test_a_layer_is_not_redirected_to_anywhere(scripted: ScriptedFactory, tmp_path: Path, where: str) -> None:
    registry = world(scripted)
    registry.fault("GET v1-layer", status=302, headers=[("Location", where)], times=FOREVER)
    assert fetched(registry, tmp_path) in ("unsafe_redirect 3", "net_error 1")
