"""Rules that select repositories under a wildcard, from the configuration to the target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import assert_synced, loaded
from tests.registries.certificates import Authority
from tests.registries.products import docker_hub, harbor
from tests.registries.scripted import ScriptedRegistry
from tests.registries.tunnel import Tunnel
from tests.support.tool import MirrorTool

PASSWORD = "a-secret-of-the-user"
NAMES = ("team/app", "team/app-dev", "team/base/app", "team/web", "other/app")


@pytest.fixture
def both(scripted: ScriptedFactory) -> tuple[ScriptedRegistry, ScriptedRegistry]:
    source, target = scripted("source"), scripted("target")
    for name in NAMES:
        loaded(source, "v1", repository=name)
    return source, target


def configure(tool: MirrorTool, source: ScriptedRegistry, target: ScriptedRegistry, *rules: Any) -> None:
    """Write a configuration with one mirror of team/* for each of the rules, all to the same target."""
    mirror = {"source": f"{source.host}/team/*", "targets": [f"{target.host}/team/*"]}
    tool.config([{**mirror, "repositories": one} for one in rules], source, target)


def written(target: ScriptedRegistry) -> set[str]:
    return {name for name, repository in target.storage.repositories.items() if repository.tags}


def test_only_selected_repositories_are_listed_copied_and_verified(
    both: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool
) -> None:
    source, target = both
    configure(mirror_run, source, target, {"include": ["(base/)?app.*"], "exclude": [".*-dev"]})
    ran = mirror_run("plan", mirror_run.config_file)
    assert f"{source.host}/team/*: repositories left out: 1 by exclude .*-dev, 1 by include\n" in ran.out
    assert "" == mirror_run.sync("-q").text
    assert_synced(source, target, "team/app", "team/base/app")
    assert {"team/app", "team/base/app"} == written(target)
    assert 0 == mirror_run("verify", mirror_run.config_file).code
    assert {"team/app", "team/base/app"} == {seen.repository for seen in source.requests() if seen.repository}
    [event] = [one for one in mirror_run.log() if one["event"] == "repositories_selected"]
    assert (2, {"include": 1, "exclude .*-dev": 1}) == (event["repositories"], event["rejected"])


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"include": ["app*-x"]}, ("4 by include", "'app.*-x'")),
        ({"exclude": [".*"]}, ("4 by exclude .*", "correct `repositories`")),
    ],
    ids=["include", "exclude"],
)
def test_rules_that_select_no_repository_of_a_catalog_are_a_failure(
    both: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool, rules: Any, says: tuple[str, ...]
) -> None:
    source, target = both
    configure(mirror_run, source, target, rules)
    for command in ("plan", "verify", "sync"):
        ran = mirror_run(command, mirror_run.config_file)
        assert 1 == ran.code, ran
        for text in ("no repository of team/* is selected", *says):
            assert text in ran.text, ran
    [entry] = mirror_run.report()["images"]
    assert (f"{source.host}/team/*", "nothing_selected") == (entry["source"], entry["error"]["code"])
    assert [] == target.writes()


def test_mirrors_with_different_rules_may_share_a_target_if_they_select_different_repositories(
    both: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool
) -> None:
    source, target = both
    configure(mirror_run, source, target, {"include": ["app.*"]}, {"exclude": ["app.*"]})
    mirror_run.sync()
    assert {name for name in NAMES if name.startswith("team/")} == written(target)
    loaded(source, "v1", repository="team/both")
    configure(mirror_run, source, target, {"include": ["app", "both"]}, {"exclude": ["app.*"]})
    mirror_run.sync(expect=3)
    conflicts = {image["source"] for image in mirror_run.report()["images"] if image["result"] == "conflict"}
    assert {f"{source.host}/team/both"} == conflicts
    assert "team/both" not in written(target)


# ---- catalogs of products


def test_a_namespace_of_docker_hub_is_mirrored_by_its_own_list(
    scripted: ScriptedFactory, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    names = ("hub.docker.com", "registry-1.docker.io")
    authority = Authority(tmp_path / "authority", hosts=names)
    hub, source, target = scripted("hub", tls=authority), scripted("source", tls=authority), scripted("target")
    hub.hook = docker_hub({"acme": ["app", "web", "old"]}, {"acme": ["secret"]}, login=("joe", PASSWORD))
    for name in ("acme/app", "acme/web", "acme/old", "acme/secret"):
        loaded(source, "v1", repository=name)
    ports = {
        f"{name}:443": int(server.host.rpartition(":")[2]) for name, server in zip(names, (hub, source), strict=True)
    }
    mirror = {"source": "docker.io/acme/*", "targets": [f"{target.host}/hub/*"], "repositories": {"exclude": ["old"]}}
    with Tunnel(ports) as tunnel:
        reached = {"proxy": tunnel.url, "tls": {"ca": str(authority.ca)}}
        account = {"username": "joe", "password": {"env": "HUB_TOKEN"}}
        mirror_run.config([mirror], target, registries={"docker.io": reached | account})
        mirror_run.environment["HUB_TOKEN"] = PASSWORD
        mirror_run.sync()
        assert {"hub/app", "hub/web", "hub/secret"} == written(target)
        assert 0 == source.counts()["GET catalog"]
        assert {"POST token": 1, "GET repositories": 2} == mirror_run.report()["totals"]["requests"]["hub.docker.com"]
        mirror_run.environment["HUB_TOKEN"] = "a wrong password"
        ran = mirror_run.sync(expect=1)
        assert "hub.docker.com does not accept user joe, password from env HUB_TOKEN" in ran.text
    [entry] = mirror_run.report()["images"]
    assert ("docker.io/acme/*", "auth_failed") == (entry["source"], entry["error"]["code"])
    mirror_run.sweep(PASSWORD, "hub-access-token", "a wrong password")


def test_a_project_of_harbor_is_mirrored_by_an_account_that_may_not_read_the_catalog(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    source.hook = harbor({"team": ["app", "base/app"]}, robot=f"robot$ci:{PASSWORD}")
    for name in ("team/app", "team/base/app"):
        loaded(source, "v1", repository=name)
    account = {"username": "robot$ci", "password": {"env": "ROBOT"}}
    mirrors = [
        {"source": f"{source.host}/team/*", "targets": [f"{target.host}/a/*"], "repositories": {"include": ["app"]}},
        {"source": f"{source.host}/team/*", "targets": [f"{target.host}/a/*"], "repositories": {"exclude": ["app"]}},
    ]
    mirror_run.config(mirrors, source, target, registries={source.host: account})
    mirror_run.environment["ROBOT"] = PASSWORD
    mirror_run.sync()
    assert {"a/app", "a/base/app"} == written(target)
    lists = [seen for seen in source.requests() if seen.path.startswith("/api/")]
    assert 1 == len(lists), "two mirrors share the list"
    mirror_run.sweep(PASSWORD)


def test_plan_prints_one_line_for_a_wildcard_whose_repositories_have_tags_that_are_left_out(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    names = [f"team/app-{number}" for number in range(5)]
    for number, name in enumerate([*names, "team/clean"]):
        loaded(source, "v1", *(f"x{tag}" for tag in range(number) if name != "team/clean"), repository=name)
    loaded(source, "v1", "x1", repository="other/only")
    rules = {"exclude": ["x[0-2]", "x3"]}
    mirrors = [
        {"source": f"{source.host}/team/*", "targets": [f"{target.host}/*"], "tags": rules},
        {"source": f"{source.host}/other/*", "targets": [f"{target.host}/other/*"], "tags": rules},
    ]
    mirror_run.config(mirrors, source, target)
    lines = mirror_run("plan", mirror_run.config_file).out.splitlines()
    apps = f"in 4 repositories: {', '.join(f'{source.host}/{name}' for name in names[1:4])} and 1 more"
    assert [
        f"{source.host}/other/only: tags left out: 1 by exclude x[0-2]",
        f"{source.host}/team/*: tags left out: 1 by exclude x3, 9 by exclude x[0-2] ({apps})",
    ] == [line for line in lines if "left out" in line]
    lines = mirror_run("sync", mirror_run.config_file, "--dry-run", "-v").out.splitlines()
    assert [
        f"{source.host}/other/only: tags left out: 1 by exclude x[0-2]",
        *(f"{source.host}/team/app-{number}: tags left out: {number} by exclude x[0-2]" for number in range(1, 4)),
        f"{source.host}/team/app-4: tags left out: 1 by exclude x3, 3 by exclude x[0-2]",
    ] == [line for line in lines if "left out" in line]
