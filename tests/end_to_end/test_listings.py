"""Every tag and repository is copied, whatever way a registry paginates its listings."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.conftest import ScriptedFactory
from tests.registries.exchange import Reply, Request, json_reply
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph
from tests.support.tool import MirrorTool


def tagged(registry: ScriptedRegistry, repository: str, count: int) -> list[str]:
    names = [f"t{number:03}" for number in range(count)]
    graph = Graph(repository)
    graph.image(*names)
    registry.load(repository, graph)
    return names


def test_every_tag_is_copied_with_any_pagination_of_the_source(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "silent-25": {"page": 25, "link": False},
        "silent-30": {"page": 30, "link": False},
        "refuses-1000": {"page": 50, "max_n": 100},  # 100 tags: the last page is full and has no Link header
        "refuses-1000-silent": {"page": 50, "max_n": 50, "link": False},
    }
    target = scripted("target")
    sources = {name: scripted(name, **features) for name, features in kinds.items()}
    expected = {name: tagged(source, "app", 100 if "1000" in name else 70) for name, source in sources.items()}
    mirrors = [
        {"source": f"{source.host}/app", "targets": [f"{target.host}/{name}"]} for name, source in sources.items()
    ]
    mirror_run.config(mirrors, target, *sources.values())
    mirror_run.sync()
    assert expected == {name: target.tags(name) for name in sources}


def test_an_empty_page_with_a_link_is_followed(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    for name in ("team/app", "team/web"):
        tagged(source, name, 3)

    def hook(request: Request) -> Reply | None:
        """Return an empty page first, like a registry that filters a page after cutting it."""
        if request.kind not in ("GET tags", "GET catalog") or "last" in request.query:
            return None
        key = request.kind.removeprefix("GET ").replace("catalog", "repositories")
        return json_reply(200, {key: []}, ("Link", f'<{request.path}?last=a>; rel="next"'))

    source.hook = hook
    mirror_run.config([{"source": f"{source.host}/team/*", "targets": [f"{target.host}/*"]}], source, target)
    mirror_run.sync()
    assert {"app": 3, "web": 3} == {name: len(target.tags(name)) for name in ("app", "web")}


def test_every_repository_of_a_catalog_without_links_is_copied(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source", page=25, link=False), scripted("target")
    names = [f"app-{number:02}" for number in range(28)]
    for name in names:
        tagged(source, f"team/{name}", 1)
    mirror_run.config([{"source": f"{source.host}/team/*", "targets": [f"{target.host}/*"]}], source, target)
    mirror_run.sync()
    assert names == [name for name in names if ["t000"] == target.tags(name)]
    assert 2 == source.counts()["GET catalog"]


def test_an_immutable_tag_beyond_an_unlinked_page_of_the_target_is_not_overwritten(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target", page=30, link=False)
    tagged(source, "app", 40)
    tagged(target, "app", 40)
    moved = Graph("moved")
    moved.image("t039")
    source.load("app", moved)
    before = target.storage.repositories["app"].tags["t039"]
    mirrors = [{"source": f"{source.host}/app", "targets": [f"{target.host}/app"], "tags": {"immutable": ["t.*"]}}]
    mirror_run.config(mirrors, source, target)
    mirror_run.sync(expect=3)
    assert before == target.storage.repositories["app"].tags["t039"]
    assert [] == target.writes()


def test_a_listing_with_a_missing_page_is_an_error(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source", page=25), scripted("target", page=25)
    tagged(source, "app", 40)
    tagged(target, "app", 40)
    mirror_run.config([{"source": f"{source.host}/app", "targets": [f"{target.host}/app"]}], source, target)
    target.fault("GET tags", nth=2, times=99, status=404)
    mirror_run.sync()
    assert {"up-to-date": 40} == Counter(mirror_run.results().values()), "each tag was asked for by name"
    assert [] == target.writes()
    target.faults.clear()
    source.fault("GET tags", nth=2, times=99, status=404)
    mirror_run.sync(expect=1)
    assert {"failed": 1} == Counter(mirror_run.results().values())
