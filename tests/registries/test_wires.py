"""The TCP relay and the HTTP proxy: they forward, slow down, stall, count and change traffic."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace

import pytest

from tests.conftest import RegistryFactory, ScriptedFactory
from tests.registries.certificates import Authority
from tests.registries.client import Client, sha256
from tests.registries.exchange import Reply, Request, json_reply
from tests.registries.process import eventually
from tests.registries.raw import connect
from tests.registries.real import RealRegistry
from tests.registries.tokens import PATH, TokenService
from tests.registries.wires import Front, Pipe
from tests.support.images import Graph
from tests.support.oracle import assert_equal, skopeo
from tests.support.seeding import push


def graph() -> Graph:
    made = Graph("wires")
    made.platforms("v1")
    return made


def test_a_pipe_forwards_everything_and_records_the_first_bytes(source: RealRegistry) -> None:
    push(source, "app", graph())
    with Pipe(source.port) as pipe, Client(pipe.host) as client:
        assert source.manifest("app", "v1").body == client.manifest("app", "v1").body
        assert 1 == pipe.connections
        assert pipe.first[0].startswith(b"GET /v2/app/manifests/v1")
        assert pipe.moved > len(source.manifest("app", "v1").body)


def test_a_pipe_has_the_given_rate(source: RealRegistry) -> None:
    with Pipe(source.port, rate=500_000) as pipe, Client(pipe.host) as client:
        started = time.monotonic()
        client.put_blob("app", bytes(100_000))
        assert 0.15 < time.monotonic() - started


def test_a_frozen_pipe_continues_after_thaw(source: RealRegistry) -> None:
    with Pipe(source.port) as pipe, connect(pipe.host) as connection:
        pipe.freeze()
        connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        pipe.thaw()
        connection.settimeout(5)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_a_pipe_breaks_the_connection_that_moves_more_bytes_than_a_cut_and_no_later_one(source: RealRegistry) -> None:
    request = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with Pipe(source.port, cuts=[len(request)]) as pipe:
        with connect(pipe.host) as broken:
            broken.sendall(request)
            with pytest.raises(ConnectionResetError):
                _until_end(broken)
        with connect(pipe.host) as whole:
            whole.sendall(request)
            assert whole.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_a_pipe_closes_if_its_registry_is_gone_and_aborts_when_it_stops(source: RealRegistry) -> None:
    with Pipe(source.port) as pipe:
        with connect(pipe.host) as idle:
            assert eventually(lambda: pipe.open == 1, 60)
            pipe.cut_connections()
            assert b"" == idle.recv(1)
        source.stop()
        with connect(pipe.host) as refused:
            assert b"" == refused.recv(1)
        with connect(pipe.host) as last:
            pipe.freeze()
            pipe.stop()
            with pytest.raises(OSError, match="reset"):
                _until_end(last)


def _until_end(connection: socket.socket) -> None:
    if not connection.recv(1):
        raise ConnectionResetError("reset or closed")


def test_a_front_counts_requests_and_changes_nothing(source: RealRegistry, scripted: ScriptedFactory) -> None:
    push(source, "app", graph())
    target = scripted()
    with Front(source.port) as near, Front(int(target.host.split(":")[1])) as far:
        there = [f"docker://{front.host}/app:v1" for front in (near, far)]
        skopeo("copy", "--all", "--src-tls-verify=false", "--dest-tls-verify=false", *there)
        assert_equal(source, "app", target)
        assert source.counts() == near.journal.counts()
        assert target.counts() == far.journal.counts()
        assert 1 <= far.most_in_flight <= 10
        assert {200, 201, 202, 404} >= {entry.status for entry in far.journal.entries}


def test_a_hook_can_answer_instead_of_the_registry(source: RealRegistry) -> None:
    def refuse(request: Request) -> Reply | None:
        return json_reply(503, {}, ("Retry-After", "1")) if request.kind == "POST upload" else None

    with Front(source.port, hook=refuse) as front, Client(front.host, agent="stranger") as client:
        refused = client.ask("POST", "/v2/app/blobs/uploads/", body=b"body that is dropped")
        assert (503, "1") == (refused.status, refused.headers["retry-after"])
        assert 200 == client.ask("GET", "/v2/").status
        assert [503, 200] == [entry.status for entry in front.journal.entries]
        assert 20 == front.journal.entries[0].body_length
    assert ["GET ping"] == list(source.counts())


def test_replies_can_be_changed(source: RealRegistry) -> None:
    def lie(request: Request, reply: Reply) -> Reply:
        return replace(reply, status=404) if request.method == "HEAD" else reply

    push(source, "app", graph())
    with Front(source.port, alter=lie) as front, Client(front.host) as client:
        assert not client.has_blob("app", next(iter(graph().blobs)))
        assert 200 == client.manifest("app", "v1").status


def test_a_blocked_hook_shows_how_many_requests_are_in_progress(scripted: ScriptedFactory) -> None:
    registry, release = scripted(), threading.Event()

    def block(request: Request) -> Reply | None:
        release.wait(60)
        return None

    def ask(front: Front) -> None:
        with Client(front.host, agent="stranger") as client:
            client.ask("GET", "/v2/")

    with Front(int(registry.host.split(":")[1]), hook=block) as front:
        threads = [threading.Thread(target=ask, args=(front,)) for _ in range(5)]
        for thread in threads:
            thread.start()
        assert front.journal.wait_for("GET ping", 5)
        assert 5 == front.most_in_flight
        release.set()
        for thread in threads:
            thread.join()
    assert 5 == registry.counts()["GET ping"]


def test_a_token_service_on_the_registrys_own_port(
    registry_factory: RegistryFactory, tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> None:
    with Front(tls=authority) as front:
        tokens = TokenService(tmp_path_factory.mktemp("tokens"), users={"acme": "secret"}, realm=front.url + PATH)
        registry = registry_factory(tokens=tokens)
        front.upstream, front.hook = registry.port, tokens
        push(registry, "app", graph())
        image = f"docker://{front.host}/app:v1"
        skopeo("inspect", "--tls-verify=false", "--creds", "acme:secret", image)
        assert {"acme"} == {asked.user for asked in tokens.asked}
        assert front.journal.counts()["GET token"] == len(tokens.asked)


def test_a_front_closes_the_connection_if_its_registry_dies(source: RealRegistry) -> None:
    with Front(source.port) as front:
        source.kill()
        with Client(front.host) as client, pytest.raises(ConnectionError):
            client.put_blob("app", b"x")
        source.start()
        with Client(front.host) as client:
            assert sha256(b"x") == client.put_blob("app", b"x")
