"""The cache of converted layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.errors import LocalError, NotFound, Refused
from mirror.registry.convert.layer_cache import DigestOnlyCache, LayerCache
from tests.registries.v1 import gz, tar


def put(cache: LayerCache[str], key: str, data: bytes, note: str = "") -> None:
    with cache.write_layer(key, what=key, code="v1_invalid") as pending:
        pending.feed(data)
        pending.keep(pending.finish(), note)


def test_a_layer_that_is_converted_twice_at_once_is_kept_once(tmp_path: Path) -> None:
    cache: LayerCache[str] = LayerCache(tmp_path / "scratch")
    with cache.write_layer("a", what="a", code="v1_invalid") as pending:
        put(cache, "a", gz(tar(x=b"x")), "first")
        pending.feed(gz(tar(x=b"x")))
        pending.keep(pending.finish(), "second")
    kept = cache.find("a")
    assert kept is not None
    assert "first" == kept.note
    assert 1 == len(list((tmp_path / "scratch").iterdir()))
    cache.close()
    assert not (tmp_path / "scratch").exists()


def test_the_oldest_layer_is_evicted_unless_it_is_pinned(tmp_path: Path) -> None:
    data = [tar(**{name: name.encode() * 300}) for name in "abc"]
    cache: LayerCache[str] = LayerCache(tmp_path / "scratch", limit=250)
    for name, content in zip("ab", data, strict=False):
        put(cache, name, content)
    assert cache.pin("b") is not None
    put(cache, "c", data[2])
    assert [None, True, True] == [cache.find(name) and True for name in "abc"]
    with pytest.raises(NotFound):
        cache.open("a", 0)
    cache.unpin(["b"])
    put(cache, "a", data[0])
    assert [True, None] == [cache.find(name) and True for name in "ab"]


def test_nothing_is_kept_of_an_unfinished_layer(tmp_path: Path) -> None:
    cache: LayerCache[str] = LayerCache(tmp_path / "scratch")
    with cache.write_layer("a", what="a", code="v1_invalid") as pending:
        pending.feed(b"x")
    with pytest.raises(Refused), cache.write_layer("a", what="a", code="v1_invalid") as pending:
        pending.feed(b"x" * 1000)
        pending.finish()
    assert cache.find("a") is None
    assert [] == list((tmp_path / "scratch").iterdir())


def test_a_removed_or_truncated_file_is_an_error(tmp_path: Path) -> None:
    cache: LayerCache[str] = LayerCache(tmp_path / "scratch")
    put(cache, "a", gz(tar(x=b"x")))
    (file,) = (tmp_path / "scratch").iterdir()
    file.write_bytes(b"x")
    with pytest.raises(LocalError), cache.open("a", 1) as reader:
        reader.readinto(memoryview(bytearray(10)))
    file.unlink()
    with pytest.raises(NotFound):
        cache.open("a", 0)


def test_a_measuring_cache_knows_its_layers_but_writes_no_file(tmp_path: Path) -> None:
    written, measured = LayerCache[str](tmp_path / "scratch"), DigestOnlyCache[str]()
    for cache in (written, measured):
        put(cache, "a", tar(x=b"x"), "note")
        with cache.write_layer("b", what="b", code="v1_invalid") as pending:
            pending.feed(b"given up")
    one, other = written.pin("a"), measured.pin("a")
    assert one is not None
    assert other is not None
    assert (one.layer, one.note) == (other.layer, other.note)
    assert measured.find("b") is None
    measured.unpin(["a"])
    assert measured.find("a") is other
    with pytest.raises(NotFound):
        measured.open("a", 0)
    measured.close()
