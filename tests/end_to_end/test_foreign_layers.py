"""`foreign-layers: copy`: layers that the source lacks come from their URLs, under the rules of docs/trust.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.registries.blobhost import BlobHost
from tests.registries.certificates import Authority
from tests.registries.exchange import Reply, Request
from tests.registries.http1 import head_bytes, simple_exchanges
from tests.registries.listener import Listener
from tests.registries.scripted import ScriptedRegistry
from tests.registries.storage import Storage
from tests.support.images import Graph, Made, layer_bytes
from tests.support.oracle import assert_equal
from tests.support.tool import MirrorTool
from tests.support.walks import disk_view

USERS = {"acme": "a-long-password"}


@pytest.fixture
def outside(authority: Authority) -> Iterator[BlobHost]:
    """Start a host that has foreign layers. It is not a registry."""
    with BlobHost(Storage(), address="127.0.0.1", tls=authority) as host:
        yield host


@pytest.fixture
def source(scripted: ScriptedFactory, authority: Authority) -> ScriptedRegistry:
    return scripted("source", tls=authority, users=USERS)


def load(source: ScriptedRegistry, *urls: str, data: bytes | None = None) -> tuple[Made, bytes]:
    """Put an image with a foreign layer into the source. Return the layer and its bytes."""
    graph = Graph("windows")
    made = graph.foreign_layer(*urls)
    graph.image("v1", layers=[made, graph.layer("own")])
    source.load("app", graph)
    return made, layer_bytes("windows/foreign", 3000)[0] if data is None else data


def serve(host: BlobHost, data: bytes, digest: str) -> str:
    """Make a layer available outside of registries. Return its URL."""
    host.storage.bytes[digest] = data
    return host.url_of(digest)


def configure(tool: MirrorTool, source: ScriptedRegistry, *targets: Any, mode: str = "copy") -> None:
    (name, password), *_ = USERS.items()
    names = [f"{one.host}/app" if isinstance(one, ScriptedRegistry) else str(one) for one in targets]
    registries = {source.host: {"username": name, "password": {"env": "WORD"}}}
    mirrors = [{"source": f"{source.host}/app", "targets": names, "foreign-layers": mode}]
    hosts = [one for one in targets if isinstance(one, ScriptedRegistry)]
    tool.config(mirrors, source, *hosts, registries=registries)
    tool.environment["WORD"] = password


def tags_of(target: ScriptedRegistry) -> dict[str, str]:
    """Return the tags of the repository `app`, which may not exist."""
    repository = target.storage.repositories.get("app")
    return {} if repository is None else dict(repository.tags)


def digest_of(name: str = "foreign") -> str:
    return Graph("windows").foreign_layer(name=name).digest


def test_a_foreign_layer_is_copied_from_its_url_without_credentials(
    source: ScriptedRegistry, outside: BlobHost, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target = scripted("target")
    layer, data = load(source, "https://127.0.0.2:1/refused", outside.url_of(digest_of()))
    serve(outside, data, layer.digest)
    configure(mirror_run, source, target)
    mirror_run.sync()
    assert_equal(source, "app", target)
    assert data == target.storage.bytes[layer.digest]
    assert target.has_blob("app", layer.digest)
    (request,) = outside.seen
    assert (None, None) == (request.header("Authorization"), request.header("Cookie"))
    assert 3 == mirror_run.report()["totals"]["blobs"]["copied"]

    target.mark()
    mirror_run.sync()
    assert [] == target.writes()
    assert 0 == mirror_run("verify", mirror_run.config_file).code
    target.storage.repositories["app"].blobs.remove(layer.digest)
    for options in ([], ["--deep"]):
        ran = mirror_run("verify", mirror_run.config_file, *options)
        assert 1 == ran.code
        assert layer.digest in ran.text
    assert 1 == len(outside.seen), "verify requests layers only from the target"
    mirror_run.sync("--deep")
    assert target.has_blob("app", layer.digest)
    configure(mirror_run, source, target, mode="skip")
    target.storage.repositories["app"].blobs.remove(layer.digest)
    assert 0 == mirror_run("verify", mirror_run.config_file).code


def test_a_foreign_layer_that_the_source_registry_has_is_read_there(
    source: ScriptedRegistry, outside: BlobHost, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target = scripted("target")
    layer, data = load(source, outside.url_of(digest_of()))
    with source.client() as client:
        client.put_blob("app", data)
    configure(mirror_run, source, target)
    mirror_run.sync()
    assert target.has_blob("app", layer.digest)
    assert [] == outside.seen


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.0.0.2/layer", "unsafe_location"),
        ("https://169.254.169.254/layer", "unsafe_location"),
        ("https://10.0.0.1/layer", "unsafe_location"),
        ("https://user:word@127.0.0.2/layer", "unsafe_location"),
        ("/layer", "unsafe_location"),
        ("ftp://127.0.0.2/layer", "unsafe_location"),
    ],
)
def test_an_unsafe_url_is_refused_without_a_request(
    url: str, code: str, source: ScriptedRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target = scripted("target")
    load(source, url)
    configure(mirror_run, source, target)
    mirror_run.sync(expect=3)
    (image,) = mirror_run.report()["images"]
    assert code == image["error"]["code"]
    assert {} == tags_of(target)


def test_wrong_bytes_are_refused(
    source: ScriptedRegistry, outside: BlobHost, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target = scripted("target")
    layer, data = load(source, outside.url_of(digest_of()))
    serve(outside, bytes(reversed(data)), layer.digest)
    configure(mirror_run, source, target)
    mirror_run.sync(expect=3)
    assert "digest_mismatch" == mirror_run.report()["images"][0]["error"]["code"]
    assert not target.has_blob("app", layer.digest)


class Answering:
    """A host that sends the same reply to every request."""

    def __init__(self, authority: Authority, reply: Reply) -> None:
        self.seen: list[Request] = []
        self._reply = reply
        self._listener = Listener(self._serve, name="answering", address="127.0.0.1", tls=authority.server_context())
        self._listener.start()

    def _serve(self, connection: Any, number: int) -> None:
        for incoming, body in simple_exchanges(connection):
            self.seen.append(Request(incoming.method, incoming.target, incoming.headers, body, connection=number))
            connection.sendall(head_bytes(self._reply) + self._reply.body)

    def __enter__(self) -> str:
        return f"https://{self._listener.host}/layer"

    def __exit__(self, *_: object) -> None:
        self._listener.stop()


def test_a_challenge_is_not_answered_and_a_redirect_to_the_registry_gets_no_credentials(
    source: ScriptedRegistry, authority: Authority, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target = scripted("target")
    challenge = Reply(401, (("WWW-Authenticate", 'Basic realm="any"'), ("Content-Length", "0")))
    asking = Answering(authority, challenge)
    with asking as url:
        load(source, url)
        configure(mirror_run, source, target)
        mirror_run.sync(expect=1)
    assert "auth_denied" == mirror_run.report()["images"][0]["error"]["code"]
    assert [None] == [request.header("Authorization") for request in asking.seen]

    back = Answering(
        authority, Reply(307, (("Location", f"{source.url}/v2/secret/blobs/{digest_of()}"), ("Content-Length", "0")))
    )
    with back as url:
        load(source, url)
        source.mark()
        mirror_run.sync(expect=1)
    assert [None] == [one.header("Authorization") for one in source.log if one.repository == "secret"]

    down = Answering(authority, Reply(307, (("Location", "http://127.0.0.1/layer"), ("Content-Length", "0"))))
    with down as url:
        load(source, url)
        mirror_run.sync(expect=3)
    assert "unsafe_redirect" == mirror_run.report()["images"][0]["error"]["code"]


def test_layouts_and_bundles_hold_foreign_layers_and_an_import_copies_them(
    source: ScriptedRegistry, outside: BlobHost, scripted: ScriptedFactory, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    target = scripted("target")
    layer, data = load(source, outside.url_of(digest_of()))
    serve(outside, data, layer.digest)
    layout, bundle = tmp_path / "layout", tmp_path / "out.tar"
    configure(mirror_run, source, f"oci:{layout}:app", f"{bundle}:app")
    mirror_run.sync()
    assert 1 == len(outside.seen)
    assert 0 == mirror_run("verify", mirror_run.config_file, "--deep").code
    arrive = tmp_path / "arrive.yaml"
    for path, name in ((layout, f"oci:{layout}:app"), (bundle, f"{bundle}:app")):
        assert data == disk_view(path).blob("app", layer.digest)
        assert 0 == mirror_run("bundle", "verify", path).code
        into = f"{target.host}/{path.stem}"
        mirror_run.config([{"source": name, "targets": [into], "foreign-layers": "copy"}], target, file=arrive)
        assert 0 == mirror_run("sync", arrive).code
        assert target.has_blob(path.stem, layer.digest)
        mirror_run.config([{"source": name, "targets": [f"{into}/without"]}], target, file=arrive)
        assert 0 == mirror_run("sync", arrive).code
        assert not target.has_blob(f"{path.stem}/without", layer.digest)
    assert 1 == len(outside.seen)
    damaged = layout / "blobs" / layer.digest.replace(":", "/")
    damaged.chmod(0o644)
    damaged.write_bytes(bytes(reversed(data)))
    assert 3 == mirror_run("bundle", "verify", layout).code


def test_an_import_with_copy_fails_if_the_export_skipped_foreign_layers(
    source: ScriptedRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    target = scripted("target")
    layer, _ = load(source, "https://127.0.0.2:1/unused")
    layout = tmp_path / "layout"
    configure(mirror_run, source, f"oci:{layout}:app", mode="skip")
    mirror_run.sync()
    arrive = tmp_path / "arrive.yaml"
    mirrors = [{"source": f"oci:{layout}:app", "targets": [f"{target.host}/app"], "foreign-layers": "copy"}]
    mirror_run.config(mirrors, target, file=arrive)
    ran = mirror_run("sync", arrive)
    assert 0 != ran.code
    assert layer.digest in ran.text
    assert {} == tags_of(target)
