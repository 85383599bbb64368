"""A strict reader for the tar archive of a bundle. It treats the archive as untrusted, and writes no files.

It returns the files of an OCI layout. Other regular files with harmless names are skipped. Everything else is refused:
links, devices, sparse files, names outside the directory, duplicate members, and anything that two tar readers could
read differently. Formats: POSIX ustar and pax, GNU long names. Limits: docs/limits.md, "Layouts and bundles".
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
MAX_EXTENSION = 64 << 10  # bytes of a pax header or GNU long name
MAX_IGNORED = 10_000  # maximum number of members that are not part of a layout
MAX_TRAILER = 1 << 20  # bytes of zeros after the end: tar pads the file to whole records

_BUNDLE_NAMES = re.compile(
    r"mirror-inventory\.json|oci-layout|index\.json|blobs/(?:sha256/[0-9a-f]{64}|sha512/[0-9a-f]{128})"
)
_DIRECTORIES = re.compile(r"\.?/?|blobs/?|blobs/sha(?:256|512)/?")
_HARMLESS = re.compile(r"[^/\\\x00-\x1f\x7f:]+(?:/[^/\\\x00-\x1f\x7f:]+)*/?")
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
_CHECKSUM = re.compile(rb"([0-7]{6})\0 ")
_RECORD = re.compile(rb"([1-9][0-9]{0,5}) ([^=]+)=")
_MIN_PAX_SIZE = 8 << 30  # smaller sizes fit into the ustar header, so they need no pax record
_LINKS = {b"1": "hard link", b"2": "symbolic link", b"K": "long link", b"L": ""}
_DEVICES = {b"3": "character device", b"4": "block device", b"6": "FIFO", b"7": "contiguous file"}
_UNSUPPORTED = {
    b"S": "sparse file",
    b"D": "directory listing",
    b"M": "continuation of a file from another volume",
    b"N": "long name in an obsolete format",
    b"V": "volume label",
}

# Files that users mistake for a bundle.
_MAGICS = (
    (
        b"\x1f\x8b",
        "compressed with gzip",
        "decompress it with gunzip, or use `-` as the source and run: gunzip -c FILE | mirror sync ...",
    ),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "decompress it with unzstd first"),
    (b"\xfd7zXZ\0", "compressed with xz", "decompress it with unxz first"),
    (b"BZh", "compressed with bzip2", "decompress it with bunzip2 first"),
    (b"PK", "a zip file", "a bundle must be a tar file"),
)


class Input(Protocol):
    """The input of the tar reader: reads a tar sequentially. In a seekable file, `skip` reads no bytes."""

    what: str  # name for messages
    position: int  # number of bytes consumed

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes, or fewer at the end of the input."""
        ...

    def skip(self, count: int) -> None:
        """Skip `count` bytes. Raises Refused (bundle_incomplete) if fewer are left."""
        ...


class Member(Struct, frozen=True):
    """A member of a bundle's tar archive that is a file of the layout.

    name: without a leading `./`. offset: the start of its data, in bytes from the start of the tar. size: bytes."""

    name: str
    offset: int
    size: int


def members(source: Input) -> Iterator[Member]:
    """Read a tar, and iterate over the members that are files of a layout.

    Before the caller requests the next member, it must have read or skipped all `size` bytes of the current one, or
    none of them. Raises Refused (bundle_invalid, bundle_incomplete, unsafe_path, unsafe_link_member, too_many)."""
    return _TarReader(source).members()


class _TarReader:
    """Reads one tar, and keeps the names seen so far and the extension header for the next member."""

    def __init__(self, source: Input) -> None:
        self._source = source
        self._seen: set[str] = set()
        self._headers = 0
        self._ignored_members = 0
        self._name: str | None = None  # name and size from an extension header, for the next member
        self._size: int | None = None
        self._extended = False

    def members(self) -> Iterator[Member]:
        """Read the tar, and iterate over the members that are files of a layout (see the function `members`)."""
        source = self._source
        while (block := self._next_header()) is not None:
            kind, size = block[156:157], _size(block, source.what)
            if kind in (b"x", b"g", b"L"):
                self._read_extension(kind, size)
                continue
            name = self._pop_name(block)
            size = self._pop_size(size)
            if self._is_bundle_member(kind, name, size):
                member = Member(name, source.position, size)
                yield member
                self._finish_member(member)
            else:
                source.skip(size)
                self._read_padding(size)
        if self._extended:
            self._raise_invalid("no member follows the last extension header")
        self._read_trailer()

    # ---- one header

    def _next_header(self) -> bytes | None:
        """Read the next header block, check its checksum, and return it. Return None at the end of the tar."""
        start = self._source.position
        block = self._read_block()
        if not any(block):
            if start == 0:
                self._raise_invalid("the tar has no members")
            if any(self._read_block()):
                self._raise_invalid(f"expected two zero blocks at byte {start}, got one")
            return None
        self._headers += 1
        if self._headers > MAX_MEMBERS:
            raise Refused(f"{self._source.what}: more than {MAX_MEMBERS} members", code="too_many")
        if start == 0:
            _raise_if_known_format(block, self._source.what)
        checksum = _CHECKSUM.fullmatch(block[148:156])
        if checksum is None or int(checksum[1], 8) != sum(block) - sum(block[148:156]) + 8 * 32:
            self._raise_invalid("not a tar" if start == 0 else f"the header at byte {start} is damaged")
        if block[257:265] not in (b"ustar\00000", b"ustar  \0"):
            self._raise_invalid("obsolete tar format: a header does not contain `ustar`")
        return block

    def _read_block(self) -> bytes:
        """Read one block. Raises Refused (bundle_incomplete) at the end of the file."""
        block = self._source.read(BLOCK)
        if len(block) < BLOCK:
            if not self._source.position:
                raise Refused(f"{self._source.what} is empty", code="bundle_incomplete")
            raise self._truncation_error()
        return block

    def _truncation_error(self) -> Refused:
        """Return the error for a truncated tar."""
        return bundle_incomplete(
            self._source.what, f"truncated at byte {self._source.position}, before the end of the tar"
        )

    def _is_bundle_member(self, kind: bytes, name: str, size: int) -> bool:
        """Return whether the member is a file of the layout.

        If it is not, raise Refused unless the member can be skipped safely."""
        where = f"member {printable(name, 120)!r}"
        if kind in _LINKS or kind in _DEVICES or kind in _UNSUPPORTED:
            word = {**_LINKS, **_DEVICES, **_UNSUPPORTED}[kind]
            raise Refused(
                f"{self._source.what}: {where} is a {word}",
                hint="a bundle may contain only regular files; nothing was copied from this bundle",
                code="unsafe_link_member",
            )
        if kind == b"5":
            if size or not (_DIRECTORIES.fullmatch(name) or self._check_ignorable(name, where)):
                self._raise_invalid(f"{where} is a directory with {size} bytes of data")
            return False
        if kind not in (b"0", b"\0"):
            self._raise_invalid(f"{where} has the unknown type {printable(kind.decode('latin-1'), 8)!r}")
        if not _BUNDLE_NAMES.fullmatch(name):
            return not self._check_ignorable(name, where)
        if name in self._seen:
            self._raise_invalid(f"{where} occurs twice")
        self._seen.add(name)
        return True

    def _check_ignorable(self, name: str, where: str) -> bool:
        """Check that a member outside the layout can be skipped, and return True.

        Other tools add such members, for example manifest.json. Raises Refused (unsafe_path, too_many)."""
        if not _HARMLESS.fullmatch(name) or {".", ".."} & set(name.split("/")):
            raise Refused(f"{self._source.what}: the name of {where} is not a safe relative path", code="unsafe_path")
        self._ignored_members += 1
        if self._ignored_members > MAX_IGNORED:
            raise Refused(
                f"{self._source.what}: more than {MAX_IGNORED} members that are not part of a layout", code="too_many"
            )
        return True

    def _pop_name(self, block: bytes) -> str:
        """Return the name of the member: from the preceding extension header if it sets a name, otherwise from `block`.

        Raises Refused (unsafe_path)."""
        if self._name is None:
            raw = block[:100].partition(b"\0")[0]
            prefix = block[345:500].partition(b"\0")[0] if block[257:265] == b"ustar\00000" else b""
            name = _decode(prefix + b"/" + raw if prefix else raw)
        else:
            name, self._name = self._name, None
        self._extended = False
        if not name or len(name) > MAX_NAME:
            raise Refused(
                f"{self._source.what}: the name of a member has {len(name)} bytes, expected 1 to {MAX_NAME}",
                code="unsafe_path",
            )
        return name.removeprefix("./") or "."

    def _pop_size(self, size: int) -> int:
        """Return the size of the member in bytes: from the preceding pax record if it sets a size, otherwise `size`.

        A different size in a pax record is accepted only if `size` is 0 and the actual size does not fit into the
        header. Otherwise, two tar readers could disagree."""
        extended, self._size = self._size, None
        if extended is None or extended == size:
            return size
        if size or extended < _MIN_PAX_SIZE:
            self._raise_invalid(f"two headers of a member give different sizes, {size} and {extended} bytes")
        return extended

    # ---- extension headers

    def _read_extension(self, kind: bytes, size: int) -> None:
        """Read an extension header: a pax header (x, g) or a GNU long name (L)."""
        if size > MAX_EXTENSION:
            self._raise_invalid(f"an extension header has {size} bytes, but at most {MAX_EXTENSION} are allowed")
        if kind != b"g" and self._extended:
            self._raise_invalid("a member has two extension headers")
        data = self._source.read(size)
        if len(data) < size:
            raise self._truncation_error()
        self._read_padding(size)
        if kind == b"L":
            self._name = _decode(data.removesuffix(b"\0"))
            self._extended = True
            return
        records = dict(self._parse_pax_records(data))
        if kind == b"g":
            if records.keys() & {"path", "size", "linkpath"}:
                self._raise_invalid("a global pax header sets the name, size or link target of a member")
            return
        self._extended = True
        if any(key.startswith("GNU.sparse.") for key in records):
            raise Refused(f"{self._source.what}: a member is a sparse file", code="unsafe_link_member")
        if "path" in records:
            self._name = _decode(records["path"])
        if "size" in records:
            text = records["size"]
            if not text.isdigit() or len(text) > 18:
                self._raise_invalid(f"the size {printable(_decode(text), 40)!r} in a pax header is not a number")
            self._size = int(text)

    def _parse_pax_records(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        r"""Parse pax records of the form `LENGTH key=value\n`; each key may occur only once. Raises Refused."""
        keys: set[str] = set()
        while data:
            found = _RECORD.match(data)
            length = int(found[1]) if found else 0
            if found is None or not found.end() < length <= len(data) or data[length - 1 : length] != b"\n":
                self._raise_invalid("a pax header is damaged")
            key = _decode(found[2])
            if key in keys:
                self._raise_invalid(f"a pax header contains {printable(key, 40)!r} twice")
            keys.add(key)
            yield key, data[found.end() : length - 1]
            data = data[length:]

    # ---- padding and the end

    def _finish_member(self, member: Member) -> None:
        """Skip the data of a member unless the caller has read it, then read the padding."""
        consumed = self._source.position - member.offset
        if consumed == 0:
            self._source.skip(member.size)
        self._read_padding(member.size)

    def _read_padding(self, size: int) -> None:
        """Read the padding after `size` bytes of data. Raises Refused if it is not all zeros."""
        count = padding(size)
        if not count:
            return
        zeros = self._source.read(count)
        if len(zeros) < count:
            raise self._truncation_error()
        if any(zeros):
            self._raise_invalid(f"the padding before byte {self._source.position} is not all zeros")

    def _read_trailer(self) -> None:
        """Read the bytes after the end of the tar. Raises Refused if they are not all zeros, or are too many."""
        end = self._source.position
        while data := self._source.read(64 << 10):
            if any(data):
                self._raise_invalid(f"data after the end of the tar at byte {end}")
            if self._source.position - end > MAX_TRAILER:
                self._raise_invalid(f"more than {MAX_TRAILER} bytes of zeros after the end of the tar at byte {end}")
        if self._source.position % BLOCK:
            raise self._truncation_error()

    def _raise_invalid(self, why: str) -> NoReturn:
        """Raise the error for an invalid tar."""
        raise bundle_invalid(self._source.what, why)


def bundle_invalid(what: str, why: str, *, hint: str = "") -> Refused:
    """Return the error for an invalid bundle."""
    return Refused(f"{what}: {why}", hint=hint, code="bundle_invalid")


def bundle_incomplete(what: str, why: str) -> Refused:
    """Return the error for a truncated or incomplete bundle."""
    return Refused(
        f"{what}: {why}", hint="the file was truncated, or a volume is missing: copy it again", code="bundle_incomplete"
    )


def _decode(raw: bytes) -> str:
    """Decode bytes of a header as Latin-1: each byte becomes one character."""
    return raw.decode("latin-1")


def _size(block: bytes, what: str) -> int:
    """Return the size field of a header, in bytes. Raises Refused (bundle_invalid) if it is not valid."""
    raw = block[124:136]
    if raw[0] == 0x80:
        size = int.from_bytes(raw[1:])
    else:
        found = _OCTAL.fullmatch(raw)
        if found is None:
            raise bundle_invalid(what, "the size of a member is not a number")
        size = int(found[1], 8)
    if size >= 1 << 62:
        raise bundle_invalid(what, f"a member has the impossible size of {size} bytes")
    return size


def _raise_if_known_format(block: bytes, what: str) -> None:
    """Raise Refused if the file is compressed or is a zip file. The message names the format."""
    for magic, name, hint in _MAGICS:
        if block.startswith(magic):
            raise bundle_invalid(what, f"not a tar: it is {name}", hint=hint)
