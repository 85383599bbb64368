"""Fallback to v1: every row of docs/fallback.md in each of the four settings, with the requests that it costs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import MirrorError
from mirror.registry.http.host_settings import V1Mode
from mirror.store import Version
from mirror.util.cancellation import Stop, Work
from tests.conftest import ScriptedFactory
from tests.registries import v1
from tests.registries.certificates import Authority
from tests.registries.exchange import Reply, Request, error_reply, json_reply
from tests.registries.faults import FOREVER
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph
from tests.support.old_registries import WORK, old_registry, opened, outcome

API = ("Docker-Distribution-Api-Version", "registry/2.0")
Change = Callable[[ScriptedRegistry], object]


def answer(kind: str, reply: Reply, *, api: bool = True, **rule: Any) -> Change:
    """Answer requests of a kind with this reply. api: the response to `/v2/` has the version header."""

    def change(registry: ScriptedRegistry) -> None:
        registry.features.api_version = api
        registry.fault(kind, status=reply.status, body=reply.body, headers=reply.headers, times=FOREVER, **rule)

    return change


def reset(kind: str, *, api: bool = True) -> Change:
    def change(registry: ScriptedRegistry) -> None:
        registry.features.api_version = api
        registry.fault(kind, reset=True, times=FOREVER)

    return change


def change_nothing(registry: ScriptedRegistry) -> None:
    pass


def list_no_tags(registry: ScriptedRegistry) -> None:
    registry.features.empty_is_unknown = False
    registry.storage.repositories["app"].tags.clear()


def answer_unknown(registry: ScriptedRegistry) -> None:
    registry.storage.repositories.clear()


def fail_second_page(registry: ScriptedRegistry) -> None:
    registry.features.page = 1
    registry.fault("GET tags", nth=2, status=404, times=FOREVER)


def fail_root(registry: ScriptedRegistry) -> None:
    registry.features.api_version = False
    registry.fault("GET tags", status=500, times=FOREVER)
    registry.fault("GET ping", status=503, headers=[API], times=FOREVER)


def reset_root(registry: ScriptedRegistry) -> None:
    registry.features.api_version = False
    registry.fault("GET tags", status=500, times=FOREVER)
    registry.fault("GET ping", reset=True, times=FOREVER)


def require_credentials(registry: ScriptedRegistry) -> None:
    basic = (("WWW-Authenticate", 'Basic realm="all of it"'),)
    answer("GET tags", Reply(401, basic))(registry)


def refuse_tokens(registry: ScriptedRegistry) -> None:
    bearer = (("WWW-Authenticate", f'Bearer realm="{registry.url}/auth/token",service="all of it"'),)
    answer("GET tags", Reply(401, bearer))(registry)
    answer("GET token", Reply(403))(registry)


def support_v1_only(registry: ScriptedRegistry) -> None:
    registry.hook = v1.no_v2


HTML = Reply(200, (("Content-Type", "text/html"),), b"<html>Welcome</html>")
NO_PAGE = Reply(404, (("Content-Type", "text/html"),), b"<h1>404</h1>")

V2, OLD = ["both v2", "new v2"], ["both v1", "old v1"]
UNION = ["both v2", "new v2", "old v1"]


@dataclass(frozen=True)
class Row:
    """One row of the tables: what v2 does, and the result: tags with their protocol, or errors with their exit code.

    asked: whether v1 was requested with `auto`. per_tag: the result with `per-tag`; None: as with `auto`."""

    name: str
    change: Change
    auto: list[str]
    asked: bool
    per_tag: list[str] | None = None
    tags: Sequence[str] = ()
    text: str = ""  # in the error


def bad(code: str, exit_code: int = 1) -> list[str]:
    """Return the result of a source that fails as a whole."""
    return [f"{code} {exit_code}"]


ROWS = [
    Row("L1", change_nothing, V2, False, UNION),
    Row("L2", list_no_tags, [], False, OLD),
    Row("L3, v2 shown", answer("GET tags", HTML), bad("bad_response", 1), False, text="valid JSON"),
    Row("L3", answer("GET tags", HTML, api=False), OLD, True),
    Row("L3, no list", answer("GET tags", json_reply(200, []), api=False), OLD, True),
    Row("L4", answer_unknown, OLD, True),
    Row("L5", answer("GET tags", NO_PAGE), OLD, True),
    Row("L5, contradicted", answer("GET tags", error_reply(404, "NAME_INVALID")), bad("not_found"), False),
    Row("L6", answer("GET tags", error_reply(401, "UNAUTHORIZED")), OLD, True),
    Row("L7", require_credentials, OLD, True),
    Row("L8", refuse_tokens, OLD, True),
    Row("L9", answer("GET tags", error_reply(403, "DENIED")), OLD, True),
    Row("L10, v2 shown", answer("GET tags", error_reply(405, "UNSUPPORTED")), bad("bad_response"), False),
    Row("L10", answer("GET tags", error_reply(501, "UNSUPPORTED"), api=False), OLD, True),
    Row("L11, v2 shown", answer("GET tags", error_reply(400, "NAME_INVALID")), bad("bad_response"), False),
    Row("L11", answer("GET tags", error_reply(400, ""), api=False), OLD, True),
    Row("L12", answer("GET tags", Reply(429, (("Retry-After", "0"),)), api=False), bad("rate_limited"), False),
    Row("L13, v2 shown", answer("GET tags", Reply(500)), bad("bad_response"), False, text="500"),
    Row("L13", answer("GET tags", Reply(502), api=False), OLD, True),
    Row("L14, v2 shown", reset("GET tags"), bad("net_error"), False),
    Row("L14", reset("GET tags", api=False), OLD, True),
    Row("L15", lambda registry: registry.stop(), bad("net_error"), False),
    Row("L18", fail_second_page, bad("not_found"), False),
    Row("L19", support_v1_only, OLD, True),
    Row("L20", fail_root, bad("bad_response"), False),
    Row("L20, mute", reset_root, bad("bad_response"), False),
    Row("L22", answer("HEAD manifest", NO_PAGE, reference="new"), ["both v2", "not_found 1"], False,
        ["both v2", "not_found 1", "old v1"]),
    Row("T1", change_nothing, ["new v2"], False, tags=["new"]),
    Row("T2, listed", change_nothing, ["not_found 1"], False, ["old v1"], tags=["old"], text="per-tag"),
    Row("T2, unknown", answer_unknown, ["old v1"], True, tags=["old"]),
    Row("T3", answer("* manifest", error_reply(401, "UNAUTHORIZED")), bad("auth_failed"), False, tags=["old"]),
    Row("T4", answer("HEAD manifest", NO_PAGE), ["not_found 1"], False, ["old v1"], tags=["old"]),
    Row("T5", answer("HEAD manifest", Reply(403)), ["auth_denied 1"], False, tags=["old"]),
    Row("T6, 429", answer("HEAD manifest", Reply(429, (("Retry-After", "0"),)), api=False), bad("rate_limited"),
        False, tags=["old"]),
    Row("T6, 400", answer("HEAD manifest", Reply(400), api=False), ["bad_response 1"], False, tags=["old"]),
    Row("T7, v2 shown", answer("HEAD manifest", Reply(500)), ["bad_response 1"], False, tags=["old"]),
    Row("T7, listing works", answer("HEAD manifest", Reply(500), api=False), ["bad_response 1"], False,
        tags=["old"]),
    Row("T7, nothing works", lambda r: (answer("HEAD manifest", Reply(500), api=False)(r),
                                        answer("GET tags", Reply(500), api=False)(r)), ["old v1"], True, tags=["old"]),
    Row("T7, network", lambda r: (reset("HEAD manifest", api=False)(r), reset("GET tags", api=False)(r)),
        ["old v1"], True, tags=["old"]),
    Row("T8", answer("* manifest", HTML, api=False), ["bad_response 1"], False, tags=["new"]),
    Row("T9", change_nothing, ["not_found 1"], False, tags=["sha256:" + "0" * 64]),
]  # fmt: skip


def mixed(scripted: ScriptedFactory, **options: Any) -> ScriptedRegistry:
    """Return a registry where v2 has the tags `new` and `both`, and v1 has `old` and `both`."""
    registry = scripted(**options)
    graph = Graph("mixed")
    graph.image("new")
    graph.image("both")
    registry.load("app", graph)
    server = v1.V1()
    registry.v1 = server
    (image,) = server.chain(v1.gz(v1.tar(file=b"old")))
    server.tag("app", old=image, both=image)
    return registry


def summarize(results: Sequence[Version | MirrorError], registry: ScriptedRegistry, tags: Sequence[str]) -> list[str]:
    names = list(tags) or sorted(name for name in ("both", "new", "old"))
    if len(results) < len(names) and not tags:
        names = _matching(results)
    return [
        f"{one.code} {one.exit_code}" if isinstance(one, MirrorError) else f"{name} {one.protocol}"
        for name, one in zip(names, results, strict=True)
    ]


def _matching(results: Sequence[Version | MirrorError]) -> list[str]:
    """Return the tags of these results: of v2 `both` and `new`, of v1 `both` and `old`."""
    if any(isinstance(one, Version) and one.protocol == "v2" for one in results):
        return ["both", "new"]
    return ["both", "old"] if len(results) == 2 else [""] * len(results)


def v1_paths(registry: ScriptedRegistry) -> list[str]:
    return [entry.path for entry in registry.log if entry.path.startswith("/v1/")]


def v2_paths(registry: ScriptedRegistry) -> list[str]:
    return [entry.path for entry in registry.log if entry.path.startswith("/v2/")]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("mode", V1Mode, ids=lambda mode: mode.value)
def test_each_row_of_the_fallback_tables_in_each_setting(
    scripted: ScriptedFactory, tmp_path: Path, row: Row, mode: V1Mode
) -> None:
    registry = mixed(scripted)
    row.change(registry)
    with opened(registry, tmp_path, mode=mode) as source:
        results = outcome(source, "app", row.tags)
    shown = summarize(results, registry, row.tags)
    errors = [one for one in results if isinstance(one, MirrorError)]
    if mode is V1Mode.NEVER:
        assert [] == v1_paths(registry)
        assert not any(one.endswith(" v1") for one in shown)
    elif mode is V1Mode.ONLY:
        assert [] == v2_paths(registry)
        if row.name not in ("L15", "T1", "T8", "T9"):
            assert [f"{name} v1" for name in row.tags or ("both", "old")] == shown
        else:
            assert errors
    else:
        expected = row.per_tag if row.per_tag is not None and mode is V1Mode.PER_TAG else row.auto
        assert expected == shown
        if mode is V1Mode.AUTO or expected == row.auto == V2:
            assert row.asked == bool(v1_paths(registry))
        for error in errors:
            assert row.text in str(error) or mode is V1Mode.PER_TAG
    assert not any("/layer" in path for path in v1_paths(registry))  # only copying reads layers


@pytest.mark.parametrize("mode", V1Mode, ids=lambda mode: mode.value)
def test_an_untrusted_certificate_does_not_lead_to_v1(  # L16
    scripted: ScriptedFactory, tmp_path: Path, authority: Authority, mode: V1Mode
) -> None:
    registry = mixed(scripted, tls=authority)
    with opened(registry.host, tmp_path, mode=mode, plain_http=False) as source:
        assert ["tls_error 3"] == summarize(outcome(source, "app"), registry, [""])
    assert [] == registry.log


@pytest.mark.parametrize("mode", V1Mode, ids=lambda mode: mode.value)
def test_there_is_no_fallback_to_plain_http(scripted: ScriptedFactory, tmp_path: Path, mode: V1Mode) -> None:  # L17
    registry = mixed(scripted)
    with opened(registry.host, tmp_path, mode=mode, plain_http=False) as source:
        (error,) = outcome(source, "app")
    assert isinstance(error, MirrorError)
    assert "TLS handshake" in str(error)
    assert [] == registry.log


def test_v1_of_a_tls_host_is_requested_over_tls(
    scripted: ScriptedFactory, tmp_path: Path, authority: Authority
) -> None:
    registry = old_registry(scripted, v1.V1(), tls=authority)
    assert registry.v1 is not None
    registry.v1.tag("app", old=registry.v1.image(b""))
    with opened(registry, tmp_path) as source:
        assert ["old v1"] == summarize(outcome(source, "app"), registry, ["old"])


def test_a_stop_never_leads_to_v1(scripted: ScriptedFactory, tmp_path: Path) -> None:  # L21
    registry = mixed(scripted)
    stop = Stop()
    stop.request("enough")
    with opened(registry, tmp_path) as source, pytest.raises(MirrorError) as caught:
        list(source.tags("app", Work(stop)))
    assert "interrupted" == caught.value.code
    assert [] == v1_paths(registry)


# ---- credentials


@pytest.mark.parametrize("bearer", [False, True], ids=["basic", "token"])
@pytest.mark.parametrize("login", [None, ("acme", "wrong-password")], ids=["none", "wrong"])
def test_credentials_that_v2_rejected_are_not_sent_to_v1(  # L6, L7, L8
    scripted: ScriptedFactory, tmp_path: Path, bearer: bool, login: tuple[str, str] | None
) -> None:
    registry = mixed(scripted, users={"acme": "right"}, bearer=bearer)
    with opened(registry, tmp_path, login=login) as source:
        assert OLD == summarize(outcome(source, "app"), registry, ["both", "old"])
    sent = [entry.header("Authorization") for entry in registry.log if entry.path.startswith("/v1/")]
    assert sent
    assert {None} == set(sent)


@pytest.mark.parametrize("listing", [404, 403])
def test_credentials_that_v2_rejected_for_a_tag_are_not_sent_to_v1_whatever_the_tag_list_returns(
    scripted: ScriptedFactory, tmp_path: Path, listing: int
) -> None:
    registry = mixed(scripted)

    def v2(request: Request) -> Reply | None:
        if not request.path.startswith("/v2/"):
            return None
        if request.header("Authorization") is None:
            return Reply(401, (("WWW-Authenticate", 'Basic realm="r"'),))
        return Reply(403 if "/manifests/" in request.path else listing)

    registry.hook = v2
    with opened(registry, tmp_path, login=("acme", "right")) as source:
        assert ["old v1"] == summarize(outcome(source, "app", ["old"]), registry, ["old"])
    sent = [entry.header("Authorization") for entry in registry.log if entry.path.startswith("/v1/")]
    assert sent
    assert {None} == set(sent)


def test_if_both_protocols_deny_access_the_error_of_v2_comes_first(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = mixed(scripted, users={"acme": "right"})
    assert registry.v1 is not None
    registry.v1.users = {"acme": "right"}
    with opened(registry, tmp_path, login=("acme", "wrong-password")) as source:
        (error,) = outcome(source, "app")
    assert isinstance(error, MirrorError)
    assert "auth_failed" == error.code
    before, _, after = str(error).partition("; over v1: ")
    assert "user acme" in before
    assert "credentials" in after


def test_credentials_that_v2_did_not_reject_are_sent_to_v1(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = old_registry(scripted, v1.V1(users={"acme": "right"}))
    assert registry.v1 is not None
    registry.v1.tag("team/app", old=registry.v1.image(b""))
    with opened(registry, tmp_path, login=("acme", "right")) as source:
        assert ["old v1"] == summarize(outcome(source, "team/app"), registry, ["old"])


def test_credentials_that_v2_never_received_are_sent_to_v1(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = scripted()
    registry.v1 = v1.V1(users={"acme": "right"})
    registry.v1.tag("team/app", old=registry.v1.image(b""))
    refusal = Reply(401, (("WWW-Authenticate", "Token"),), b'{"error": "Requires authorization"}')
    registry.hook = lambda request: refusal if request.path.startswith("/v2/") else None
    with opened(registry, tmp_path, login=("acme", "right")) as source:
        assert ["old v1"] == summarize(outcome(source, "team/app"), registry, ["old"])


# ---- detection of v1 registries


PAGE = Reply(200, (("Content-Type", "text/html"),), b"<html>Welcome</html>")


@pytest.mark.parametrize(
    "ping",
    [PAGE, Reply(404), Reply(200), Reply(200, (), b"12"), json_reply(200, [])],
    ids=["page", "404", "nothing", "12", "list"],
)
def test_a_host_that_does_not_behave_like_a_v1_registry_is_not_read_by_v1(
    scripted: ScriptedFactory, tmp_path: Path, ping: Reply
) -> None:
    registry = mixed(scripted)
    assert registry.v1 is not None
    answer_unknown(registry)
    registry.v1.ping, registry.v1.index = ping, False
    with opened(registry, tmp_path) as source:
        (error,) = outcome(source, "app")
        assert isinstance(error, MirrorError)
        assert "NAME_UNKNOWN" == error.registry_code
        assert "v1" not in str(error)
        assert outcome(source, "app", ["old"])
    assert ["/v1/_ping"] == v1_paths(registry)  # on a host that supports v2, the ping decides


def test_the_index_is_also_requested_from_a_host_that_supports_neither_protocol(
    scripted: ScriptedFactory, tmp_path: Path
) -> None:
    registry = old_registry(scripted, v1.V1(ping=Reply(404), index=False))
    with opened(registry, tmp_path) as source:
        (error,) = outcome(source, "app")
    assert isinstance(error, MirrorError)
    assert "v1" not in str(error)
    assert ["/v1/_ping", "/v1/repositories/app/images"] == v1_paths(registry)


@pytest.mark.parametrize(
    "ping",
    [json_reply(200, True), json_reply(200, {}), Reply(200, (), b"pong"), json_reply(200, "pong"),
     Reply(200, (("X-Docker-Registry-Version", "0.6"), ("Content-Type", "text/plain")), b"")],
    ids=["node", "python", "go", "json", "named"],
)  # fmt: skip
def test_valid_responses_to_a_v1_ping(scripted: ScriptedFactory, tmp_path: Path, ping: Reply) -> None:
    registry = old_registry(scripted, v1.V1(ping=ping))
    assert registry.v1 is not None
    registry.v1.tag("app", old=registry.v1.image(b""))
    with opened(registry, tmp_path) as source:
        assert ["old v1"] == summarize(outcome(source, "app"), registry, ["old"])


def test_an_index_that_does_not_answer_pings_is_used(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = old_registry(scripted, v1.V1(ping=Reply(404)))
    assert registry.v1 is not None
    registry.v1.tag("app", old=registry.v1.image(b""))
    with opened(registry, tmp_path) as source:
        assert ["old v1"] == summarize(outcome(source, "app"), registry, ["old"])


def test_if_v1_fails_too_both_errors_are_reported(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = mixed(scripted)
    assert registry.v1 is not None
    answer_unknown(registry)
    registry.v1.tags.clear()
    with opened(registry, tmp_path) as source:
        (error,) = outcome(source, "app")
    assert isinstance(error, MirrorError)
    assert "not_found" == error.code
    before, _, after = str(error).partition("; over v1: ")
    assert "NAME_UNKNOWN" in before
    assert "/v1/repositories/library/app/tags" in after


def v1_error(error: object) -> MirrorError:
    """Check that this is an error of v1 alone, and return it."""
    assert isinstance(error, MirrorError)
    assert "v1" == error.protocol
    assert "/v2/" not in str(error)
    assert "over v1" not in str(error)
    return error


def test_if_v1_has_the_repository_only_its_error_about_a_tag_is_reported(
    scripted: ScriptedFactory, tmp_path: Path
) -> None:
    registry = mixed(scripted)
    assert registry.v1 is not None
    answer_unknown(registry)
    registry.v1.tag("app", bad="abcdef")
    with opened(registry, tmp_path) as source:
        bad, none, old = outcome(source, "app", ["bad", "none", "old"])
        assert "v1_invalid" == v1_error(bad).code
        assert "not_found" == v1_error(none).code
        assert isinstance(old, Version)
        with pytest.raises(MirrorError) as caught:
            source.read("app", "bad", WORK)
        v1_error(caught.value)


def test_a_tag_that_neither_protocol_has_reports_both_errors(scripted: ScriptedFactory, tmp_path: Path) -> None:
    with opened(mixed(scripted), tmp_path, mode=V1Mode.PER_TAG) as source:
        (error,) = outcome(source, "app", ["none"])
    assert isinstance(error, MirrorError)
    assert ("not_found", "") == (error.code, error.protocol)
    assert "; over v1: " in str(error)


@pytest.mark.parametrize("names", [[], ["t"]], ids=["all", "named"])
def test_a_repository_read_by_v1_reports_only_the_error_of_v1(
    scripted: ScriptedFactory, tmp_path: Path, names: list[str]
) -> None:
    registry = mixed(scripted)
    with opened(registry, tmp_path, mode=V1Mode.ONLY) as source:
        for _ in range(2):
            (error,) = outcome(source, "none", names)
            assert "not_found" == v1_error(error).code


@pytest.mark.parametrize("how", ["resets", "is silent"])
@pytest.mark.parametrize("names", [[], ["old"]], ids=["all", "named"])
def test_if_v2_does_not_respond_the_hint_names_the_v1_setting(
    scripted: ScriptedFactory, tmp_path: Path, how: str, names: list[str]
) -> None:
    registry, over = mixed(scripted), threading.Event()
    rule: dict[str, Any] = {"reset": True} if how == "resets" else {"stall": over}
    for kind in ("GET tags", "HEAD manifest", "GET ping"):
        registry.fault(kind, times=FOREVER, **rule)
    with opened(registry, tmp_path, idle_timeout=0.2) as source:
        (error,) = outcome(source, "app", names)
    with opened(registry, tmp_path, idle_timeout=0.2, mode=V1Mode.NEVER) as source:
        (never,) = outcome(source, "app", names)
    over.set()
    assert isinstance(error, MirrorError)
    assert isinstance(never, MirrorError)
    assert f'registries."{registry.host}".v1' in error.hint
    assert "v1" not in never.hint
    assert [] == v1_paths(registry)


def test_a_digest_on_a_v1_only_host_gets_a_hint(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = old_registry(scripted, v1.V1())
    digest = f"sha256:{'0' * 64}"
    with opened(registry, tmp_path) as source:
        (error,) = outcome(source, "app", [digest])
    with opened(mixed(scripted), tmp_path) as source:
        (other,) = outcome(source, "app", [digest])
    assert isinstance(error, MirrorError)
    assert isinstance(other, MirrorError)
    assert "digest" in error.hint
    assert "" == other.hint


# ---- number of requests


def test_a_protocol_choice_is_not_repeated(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = mixed(scripted)
    answer_unknown(registry)
    with opened(registry, tmp_path) as source:
        for _ in range(3):
            outcome(source, "app", ["old", "both"])
        assert isinstance(source.read("app", "old", WORK), Version)
    counts = registry.counts()
    assert {"GET tags": 1, "HEAD manifest": 2, "GET v1-ping": 1, "GET v1-index": 1, "GET v1-tags": 1} == counts


def test_a_repository_that_neither_protocol_has_is_not_requested_again(
    scripted: ScriptedFactory, tmp_path: Path
) -> None:
    registry = mixed(scripted)
    assert registry.v1 is not None
    answer_unknown(registry)
    registry.v1.tags.clear()
    with opened(registry, tmp_path) as source:
        results = outcome(source, "app", ["old", "both", "new"])
    assert ["not_found 1"] * 3 == summarize(results, registry, ["old", "both", "new"])
    assert 1 == registry.counts()["GET tags"]
    assert 2 == registry.counts()["GET v1-tags"]  # as given, and under library/


def test_per_tag_adds_the_tags_that_only_v1_has(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = mixed(scripted)
    with opened(registry, tmp_path, mode=V1Mode.PER_TAG) as source:
        assert ["both", "new", "old"] == sorted(str(name) for name in source.tags("app", WORK))
        registry.mark()
        versions = [source.read("app", tag, WORK) for tag in ("both", "new", "old")]
    assert ["v2", "v2", "v1"] == [version.protocol for version in versions]
    assert {"GET manifest": 2} == registry.counts()


@pytest.mark.parametrize("status", [500, 403])
def test_tags_of_v2_are_read_although_v1_fails(scripted: ScriptedFactory, tmp_path: Path, status: int) -> None:
    registry = mixed(scripted)
    registry.fault("GET v1-tags", status=status, times=FOREVER)
    with opened(registry, tmp_path, mode=V1Mode.PER_TAG) as source:
        names = list(source.tags("app", WORK))
    assert ["both", "new"] == sorted(name for name in names if isinstance(name, str))
    (error,) = [name for name in names if isinstance(name, MirrorError)]
    assert status == error.status


def test_per_tag_on_a_host_without_v1_reads_v2(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = mixed(scripted)
    registry.v1 = None
    with opened(registry, tmp_path, mode=V1Mode.PER_TAG) as source:
        assert ["both", "new"] == sorted(str(name) for name in source.tags("app", WORK))


def test_docker_hub_has_no_v1(tmp_path: Path) -> None:
    for mode in V1Mode:
        with opened("docker.io", tmp_path, mode=mode, plain_http=False) as source:
            assert "RegistryV2" == type(source).__name__


def test_tag_names_from_v1_are_checked_one_by_one(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = mixed(scripted)
    assert registry.v1 is not None
    answer_unknown(registry)
    odd = {
        "../x": "0" * 64,
        "short": "abcdef",
        "upper": "A" * 64,
        "path": "../../etc",
        "line": "0" * 64 + "\n",
        "long": "0" * 65,
        "digits": "\u0663" * 64,
        "number": 5,
        "list": ["x"],
        "no": None,
    }
    registry.v1.tags["app"].update(odd)
    with opened(registry, tmp_path) as source:
        results = outcome(source, "app")
    codes = sorted(f"{one.code} {one.exit_code}" for one in results if isinstance(one, MirrorError))
    assert ["ref_invalid 3", *["v1_invalid 3"] * 9] == codes
    assert 2 == sum(isinstance(one, Version) for one in results)
    assert not any("/images/" in path for path in v1_paths(registry))
