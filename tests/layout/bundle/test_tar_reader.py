"""Hostile and broken tars are refused with the right error code, and no file is written."""

from __future__ import annotations

import gzip
import io
import random
import resource
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirror.errors import MirrorError, Refused
from mirror.layout.bundle.input import FileInput
from mirror.layout.bundle.tar_reader import MAX_IGNORED, Member, members
from mirror.layout.bundle.tar_writer import BLOCK, END, TarMap, header, padding
from mirror.layout.bundle.verify import verify_bundle
from mirror.layout.examination import VerificationResult
from mirror.util.cancellation import Stop, Work
from tests.support.bundles import export, opened, stock, work

HEX = "a" * 64
BLOB = f"blobs/sha256/{HEX}"
LAYOUT = b'{"imageLayoutVersion": "1.0.0"}'
INDEX = b'{"schemaVersion": 2, "manifests": []}'


def member(name: str, data: bytes = b"") -> bytes:
    return header(name, len(data)) + data + bytes(padding(len(data)))


def odd(name: str | bytes, kind: bytes = b"0", data: bytes = b"", **fields: bytes) -> bytes:
    """Return a member with any name and type. fields: replace those of the header."""
    block = bytearray(header("name", len(data)))
    raw = name.encode() if isinstance(name, str) else name
    places = {"size": (124, 12), "link": (157, 100), "magic": (257, 8), "prefix": (345, 155), "mode": (100, 8)}
    block[:100] = raw[:100].ljust(100, b"\0")
    block[156:157] = kind
    for field, value in fields.items():
        place, length = places[field]
        block[place : place + length] = value.ljust(length, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + bytes(padding(len(data)))


def pax(*records: tuple[str, str], kind: bytes = b"x") -> bytes:
    data = b""
    for key, value in records:
        rest = f" {key}={value}\n".encode()
        length = len(rest) + len(str(len(rest) + len(str(len(rest)))))
        data += str(length).encode() + rest
    return odd("pax", kind, data)


HEAD = member("oci-layout", LAYOUT) + member("index.json", INDEX)

CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "bundle_incomplete"),
    "one block less a byte": (bytes(511), "bundle_incomplete"),
    "random bytes": (random.Random(1).randbytes(4096), "bundle_invalid"),
    "only zeros": (bytes(4096), "bundle_invalid"),
    "gzip": (gzip.compress(HEAD + END) + bytes(512), "bundle_invalid"),
    "no layout": (member("index.json", INDEX) + END, "bundle_invalid"),
    "no index": (member("oci-layout", LAYOUT) + END, "bundle_invalid"),
    "docker save": (member("manifest.json", b"[]") + member("repositories", b"{}") + END, "bundle_invalid"),
    "layout of another version": (
        member("oci-layout", b'{"imageLayoutVersion": "2.0.0"}') + member("index.json", INDEX) + END,
        "bundle_invalid",
    ),
    "version is a number": (
        member("oci-layout", b'{"imageLayoutVersion": 1}') + member("index.json", INDEX) + END,
        "bundle_invalid",
    ),
    "index is an image": (
        member("oci-layout", LAYOUT) + member("index.json", b'{"schemaVersion": 2, "layers": []}') + END,
        "bundle_invalid",
    ),
    "index with a key twice": (
        member("oci-layout", LAYOUT) + member("index.json", b'{"schemaVersion":2,"manifests":[],"manifests":[]}') + END,
        "bundle_invalid",
    ),
    "no end": (HEAD, "bundle_incomplete"),
    "half an end": (HEAD + bytes(512), "bundle_incomplete"),
    "cut in a header": (HEAD + member(BLOB, b"x")[:100], "bundle_incomplete"),
    "cut in data": (HEAD + member(BLOB, bytes(2000))[:1500], "bundle_incomplete"),
    "cut in padding": (HEAD + member(BLOB, b"data")[:600], "bundle_incomplete"),
    "more after the end": (HEAD + END + member(BLOB, b"x"), "bundle_invalid"),
    "odd length after the end": (HEAD + END + b"\0", "bundle_incomplete"),
    "zeros for ever after the end": (HEAD + END + bytes(2 << 20), "bundle_invalid"),
    "a block of zeros between": (HEAD + bytes(512) + member(BLOB, b"x") + END, "bundle_invalid"),
    "padding with something in it": (HEAD + member(BLOB, b"x")[:-1] + b"!" + END, "bundle_invalid"),
    "checksum": (HEAD + member(BLOB, b"x").replace(b"a", b"b", 1) + END, "bundle_invalid"),
    "size is no number": (HEAD + odd(BLOB, size=b"0000000abc ") + END, "bundle_invalid"),
    "size is negative": (HEAD + odd(BLOB, size=b"\xff" * 12) + END, "bundle_invalid"),
    "size of 2^63": (HEAD + odd(BLOB, size=b"\x80" + (1 << 63).to_bytes(11)) + END, "bundle_invalid"),
    "size of 2^40": (HEAD + odd(BLOB, size=b"\x80" + (1 << 40).to_bytes(11)) + END, "bundle_incomplete"),
    "no ustar": (HEAD + odd(BLOB, magic=b"") + END, "bundle_invalid"),
    "up": (HEAD + member("../x", b"x") + END, "unsafe_path"),
    "absolute": (HEAD + member("/etc/passwd", b"x") + END, "unsafe_path"),
    "up within": (HEAD + member("blobs/sha256/../../x", b"x") + END, "unsafe_path"),
    "dots": (HEAD + member(f"./././{BLOB}", b"x") + END, "unsafe_path"),
    "drive": (HEAD + member("C:\\x", b"x") + END, "unsafe_path"),
    "share": (HEAD + member("\\\\srv\\x", b"x") + END, "unsafe_path"),
    "newline": (HEAD + member("x\ny", b"x") + END, "unsafe_path"),
    "no name": (HEAD + member("", b"x") + END, "unsafe_path"),
    "prefix leads up": (HEAD + odd(BLOB, prefix=b"..") + END, "unsafe_path"),
    "long name of 5 KiB": (HEAD + odd("././@LongLink", b"L", b"x" * 5000) + odd("x") + END, "unsafe_path"),
    "long name that leads up": (HEAD + odd("././@LongLink", b"L", b"../../x\0") + odd(BLOB) + END, "unsafe_path"),
    "symbolic link": (HEAD + odd(BLOB, b"2", link=b"/etc/passwd") + END, "unsafe_link_member"),
    "link to a directory": (
        HEAD + odd("blobs", b"2", link=b"/tmp") + member(BLOB, b"x") + END,
        "unsafe_link_member",
    ),
    "hard link": (HEAD + odd(BLOB, b"1", link=b"index.json") + END, "unsafe_link_member"),
    "character device": (HEAD + odd(BLOB, b"3") + END, "unsafe_link_member"),
    "block device": (HEAD + odd(BLOB, b"4") + END, "unsafe_link_member"),
    "fifo": (HEAD + odd(BLOB, b"6") + END, "unsafe_link_member"),
    "contiguous": (HEAD + odd(BLOB, b"7", b"x") + END, "unsafe_link_member"),
    "sparse": (HEAD + odd(BLOB, b"S", b"x") + END, "unsafe_link_member"),
    "directory dump": (HEAD + odd("blobs", b"D") + END, "unsafe_link_member"),
    "volume": (HEAD + odd("blobs", b"V") + END, "unsafe_link_member"),
    "continued": (HEAD + odd(BLOB, b"M", b"x") + END, "unsafe_link_member"),
    "long link": (HEAD + odd("././@LongLink", b"K", b"x") + odd(BLOB) + END, "unsafe_link_member"),
    "sparse by pax": (
        HEAD + pax(("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "999")) + odd(BLOB, data=b"x") + END,
        "unsafe_link_member",
    ),
    "unknown type": (HEAD + odd(BLOB, b"Z") + END, "bundle_invalid"),
    "directory with data": (HEAD + odd("blobs/", b"5", b"x") + END, "bundle_invalid"),
    "pax path leads up": (HEAD + pax(("path", "../../etc/x")) + odd(BLOB) + END, "unsafe_path"),
    "pax path is absolute": (HEAD + pax(("path", "/etc/x")) + odd(BLOB) + END, "unsafe_path"),
    "pax size hides a member": (HEAD + pax(("size", "1024")) + odd(BLOB) + bytes(1024) + END, "bundle_invalid"),
    "pax size of another number": (HEAD + pax(("size", "2")) + odd(BLOB, data=b"x") + END, "bundle_invalid"),
    "pax size is negative": (HEAD + pax(("size", "-1")) + odd(BLOB) + END, "bundle_invalid"),
    "pax for all": (HEAD + pax(("path", BLOB), kind=b"g") + odd("x") + END, "bundle_invalid"),
    "pax twice for one": (HEAD + pax(("a", "b")) + pax(("a", "b")) + odd(BLOB) + END, "bundle_invalid"),
    "pax and long name": (HEAD + pax(("a", "b")) + odd("L", b"L", b"x") + odd(BLOB) + END, "bundle_invalid"),
    "pax with a key twice": (HEAD + pax(("path", BLOB), ("path", "x")) + odd(BLOB) + END, "bundle_invalid"),
    "pax cut": (HEAD + odd("pax", b"x", b"99 path=x\n") + odd(BLOB) + END, "bundle_invalid"),
    "pax length of zero": (HEAD + odd("pax", b"x", b"0 path=x\n") + odd(BLOB) + END, "bundle_invalid"),
    "pax of nothing": (HEAD + pax(("path", BLOB)) + END, "bundle_invalid"),
    "pax of 1 GiB": (HEAD + odd("pax", b"x", size=b"%011o" % (1 << 30)) + END, "bundle_invalid"),
    "long name of 1 GiB": (HEAD + odd("L", b"L", size=b"%011o" % (1 << 30)) + END, "bundle_invalid"),
    "a blob twice": (HEAD + member(BLOB, b"x") * 2 + END, "bundle_invalid"),
    "a blob twice, once with a dot": (HEAD + member(BLOB, b"x") + member(f"./{BLOB}", b"y") + END, "bundle_invalid"),
    "index twice": (HEAD + member("index.json", INDEX) + END, "bundle_invalid"),
    "inventory of the future": (
        member("mirror-inventory.json", b'{"inventory": 2}') + HEAD + END,
        "bundle_invalid",
    ),
    "inventory of something else": (member("mirror-inventory.json", b"[1]") + HEAD + END, "bundle_invalid"),
    "inventory of another index": (
        member("mirror-inventory.json", b'{"inventory":1,"repositories":{},"manifests":{},"blobs":{}}') + HEAD + END,
        "bundle_invalid",
    ),
}


def tree(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(one.relative_to(folder)), one.lstat().st_size) for one in folder.rglob("*"))


@pytest.mark.parametrize("case", CASES)
def test_an_invalid_bundle_is_refused_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    data, code = CASES[case]
    path = tmp_path / "hostile.tar"
    path.write_bytes(data)
    before = tree(tmp_path)
    bundle = opened(path)
    with pytest.raises(Refused) as caught:
        bundle.tags("app", work())
    assert code == caught.value.code, str(caught.value)
    bundle.close()
    assert verify_bundle(path, Work(Stop())).problems
    assert before == tree(tmp_path)


def read(data: bytes, tmp_path: Path) -> list[Member]:
    path = tmp_path / "read.tar"
    path.write_bytes(data)
    with path.open("rb") as file:
        return list(members(FileInput(file.fileno(), "tar")))


def test_the_error_for_a_zip_file_names_its_format(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bundle.tar", "w") as archive:
        archive.writestr("index.json", "x" * 2000)
    with pytest.raises(Refused, match="zip"):
        opened(tmp_path / "bundle.tar").tags("app", work())


HARMLESS: dict[str, bytes] = {
    "directories": odd("./", b"5") + odd("blobs", b"5") + odd("blobs/sha256/", b"5"),
    "files of docker and of others": member("manifest.json", b"[]") + member("a/.DS_Store", b"x"),
    "owner, mode and time of any kind": odd("x", mode=b"0006777\0"),
    "a comment for all": pax(("comment", "HEAD"), kind=b"g"),
    "attributes": pax(("mtime", "1.5"), ("SCHILY.xattr.user.x", "y")) + odd("x"),
    "a pax size that says the same": pax(("size", "1")) + odd("x", data=b"x"),
    "a GNU header": odd("x", magic=b"ustar  \0"),
    "trailing records": b"",
}


@pytest.mark.parametrize("case", HARMLESS)
def test_members_that_other_tools_add_are_ignored(case: str, tmp_path: Path) -> None:
    data = HARMLESS[case] + HEAD + member(f"./{BLOB}", b"data") + END + bytes(8192)
    found = read(data, tmp_path)
    assert ["oci-layout", "index.json", BLOB] == [one.name for one in found]
    assert b"data" == data[found[-1].offset :][: found[-1].size]


def test_the_number_of_ignored_members_is_limited(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        read(member("x") * (MAX_IGNORED + 1) + END, tmp_path)
    assert "too_many" == caught.value.code


def test_a_large_extension_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.tar"
    with path.open("wb") as file:
        file.write(HEAD + odd("pax", b"x", size=b"%011o" % (1 << 30)))
        file.truncate(1 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Refused), path.open("rb") as file:
        list(members(FileInput(file.fileno(), "tar")))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10  # KiB


def test_tarfile_reads_the_headers_of_any_size_and_name() -> None:
    sizes = {
        f"blobs/sha256/{'0' * 64}": 0,
        f"blobs/sha256/{'1' * 64}": 1,
        f"blobs/sha256/{'2' * 64}": 512,
        f"blobs/sha512/{'3' * 128}": 513,
        f"blobs/sha256/{'4' * 64}": (8 << 30) - 1,
        f"blobs/sha256/{'5' * 64}": 8 << 30,
        f"blobs/sha256/{'6' * 64}": 20 << 30,
    }
    plan = TarMap(sizes.items())
    with Sparse(dict(plan.fixed_parts({})), plan.total) as file, tarfile.open(fileobj=file) as tar:
        found = {one.name: (one.size, one.offset_data) for one in tar}
    assert {name: (size, plan.positions[name].offset) for name, size in sizes.items()} == found
    with Sparse(dict(plan.fixed_parts({})), plan.total) as file:
        ours = {one.name: (one.size, one.offset) for one in members(Seeking(file))}
    assert found == ours


class Sparse(io.RawIOBase):
    """A file of zeros with a few pieces of data, of any size."""

    def __init__(self, fixed_parts: dict[int, bytes], total: int) -> None:
        self._pieces, self._total, self._place = fixed_parts, total, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = offset + (0, self._place, self._total)[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._total - self._place))
        data = bytearray(count)
        for start, piece in self._pieces.items():
            low, high = max(start, self._place), min(start + len(piece), self._place + count)
            if low < high:
                data[low - self._place : high - self._place] = piece[low - start : high - start]
        buffer[:count] = data
        self._place += count
        return count


class Seeking:
    """An Input over a file object."""

    what = "tar"

    def __init__(self, file: Sparse) -> None:
        self._file = file

    @property
    def position(self) -> int:
        return self._file.tell()

    @position.setter
    def position(self, place: int) -> None:
        self._file.seek(place)

    def read(self, count: int) -> bytes:
        return self._file.read(count) or b""

    def skip(self, count: int) -> None:
        self._file.seek(count, 1)


# ---- damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "bundle.tar"
    export(path, stock(), team_web=stock("web"))
    return path.read_bytes()


@pytest.fixture
def examined(tmp_path: Path) -> Iterator[Callable[[bytes], VerificationResult]]:
    def run(data: bytes) -> VerificationResult:
        path = tmp_path / "bundle.tar"
        path.write_bytes(data)
        return verify_bundle(path, Work(Stop()))

    yield run


def test_a_complete_bundle_passes_verification(whole: bytes, examined: Callable[[bytes], VerificationResult]) -> None:
    found = examined(whole)
    assert [] == found.problems
    assert list(found.lines())[-1].endswith("bytes")
    assert found.identity in next(found.lines())
    assert 0 == found.unreferenced


def test_every_changed_byte_is_detected(whole: bytes, examined: Callable[[bytes], VerificationResult]) -> None:
    chance = random.Random("flips")
    places = sorted(chance.sample(range(len(whole)), 200))
    unseen = []
    for place in places:
        data = bytearray(whole)
        data[place] ^= chance.randrange(1, 256)
        if not examined(bytes(data)).problems:
            unseen.append(place)
    assert [] == unseen


def test_every_changed_byte_outside_of_blobs_is_detected(
    whole: bytes, examined: Callable[[bytes], VerificationResult]
) -> None:
    """Headers, inventory, index, padding and the end have no digest of their own."""
    chance = random.Random("rest")
    places = [*chance.sample(range(30_000), 200), *range(len(whole) - 1024, len(whole), 37)]
    places += range(148, 156)  # the checksum of a header
    unseen = []
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << chance.randrange(8)
        if not examined(bytes(data)).problems:
            unseen.append(place)
    assert [] == unseen


def test_every_truncation_is_detected(whole: bytes, examined: Callable[[bytes], VerificationResult]) -> None:
    chance = random.Random("cuts")
    cuts = [*chance.sample(range(len(whole)), 44), 0, 511, len(whole) - 1, len(whole) - 512, len(whole) - 1024]
    cuts.append(whole.index(b"blobs/"))  # between two members
    assert [] == [cut for cut in cuts if not examined(whole[:cut]).problems]


def test_missing_manifests_and_blobs_are_named(whole: bytes, tmp_path: Path) -> None:
    first, second = tmp_path / "first.tar", tmp_path / "second.tar"
    first.write_bytes(whole)
    gone = max(stock().blobs, key=lambda digest: len(stock().blobs[digest]))
    with tarfile.open(first) as old, tarfile.open(second, "w", format=tarfile.PAX_FORMAT) as new:
        for one in old:
            if gone[7:] not in one.name:
                new.addfile(one, old.extractfile(one))
    found = verify_bundle(second, Work(Stop()))
    assert [f"{gone} is missing"] == [problem.text for problem in found.problems]
    assert "incomplete" in list(found.lines())[-1]
    assert "damaged" not in list(found.lines())[-1]
    bundle = opened(second)
    list(bundle.tags("app", work()))
    assert bundle.partial
    bundle.close()


def test_a_bundle_repacked_by_tar_passes_verification(whole: bytes, tmp_path: Path) -> None:
    first, second = tmp_path / "first.tar", tmp_path / "second.tar"
    first.write_bytes(whole)
    with tarfile.open(first) as old, tarfile.open(second, "w", format=tarfile.GNU_FORMAT) as new:
        for one in reversed(old.getmembers()):
            one.mtime, one.uname = 1_700_000_000, "somebody"
            new.addfile(one, old.extractfile(one))
    assert [] == verify_bundle(second, Work(Stop())).problems
    bundle = opened(second)
    assert sorted(stock().tags) == sorted(map(str, bundle.tags("app", work())))
    bundle.close()


def test_many_empty_members_are_read_quickly(tmp_path: Path) -> None:
    """A smaller version of the limit: 1,000,000 members within 30 seconds."""
    names = b"".join(member(f"blobs/sha256/{number:064x}") for number in range(20_000))
    started = time.thread_time()
    assert 20_002 == len(read(HEAD + names + END, tmp_path))
    assert time.thread_time() - started < 5


@pytest.mark.parametrize("seed", range(60))
def test_arbitrary_bytes_raise_only_refused(seed: int, whole: bytes, tmp_path: Path) -> None:
    chance = random.Random(seed)
    data = bytearray(whole[: 40 * BLOCK])
    for _ in range(chance.randrange(1, 40)):
        place = chance.randrange(len(data))
        data[place : place + chance.randrange(4)] = chance.randbytes(chance.randrange(6))
    path = tmp_path / "fuzz.tar"
    path.write_bytes(data)
    assert verify_bundle(path, Work(Stop())).problems
    bundle = opened(path)
    with pytest.raises(MirrorError):
        bundle.tags("app", work())
    bundle.close()
