"""Lists in pages: registries page in different ways, and each name is returned exactly once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest

from mirror.errors import Refused, RemoteError
from mirror.registry.client import RegistryV2
from mirror.registry.listings import MAX_EMPTY_PAGES
from mirror.util.cancellation import Stop, Work
from tests.conftest import ScriptedFactory
from tests.registries.exchange import Reply, Request, json_reply
from tests.registries.scripted import ScriptedRegistry
from tests.registry.stores import store
from tests.support.images import Graph

WORK = Work(Stop())
Listing = Callable[[dict[str, str]], Reply]


def names(count: int) -> list[str]:
    return [f"t{number:04}" for number in range(count)]


def add_tags(registry: ScriptedRegistry, repository: str, count: int) -> list[str]:
    """Put an image with `count` tags into `repository`, and return the tags."""
    graph = Graph(repository)
    graph.image(*names(count))
    registry.load(repository, graph)
    return names(count)


def list_tags(client: RegistryV2, repository: str = "app") -> list[str]:
    return [str(name) for name in client.tags(repository, WORK)]


def serve_listing(registry: ScriptedRegistry, listing: Listing, kind: str = "GET tags") -> None:
    """Let `listing` create the response to each request for a list, from its query."""

    def hook(request: Request) -> Reply | None:
        if request.kind != kind:
            return None
        return listing({key: values[0] for key, values in request.query.items()})

    registry.hook = hook


def tags(found: Sequence[str], *headers: tuple[str, str]) -> Reply:
    return json_reply(200, {"name": "app", "tags": list(found)}, *headers)


def rejection(what: str = "too many") -> Reply:
    return json_reply(400, {"errors": [{"code": "PAGINATION_NUMBER_INVALID", "message": what}]})


# ---- pages without a Link


@pytest.mark.parametrize("page", [20, 25, 50, 73])
@pytest.mark.parametrize("pages", [1, 2, 3.5])
def test_all_pages_without_a_link_are_read(scripted: ScriptedFactory, page: int, pages: float) -> None:
    registry = scripted(page=page, link=False)
    expected = add_tags(registry, "app", int(page * pages))
    with store(registry) as client:
        assert expected == list_tags(client)


def test_all_pages_of_a_catalog_without_links_are_read(scripted: ScriptedFactory) -> None:
    registry = scripted(page=30, link=False)
    expected = [f"team/{name}" for name in names(65)]
    for name in expected:
        registry.create(name)
    with store(registry) as client:
        assert expected == list(client.repositories("team/", WORK))


def test_a_host_without_paging_gets_one_more_request_for_its_longest_lists_only(scripted: ScriptedFactory) -> None:
    registry = scripted()
    for count in (19, 30, 45):
        add_tags(registry, f"app-{count}", count)
    with store(registry) as client:
        for count, requests in ((19, 1), (45, 2), (30, 1), (45, 2), (45, 2), (45, 2), (30, 1)):
            registry.mark()
            assert count == len(list_tags(client, f"app-{count}"))
            assert (count, requests) == (count, registry.counts()["GET tags"])


@pytest.mark.parametrize("counts", [(22, 95), (39, 40, 41), (40, 80), (40, 40, 40, 40, 55), (80, 39)])
def test_a_complete_list_does_not_prove_that_another_is_complete(
    scripted: ScriptedFactory, counts: tuple[int, ...]
) -> None:
    registry = scripted(page=40, link=False)
    with store(registry) as client:
        for number, count in enumerate(counts):
            assert add_tags(registry, f"app-{number}", count) == list_tags(client, f"app-{number}")


def test_a_host_that_links_its_pages_gets_no_additional_request(scripted: ScriptedFactory) -> None:
    registry = scripted(page=30)
    add_tags(registry, "long", 85)
    add_tags(registry, "short", 25)
    with store(registry) as client:
        assert (85, 25) == (len(list_tags(client, "long")), len(list_tags(client, "short")))
    assert 4 == registry.counts()["GET tags"]


def test_a_host_that_ignores_last_gets_one_additional_request_per_run(scripted: ScriptedFactory) -> None:
    registry = scripted()
    sizes = iter([25, 25, 90, 91])
    serve_listing(registry, lambda query: tags(names(next(sizes))))
    with store(registry) as client:
        assert [25, 90, 91] == [len(list_tags(client)) for _ in range(3)]
    assert 4 == registry.counts()["GET tags"]


@pytest.mark.parametrize("status", [400, 404, 405, 501])
def test_a_list_is_complete_if_the_registry_rejects_last(scripted: ScriptedFactory, status: int) -> None:
    registry = scripted()
    serve_listing(registry, lambda query: Reply(status) if "last" in query else tags(names(26)))
    with store(registry) as client:
        assert names(26) == list_tags(client)
        registry.mark()
        assert names(26) == list_tags(client)
    assert 1 == registry.counts()["GET tags"]


@pytest.mark.parametrize("status", [400, 404])
@pytest.mark.parametrize("turned", [False, True])
def test_a_rejection_at_the_end_of_a_list_does_not_affect_the_next_list(
    scripted: ScriptedFactory, status: int, turned: bool
) -> None:
    """Each list is sent in pages of 30 names, and `last` is rejected if no name is greater."""
    registry = scripted()
    everything: list[str] = []

    def listing(query: dict[str, str]) -> Reply:
        page = [name for name in everything if name > query.get("last", "")][:30]
        return tags(page[5:] + page[:5] if turned else page) if page else Reply(status)

    serve_listing(registry, listing)
    with store(registry) as client:
        for count in (25, 30, 45, 60, 75):
            everything[:] = names(count)
            assert everything == sorted(list_tags(client))


def test_a_rejection_of_last_is_an_error_if_a_page_was_continued_before(scripted: ScriptedFactory) -> None:
    registry = scripted(page=30, link=False)
    add_tags(registry, "app", 75)
    registry.fault("GET tags", nth=3, times=9, status=404)
    with store(registry) as client, pytest.raises(RemoteError) as caught:
        list_tags(client)
    assert 404 == caught.value.status


@pytest.mark.parametrize("status", [401, 403, 500, 503])
@pytest.mark.parametrize("count", [26, 50])
def test_a_list_whose_end_cannot_be_determined_is_an_error(scripted: ScriptedFactory, status: int, count: int) -> None:
    registry = scripted()
    serve_listing(registry, lambda query: Reply(status) if "last" in query else tags(names(count)))
    with store(registry) as client, pytest.raises(RemoteError) as caught:
        list_tags(client)
    assert status == caught.value.status


def test_all_pages_are_read_in_any_order_of_names(scripted: ScriptedFactory) -> None:
    """`last` is compared with names, and a page has the next 25 of them, in reverse or random order."""
    everything = names(90)

    def paged(order: Callable[[list[str]], list[str]]) -> Listing:
        def listing(query: dict[str, str]) -> Reply:
            return tags(order([name for name in everything if name > query.get("last", "")][:25]))

        return listing

    for order in (lambda page: page[::-1], lambda page: page[1:] + page[:1], lambda page: page[12:] + page[:12]):
        registry = scripted()
        serve_listing(registry, paged(order))
        with store(registry) as client:
            found = list_tags(client)
        assert (everything, 90) == (sorted(found), len(found))
        assert registry.counts()["GET tags"] < 12


def test_pages_that_overlap_or_begin_with_last_return_each_tag_once(scripted: ScriptedFactory) -> None:
    registry = scripted()
    everything = names(90)
    serve_listing(registry, lambda query: tags([name for name in everything if name >= query.get("last", "")][:25]))
    with store(registry) as client:
        assert everything == list_tags(client)


def test_a_list_with_the_newest_first_is_continued_after_its_last_entry(scripted: ScriptedFactory) -> None:
    registry = scripted()
    everything = names(70)[::-1]

    def listing(query: dict[str, str]) -> Reply:
        begin = everything.index(query["last"]) + 1 if "last" in query else 0
        return tags(everything[begin : begin + 25])

    serve_listing(registry, listing)
    with store(registry) as client:
        assert everything == list_tags(client)


# ---- registries that reject `n`


@pytest.mark.parametrize(("most", "status"), [(10, 400), (20, 413), (50, 416), (100, 422), (200, 400)])
@pytest.mark.parametrize("link", [True, False])
def test_all_pages_of_a_registry_that_rejects_large_pages_are_read(
    scripted: ScriptedFactory, most: int, status: int, link: bool
) -> None:
    registry = scripted(page=most, link=link)
    for count in (most - 1, most, 2 * most, 2 * most + 3):
        add_tags(registry, f"app-{count}", count)

    def hook(request: Request) -> Reply | None:
        return Reply(status) if int(request.query.get("n", ["0"])[0]) > most else None

    registry.hook = hook
    with store(registry) as client:
        for count in (most - 1, most, 2 * most, 2 * most + 3):
            assert names(count) == list_tags(client, f"app-{count}")
    refusals = [entry.path for entry in registry.log if entry.status == status]
    assert 1 == sum("n=1000" in path for path in refusals), "the refused size is remembered"
    assert len(refusals) <= 5


def test_all_pages_are_read_if_last_is_accepted_only_without_n(scripted: ScriptedFactory) -> None:
    registry = scripted(page=50, link=False)
    add_tags(registry, "app", 120)
    registry.hook = lambda request: rejection() if request.kind == "GET tags" and "n" in request.query else None
    with store(registry) as client:
        assert names(120) == list_tags(client)


def test_all_pages_are_read_if_the_first_is_larger_than_the_allowed_n(scripted: ScriptedFactory) -> None:
    registry = scripted()
    serve_listing(
        registry,
        lambda query: (
            rejection()
            if int(query.get("n", 0)) > 60
            else tags([name for name in names(400) if name > query.get("last", "")][: int(query.get("n", 300))])
        ),
    )
    with store(registry) as client:
        assert names(400) == list_tags(client)


@pytest.mark.parametrize("link", [True, False])
def test_a_missing_later_page_is_not_a_missing_list(scripted: ScriptedFactory, link: bool) -> None:
    registry = scripted(page=50, link=link)
    add_tags(registry, "app", 70)
    registry.fault("GET tags", nth=2, times=9, status=404)
    with store(registry) as client, pytest.raises(RemoteError) as caught:
        list_tags(client)
    assert (RemoteError, 404) == (type(caught.value), caught.value.status)


def test_a_full_page_that_cannot_be_continued_is_an_error(scripted: ScriptedFactory) -> None:
    registry = scripted()
    serve_listing(registry, lambda query: rejection("no") if query else tags(names(50)))
    with store(registry) as client, pytest.raises(RemoteError) as caught:
        list_tags(client)
    assert 400 == caught.value.status
    assert "`tags`" in caught.value.hint


# ---- pages without names


def test_an_empty_page_with_a_link_is_followed(scripted: ScriptedFactory) -> None:
    registry = scripted()
    pages = {"": ([], "a"), "a": (["t1"], "b"), "b": ([], "c"), "c": (None, "d"), "d": (["t2"], "")}

    def listing(key: str) -> Listing:
        def response(query: dict[str, str]) -> Reply:
            found, following = pages[query.get("next", "")]
            path = "/v2/_catalog" if key == "repositories" else "/v2/app/tags/list"
            headers = [("Link", f'<{path}?next={following}>; rel="next"')] if following else []
            return json_reply(200, {key: found}, *headers)

        return response

    with store(registry) as client:
        serve_listing(registry, listing("tags"))
        assert ["t1", "t2"] == list_tags(client)
        serve_listing(registry, listing("repositories"), "GET catalog")
        assert ["t1", "t2"] == list(client.repositories("", WORK))


@pytest.mark.parametrize("repeated", [True, False])
def test_the_number_of_empty_pages_is_limited(scripted: ScriptedFactory, repeated: bool) -> None:
    registry = scripted()

    def listing(query: dict[str, str]) -> Reply:
        following = 7 if repeated else int(query.get("next", 0)) + 1
        return tags([], ("Link", f'</v2/app/tags/list?next={following}>; rel="next"'))

    serve_listing(registry, listing)
    with store(registry) as client, pytest.raises(Refused) as caught:
        list_tags(client)
    assert "too_many" == caught.value.code
    assert registry.counts()["GET tags"] <= (2 if repeated else MAX_EMPTY_PAGES + 1)


def test_the_names_may_be_null_on_every_page(scripted: ScriptedFactory) -> None:
    registry = scripted()
    registry.fault("GET tags", status=200, body=json.dumps({"name": "app", "tags": None}).encode())
    with store(registry) as client:
        assert [] == list_tags(client)
