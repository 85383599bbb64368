"""The catalog of each product: what it lists, which requests that takes, and where credentials are sent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from mirror.errors import AuthError, MirrorError, NotFound, Refused, RemoteError
from mirror.limits import Limits
from mirror.registry.auth.authorization import HostAuthorizer
from mirror.registry.auth.credentials import CredentialSource
from mirror.registry.catalogs.registry_catalog import RegistryCatalog
from mirror.registry.client import RegistryV2
from mirror.registry.http.host_settings import HostSettings, Secret, TlsSettings
from mirror.registry.listings import MAX_EMPTY_PAGES
from mirror.registry.session import Session
from mirror.util.cancellation import Stop, Work
from mirror.util.retry_policy import Policy
from tests.conftest import ScriptedFactory
from tests.registries.certificates import Authority
from tests.registries.exchange import Reply, Request, error_reply, json_reply
from tests.registries.faults import FOREVER
from tests.registries.products import artifactory, docker_hub, github, gitlab, harbor, quay
from tests.registries.scripted import ScriptedRegistry
from tests.registries.tunnel import Tunnel

WORK = Work(Stop())
QUICK = Policy(attempts=2, base=0.001, cap=0.002)
SECRET = "a-secret-of-the-user"
LONG = ["a", "b", "c", "d", "e"]

Open = Callable[..., RegistryV2]


@pytest.fixture
def open_registry() -> Iterator[Open]:
    """Return a function that opens a registry with a catalog. It takes a host, a user name, and further settings."""
    with ExitStack() as stack:

        def open_it(host: str, user: str | None = None, **settings: Any) -> RegistryV2:
            password = Secret("the test", plain=SECRET) if user is not None else None
            configured = HostSettings(host, username=user, password=password, **settings)
            source = CredentialSource({host: configured}, {})
            session = stack.enter_context(Session(configured, Limits(), policy=QUICK))
            session.authorizer = authorizer = HostAuthorizer(
                configured, source, session.send_one_off, session.url_policy.check_realm
            )
            return RegistryV2(session, catalog=RegistryCatalog(session, source, authorizer.trials))

        yield open_it


@pytest.fixture(scope="module")
def public_hosts(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority of a server that plays hosts on the internet."""
    names = ("hub.docker.com", "registry-1.docker.io", "api.github.com", "ghcr.io", "quay.io")
    return Authority(tmp_path_factory.mktemp("public"), hosts=names)


@pytest.fixture
def internet(scripted: ScriptedFactory, public_hosts: Authority) -> Iterator[tuple[ScriptedRegistry, dict[str, Any]]]:
    """One server that plays all of these hosts, and the settings with which it is reached."""
    server = scripted("internet", tls=public_hosts)
    port = int(server.host.rpartition(":")[2])
    names = ("hub.docker.com", "registry-1.docker.io", "api.github.com", "ghcr.io", "quay.io")
    with Tunnel({f"{name}:443": port for name in names}) as tunnel:
        yield server, {"proxy": tunnel.url, "tls": TlsSettings(ca=public_hosts.ca)}


def names(registry: RegistryV2, prefix: str) -> list[str]:
    """Return the names that a registry lists. Raises the first error among them."""
    found = list(registry.repositories(prefix, WORK))
    for name in found:
        if isinstance(name, MirrorError):
            raise name
    return [str(name) for name in found]


def asked(server: ScriptedRegistry) -> list[str]:
    """Return the requests that a server got: method, and path without the query."""
    return [f"{seen.method} {seen.path.partition('?')[0]}" for seen in server.requests()]


def authorizations(server: ScriptedRegistry) -> set[str]:
    """Return the values of `Authorization` that a server got."""
    headers = [header for entry in server.log for header in entry.headers]
    return {value for name, value in headers if name.lower() == "authorization"}


# ---- Docker Hub


def test_docker_hub_lists_the_repositories_of_a_namespace(internet: Any, open_registry: Open) -> None:
    server, settings = internet
    server.hook = docker_hub({"library": LONG}, {"library": ["secret"]})
    registry = open_registry("docker.io", **settings)
    assert [f"library/{name}" for name in LONG] == names(registry, "library/")
    assert ["GET /v2/namespaces/library/repositories"] * 3 == asked(server)
    assert set() == authorizations(server)
    assert [f"library/{name}" for name in LONG] == names(registry, "library/")
    assert 3 == len(asked(server)), "a list is read once in a run"


def test_docker_hub_lists_private_repositories_to_an_account(internet: Any, open_registry: Open) -> None:
    server, settings = internet
    server.hook = docker_hub({"acme": ["app"]}, {"acme": ["secret"]}, login=("joe", SECRET))
    assert ["acme/app", "acme/secret"] == names(open_registry("docker.io", "joe", **settings), "acme/")
    assert ["POST /v2/auth/token", "GET /v2/namespaces/acme/repositories"] == asked(server)
    assert {"Bearer hub-access-token"} == authorizations(server)


def test_an_account_that_docker_hub_refuses_is_an_error(internet: Any, open_registry: Open) -> None:
    server, settings = internet
    server.hook = docker_hub({"acme": ["app"]}, login=("joe", "another password"))
    with pytest.raises(AuthError) as caught:
        names(open_registry("docker.io", "joe", **settings), "acme/")
    assert "hub.docker.com does not accept user joe, password from the test" in str(caught.value)
    assert "personal access token" in caught.value.hint
    assert ["POST /v2/auth/token"] == asked(server)
    assert SECRET not in str(caught.value)


def test_an_api_that_refuses_an_account_is_not_asked_again_for_other_prefixes(
    internet: Any, open_registry: Open
) -> None:
    server, settings = internet
    server.hook = docker_hub({"acme": ["app"]}, login=("joe", "another password"))
    registry = open_registry("docker.io", "joe", **settings)

    def refusal(number: int) -> str:
        with pytest.raises(AuthError) as caught:
            names(registry, f"team-{number}/")
        return str(caught.value)

    with ThreadPoolExecutor(8) as pool:
        assert 1 == len(set(pool.map(refusal, range(16))))
    assert ["POST /v2/auth/token"] == asked(server)


@pytest.mark.parametrize(
    ("host", "prefix", "hint"),
    [
        ("docker.io", "", "write docker.io/namespace/*"),
        ("docker.io", "acme/team/", "write docker.io/namespace/*"),
        ("docker.io", "unknown/", "add one mirror for each repository"),
        ("ghcr.io", "", "write ghcr.io/owner/*"),
    ],
)
def test_a_list_that_does_not_exist_has_a_hint(
    internet: Any, open_registry: Open, host: str, prefix: str, hint: str
) -> None:
    server, settings = internet
    server.hook = docker_hub({"acme": ["app"]})
    with pytest.raises(NotFound) as caught:
        names(open_registry(host, **settings), prefix)
    assert hint in caught.value.hint


@pytest.mark.parametrize(("user", "code"), [(None, "unsafe_redirect"), ("joe", "unsafe_redirect")])
def test_a_redirect_of_the_api_to_an_internal_address_is_not_followed(
    internet: Any, open_registry: Open, scripted: ScriptedFactory, user: str | None, code: str
) -> None:
    server, settings = internet
    evil = scripted("evil", address="127.0.0.2")
    hub = docker_hub({}, login=("joe", SECRET))
    redirect = Reply(302, (("Location", f"https://{evil.host}/v2/x"),))
    server.hook = lambda request: hub(request) if request.method == "POST" else redirect
    with pytest.raises(Refused) as caught:
        names(open_registry("docker.io", user, **settings), "acme/")
    assert code == caught.value.code
    assert [] == evil.log


# ---- Quay


def test_quay_lists_public_repositories(internet: Any, open_registry: Open) -> None:
    server, settings = internet
    server.hook = quay({"acme": LONG, "other": ["x"]}, {"acme": ["secret"]})
    assert [f"acme/{name}" for name in LONG] == names(open_registry("quay.io", **settings), "acme/")
    assert ["GET /api/v1/repository"] * 3 == asked(server)


def test_quay_lists_private_repositories_to_the_token_of_an_application(internet: Any, open_registry: Open) -> None:
    server, settings = internet
    server.hook = quay({"acme": ["app"]}, {"acme": ["secret"]}, token=SECRET)
    assert ["acme/app", "acme/secret"] == names(open_registry("quay.io", "$oauthtoken", **settings), "acme/")
    assert {f"Bearer {SECRET}"} == authorizations(server)


def test_the_password_of_a_robot_is_not_sent_to_the_api_of_quay(
    internet: Any, open_registry: Open, caplog: pytest.LogCaptureFixture
) -> None:
    server, settings = internet
    server.hook = quay({"acme": ["app"]}, {"acme": ["secret"]}, token=SECRET)
    with caplog.at_level(logging.WARNING):
        assert ["acme/app"] == names(open_registry("quay.io", "acme+robot", **settings), "acme/")
    assert set() == authorizations(server)
    (record,) = caplog.records
    text = record.__dict__["text"]
    assert "quay.io/acme/* contains only public repositories" in text
    assert "passwords of robot accounts cannot be used" in text


def test_an_installation_of_quay_is_recognized_by_its_token_service(
    scripted: ScriptedFactory, open_registry: Open
) -> None:
    registry = scripted(bearer=True)
    assert registry.tokens
    registry.tokens.realm = f"{registry.url}/v2/auth"
    registry.hook = quay({"acme": ["app"], "other": ["x"]})
    listed = open_registry(registry.host, plain_http=True)
    assert ["acme/app"] == names(listed, "acme/")
    assert ["acme/app", "other/x"] == names(listed, "")


# ---- ghcr.io


@pytest.mark.parametrize("lists", ["organizations", "users"])
def test_github_lists_the_containers_of_an_organization_or_user(internet: Any, open_registry: Open, lists: str) -> None:
    server, settings = internet
    owners: dict[str, Any] = {"organizations": {}, "users": {}, lists: {"acme": [*LONG, "deep/name"]}}
    server.hook = github(**owners, token=SECRET)
    registry = open_registry("ghcr.io", "joe", **settings)
    assert ["acme/deep/name"] == names(registry, "acme/deep/")
    assert [f"acme/{name}" for name in [*LONG, "deep/name"]] == names(registry, "acme/")
    assert {f"Bearer {SECRET}"} == authorizations(server)


def test_without_an_account_nothing_is_requested_from_github(internet: Any, open_registry: Open) -> None:
    server, settings = internet
    with pytest.raises(AuthError, match="only with credentials") as caught:
        names(open_registry("ghcr.io", **settings), "acme/")
    assert "read:packages" in caught.value.hint
    assert [] == server.log


def test_an_owner_that_github_does_not_know_is_not_found(internet: Any, open_registry: Open) -> None:
    server, settings = internet
    server.hook = github({}, {}, token=SECRET)
    with pytest.raises(NotFound, match=r"api\.github\.com/users/acme/packages") as caught:
        names(open_registry("ghcr.io", "joe", **settings), "acme/")
    assert "check the owner" in caught.value.hint


# ---- products that run anywhere

PROJECTS = {"team": [*LONG, "sub/x"], "other": ["y"]}


def test_harbor_lists_the_repositories_of_a_project(scripted: ScriptedFactory, open_registry: Open) -> None:
    registry = scripted()
    registry.hook = harbor(PROJECTS, robot=f"robot$ci:{SECRET}")
    listed = open_registry(registry.host, "robot$ci", plain_http=True)
    assert [f"team/{name}" for name in PROJECTS["team"]] == names(listed, "team/")
    assert ["team/sub/x"] == names(listed, "team/sub/")
    assert [f"{project}/{name}" for project, found in PROJECTS.items() for name in found] == names(listed, "")
    with pytest.raises(AuthError) as caught:
        names(listed, "unknown/")
    assert "permission to list repositories" in caught.value.hint


def test_the_api_of_harbor_gets_no_password_that_the_registry_rejected(
    scripted: ScriptedFactory, open_registry: Open
) -> None:
    registry = scripted()
    product = harbor(PROJECTS, robot="robot$ci:another password")

    def hook(request: Request) -> Reply | None:
        return error_reply(401, "UNAUTHORIZED", "") if request.path == "/service/token" else product(request)

    registry.hook = hook
    catalog = open_registry(registry.host, "robot$ci", plain_http=True)
    for number in range(5):
        with pytest.raises(AuthError, match=r"the token service of .* refused user robot"):
            names(catalog, f"team-{number}/")
    assert ["GET /v2/_catalog", "GET /service/token", "GET /service/token"] == asked(registry)


def test_harbor_lists_a_public_project_without_an_account(scripted: ScriptedFactory, open_registry: Open) -> None:
    registry = scripted()
    registry.hook = harbor({"team": ["a"], "secret": ["b"]}, robot="x:y", public=["team"])
    assert ["team/a"] == names(open_registry(registry.host, plain_http=True), "team/")
    with pytest.raises(AuthError, match="requires credentials"):
        names(open_registry(registry.host, plain_http=True), "secret/")


@pytest.mark.parametrize("base", ["", "/gitlab"])
def test_gitlab_lists_the_images_of_a_group_or_of_a_project(
    scripted: ScriptedFactory, open_registry: Open, base: str
) -> None:
    registry = scripted()
    groups = {"team": ["team/app", "team/app/web", "team/sub/x"], "team/sub": ["team/sub/x"]}
    projects = {"team/app": ["team/app", "team/app/web/a", "team/app/web/b"]}
    registry.hook = gitlab(groups, projects, token=SECRET, base=base)
    listed = open_registry(registry.host, "joe", plain_http=True)
    assert groups["team"] == names(listed, "team/")
    assert groups["team/sub"] == names(listed, "team/sub/")
    assert ["team/app/web/a", "team/app/web/b"] == names(listed, "team/app/web/")
    with pytest.raises(NotFound, match="no group or project nobody") as caught:
        names(listed, "nobody/")
    assert "read_api" in caught.value.hint
    with pytest.raises(NotFound) as caught:
        names(listed, "")
    assert f"write {registry.host}/group/*" == caught.value.hint


def test_the_host_of_gitlab_gets_credentials_only_if_it_is_trusted(
    scripted: ScriptedFactory, open_registry: Open
) -> None:
    registry, host = scripted(), scripted("gitlab", address="127.0.0.2")
    registry.hook = host.hook = gitlab({"team": ["team/app"]}, {}, token=SECRET, service=host.url)
    with pytest.raises(Refused) as caught:
        names(open_registry(registry.host, "joe", plain_http=True), "team/")
    assert "unsafe_realm" == caught.value.code
    assert [] == host.log
    trusted = open_registry(registry.host, "joe", plain_http=True, token_realms=frozenset({host.host}))
    assert ["team/app"] == names(trusted, "team/")
    assert f"Bearer {SECRET}" in authorizations(host)
    assert f"Bearer {SECRET}" not in authorizations(registry)


@pytest.mark.parametrize("header", [True, False])
def test_artifactory_lists_a_repository_by_its_key(
    scripted: ScriptedFactory, open_registry: Open, header: bool
) -> None:
    registry = scripted()
    registry.hook = artifactory({"docker-local": LONG}, account=f"joe:{SECRET}", header=header)
    listed = open_registry(registry.host, "joe", plain_http=True)
    assert [f"docker-local/{name}" for name in LONG] == names(listed, "docker-local/")
    assert ["GET /artifactory/api/docker/docker-local/v2/_catalog"] * 4 == asked(registry)[3:]
    with pytest.raises(NotFound) as caught:
        names(listed, "")
    assert f"write {registry.host}/repository-key/*" == caught.value.hint


def test_credentials_are_not_sent_where_an_api_redirects_to(scripted: ScriptedFactory, open_registry: Open) -> None:
    registry, evil = scripted(), scripted("evil", address="127.0.0.2")
    product = harbor(PROJECTS, robot=f"joe:{SECRET}")
    redirect = Reply(302, (("Location", f"{evil.url}/list"),))
    registry.hook = lambda request: redirect if request.path.startswith("/api/") else product(request)
    evil.hook = lambda request: json_reply(200, [{"name": "team/from-evil"}])
    assert ["team/from-evil"] == names(open_registry(registry.host, "joe", plain_http=True), "team/")
    assert set() == authorizations(evil)


# ---- when the product's API is used


def test_a_registry_that_lists_its_repositories_is_asked_for_nothing_else(
    scripted: ScriptedFactory, open_registry: Open
) -> None:
    registry = scripted()
    for name in ("team/a", "team/b", "other/c"):
        registry.create(name)
    listed = open_registry(registry.host, plain_http=True)
    assert [["team/a", "team/b"]] * 3 == [names(listed, "team/") for _ in range(3)]
    assert ["GET /v2/_catalog"] == asked(registry)
    assert ["other/c", "team/a", "team/b"] == sorted(names(listed, ""))


def test_a_catalog_without_repositories_below_the_prefix_may_be_the_policy_of_a_product(
    scripted: ScriptedFactory, open_registry: Open
) -> None:
    registry = scripted()
    registry.create("other/c")
    product = harbor(PROJECTS, robot=f"joe:{SECRET}")
    registry.hook = lambda request: None if request.path == "/v2/_catalog" else product(request)
    assert "team/a" in names(open_registry(registry.host, "joe", plain_http=True), "team/")
    plain = scripted()
    assert [] == names(open_registry(plain.host, plain_http=True), "team/")
    assert ["GET /v2/_catalog", "GET /v2/", "GET /artifactory/api/system/ping"] == asked(plain)


def test_a_product_is_not_recognized_by_a_token_service_that_is_not_trusted(
    scripted: ScriptedFactory, open_registry: Open
) -> None:
    registry, evil = scripted(), scripted("evil", address="127.0.0.2")
    product = harbor(PROJECTS, robot=f"joe:{SECRET}")
    realm = ("WWW-Authenticate", f'Bearer realm="{evil.url}/service/token",service="harbor-registry"')

    def hook(request: Request) -> Reply | None:
        if request.path == "/v2/_catalog":
            return json_reply(200, {"repositories": []})
        return error_reply(401, "UNAUTHORIZED", "", realm) if request.path == "/v2/" else product(request)

    registry.hook = hook
    assert [] == names(open_registry(registry.host, "joe", plain_http=True), "team/")
    assert (set(), []) == (authorizations(registry), evil.log)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 501])
def test_the_error_of_an_unknown_product_says_what_to_write(
    scripted: ScriptedFactory, open_registry: Open, status: int
) -> None:
    registry = scripted()
    registry.fault("GET catalog", status=status, times=FOREVER)
    with pytest.raises(RemoteError) as caught:
        names(open_registry(registry.host, plain_http=True), "team/")
    assert "one mirror for each repository" in caught.value.hint
    assert status in (caught.value.status, 401)
    assert 1 == asked(registry).count("GET /artifactory/api/system/ping")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failure_that_is_no_refusal_is_reported_as_it_is(
    scripted: ScriptedFactory, open_registry: Open, status: int
) -> None:
    registry = scripted()
    registry.fault("GET catalog", status=status, times=FOREVER)
    with pytest.raises(RemoteError) as caught:
        names(open_registry(registry.host, plain_http=True), "team/")
    assert status == caught.value.status
    assert {"GET /v2/_catalog"} == set(asked(registry))


# ---- responses that cannot be used


def serve(registry: ScriptedRegistry, answer: Callable[[Request], Reply]) -> None:
    """Let a registry be a Harbor whose lists are made by `answer`."""
    product = harbor(PROJECTS, robot=f"joe:{SECRET}")
    registry.hook = lambda request: answer(request) if request.path.startswith("/api/") else product(request)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"{}",
        b'{"name": "team/a"}',
        b'["team/a"]',
        b'[{"name": 1}]',
        b'[{"id": 1}]',
        b'[{"name": "a"}, null]',
    ],
)
def test_a_response_of_another_form_is_an_error(scripted: ScriptedFactory, open_registry: Open, body: bytes) -> None:
    registry = scripted()
    serve(registry, lambda _: Reply(200, (), body))
    with pytest.raises(RemoteError) as caught:
        names(open_registry(registry.host, "joe", plain_http=True), "team/")
    assert "bad_response" == caught.value.code


def test_a_list_that_loses_a_page_is_not_complete(scripted: ScriptedFactory, open_registry: Open) -> None:
    registry = scripted()
    more = ("Link", '</api/v2.0/x?page=2>; rel="next"')
    first = json_reply(200, [{"name": "team/a"}], more)
    serve(registry, lambda request: first if request.query["page"] == ["1"] else error_reply(404, "NOT_FOUND"))
    with pytest.raises(RemoteError, match="a later page of the list is missing") as caught:
        names(open_registry(registry.host, "joe", plain_http=True), "team/")
    assert not isinstance(caught.value, NotFound)


def test_pages_without_end_are_refused(scripted: ScriptedFactory, open_registry: Open) -> None:
    registry = scripted()
    more = ("Link", '</api/v2.0/x?page=2>; rel="next"')
    serve(registry, lambda _: json_reply(200, [{"name": "team/a"}], more))
    with pytest.raises(Refused) as caught:
        names(open_registry(registry.host, "joe", plain_http=True), "team/")
    assert "too_many" == caught.value.code
    assert MAX_EMPTY_PAGES + 2 == len([path for path in asked(registry) if "/api/" in path])


def test_a_hostile_name_is_refused_and_the_others_are_listed(scripted: ScriptedFactory, open_registry: Open) -> None:
    registry = scripted()
    serve(registry, lambda _: json_reply(200, [{"name": name} for name in ("team/../x", "team/a", "TEAM/b", "x/y")]))
    found = list(open_registry(registry.host, "joe", plain_http=True).repositories("team/", WORK))
    assert ["ref_invalid", "team/a", "ref_invalid"] == [name if isinstance(name, str) else name.code for name in found]
