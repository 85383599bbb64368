"""Reads on a target: its listing is only a hint, and requests ask for the right to push."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import assert_synced, loaded, pair
from tests.registries.exchange import Reply, Request, error_reply
from tests.registries.faults import FOREVER
from tests.registries.scripted import ScriptedRegistry
from tests.registries.tokens import SERVICE
from tests.support.tool import MirrorTool

USERS = {"acme": "correct-horse"}
MAX_FAILED_MOUNTS = (401, 403, 405, 500, 503)


def login(registry: ScriptedRegistry) -> dict[str, Any]:
    return {registry.host: {"username": "acme", "password": USERS["acme"]}}


@pytest.mark.parametrize("tags", [None, ["v1", "v2"]], ids=["listed", "named"])
@pytest.mark.parametrize("how", ["basic", "bearer"])
def test_a_failed_listing_of_the_target_fails_no_image(
    how: str, tags: list[str] | None, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target", users=USERS, bearer=how == "bearer")
    names = [f"app-{status}" for status in MAX_FAILED_MOUNTS]
    for name, status in zip(names, MAX_FAILED_MOUNTS, strict=True):
        loaded(source, "v1", "v2", repository=name)
        challenge = () if status != 401 else (("WWW-Authenticate", _challenge(target, name)),)
        target.fault("GET tags", repository=name, status=status, headers=challenge, times=FOREVER)
    defaults = {"tags": tags} if tags else {}
    pair(mirror_run, source, target, *names, registries=login(target), defaults=defaults)
    mirror_run.sync()
    assert_synced(source, target, *names)
    source.load("app-403", loaded(source, "v3", repository="moved"))
    target.mark()
    ran = mirror_run.sync()
    asked = target.counts() - target.counts(status=401)
    assert len(names) * 2 + (not tags) == asked["HEAD manifest"], ran
    assert ({f"{target.host}/app-403:v3"} if not tags else set()) == {
        name for name, result in mirror_run.results().items() if result == "copied"
    }
    assert 0 == mirror_run("verify", mirror_run.config_file).code


def _challenge(registry: ScriptedRegistry, repository: str) -> str:
    if not registry.tokens:
        return 'Basic realm="scripted"'
    return f'Bearer realm="{registry.tokens.realm}",service="{SERVICE}",scope="repository:{repository}:pull"'


@pytest.mark.parametrize("tags", [None, ["v1", "v2"]], ids=["listed", "named"])
def test_a_new_repository_is_created_on_a_registry_that_hides_it_without_the_right_to_push(
    tags: list[str] | None, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    """Quay: while a repository does not exist, a token with only `pull` gets 401, and one with `push` gets 404."""
    source, target = scripted("source"), scripted("target", users=USERS, bearer=True)
    loaded(source, "v1", "v2")

    def hidden(request: Request) -> Reply | None:
        if not request.repository or target.storage.find(request.repository) is not None or target.tokens is None:
            return None
        token = (request.header("Authorization") or "").partition(" ")[2]
        access, _ = target.tokens.access_of(token)
        may_push = any("push" in entry["actions"] for entry in access if entry["name"] == request.repository)
        challenge = ("WWW-Authenticate", _challenge(target, request.repository))
        return None if may_push else error_reply(401, "UNAUTHORIZED", "access to the resource is denied", challenge)

    target.hook = hidden
    pair(mirror_run, source, target, registries=login(target), defaults={"tags": tags} if tags else {})
    mirror_run.sync()
    assert_synced(source, target)
    assert target.tokens is not None
    assert 1 == len(target.tokens.asked), target.tokens.asked
    assert 0 == target.counts()["HEAD blob"]


def test_requests_to_a_source_ask_only_for_the_right_to_pull(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    registry = scripted("both", users=USERS, bearer=True)
    loaded(registry, "v1")
    mirror = {"source": f"{registry.host}/app", "targets": [f"{registry.host}/copy"]}
    mirror_run.config([mirror], registry, registries=login(registry))
    mirror_run.sync()
    assert registry.tokens is not None
    scopes = {scope for one in registry.tokens.asked for scope in one.scopes}
    assert {"repository:app:pull", "repository:copy:pull,push"} == scopes


def test_a_circular_listing_of_the_target_fails_no_image(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source, "v1", "v2")
    pair(mirror_run, source, target)
    mirror_run.sync("--only", f"{source.host}/app:v1")
    same_page = ("Link", '</v2/app/tags/list?n=1000&last=v1>; rel="next"')
    target.fault("GET tags", after=True, headers=(same_page,), times=FOREVER)
    ran = mirror_run.sync()
    assert ["copied", "up-to-date"] == sorted(mirror_run.results().values())
    assert 1 == ran.err.count("form a loop"), ran
    target.faults.clear()
    # A page on another host is an error, although the listing is only a hint.
    elsewhere = ("Link", '<http://127.0.0.1:1/v2/app/tags/list>; rel="next"')
    target.fault("GET tags", after=True, headers=(elsewhere,), times=FOREVER)
    mirror_run.sync(expect=3)
    assert {"unsafe_link"} == {image["error"]["code"] for image in mirror_run.report()["images"]}
