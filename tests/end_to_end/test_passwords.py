"""A wrong password is one error that names its origin, after few requests; and no secret is ever written."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import RegistryFactory, ScriptedFactory
from tests.end_to_end.worlds import loaded
from tests.registries.real import RealRegistry
from tests.registries.tokens import TokenService
from tests.support.images import Graph
from tests.support.oracle import assert_equal
from tests.support.seeding import seed
from tests.support.tool import MirrorTool

USER, GOOD, WRONG = "acme", "correct-horse-7f", "canary/battery+staple=&9"
TAGS = [f"v{number}" for number in range(60)]


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[TokenService]:
    with TokenService(tmp_path / "tokens", users={USER: GOOD}) as service:
        yield service


def _guarded(kind: str, factory: RegistryFactory, tokens: TokenService) -> RealRegistry:
    if kind == "token":
        return factory("guarded", tokens=tokens)
    return factory("guarded", users={USER: GOOD})


def _realm(kind: str, tokens: TokenService) -> dict[str, Any]:
    """The token service listens on its own port, so it is another origin."""
    return {"token-realms": [urlsplit(tokens.realm).netloc]} if kind == "token" else {}


def _sweep(tool: MirrorTool, *skip: Path) -> None:
    tool.sweep(WRONG, GOOD, base64.b64encode(f"{USER}:{WRONG}".encode()).decode(), skip=skip)


@pytest.mark.parametrize("kind", ["basic", "token"])
@pytest.mark.parametrize("how", ["listed", "named"])
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_wrong_password_is_refused_in_few_requests(
    kind: str, how: str, side: str, registry_factory: RegistryFactory, tokens: TokenService, mirror_run: MirrorTool
) -> None:
    guarded, free = _guarded(kind, registry_factory, tokens), registry_factory("free")
    ends = (guarded, free) if side == "source" else (free, guarded)
    seed(ends[0], "app", images=2, tags=len(TAGS))
    seed(ends[0], "well", images=1)
    mirror: dict[str, Any] = {"source": f"{ends[0].host}/app", "targets": [f"{ends[1].host}/app"]}
    mirror |= {"tags": TAGS} if how == "named" else {}
    login = {guarded.host: {"username": USER, "password": {"env": "THE_PASSWORD"}, **_realm(kind, tokens)}}
    other = {"source": f"{free.host}/well", "targets": [f"{free.host}/copy"]}
    mirror_run.config([mirror, other] if side == "target" else [mirror], guarded, free, registries=login)
    guarded.mark()
    asked = len(tokens.asked)
    ran = mirror_run.sync("-v", expect=1, environment={"THE_PASSWORD": WRONG})
    kinds = [seen.kind for seen in guarded.requests() if seen.repository in ("", "app")]
    assert 0 < len(kinds) - kinds.count("GET v1-ping") <= 3
    assert kinds.count("GET v1-ping") <= 1
    assert len(tokens.asked) - asked <= 2
    for words in (guarded.host, USER, "THE_PASSWORD"):
        assert words in ran.text
    images = mirror_run.report()["images"]
    failed = [image for image in images if image["result"] == "failed"]
    assert {"auth_failed"} == {image["error"]["code"] for image in failed}
    assert (1 if how == "listed" and side == "source" else len(TAGS)) == len(failed)
    if side == "target":
        assert_equal(free, "well", free, "copy")
    _sweep(mirror_run)


def test_missing_credentials_are_reported_as_missing(
    registry_factory: RegistryFactory, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    guarded = registry_factory("guarded", users={USER: GOOD})
    mirrors = [{"source": f"{guarded.host}/app", "targets": [f"{target.host}/app"]}]
    mirror_run.config(mirrors, guarded, target)
    ran = mirror_run.sync(expect=1)
    assert guarded.host in ran.text
    assert "credentials" in ran.text
    assert len(guarded.requests()) <= 3


@pytest.mark.parametrize("where", ["env", "file", "docker"])
@pytest.mark.parametrize("kind", ["basic", "token"])
def test_the_right_password_is_written_nowhere(
    where: str, kind: str, registry_factory: RegistryFactory, tokens: TokenService, mirror_run: MirrorTool
) -> None:
    guarded, target = _guarded(kind, registry_factory, tokens), registry_factory("target")
    seed(guarded, "app", images=2, index=True)
    kept = mirror_run.folder / "kept"
    settings: dict[str, Any] = {}
    if where == "env":
        settings = {"username": USER, "password": {"env": "THE_PASSWORD"}}
    elif where == "file":
        kept.write_text(GOOD + "\n")
        settings = {"username": USER, "password": {"file": str(kept)}}
    else:
        kept = mirror_run.home / ".docker" / "config.json"
        kept.parent.mkdir()
        auth = base64.b64encode(f"{USER}:{GOOD}".encode()).decode()
        kept.write_text(json.dumps({"auths": {guarded.host: {"auth": auth}}}))
    mirrors = [{"source": f"{guarded.host}/app", "targets": [f"{target.host}/app"]}]
    settings |= _realm(kind, tokens)
    mirror_run.config(mirrors, guarded, target, registries={guarded.host: settings}, log={"level": "debug"})
    mirror_run.sync("-v", "-v", environment={"THE_PASSWORD": GOOD})
    assert_equal(guarded, "app", target)
    secrets = [GOOD, base64.b64encode(f"{USER}:{GOOD}".encode()).decode(), *tokens.issued]
    mirror_run.sweep(*secrets, skip=[kept])


def _broken_docker_file(tool: MirrorTool, host: str) -> dict[str, Any]:
    file = tool.home / ".docker" / "config.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"auths": {host: {"auth": "!!!"}}}))
    return {}


def _password_file_of_junk(tool: MirrorTool, host: str) -> dict[str, Any]:
    file = tool.folder / "password"
    file.write_bytes(b"\xff")
    return {"username": USER, "password": {"file": str(file)}}


@pytest.mark.parametrize("spoil", [_broken_docker_file, _password_file_of_junk])
def test_a_credential_that_becomes_unreadable_during_a_run_fails_only_its_mirror(
    spoil: Callable[[MirrorTool, str], dict[str, Any]], scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    guarded, good, target = scripted("guarded", users={USER: GOOD}), scripted("good"), scripted("target")
    loaded(guarded)
    loaded(good)
    mirrors = [{"source": f"{one.host}/app", "targets": [f"{target.host}/{one.name}"]} for one in (guarded, good)]
    settings = spoil(mirror_run, guarded.host)
    config = mirror_run.config(mirrors, guarded, good, target, registries={guarded.host: settings})
    assert 1 == mirror_run("plan", config).code
    mirror_run.sync(expect=1)
    report = mirror_run.report()
    assert 1 == report["exit"]
    results = {image["source"]: (image["result"], image.get("error", {}).get("code")) for image in report["images"]}
    assert {f"{guarded.host}/app": ("failed", "auth_failed"), f"{good.host}/app:v1": ("copied", None)} == results
    assert 1 == mirror_run("verify", config).code
    onto = [{"source": f"{good.host}/app", "targets": [f"{target.host}/copy", f"{guarded.host}/copy"]}]
    config = mirror_run.config(onto, guarded, good, target, registries={guarded.host: settings})
    assert 1 == mirror_run("inventory", config).code


def test_a_password_that_a_registry_echoes_is_not_written(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source = scripted("source", users={USER: GOOD})
    graph = Graph("echo")
    graph.image("v1")
    source.load("app", graph)
    basic = base64.b64encode(f"{USER}:{GOOD}".encode()).decode()
    said = f"you said {GOOD}, that is Basic {basic}".encode()
    source.fault("GET manifest", status=418, body=said, times=100)
    mirrors = [{"source": f"{source.host}/app", "targets": [f"{source.host}/copy"]}]
    login = {source.host: {"username": USER, "password": {"env": "THE_PASSWORD"}}}
    mirror_run.config(mirrors, source, registries=login, log={"level": "debug"})
    ran = mirror_run.sync("-v", "-v", expect=1, environment={"THE_PASSWORD": GOOD})
    assert "418" in ran.text
    mirror_run.sweep(GOOD, basic)
