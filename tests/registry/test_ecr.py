"""Amazon ECR as a service, against moto's server: repositories are created, passwords are issued, errors explained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest

from mirror.errors import AuthError, Cancelled, ConfigError, MirrorError, RateLimited, RemoteError, Unreachable
from mirror.registry.ecr import MAX_LIFETIME, MIN_LIFETIME, EcrService
from mirror.registry.http.host_settings import EcrRepositorySettings
from mirror.util.cancellation import Stop, Work
from tests.registries.ecr_api import ENVIRONMENT, HALF_A_DAY, EcrServer

PRIVATE = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
PUBLIC = "public.ecr.aws"
DENIED = (
    "User: arn:aws:iam::123456789012:user/mirror is not authorized to perform: {} on resource: "
    "arn:aws:ecr:eu-central-1:123456789012:repository/app because no identity-based policy allows the action"
)


_shared: dict[str, EcrService] = {}  # by host: creating a client takes 0.15 s


@pytest.fixture(scope="module")
def running() -> Iterator[EcrServer]:
    """The server, and the variables of boto3 for it."""
    with EcrServer() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment("us-west-2").items():
            patch.setenv(name, value)
        patch.setenv("AWS_CONFIG_FILE", "/nonexistent")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield server
        for ecr in _shared.values():
            ecr.close()
        _shared.clear()


@pytest.fixture
def server(running: EcrServer) -> EcrServer:
    running.calls.clear()
    running.failures.clear()
    running.passwords.clear()
    running.documents.clear()
    running.page_size = None
    running.life, running.ahead = HALF_A_DAY, 0.0
    return running


@contextmanager
def service(host: str = PRIVATE, *, new: bool = False, **settings: Any) -> Iterator[EcrService]:
    """Return the service for a host. new: with a client of its own, which reads the variables again."""
    if not new and not settings:
        yield _shared.setdefault(host, EcrService(host, EcrRepositorySettings()))
        return
    opened = EcrService(host, EcrRepositorySettings(**settings))
    try:
        yield opened
    finally:
        opened.close()


def create(name: str, host: str = PRIVATE, *, new: bool = False, **settings: Any) -> bool:
    with service(host, new=new, **settings) as ecr:
        return ecr.create(name, Work(Stop()))


def error_of(name: str = "app", host: str = PRIVATE, *, new: bool = False) -> MirrorError:
    with pytest.raises(MirrorError) as caught:
        create(name, host, new=new)
    return caught.value


def described(server: EcrServer, name: str) -> dict[str, Any]:
    """Return a repository as another client of moto sees it."""
    client = boto3.client("ecr", region_name="eu-central-1", endpoint_url=server.url)
    try:
        (found,) = client.describe_repositories(repositoryNames=[name])["repositories"]
        tags = client.list_tags_for_resource(resourceArn=found["repositoryArn"])["tags"]
    finally:
        client.close()
    return {**found, "tags": tags}


def test_a_repository_is_created_with_its_settings_in_the_region_and_account_of_the_host(server: EcrServer) -> None:
    made = create(
        "hub/settings",
        immutable_tags=True,
        scan_on_push=True,
        kms_key="alias/mirror",
        tags={"team": "platform", "cost": "42"},
        endpoint=server.url,
    )
    assert made
    found = described(server, "hub/settings")
    assert "IMMUTABLE" == found["imageTagMutability"]
    assert {"scanOnPush": True} == found["imageScanningConfiguration"]
    assert "KMS" == found["encryptionConfiguration"]["encryptionType"]
    assert [{"Key": "team", "Value": "platform"}, {"Key": "cost", "Value": "42"}] == found["tags"]
    assert "123456789012" == server.calls[0][1]["registryId"]


def test_without_settings_only_the_name_is_sent(server: EcrServer) -> None:
    assert create("hub/plain", host="registry.example.com")
    assert [("CreateRepository", {"repositoryName": "hub/plain"})] == server.calls


def test_a_repository_that_exists_is_no_error(server: EcrServer) -> None:
    assert [True, False] == [create("hub/twice"), create("hub/twice")]


@pytest.mark.parametrize(
    ("host", "message", "action"),
    [
        (PRIVATE, DENIED.format("ecr:CreateRepository"), "ecr:CreateRepository"),
        (PRIVATE, DENIED.format("ecr:TagResource"), "ecr:TagResource"),
        (PRIVATE, "", "ecr:CreateRepository"),
        (PUBLIC, "", "ecr-public:CreateRepository"),
    ],
)
def test_a_denied_creation_names_the_missing_iam_action(
    server: EcrServer, host: str, message: str, action: str
) -> None:
    server.failures["CreateRepository"] = (400, "AccessDeniedException", message)
    error = error_of("alias/app", host)
    assert (AuthError, "auth_denied", False) == (type(error), error.code, error.retryable)
    assert f"allow the IAM action {action} in a policy" in error.hint
    assert 1 == len(server.calls)


@pytest.mark.parametrize(
    ("answer", "kind", "code", "retryable", "says", "calls"),
    [
        ((400, "UnrecognizedClientException", "CANARY"), AuthError, "auth_failed", False, "does not accept", 1),
        ((403, "SignatureDoesNotMatch", "CANARY"), AuthError, "auth_failed", False, "does not accept", 1),
        ((400, "LimitExceededException", "too many"), RemoteError, "bad_response", False, "higher quota", 3),
        ((400, "InvalidParameterException", "bad name"), RemoteError, "bad_response", False, "bad name", 1),
        ((400, "ThrottlingException", "Rate exceeded"), RateLimited, "rate_limited", True, "Rate exceeded", 3),
        ((500, "ServerException", "oops"), RemoteError, "bad_response", True, "oops", 3),
    ],
)
def test_errors_of_the_api_are_explained(
    server: EcrServer,
    answer: tuple[int, str, str],
    kind: type[MirrorError],
    code: str,
    retryable: bool,
    says: str,
    calls: int,
) -> None:
    server.failures["CreateRepository"] = answer
    error = error_of()
    assert (kind, code, retryable) == (type(error), error.code, error.retryable)
    assert says in str(error)
    assert "CANARY" not in str(error)
    assert f"creating {PRIVATE}/app" in error.what
    assert calls == len(server.calls)


def test_without_credentials_the_error_says_where_boto3_looks_for_them(
    server: EcrServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    error = error_of(new=True)
    assert (AuthError, "auth_failed", []) == (type(error), error.code, server.calls)
    assert "AWS_PROFILE" in error.hint


def test_a_host_without_a_region_needs_one_from_the_environment(
    server: EcrServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    error = error_of(host="registry.example.com", new=True)
    assert (ConfigError, []) == (type(error), server.calls)
    assert "AWS_DEFAULT_REGION" in error.hint


@pytest.mark.parametrize(("name", "value"), [("AWS_PROFILE", "nobody"), ("AWS_ENDPOINT_URL", "no url")])
def test_a_wrong_setting_of_boto3_is_an_error_of_the_configuration(
    server: EcrServer, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    error = error_of(new=True)
    assert (ConfigError, []) == (type(error), server.calls)
    assert value in error.what


def test_a_missing_token_file_of_a_pod_is_an_authentication_error(
    server: EcrServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/mirror")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/nonexistent/token")
    error = error_of(new=True)
    assert (AuthError, "auth_failed", []) == (type(error), error.code, server.calls)
    assert "/nonexistent/token" in error.what


def test_an_api_that_cannot_be_reached_does_not_count_as_an_outage_of_the_registry(
    server: EcrServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    error = error_of(new=True)
    assert (Unreachable, True, "127.0.0.1:9") == (type(error), error.retryable, error.host)


def test_a_public_repository_is_created_without_the_alias_of_its_registry(server: EcrServer) -> None:
    assert create("alias/team/app", PUBLIC)
    assert [("CreateRepository", {"repositoryName": "team/app"})] == server.calls
    assert isinstance(error_of("app", PUBLIC), ConfigError)


def test_no_call_is_made_after_a_stop(server: EcrServer) -> None:
    stop = Stop()
    stop.request("test")
    with service() as ecr:
        with pytest.raises(Cancelled):
            ecr.create("app", Work(stop))
        with pytest.raises(Cancelled):
            ecr.issue(stop)
    assert [] == server.calls


@pytest.mark.parametrize("host", [PRIVATE, PUBLIC])
@pytest.mark.parametrize(
    ("life", "lifetime"), [(HALF_A_DAY, HALF_A_DAY), (-1000.0, MIN_LIFETIME), (10 * HALF_A_DAY, MAX_LIFETIME)]
)
def test_a_password_is_issued_with_its_lifetime(server: EcrServer, host: str, life: float, lifetime: float) -> None:
    server.life = life
    with service(host) as ecr:
        issued = ecr.issue(Stop())
    assert ("AWS", server.passwords[0]) == (issued.username, issued.password)
    assert abs(lifetime - issued.lifetime) <= 2, "the times in headers are whole seconds"
    assert server.passwords[0] not in repr(issued)


@pytest.mark.parametrize("ahead", [-7200.0, 7200.0])
def test_a_wrong_clock_of_this_machine_does_not_change_the_lifetime(server: EcrServer, ahead: float) -> None:
    server.life, server.ahead = 3600.0, ahead
    with service() as ecr:
        assert abs(3600 - ecr.issue(Stop()).lifetime) <= 2
    assert ["GetAuthorizationToken"] == server.names()


@pytest.mark.parametrize(
    ("host", "action"),
    [(PRIVATE, "ecr:GetAuthorizationToken"), (PUBLIC, "ecr-public:GetAuthorizationToken")],
)
def test_a_denied_password_names_the_missing_iam_action(server: EcrServer, host: str, action: str) -> None:
    server.failures["GetAuthorizationToken"] = (400, "AccessDeniedException", "")
    with service(host) as ecr, pytest.raises(AuthError) as caught:
        ecr.issue(Stop())
    assert ("auth_denied", True) == (caught.value.code, f"the IAM action {action} " in caught.value.hint)


# ---- the list of repositories


def names_of(host: str = PRIVATE, prefix: str = "", *, new: bool = True) -> list[str]:
    with service(host, new=new) as ecr:
        return list(ecr.list_repositories(prefix, Work(Stop())))


def test_the_repositories_below_a_prefix_are_listed_with_one_call_for_each_page(server: EcrServer) -> None:
    for number in range(3):
        create(f"listed/{number}")
    create("listed-elsewhere")
    server.calls.clear()
    server.page_size = 2
    with service(new=True) as ecr:
        for _ in range(2):  # the list is read once
            assert [f"listed/{number}" for number in range(3)] == sorted(ecr.list_repositories("listed/", Work(Stop())))
    pages = [parameters for name, parameters in server.calls if name == "DescribeRepositories"]
    assert len(pages) == len(server.calls) > 1
    assert {"123456789012"} == {page["registryId"] for page in pages}
    assert len(pages) == len({page.get("nextToken") for page in pages})


def test_a_denied_list_names_the_missing_iam_action(server: EcrServer) -> None:
    server.failures["DescribeRepositories"] = (400, "AccessDeniedException", DENIED.format("ecr:DescribeRepositories"))
    with pytest.raises(AuthError) as caught:
        names_of()
    assert "auth_denied" == caught.value.code
    assert "allow the IAM action ecr:DescribeRepositories" in caught.value.hint


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ({"repositories": [{"repositoryName": "a"}], "nextToken": "again"}, "too_many"),
        ({"repositories": [{}]}, "bad_response"),
        ({}, "bad_response"),
    ],
)
def test_a_list_that_does_not_end_or_is_none_is_an_error(
    server: EcrServer, document: dict[str, Any], code: str
) -> None:
    server.documents["DescribeRepositories"] = document
    with pytest.raises(MirrorError) as caught:
        names_of()
    assert code == caught.value.code
    assert len(server.calls) <= 2
