"""A strict reader of the tars that bundles are: it believes nothing and writes nothing.

It takes regular files and directories with the names of an OCI layout. Other regular files with harmless names are
passed over; links, devices, sparse files, names that lead out, a member that is there twice and anything on which
two readers could differ are refused. Formats: POSIX ustar and pax, GNU long names. Limits: threats-and-faults §0.4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NoReturn, Protocol

from mirror.errors import Refused, printable
from mirror.layout.bundle.tar_writer import BLOCK, padding
from mirror.util.structs import Struct

MAX_MEMBERS = 1_000_000
MAX_NAME = 4 << 10  # bytes
MAX_EXTENSION = 64 << 10  # bytes of a pax header or of a GNU long name
MAX_PASSED_OVER = 10_000  # members that are none of ours
MAX_TRAILER = 1 << 20  # bytes of zeros after the end: tars are filled up to whole records
CHUNK = 1 << 20  # bytes read at a time

_OURS = re.compile(r"mirror-inventory\.json|oci-layout|index\.json|blobs/(?:sha256/[0-9a-f]{64}|sha512/[0-9a-f]{128})")
_DIRECTORIES = re.compile(r"\.?/?|blobs/?|blobs/sha(?:256|512)/?")
_HARMLESS = re.compile(r"[^/\\\x00-\x1f\x7f:]+(?:/[^/\\\x00-\x1f\x7f:]+)*/?")
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
_CHECKSUM = re.compile(rb"([0-7]{6})\0 ")
_RECORD = re.compile(rb"([1-9][0-9]{0,5}) ([^=]+)=")
_LARGE = 8 << 30  # a size below has no reason to be in a pax record
_LINKS = {b"1": "hard link", b"2": "symbolic link", b"K": "long link", b"L": ""}
_DEVICES = {b"3": "character device", b"4": "block device", b"6": "fifo", b"7": "contiguous file"}
_ODD = {b"S": "sparse file", b"D": "directory dump", b"M": "part of a volume", b"N": "old long name", b"V": "volume"}

# What people give us that is no tar.
_MAGICS = (
    (
        b"\x1f\x8b",
        "compressed with gzip",
        "unpack it with gunzip, or pipe it: gunzip -c FILE | mirror sync ... with `-`",
    ),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it with unzstd first"),
    (b"\xfd7zXZ\0", "compressed with xz", "unpack it with unxz first"),
    (b"BZh", "compressed with bzip2", "unpack it with bunzip2 first"),
    (b"PK", "a zip file", "a bundle is a tar"),
)


class Input(Protocol):
    """Bytes from the beginning to the end; where a file can be sought in, `skip` reads nothing."""

    what: str  # for messages
    position: int  # bytes taken so far

    def take(self, count: int) -> bytes:
        """The next `count` bytes; fewer only at the end."""
        ...

    def skip(self, count: int) -> None:
        """Pass over `count` bytes. Raises Refused (bundle_incomplete) where there are not so many."""
        ...


class Member(Struct, frozen=True):
    """A member that is ours. name: as in a layout, without `./`; offset: of its data, from the beginning."""

    name: str
    offset: int
    size: int


def members(source: Input) -> Iterator[Member]:
    """The members that are ours. After each the caller may take (or skip) exactly its `size` bytes, or none.

    Raises Refused: bundle_invalid, bundle_incomplete, unsafe_path, unsafe_link_member, too_many."""
    return _Reader(source).members()


class _Reader:
    def __init__(self, source: Input) -> None:
        self._source = source
        self._seen: set[str] = set()
        self._headers = 0
        self._passed_over = 0
        self._name: str | None = None  # by an extension header, for the next member
        self._size: int | None = None
        self._extended = False

    def members(self) -> Iterator[Member]:
        source = self._source
        while (block := self._header()) is not None:
            kind, size = block[156:157], _size(block, source.what)
            if kind in (b"x", b"g", b"L"):
                self._extend(kind, size)
                continue
            name = self._take_name(block)
            size = self._take_size(size)
            if self._is_ours(kind, name, size):
                member = Member(name, source.position, size)
                yield member
                self._leave(member)
            else:
                source.skip(size)
                self._pad(size)
        if self._extended:
            self._refuse("it ends after a header that belongs to a member")
        self._end()

    # ---- one header

    def _header(self) -> bytes | None:
        """The next header block; None at the end."""
        start = self._source.position
        block = self._block()
        if not any(block):
            if start == 0:
                self._refuse("there is nothing in it")
            if any(self._block()):
                self._refuse(f"a block of zeros at byte {start} is followed by more")
            return None
        self._headers += 1
        if self._headers > MAX_MEMBERS:
            raise Refused(f"{self._source.what}: more than {MAX_MEMBERS} members", code="too_many")
        if start == 0:
            _is_no_tar(block, self._source.what)
        checksum = _CHECKSUM.fullmatch(block[148:156])
        if checksum is None or int(checksum[1], 8) != sum(block) - sum(block[148:156]) + 8 * 32:
            self._refuse("not a tar" if start == 0 else f"the header at byte {start} is damaged")
        if block[257:265] not in (b"ustar\00000", b"ustar  \0"):
            self._refuse("not a tar of today (no ustar in its header)")
        return block

    def _block(self) -> bytes:
        block = self._source.take(BLOCK)
        if len(block) < BLOCK:
            if not self._source.position:
                raise Refused(f"{self._source.what} is empty", code="bundle_incomplete")
            raise self._cut()
        return block

    def _cut(self) -> Refused:
        return incomplete(self._source.what, f"it ends at byte {self._source.position}, before the end of the tar")

    def _is_ours(self, kind: bytes, name: str, size: int) -> bool:
        """Raises Refused unless it is a file or directory that can do no harm."""
        where = f"member {printable(name, 120)!r}"
        if kind in _LINKS or kind in _DEVICES or kind in _ODD:
            word = {**_LINKS, **_DEVICES, **_ODD}[kind]
            raise Refused(
                f"{self._source.what}: {where} is a {word}",
                hint="a bundle has files only; nothing of it was used",
                code="unsafe_link_member",
            )
        if kind == b"5":
            if size or not (_DIRECTORIES.fullmatch(name) or self._is_harmless(name, where)):
                self._refuse(f"{where} is a directory of {size} bytes")
            return False
        if kind not in (b"0", b"\0"):
            self._refuse(f"{where} is of the unknown type {printable(kind.decode('latin-1'), 8)!r}")
        if not _OURS.fullmatch(name):
            return not self._is_harmless(name, where)
        if name in self._seen:
            self._refuse(f"{where} is there twice")
        self._seen.add(name)
        return True

    def _is_harmless(self, name: str, where: str) -> bool:
        """Something that others put beside a layout, such as manifest.json. Raises Refused (unsafe_path, too_many)."""
        if not _HARMLESS.fullmatch(name) or {".", ".."} & set(name.split("/")):
            raise Refused(f"{self._source.what}: {where} leads out of the bundle", code="unsafe_path")
        self._passed_over += 1
        if self._passed_over > MAX_PASSED_OVER:
            raise Refused(f"{self._source.what}: more than {MAX_PASSED_OVER} foreign members", code="too_many")
        return True

    def _take_name(self, block: bytes) -> str:
        if self._name is None:
            raw = block[:100].partition(b"\0")[0]
            prefix = block[345:500].partition(b"\0")[0] if block[257:265] == b"ustar\00000" else b""
            name = _text(prefix + b"/" + raw if prefix else raw)
        else:
            name, self._name = self._name, None
        self._extended = False
        if not name or len(name) > MAX_NAME:
            raise Refused(f"{self._source.what}: a member has a name of {len(name)} bytes", code="unsafe_path")
        return name.removeprefix("./") or "."

    def _take_size(self, size: int) -> int:
        """A size in a pax record counts only where the header has no room for it: else readers could differ."""
        extended, self._size = self._size, None
        if extended is None or extended == size:
            return size
        if size or extended < _LARGE:
            self._refuse(f"a member has two sizes, {size} and {extended}")
        return extended

    # ---- headers that say something of the next one

    def _extend(self, kind: bytes, size: int) -> None:
        if size > MAX_EXTENSION:
            self._refuse(f"a header of {size} bytes, more than {MAX_EXTENSION}")
        if kind != b"g" and self._extended:
            self._refuse("two headers for one member")
        data = self._source.take(size)
        if len(data) < size:
            raise self._cut()
        self._pad(size)
        if kind == b"L":
            self._name = _text(data.removesuffix(b"\0"))
            self._extended = True
            return
        records = dict(self._records(data))
        if kind == b"g":
            if records.keys() & {"path", "size", "linkpath"}:
                self._refuse("a header gives all members one name or size")
            return
        self._extended = True
        if any(key.startswith("GNU.sparse.") for key in records):
            raise Refused(f"{self._source.what}: a member is a sparse file", code="unsafe_link_member")
        if "path" in records:
            self._name = _text(records["path"])
        if "size" in records:
            text = records["size"]
            if not text.isdigit() or len(text) > 18:
                self._refuse(f"the size {printable(_text(text), 40)!r} is no number")
            self._size = int(text)

    def _records(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """pax records: `LENGTH key=value\\n`; each key once."""
        keys: set[str] = set()
        while data:
            found = _RECORD.match(data)
            length = int(found[1]) if found else 0
            if found is None or not found.end() < length <= len(data) or data[length - 1 : length] != b"\n":
                self._refuse("a pax header is damaged")
            key = _text(found[2])
            if key in keys:
                self._refuse(f"a pax header has {printable(key, 40)!r} twice")
            keys.add(key)
            yield key, data[found.end() : length - 1]
            data = data[length:]

    # ---- what is between members, and at the end

    def _leave(self, member: Member) -> None:
        taken = self._source.position - member.offset
        if taken == 0:
            self._source.skip(member.size)
        self._pad(member.size)

    def _pad(self, size: int) -> None:
        count = padding(size)
        if not count:
            return
        zeros = self._source.take(count)
        if len(zeros) < count:
            raise self._cut()
        if any(zeros):
            self._refuse(f"there is something between two members, before byte {self._source.position}")

    def _end(self) -> None:
        """Nothing but zeros may follow."""
        end = self._source.position
        while data := self._source.take(64 << 10):
            if any(data):
                self._refuse(f"there is more after its end at byte {end}")
            if self._source.position - end > MAX_TRAILER:
                self._refuse(f"more than {MAX_TRAILER} bytes follow its end at byte {end}")
        if self._source.position % BLOCK:
            raise self._cut()

    def _refuse(self, why: str) -> NoReturn:
        raise invalid(self._source.what, why)


def invalid(what: str, why: str, *, hint: str = "") -> Refused:
    return Refused(f"{what}: {why}", hint=hint, code="bundle_invalid")


def incomplete(what: str, why: str) -> Refused:
    return Refused(
        f"{what}: {why}", hint="it was cut off, or a volume is missing: bring it over again", code="bundle_incomplete"
    )


def _text(raw: bytes) -> str:
    return raw.decode("latin-1")


def _size(block: bytes, what: str) -> int:
    raw = block[124:136]
    if raw[0] == 0x80:
        size = int.from_bytes(raw[1:])
    else:
        found = _OCTAL.fullmatch(raw)
        if found is None:
            raise invalid(what, "the size of a member is no number")
        size = int(found[1], 8)
    if size >= 1 << 62:
        raise invalid(what, f"a member of {size} bytes")
    return size


def _is_no_tar(block: bytes, what: str) -> None:
    for magic, name, hint in _MAGICS:
        if block.startswith(magic):
            raise invalid(what, f"not a tar: it is {name}", hint=hint)
