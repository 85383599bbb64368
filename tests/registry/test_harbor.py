"""Projects of Harbor: the requests to its API, and its errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirror.errors import AuthError, ConfigError, MirrorError, RemoteError
from mirror.limits import Limits
from mirror.registry.auth.credentials import CredentialSource
from mirror.registry.harbor import HarborService
from mirror.registry.http.host_settings import HarborProjectSettings, HostSettings, Secret
from mirror.util.cancellation import Stop, Work
from mirror.util.retry_policy import Policy
from tests.conftest import ScriptedFactory
from tests.registries.exchange import Reply, error_reply
from tests.registries.harbor import PASSWORD, USER, Harbor

WORK = Work(Stop())
QUICK = Policy(attempts=2, base=0.001, cap=0.002)

Open = Callable[..., HarborService]


@pytest.fixture
def harbor(scripted: ScriptedFactory) -> Harbor:
    return Harbor(scripted(bearer=True, users={USER: PASSWORD}))


@pytest.fixture
def service(harbor: Harbor, tmp_path: Path) -> Iterator[Open]:
    opened: list[HarborService] = []

    def start(project: HarborProjectSettings | None = None, password: str = PASSWORD) -> HarborService:
        host = harbor.registry.host
        login = (USER, Secret("the test", plain=password)) if password else (None, None)
        settings = HostSettings(host, plain_http=True, username=login[0], password=login[1])
        source = CredentialSource({host: settings}, {"HOME": str(tmp_path)})
        opened.append(HarborService(settings, project or HarborProjectSettings(), source, Limits(), QUICK))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_a_project_is_created_with_its_settings(harbor: Harbor, service: Open) -> None:
    settings = HarborProjectSettings(public=True, scan_on_push=True, storage_limit=50 << 30)
    assert service(settings).create("hub/team/app", WORK)
    expected = {
        "project_name": "hub",
        "metadata": {"public": "true", "auto_scan": "true"},
        "storage_limit": 50 << 30,
    }
    assert [expected] == [document for _, document in harbor.api]


def test_without_settings_a_project_is_private(harbor: Harbor, service: Open) -> None:
    assert service().create("hub/app", WORK)
    assert {"project_name": "hub", "metadata": {"public": "false"}} == harbor.projects["hub"]
    assert 1 == len(harbor.api), "the credentials are sent with the first request"


def test_a_project_that_exists_is_no_error(harbor: Harbor, service: Open) -> None:
    opened = service()
    assert [True, False] == [opened.create("hub/app", WORK), opened.create("hub/web", WORK)]


@pytest.mark.parametrize(
    ("failure", "password", "kind", "code", "says", "requests"),
    [
        (
            error_reply(403, "FORBIDDEN", "Only system admin"),
            PASSWORD,
            AuthError,
            "auth_denied",
            "allowed to create",
            1,
        ),
        (None, "wrong-password", AuthError, "auth_failed", "does not accept the user name and password", 1),
        (None, "", AuthError, "auth_failed", "needs a user name and a password", 0),
        (error_reply(400, "BAD_REQUEST", "invalid name"), PASSWORD, RemoteError, "bad_response", "invalid name", 1),
        (error_reply(500, "UNKNOWN", "oops"), PASSWORD, RemoteError, "bad_response", "oops", 2),
    ],
)
def test_errors_of_the_api_are_explained(
    harbor: Harbor,
    service: Open,
    failure: Reply | None,
    password: str,
    kind: type[MirrorError],
    code: str,
    says: str,
    requests: int,
) -> None:
    harbor.failure = failure
    with pytest.raises(kind) as caught:
        service(password=password).create("hub/app", WORK)
    assert (code, requests) == (caught.value.code, len(harbor.api))
    assert says in str(caught.value)
    assert "password-1" not in str(caught.value)


def test_a_repository_without_a_project_cannot_be_created(harbor: Harbor, service: Open) -> None:
    with pytest.raises(ConfigError, match="Harbor needs a project in the path"):
        service().create("app", WORK)
    assert [] == harbor.api
