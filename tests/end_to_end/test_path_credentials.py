"""`registries.HOST.paths`: each repository is read and written with the credentials of its own path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import RegistryFactory
from tests.registries.real import RealRegistry
from tests.registries.tokens import TokenRequest, TokenService
from tests.support.images import Graph
from tests.support.oracle import assert_equal
from tests.support.seeding import push
from tests.support.tool import MirrorTool

WORDS = {"anna": "word-of-anna", "bert": "word-of-bert", "host": "word-of-the-host"}
OWNERS = {"team-a": "anna", "team-b": "bert"}


def _owner(name: str) -> str:
    return OWNERS.get(name.partition("/")[0], "host")


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[TokenService]:
    """Start a token service that allows each user only the repositories of that user."""

    def allow(user: str, name: str, action: str) -> bool:
        return user == _owner(name)

    with TokenService(tmp_path / "tokens", users=WORDS, allow=allow) as service:
        yield service


def _first_repository(request: TokenRequest) -> str:
    return request.scopes[0].split(":")[1]


def test_each_path_has_its_own_credentials_and_a_mount_uses_those_of_its_target(
    registry_factory: RegistryFactory, tokens: TokenService, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    source, guarded = registry_factory("source"), registry_factory("guarded", tokens=tokens)
    graph = Graph("common")
    graph.platforms("v1", "v2")
    push(source, "app", graph)
    written = ("team-a/app", "team-a/other", "team-b/app", "team-ab/app")
    login = {
        "username": "host",
        "password": {"env": "HOST_WORD"},
        "paths": {name: {"username": user, "password": {"env": f"{user}_WORD"}} for name, user in OWNERS.items()},
        "token-realms": [urlsplit(tokens.realm).netloc],
    }
    environment = {f"{user if user != 'host' else 'HOST'}_WORD": word for user, word in WORDS.items()}
    registries = {guarded.host: login}
    targets = [f"{guarded.host}/{name}" for name in written]
    mirrors = [{"source": f"{source.host}/app", "targets": targets}]
    mirror_run.config(mirrors, source, guarded, registries=registries)
    mirror_run.sync("-v", "-v", environment=environment)
    for name in written:
        assert_equal(source, "app", guarded, name)
    assert all(request.user == _owner(_first_repository(request)) for request in tokens.asked)
    assert set(WORDS) == {request.user for request in tokens.asked}

    targets.append(f"{guarded.host}/team-a/later")
    mirror_run.config(mirrors, source, guarded, registries=registries)
    guarded.mark()
    mirror_run.sync(environment=environment)
    assert_equal(source, "app", guarded, "team-a/later")
    mounts = [seen for seen in guarded.requests() if seen.kind == "POST mount"]
    assert {201} == {seen.status for seen in mounts}
    assert all("from=team-a/" in seen.path for seen in mounts)

    asked = len(tokens.asked)
    wildcard = [{"source": f"{guarded.host}/team-a/*", "targets": [f"{target.host}/{{repository}}"]}]
    mirror_run.config(wildcard, guarded, target, registries=registries)
    mirror_run.sync(environment=environment)
    names = ("app", "other", "later")
    for name in names:
        assert_equal(guarded, f"team-a/{name}", target, name)
    assert {("catalog", "host"), *((f"team-a/{name}", "anna") for name in names)} == {
        (_first_repository(request), request.user) for request in tokens.asked[asked:]
    }
    mirror_run.sweep(*WORDS.values(), *tokens.issued)


def test_a_missing_password_of_a_path_ends_a_run_only_if_a_repository_below_it_is_used(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    push(source, "app", _image())
    paths = {"team": {"username": "anna", "password": {"env": "NOWHERE"}}}
    registries = {target.host: {"paths": paths}}
    mirrors = [{"source": f"{source.host}/app", "targets": [f"{target.host}/app"]}]
    mirror_run.config(mirrors, source, target, registries=registries)
    mirror_run.sync()
    source.mark()
    for below in ("team/app", "{repository}"):
        wildcard = "*" if "{" in below else "app"
        mirrors = [{"source": f"{source.host}/{wildcard}", "targets": [f"{target.host}/{below}"]}]
        mirror_run.config(mirrors, source, target, registries=registries)
        ran = mirror_run.sync(expect=2)
        assert "paths.team.password: the environment variable NOWHERE is unset or empty" in ran.text
    assert [] == source.requests()


def _image() -> Graph:
    graph = Graph("one")
    graph.image("v1", layers=[graph.layer("one")])
    return graph
