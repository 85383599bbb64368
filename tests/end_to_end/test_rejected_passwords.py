"""A wrong password is sent only a few times in a run, whatever the number of repositories, so no account is locked."""

from __future__ import annotations

import base64
import json
import signal
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import loaded
from tests.registries import v1
from tests.registries.exchange import Reply, Request, error_reply
from tests.registries.faults import FOREVER
from tests.registries.journal import Logged
from tests.registries.process import eventually
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph
from tests.support.tool import MirrorTool

USER, GOOD, WRONG = "acme", "correct-horse-7f", "canary-battery-9"
REPOSITORIES = 300
MOST = 3  # requests with a wrong password; registries lock accounts after five to ten
KINDS = pytest.mark.parametrize("kind", ["basic", "bearer"])


def guard(kind: str, factory: ScriptedFactory, name: str = "guarded", **options: Any) -> ScriptedRegistry:
    return factory(name, users={USER: GOOD}, bearer=kind == "bearer", **options)


def login(password: str = WRONG) -> dict[str, Any]:
    return {"username": USER, "password": password}


def sent_with(registry: ScriptedRegistry, password: str, user: str = USER) -> list[Logged]:
    """Return the requests with this password, to the registry and to its token service."""
    value = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    return [entry for entry in registry.log if entry.header("Authorization") == value]


def names(count: int = REPOSITORIES) -> list[str]:
    return [f"team/app-{number:03}" for number in range(count)]


def mirrors(source: ScriptedRegistry, target: ScriptedRegistry, among: Iterable[str], **keys: Any) -> list[Any]:
    found = [{"source": f"{source.host}/{name}", "targets": [f"{target.host}/{name}"], **keys} for name in among]
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]  # without shared lists, which YAML would alias


def fill(registry: ScriptedRegistry, among: Iterable[str]) -> None:
    """Put one small image into each repository."""
    for name in among:
        graph = Graph(name)
        graph.image("v1", layers=[graph.layer(size=100)])
        registry.load(name, graph)


def assert_one_cause(tool: MirrorTool, count: int, results: Iterable[str] = ("failed",)) -> None:
    """Check that everything failed because of the same wrong password."""
    images = tool.report()["images"]
    assert Counter(dict.fromkeys(results, count)) == Counter(image["result"] for image in images)
    errors = [image["error"] for image in images]
    for key in ("code", "status", "account", "host", "hint"):
        assert 1 == len({error.get(key) for error in errors}), key
    assert ("auth_failed", 401) == (errors[0]["code"], errors[0]["status"])
    assert USER in errors[0]["account"]


@KINDS
@pytest.mark.parametrize("tags", [None, ["v1", "v2"]], ids=["listed", "named"])
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_wrong_password_for_many_repositories_is_sent_at_most_three_times(
    kind: str, tags: list[str] | None, side: str, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    guarded, free = guard(kind, scripted), scripted("free")
    source, target = (guarded, free) if side == "source" else (free, guarded)
    if side == "target":
        fill(free, names())
    tags = ["v1"] if tags and side == "target" else tags
    keys = {"tags": tags} if tags else {}
    mirror_run.config(mirrors(source, target, names(), **keys), guarded, free, registries={guarded.host: login()})
    ran = mirror_run.sync(expect=1)
    assert 1 <= len(sent_with(guarded, WRONG)) <= MOST
    count = REPOSITORIES * (len(tags) if tags and side == "source" else 1)
    assert_one_cause(mirror_run, count)
    assert 1 == ran.out.count("failed: "), ran.out
    what = "repositories" if side == "source" and not tags else "images"
    assert f"failed: {count} {what}: " in ran.out
    if side == "source":
        assert [] == free.writes()


@KINDS
@pytest.mark.parametrize("command", ["plan", "verify"])
@pytest.mark.parametrize("side", ["source", "target"])
def test_plan_and_verify_send_a_wrong_password_at_most_three_times(
    command: str, kind: str, side: str, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    guarded, free = guard(kind, scripted), scripted("free")
    source, target = (guarded, free) if side == "source" else (free, guarded)
    if side == "target":
        fill(free, names(60))
    keys = {"tags": ["v1"]}
    path = mirror_run.config(
        mirrors(source, target, names(60), **keys), guarded, free, registries={guarded.host: login()}
    )
    ran = mirror_run(command, path)
    assert 1 == ran.code, ran
    assert 1 <= len(sent_with(guarded, WRONG)) <= MOST
    assert 1 == ran.out.count("failed: 60 images: "), ran.out


@KINDS
def test_source_and_target_on_one_host_share_what_is_known_about_the_password(
    kind: str, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    guarded, free = guard(kind, scripted), scripted("free")
    fill(free, names(30))
    from_free = mirrors(free, guarded, names(30))
    within = [{"source": f"{guarded.host}/from/{name}", "targets": [f"{guarded.host}/to/{name}"]} for name in names(30)]
    mirror_run.config([*from_free, *within], guarded, free, registries={guarded.host: {**login(), "v1": "never"}})
    mirror_run.sync(expect=1)
    assert 1 <= len(sent_with(guarded, WRONG)) <= MOST
    assert_one_cause(mirror_run, 60)


@KINDS
def test_with_the_right_password_no_request_is_added(
    kind: str, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    many = names(12)
    counts: list[Counter[str]] = []
    for number in range(2):
        source, target = scripted(f"source-{number}"), scripted(f"free-{number}")
        if number:
            target = guard(kind, scripted)
        fill(source, many)
        mirror_run.state = mirror_run.folder / f"state-{number}"
        mirror_run.config(mirrors(source, target, many), source, target, registries={target.host: login(GOOD)})
        mirror_run.sync()
        counts.append(target.counts())
        if number:
            # The first request is sent without credentials, and is the only one that the registry refuses.
            assert 1 == sum(target.counts(status=401).values())
            counts[1] -= target.counts(status=401)
            tokens = counts[1].pop("GET token", 0)
            assert tokens == (len({entry.path for entry in sent_with(target, GOOD)}) if kind == "bearer" else 0)
            assert tokens <= 2 * len(many)
    assert counts[0] == counts[1]


@KINDS
def test_a_401_for_one_repository_fails_only_that_one(
    kind: str, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    guarded, target = guard(kind, scripted), scripted("target")
    many = names(20)
    fill(guarded, many)
    secret = many[0]  # the first request with the credentials may be the one that is refused
    challenge = {"basic": 'Basic realm="scripted"', "bearer": f'Bearer realm="{guarded.url}/auth/token",service="x"'}

    def refuse(request: Request) -> Reply | None:
        if request.repository != secret:
            return None
        return error_reply(401, "UNAUTHORIZED", "not for you", ("WWW-Authenticate", challenge[kind]))

    guarded.hook = refuse
    mirror_run.config(mirrors(guarded, target, many), guarded, target, registries={guarded.host: login(GOOD)})
    mirror_run.sync(expect=1)
    results = {image["source"]: image["result"] for image in mirror_run.report()["images"]}
    assert {f"{guarded.host}/{secret}": "failed"} | {
        f"{guarded.host}/{name}:v1": "copied" for name in many[1:]
    } == results
    assert guarded.counts()["GET ping"] <= 1


def test_a_registry_that_answers_404_and_5xx_first_delays_no_request_forever(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), guard("basic", scripted)
    fill(source, names(10))
    target.fault("* tags", nth=2, times=3, status=503)
    target.fault("* tags", nth=5, times=3, status=404)
    mirror_run.config(mirrors(source, target, names(10)), source, target, registries={target.host: login(GOOD)})
    mirror_run.sync()
    assert 10 == mirror_run.report()["totals"]["images"]["copied"]


@KINDS
def test_the_credentials_of_two_paths_on_one_host_are_independent(
    kind: str, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    guarded, target = guard(kind, scripted), scripted("target")
    good, bad = [f"a/{name}" for name in names(10)], [f"b/{name}" for name in names(10)]
    fill(guarded, [*good, *bad])
    paths = {"a": login(GOOD), "b": {"username": USER, "password": WRONG}}
    mirror_run.config(
        mirrors(guarded, target, [*bad, *good]), guarded, target, registries={guarded.host: {"paths": paths}}
    )
    mirror_run.sync(expect=1)
    totals = mirror_run.report()["totals"]["images"]
    assert (10, 10) == (totals["copied"], totals["failed"])
    assert 1 <= len(sent_with(guarded, WRONG)) <= MOST


@KINDS
def test_a_later_cycle_uses_the_corrected_password(
    kind: str, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    guarded, target = guard(kind, scripted), scripted("target")
    many = names(20)
    fill(guarded, many)
    password = mirror_run.folder / "password"
    password.write_text(WRONG)
    settings = {guarded.host: {"username": USER, "password": {"file": str(password)}}}
    mirror_run.config(mirrors(guarded, target, many), guarded, target, registries=settings)
    process = mirror_run.start("sync", mirror_run.config_file, "--every", "1s")
    assert eventually(lambda: len(sent_with(guarded, WRONG)) > MOST, 60), "later cycles send it again"
    assert 401 in {entry.status for entry in guarded.log}
    password.write_text(GOOD)
    assert eventually(lambda: all(name in target.storage.repositories for name in many), 60)
    process.send_signal(signal.SIGTERM)
    mirror_run.finish(process)


def test_a_stop_ends_the_wait_for_the_first_response_with_the_password(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    guarded, target = guard("basic", scripted), scripted("target")
    guarded.fault("* tags", nth=2, times=FOREVER, stall=threading.Event())
    mirror_run.config(mirrors(guarded, target, names(20)), guarded, target, registries={guarded.host: login()})
    process = mirror_run.start("sync", mirror_run.config_file)
    assert guarded.journal.wait_for("GET tags", 2)
    process.send_signal(signal.SIGTERM)
    assert 143 == mirror_run.finish(process, timeout=20).code
    assert 1 == len(sent_with(guarded, WRONG)), "other requests wait for the response to the first one"


@pytest.mark.parametrize("how", ["only", "auto"])
def test_a_wrong_password_is_sent_to_a_v1_registry_at_most_three_times(
    how: str, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    old, target = scripted("old"), scripted("target")
    old.v1, old.hook = v1.V1(users={USER: GOOD}), v1.no_v2
    old.v1.tag("team/app-000", v1=old.v1.image(b""))
    many = names(40)
    mirror_run.config(mirrors(old, target, many), old, target, registries={old.host: {**login(), "v1": how}})
    mirror_run.sync(expect=1)
    assert 1 <= len(sent_with(old, WRONG)) <= MOST
    assert 40 == mirror_run.report()["totals"]["images"]["failed"]


def test_a_password_that_is_revoked_during_a_run_is_sent_a_limited_number_of_times(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    guarded, target = guard("basic", scripted), scripted("target")
    many = names(200)
    fill(guarded, many)
    loaded(guarded, repository="first")
    revoked = threading.Event()

    def revoke(request: Request) -> Reply | None:
        if request.repository == many[0]:
            revoked.set()
        if not revoked.is_set():
            return None
        return error_reply(401, "UNAUTHORIZED", "expired", ("WWW-Authenticate", 'Basic realm="scripted"'))

    guarded.hook = revoke
    config = mirrors(guarded, target, ["first", *many])
    mirror_run.config(config, guarded, target, registries={guarded.host: {**login(GOOD), "parallel": 2}})
    mirror_run.sync(expect=1)
    refused = [entry for entry in sent_with(guarded, GOOD) if entry.status == 401]
    assert 1 <= len(refused) <= 2 * MOST
