"""Authentication through the real session, against real registries."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import AuthError, NotFound
from mirror.limits import Limits
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.registry.auth.authorization import HostAuthorizer
from mirror.registry.auth.authorizer import Scope, pull_scopes, push_scopes
from mirror.registry.auth.credentials import CredentialSource
from mirror.registry.client import RegistryV2
from mirror.registry.http.host_settings import HostSettings, Secret
from mirror.registry.session import Session
from mirror.util.cancellation import Stop, Work
from tests.registries.real import RealRegistry
from tests.registries.tokens import TokenService
from tests.support.bundles import Bytes

USERS = {"acme": "pä:ss€"}


@contextmanager
def session(host: str, home: Path, *, login: tuple[str, str] | None = None, **options: Any) -> Iterator[Session]:
    if login is not None:
        options |= {"username": login[0], "password": Secret("env HUB_TOKEN", plain=login[1])}
    settings = HostSettings(host, plain_http=True, **options)
    limits = Limits()
    with Session(settings, limits) as opened:
        source = CredentialSource({host: settings}, {"HOME": str(home)})
        opened.authorizer = HostAuthorizer(
            settings, source, opened.send_one_off, opened.url_policy.check_realm, limits.clock
        )
        yield opened


def ask(opened: Session, scopes: tuple[Scope, ...], tag: str = "1") -> str:
    """Send a HEAD of a missing manifest and return the result; `not there` means that access was allowed."""
    path = f"/v2/{scopes[0].repository}/manifests/{tag}"
    try:
        opened.call("HEAD", path, Work(Stop()), kind="manifest", scopes=scopes, expect={200})
    except NotFound:
        return "not there"
    except AuthError as error:
        return str(error)
    return "there"


@pytest.fixture
def basic_registry(tmp_path: Path) -> Iterator[RealRegistry]:
    with RealRegistry(tmp_path, users=USERS) as registry:
        yield registry


def test_a_real_registry_accepts_basic(basic_registry: RealRegistry, tmp_path: Path) -> None:
    with session(basic_registry.host, tmp_path, login=("acme", USERS["acme"])) as opened:
        assert ["not there"] * 3 == [ask(opened, pull_scopes("team/app"), tag) for tag in ("1", "2", "3")]
        assert 4 == sum(opened.host.requests().values())


def test_a_wrong_password_costs_a_real_registry_three_requests_for_sixty_tags(
    basic_registry: RealRegistry, tmp_path: Path
) -> None:
    with session(basic_registry.host, tmp_path, login=("acme", "CANARY")) as opened, ThreadPoolExecutor(8) as pool:
        said = set(pool.map(lambda number: ask(opened, pull_scopes("team/app"), str(number)), range(60)))
        assert {"HEAD manifest": 2, "GET ping": 1} == opened.host.requests()
    assert 1 == len(said)
    text = said.pop()
    assert f"{basic_registry.host} does not accept user acme, password from env HUB_TOKEN" in text
    assert "CANARY" not in text


@contextmanager
def token_registry(tmp_path: Path, **options: Any) -> Iterator[tuple[RealRegistry, TokenService, dict[str, Any]]]:
    with TokenService(tmp_path, **options) as service, RealRegistry(tmp_path, tokens=service) as registry:
        yield registry, service, {"token_realms": frozenset({service.realm.split("/")[2]})}


def test_tokens_are_fetched_once_for_each_set_of_scopes(tmp_path: Path) -> None:
    with (
        token_registry(tmp_path, users=USERS) as (registry, service, options),
        session(registry.host, tmp_path, login=("acme", USERS["acme"]), **options) as opened,
        ThreadPoolExecutor(8) as pool,
    ):
        wanted = [
            push_scopes("team/app"),
            pull_scopes("team/app"),
            pull_scopes("other/app"),
            (*push_scopes("new/app"), *pull_scopes("team/app")),
        ]
        ask(opened, wanted[0])
        said = set(pool.map(lambda number: ask(opened, wanted[number % 4], str(number)), range(40)))
        assert {"not there"} == said
        assert [
            ("repository:new/app:pull,push", "repository:team/app:pull"),
            ("repository:other/app:pull",),
            ("repository:team/app:pull,push",),
        ] == sorted(request.scopes for request in service.asked)
        assert 42 == opened.host.requests()["HEAD manifest"]


def test_tokens_that_expire_early_are_replaced_without_an_error(tmp_path: Path) -> None:
    with (
        token_registry(tmp_path, anonymous=("pull",), life=4, says_life=False) as (registry, service, options),
        session(registry.host, tmp_path, **options) as opened,
    ):
        assert "not there" == ask(opened, pull_scopes("team/app"))
        first, service.life = service.issued[0], 300
        end = time.monotonic() + 20
        while service.access_of(first)[1]:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert "not there" == ask(opened, pull_scopes("team/app"))
        assert 2 == len(service.asked)


@pytest.mark.parametrize("may_delete", [True, False])
def test_cancelling_an_upload_does_not_lose_the_right_to_push(tmp_path: Path, may_delete: bool) -> None:
    """The distribution registry requires the action `delete` for the DELETE of an upload session."""

    def allow(user: str, repository: str, action: str) -> bool:
        return may_delete or action != "delete"

    with (
        token_registry(tmp_path, users=USERS, allow=allow) as (registry, _, options),
        session(registry.host, tmp_path, login=("acme", USERS["acme"]), **options) as opened,
    ):
        client, blob = RegistryV2(opened), Descriptor(Digest.of(b"blob"), 4)
        for _ in range(2):
            with client.begin_upload("team/app", blob, Work(Stop())):
                pass
        with client.begin_upload("team/app", blob, Work(Stop())) as upload:
            upload.send(lambda offset: Bytes(b"blob"), Work(Stop()))
        deleted = [seen.status for seen in registry.requests() if seen.kind == "DELETE upload"]
        assert ([204, 204] if may_delete else [401, 401]) == deleted


def test_a_refused_request_names_the_files_searched_for_credentials(tmp_path: Path) -> None:
    with (
        token_registry(tmp_path, users=USERS, anonymous=("pull",)) as (registry, _, options),
        session(registry.host, tmp_path, **options) as opened,
    ):
        assert "not there" == ask(opened, pull_scopes("team/app"))
        with pytest.raises(AuthError, match=r"neither in the configuration nor in ~/\.docker/config\.json"):
            opened.call(
                "POST",
                "/v2/team/app/blobs/uploads/",
                Work(Stop()),
                kind="upload",
                scopes=push_scopes("team/app"),
                expect={202},
            )
