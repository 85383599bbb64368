"""Repositories that a registry does not have: created once, after it said so; otherwise the error says how to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirror.errors import AuthError, MirrorError, NetworkError, NotFound
from mirror.limits import Limits
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import parse_manifest
from mirror.registry.auth.authorization import HostAuthorizer
from mirror.registry.auth.credentials import CredentialSource
from mirror.registry.client import RegistryV2
from mirror.registry.http.host_settings import HarborProjectSettings, HostSettings, Secret
from mirror.registry.missing_repositories import MissingRepositories
from mirror.registry.session import Session
from mirror.store import Mount
from mirror.util.cancellation import Stop, Work
from mirror.util.retry_policy import Policy, SystemClock
from tests.conftest import ScriptedFactory
from tests.registries.exchange import Reply, Request, error_reply
from tests.registries.harbor import PASSWORD, USER, Harbor
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph

WORK = Work(Stop())
QUICK = Policy(attempts=3, base=0.001, cap=0.002)
BLOB = Descriptor(Digest.of(b"blob"), 4)
ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
MISSING_PROJECT = "unauthorized: project hub not found: project hub not found"


class Creator:
    """Creates repositories on a scripted registry. all_wait: how many requests must have been refused before."""

    def __init__(self, registry: ScriptedRegistry, failure: MirrorError | None = None, all_wait: int = 0) -> None:
        self.registry, self.failure, self.all_wait = registry, failure, all_wait
        self.calls: list[str] = []
        self.delay = 0  # how many more requests are refused after the creation

    def container(self, repository: str) -> str:
        return repository

    def create(self, repository: str, work: Work) -> bool:
        self.calls.append(repository)
        waits = threading.Event()
        while self.registry.counts(status=404)["POST upload"] < self.all_wait:
            waits.wait(0.01)
        if self.failure is not None:
            raise self.failure
        if self.delay:
            self.registry.fault("POST upload", times=self.delay, hook=lambda _: error_reply(404, "NAME_UNKNOWN"))
        self.registry.create(repository)
        return True


@pytest.fixture
def registry(scripted: ScriptedFactory) -> ScriptedRegistry:
    return scripted(needs_creation=True)


@contextmanager
def client(registry: ScriptedRegistry, creator: Creator | None = None) -> Iterator[RegistryV2]:
    session = Session(HostSettings(registry.host, plain_http=True), Limits(), policy=QUICK)
    opened = RegistryV2(session, as_target=True, missing=MissingRepositories(registry.host, creator))
    try:
        yield opened
    finally:
        opened.close()


def open_upload(store: RegistryV2, repository: str = "hub/app") -> None:
    with store.begin_upload(repository, BLOB, WORK):
        pass


def test_one_creation_serves_all_requests_that_wait_for_it(registry: ScriptedRegistry) -> None:
    creator = Creator(registry, all_wait=20)
    with client(registry, creator) as store, ThreadPoolExecutor(20) as pool:
        for ended in [pool.submit(open_upload, store) for _ in range(20)]:
            ended.result()
    assert ["hub/app"] == creator.calls
    assert (20, 20) == (registry.counts(status=404)["POST upload"], registry.counts(status=202)["POST upload"])


def test_no_call_is_made_for_a_repository_that_exists(registry: ScriptedRegistry) -> None:
    registry.create("hub/app")
    creator = Creator(registry)
    with client(registry, creator) as store:
        open_upload(store)
        assert Mount.ABSENT is not store.mount_blob("hub/app", BLOB, "hub/unknown", WORK)
    assert [] == creator.calls


def test_a_mount_from_an_unknown_repository_creates_nothing_if_the_target_is_known(registry: ScriptedRegistry) -> None:
    registry.create("hub/app")
    creator = Creator(registry)
    registry.fault("POST mount", hook=lambda _: error_reply(404, "NAME_UNKNOWN"))
    with client(registry, creator) as store:
        open_upload(store)
        assert Mount.REFUSED is store.mount_blob("hub/app", BLOB, "hub/unknown", WORK)
    assert [] == creator.calls


def test_a_mount_into_a_missing_repository_creates_it(registry: ScriptedRegistry) -> None:
    registry.storage.add_blob("hub/base", BLOB.digest, b"blob")
    creator = Creator(registry)
    with client(registry, creator) as store:
        assert Mount.MOUNTED is store.mount_blob("hub/app", BLOB, "hub/base", WORK)
    assert ["hub/app"] == creator.calls


def test_a_manifest_for_a_missing_repository_creates_it(registry: ScriptedRegistry) -> None:
    graph = Graph("m")
    made = graph.artifact("v1")
    body = graph.manifests[made.digest]
    creator = Creator(registry)
    registry.features.checks_references = False
    registry.fault("PUT manifest", nth=1, hook=lambda _: error_reply(404, "NAME_UNKNOWN"))
    with client(registry, creator) as store:
        store.put_manifest("hub/app", "v1", parse_manifest(body.data, body.media_type), WORK)
    assert (["hub/app"], ["v1"]) == (creator.calls, registry.tags("hub/app"))


def test_a_creation_that_failed_permanently_is_not_tried_again(registry: ScriptedRegistry) -> None:
    creator = Creator(registry, AuthError("denied", code="auth_denied"))
    with client(registry, creator) as store:
        for _ in range(3):
            with pytest.raises(AuthError, match="denied"):
                open_upload(store)
        assert Mount.ABSENT is store.mount_blob("hub/app", BLOB, "hub/base", WORK), "the upload reports the error"
    assert ["hub/app"] == creator.calls


def test_a_creation_that_failed_temporarily_is_tried_again(registry: ScriptedRegistry) -> None:
    creator = Creator(registry, NetworkError("no connection"))
    with client(registry, creator) as store:
        with pytest.raises(NetworkError):
            open_upload(store)
        creator.failure = None
        open_upload(store)
    assert ["hub/app", "hub/app"] == creator.calls


def test_a_registry_that_does_not_know_the_new_repository_yet_can_be_asked_again(registry: ScriptedRegistry) -> None:
    creator = Creator(registry)
    creator.delay = 1
    with client(registry, creator) as store:
        with pytest.raises(NotFound) as caught:
            open_upload(store)
        assert caught.value.retryable
        open_upload(store)
    assert ["hub/app"] == creator.calls


def test_a_404_for_something_else_creates_nothing(registry: ScriptedRegistry) -> None:
    creator = Creator(registry)
    registry.fault("POST upload", hook=lambda _: error_reply(404, "BLOB_UPLOAD_UNKNOWN"))
    with client(registry, creator) as store, pytest.raises(NotFound) as caught:
        open_upload(store)
    assert [] == creator.calls
    assert "create" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "message", "hint"),
    [
        (
            ECR,
            "repository does not exist",
            "run `aws ecr create-repository --repository-name hub/app --region eu-west-1 --registry-id 123456789012`, "
            f'or set registries."{ECR}".create to ecr',
        ),
        (
            "harbor.example.com",
            MISSING_PROJECT,
            "create the project hub in Harbor (Projects > New Project), "
            'or set registries."harbor.example.com".create to harbor',
        ),
        (
            "registry.example.com",
            "repository name not known to registry",
            "this registry does not create repositories with the first push: create the repository there",
        ),
    ],
)
def test_without_the_key_the_error_says_how_to_create_the_repository(host: str, message: str, hint: str) -> None:
    def refuse() -> None:
        raise NotFound(message, registry_code="NAME_UNKNOWN", status=404)

    with pytest.raises(NotFound) as caught:
        MissingRepositories(host).send("hub/app", WORK, refuse)
    assert hint == caught.value.hint


@pytest.mark.parametrize("method", ["GET tags", "HEAD manifest", "POST upload"])
def test_harbors_401_without_a_challenge_means_that_the_project_does_not_exist(
    registry: ScriptedRegistry, method: str
) -> None:
    def refuse(request: Request) -> Reply | None:
        return error_reply(401, "UNAUTHORIZED", MISSING_PROJECT, ("WWW-Authenticate", ""))

    registry.hook = refuse
    with client(registry) as store, pytest.raises(NotFound) as caught:
        if method == "GET tags":
            list(store.tags("hub/app", WORK))
        elif method == "HEAD manifest":
            (result,) = store.resolve("hub/app", ["v1"], WORK)
            assert isinstance(result, MirrorError)
            raise result
        else:
            open_upload(store)
    assert 401 == caught.value.status


def test_a_token_from_before_the_creation_of_a_project_is_replaced(scripted: ScriptedFactory, tmp_path: Path) -> None:
    registry = scripted(bearer=True, users={USER: PASSWORD})
    harbor = Harbor(registry, "hub")
    answer, tokens = registry.hook, registry.tokens
    assert answer is not None and tokens is not None
    settings = HostSettings(
        registry.host,
        plain_http=True,
        username=USER,
        password=Secret("a test", plain=PASSWORD),
        create=HarborProjectSettings(),
    )
    session = Session(settings, Limits(), policy=QUICK)
    source = CredentialSource({registry.host: settings}, {"HOME": str(tmp_path)})
    session.authorizer = HostAuthorizer(
        settings, source, session.send_one_off, session.url_policy.check_realm, SystemClock()
    )
    created: list[str] = []
    tokens.allow = lambda user, repository, action: bool(created)

    def create_meanwhile(request: Request) -> Reply | None:
        """Another request creates the project after the token was issued, and before it is used."""
        if request.kind == "POST upload" and request.header("Authorization") and not created:
            created.append("hub")
        return answer(request)

    registry.hook = create_meanwhile
    store = RegistryV2(session, as_target=True)
    try:
        with store.begin_upload("hub/app", BLOB, WORK):
            pass
    finally:
        store.close()
    assert [401, 401, 202] == [one.status for one in registry.log if one.kind == "POST upload"]
    assert [] == harbor.api


def test_a_401_without_a_challenge_and_another_reason_is_still_an_authentication_error(
    registry: ScriptedRegistry,
) -> None:
    registry.hook = lambda request: error_reply(401, "UNAUTHORIZED", "not allowed", ("WWW-Authenticate", ""))
    with client(registry) as store:
        with pytest.raises(AuthError):
            list(store.resolve("hub/app", ["v1"], WORK))
        with pytest.raises(AuthError):
            open_upload(store)
