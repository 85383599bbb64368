"""Repositories that a target requires to exist, and logins at Amazon ECR: whole runs against moto and Harbor's API."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.conftest import ScriptedFactory
from tests.registries.ecr_api import EcrServer
from tests.registries.exchange import Reply, Request
from tests.registries.harbor import PASSWORD, USER, Harbor
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph
from tests.support.oracle import assert_equal
from tests.support.tool import MirrorTool

EXPIRED = b"Your Authorization Token has expired. Please run 'aws ecr get-login --no-include-email' to fetch a new one."


@pytest.fixture
def ecr() -> Iterator[EcrServer]:
    with EcrServer() as server:
        yield server


@pytest.fixture
def stocked(scripted: ScriptedFactory) -> ScriptedRegistry:
    """A source with a few images in one repository, and an index in another."""
    return stock(scripted, images=3)


def stock(scripted: ScriptedFactory, images: int) -> ScriptedRegistry:
    registry = scripted("source")
    graph, other = Graph("app"), Graph("web")
    for number in range(images):
        graph.image(f"v{number}", layers=[graph.layer(f"layer {number}", 1000)])
    other.platforms("v1", size=1000)
    registry.load("app", graph)
    registry.load("web", other)
    return registry


def ecr_target(scripted: ScriptedFactory, ecr: EcrServer) -> ScriptedRegistry:
    """Return a target that accepts the newest password of ECR, and has the repositories that were created there."""
    target = scripted("target", needs_creation=True, users={"AWS": "none was issued yet"})
    ecr.issued = lambda password: target.users.update(AWS=password)
    ecr.created = target.create
    return target


def configure(
    tool: MirrorTool, source: ScriptedRegistry, target: ScriptedRegistry, prefix: str, **keys: object
) -> None:
    mirrors = [
        {"source": f"{source.host}/app", "targets": [f"{target.host}/{prefix}/app"]},
        {"source": f"{source.host}/web", "targets": [f"{target.host}/{prefix}/web"], "tags": ["v1"]},
    ]
    tool.config(mirrors, source, target, registries={target.host: keys})


def compare(source: ScriptedRegistry, target: ScriptedRegistry, prefix: str) -> None:
    """Check with the tests' own client that both repositories are complete on the target."""
    for name in ("app", "web"):
        assert_equal(source, name, target, f"{prefix}/{name}")


def test_a_run_creates_each_repository_on_ecr_once_and_needs_one_password(
    mirror_run: MirrorTool, scripted: ScriptedFactory, ecr: EcrServer
) -> None:
    stocked, target = stock(scripted, images=20), ecr_target(scripted, ecr)
    create = {"type": "ecr", "immutable-tags": False, "scan-on-push": True, "tags": {"team": "platform"}}
    configure(mirror_run, stocked, target, "once", create=create, login="ecr")
    mirror_run.sync(environment=ecr.environment())
    compare(stocked, target, "once")
    created = [parameters["repositoryName"] for name, parameters in ecr.calls if name == "CreateRepository"]
    assert ["once/app", "once/web"] == sorted(created)
    assert 1 == ecr.names().count("GetAuthorizationToken")
    assert 2 == len([one for one in mirror_run.log() if one["event"] == "repository_created"])
    mirror_run.sync(environment=ecr.environment())
    assert 2 == ecr.names().count("CreateRepository"), "the repositories exist now"
    mirror_run.sweep(*ecr.passwords, ecr.environment()["AWS_SECRET_ACCESS_KEY"])


def test_a_wildcard_at_ecr_is_listed_by_its_api(
    mirror_run: MirrorTool, scripted: ScriptedFactory, stocked: ScriptedRegistry, ecr: EcrServer
) -> None:
    registry, target = ecr_target(scripted, ecr), scripted("other")
    configure(mirror_run, stocked, registry, "team", create="ecr", login="ecr")
    mirror_run.sync(environment=ecr.environment())
    mirror = {"source": f"{registry.host}/team/*", "targets": [f"{target.host}/copy/*"]}
    mirror_run.config([mirror], registry, target, registries={registry.host: {"login": "ecr"}})
    registry.mark()
    mirror_run.sync(environment=ecr.environment())
    compare(stocked, target, "copy")
    assert (1, 0) == (ecr.names().count("DescribeRepositories"), registry.counts()["GET catalog"])
    ecr.failures["DescribeRepositories"] = (400, "AccessDeniedException", "")
    ran = mirror_run.sync(expect=1, environment=ecr.environment())
    assert "allow the IAM action ecr:DescribeRepositories" in ran.out


def test_a_password_of_ecr_that_expires_is_renewed_during_the_run(
    mirror_run: MirrorTool, scripted: ScriptedFactory, stocked: ScriptedRegistry, ecr: EcrServer
) -> None:
    target = ecr_target(scripted, ecr)
    for name in ("app", "web"):
        target.create(f"old/{name}")
    uploads = itertools.count(1)
    expired: set[str | None] = set()

    def expire(request: Request) -> Reply | None:
        """Reject the first password from the third upload on."""
        if request.kind == "PUT upload" and next(uploads) == 3:
            expired.add(request.header("Authorization"))
        return Reply(403, body=EXPIRED) if request.header("Authorization") in expired else None

    target.hook = expire
    configure(mirror_run, stocked, target, "old", login="ecr")
    mirror_run.sync(environment=ecr.environment())
    compare(stocked, target, "old")
    assert ["GetAuthorizationToken"] * 2 == ecr.names()


def test_a_denied_creation_fails_the_images_with_the_missing_permission(
    mirror_run: MirrorTool, scripted: ScriptedFactory, stocked: ScriptedRegistry, ecr: EcrServer
) -> None:
    target = ecr_target(scripted, ecr)
    ecr.failures["CreateRepository"] = (400, "AccessDeniedException", "")
    configure(mirror_run, stocked, target, "denied", create="ecr", login="ecr")
    ran = mirror_run.sync(expect=1, environment=ecr.environment())
    assert "allow the IAM action ecr:CreateRepository" in ran.out
    assert {"auth_denied"} == {image["error"]["code"] for image in mirror_run.report()["images"]}
    assert 2 == ecr.names().count("CreateRepository"), "once for each repository"


def test_without_the_key_the_message_says_what_to_do(
    mirror_run: MirrorTool, scripted: ScriptedFactory, stocked: ScriptedRegistry
) -> None:
    target = scripted("target", needs_creation=True)
    configure(mirror_run, stocked, target, "hub")
    ran = mirror_run.sync(expect=1)
    assert "this registry does not create repositories with the first push: create the repository there" in ran.out


@pytest.mark.parametrize("exists", [False, True], ids=["missing project", "existing project"])
def test_a_run_creates_each_project_on_harbor_once(
    mirror_run: MirrorTool, scripted: ScriptedFactory, stocked: ScriptedRegistry, exists: bool
) -> None:
    target = scripted("target", bearer=True, users={USER: PASSWORD})
    harbor = Harbor(target, "other", *(["hub"] if exists else []))
    create = {"type": "harbor", "storage-limit": "50 GiB"}
    login = {"username": USER, "password": {"env": "HARBOR_PASSWORD"}}
    configure(mirror_run, stocked, target, "hub", create=create, **login)
    mirror_run.environment["HARBOR_PASSWORD"] = PASSWORD
    mirror_run.sync()
    compare(stocked, target, "hub")
    assert ([] if exists else ["hub"]) == [document["project_name"] for _, document in harbor.api]
    mirror_run.sweep(PASSWORD)


def test_without_the_key_the_message_names_the_missing_project_of_harbor(
    mirror_run: MirrorTool, scripted: ScriptedFactory, stocked: ScriptedRegistry
) -> None:
    target = scripted("target", bearer=True, users={USER: PASSWORD})
    harbor = Harbor(target)
    mirror_run.environment["HARBOR_PASSWORD"] = PASSWORD
    configure(mirror_run, stocked, target, "hub", username=USER, password={"env": "HARBOR_PASSWORD"})
    ran = mirror_run.sync(expect=1)
    assert "create the project hub in Harbor" in ran.out
    assert [] == harbor.api
