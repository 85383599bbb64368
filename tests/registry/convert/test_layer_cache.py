"""What conversions put on the disk, and cookies: the small parts that they stand on."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.errors import LocalError, NotFound, Refused
from mirror.registry.convert.layer_cache import Measure, Scratch
from mirror.registry.http.cookies import Cookies
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.http.status_errors import says_v2
from mirror.registry.http.url import Origin
from mirror.registry.http.url_policy import Trust
from tests.registries.v1 import gz, tar

HERE, THERE = Origin.parse("https://old.example.com"), Origin.parse("http://old.example.com")


def put(scratch: Scratch[str], key: str, data: bytes, note: str = "") -> None:
    with scratch.writing(key, what=key, code="v1_invalid") as making:
        making.feed(data)
        making.keep(making.finish(), note)


def test_what_was_made_twice_at_once_is_kept_once(tmp_path: Path) -> None:
    scratch: Scratch[str] = Scratch(tmp_path / "scratch")
    with scratch.writing("a", what="a", code="v1_invalid") as making:
        put(scratch, "a", gz(tar(x=b"x")), "first")
        making.feed(gz(tar(x=b"x")))
        making.keep(making.finish(), "second")
    kept = scratch.find("a")
    assert kept is not None
    assert "first" == kept.note
    assert 1 == len(list((tmp_path / "scratch").iterdir()))
    scratch.close()
    assert not (tmp_path / "scratch").exists()


def test_the_oldest_makes_room_and_what_is_pinned_stays(tmp_path: Path) -> None:
    data = [tar(**{name: name.encode() * 300}) for name in "abc"]
    scratch: Scratch[str] = Scratch(tmp_path / "scratch", limit=250)
    for name, content in zip("ab", data, strict=False):
        put(scratch, name, content)
    assert scratch.pin("b") is not None
    put(scratch, "c", data[2])
    assert [None, True, True] == [scratch.find(name) and True for name in "abc"]
    with pytest.raises(NotFound):
        scratch.open("a", 0)
    scratch.unpin(["b"])
    put(scratch, "a", data[0])
    assert [True, None] == [scratch.find(name) and True for name in "ab"]


def test_nothing_is_kept_of_what_was_given_up(tmp_path: Path) -> None:
    scratch: Scratch[str] = Scratch(tmp_path / "scratch")
    with scratch.writing("a", what="a", code="v1_invalid") as making:
        making.feed(b"x")
    with pytest.raises(Refused), scratch.writing("a", what="a", code="v1_invalid") as making:
        making.feed(b"x" * 1000)
        making.finish()
    assert scratch.find("a") is None
    assert [] == list((tmp_path / "scratch").iterdir())


def test_a_file_that_somebody_took_or_cut_is_an_error(tmp_path: Path) -> None:
    scratch: Scratch[str] = Scratch(tmp_path / "scratch")
    put(scratch, "a", gz(tar(x=b"x")))
    (file,) = (tmp_path / "scratch").iterdir()
    file.write_bytes(b"x")
    with pytest.raises(LocalError), scratch.open("a", 1) as reader:
        reader.readinto(memoryview(bytearray(10)))
    file.unlink()
    with pytest.raises(NotFound):
        scratch.open("a", 0)


def test_what_is_only_measured_is_known_and_written_nowhere(tmp_path: Path) -> None:
    written, measured = Scratch[str](tmp_path / "scratch"), Measure[str]()
    for scratch in (written, measured):
        put(scratch, "a", tar(x=b"x"), "note")
        with scratch.writing("b", what="b", code="v1_invalid") as making:
            making.feed(b"given up")
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


def test_cookies_are_of_one_origin() -> None:
    jar = Cookies()
    assert jar.header(HERE) is None
    jar.note(HERE, ["session=abc; Path=/; HttpOnly", 'other="x y"', "=none", "no cookie", "big=" + "x" * 5000])
    jar.note(HERE, ["third=1", "third=2"])
    assert ("session=abc; third=2", None) == (jar.header(HERE), jar.header(THERE))
    jar.note(HERE, ["session=gone; Max-Age=0", "third=; max-age=-1"])
    assert jar.header(HERE) is None
    jar.note(HERE, [f"c{number}=1" for number in range(100)])
    assert 50 == len((jar.header(HERE) or "").split("; "))
    assert "Cookies()" == repr(jar)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([], False),
        (["registry/2.0"], True),
        (["Registry/2.0"], True),
        (["other/1.0  registry/2.0"], True),
        (["other/1.0", "registry/2.0"], True),
        (["registry/2.1", "registry", "registry/2.0x", "/2.0"], False),
    ],
)
def test_the_version_of_the_api_is_one_word_of_several(values: list[str], says: bool) -> None:
    assert says == says_v2(values)


def test_an_endpoint_is_the_index_itself_or_listed_by_the_operator() -> None:
    trust = Trust(HostSettings("old.example.com", token_realms=frozenset({"images.example.com"})))
    assert trust.api == trust.endpoint("old.example.com").origin == trust.endpoint("OLD.example.com:443").origin
    assert set() == trust.endpoints
    found = trust.endpoint("images.example.com")
    assert {found.origin} == trust.endpoints
    assert (True, "https") == (found.credentials, found.origin.scheme)
    for host in ("other.example.com", "images.example.com:80", "http://images.example.com", "a b", ""):
        with pytest.raises(Refused) as caught:
            trust.endpoint(host)
        assert "unsafe_location" == caught.value.code
        assert "token-realms" not in str(caught.value)
    assert {found.origin} == trust.endpoints
