"""The image lock: a file that contains the digest of each tag that a configuration selects.

`mirror lock` writes the file. Its format is JSON (docs/operations.md, "Locking images"), sorted and with one line for
each image, so that a moved tag changes only one line. An invalid file raises ConfigError, because the operator passes
the file to the program.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import NoReturn

from mirror.errors import ConfigError, Refused, printable
from mirror.oci import strictjson
from mirror.oci.digest import Digest
from mirror.oci.reference import is_path, is_tag
from mirror.oci.referrers import signature_tags
from mirror.oci.strictjson import Object, Value
from mirror.util.structs import Struct

FORMAT = 1
MAX_BYTES = 64 << 20
MAX_NODES = 4_000_000
MAX_DEPTH = 16  # maximum number of levels of attachments of attachments
_LARGEST_SIZE = (1 << 63) - 1  # bytes
_LONGEST_TEXT = 4096  # maximum length of a name or media type in characters
_CREATE = "create the file again with `mirror lock CONFIG`"


class LockedAttachment(Struct, frozen=True):
    """An attachment that an image had when the image was locked.

    subject: the manifest to which the attachment belongs. media_type, artifact_type: empty if unknown. size: the size
    of the manifest in bytes, or None if unknown. tag: the tag under which cosign stores the attachment; empty for a
    referrer. level: 1 for an attachment of the image, 2 for an attachment of such an attachment, and so on."""

    subject: Digest
    digest: Digest
    media_type: str = ""
    size: int | None = None
    artifact_type: str = ""
    tag: str = ""
    level: int = 1


class LockedImage(Struct, frozen=True):
    """The image to which a tag referred when the tag was locked.

    media_type: empty if unknown. attachments: None if they were not locked, because the mirror did not copy them."""

    digest: Digest
    media_type: str = ""
    attachments: tuple[LockedAttachment, ...] | None = None


class LockedMirror(Struct, frozen=True):
    """The locked images of one mirror.

    source, targets: the names of the source and of the target repositories, as in MirrorEntry.
    images: the images by repository and tag. An image without a tag has its digest in place of the tag."""

    source: str
    targets: tuple[str, ...]
    images: Mapping[str, Mapping[str, LockedImage]]

    def key(self) -> str:
        """Return a string that identifies the locked images of the mirror and their attachments."""
        lines = "\n".join(_repository_lines(self.images))
        return f"locked {hashlib.sha256(lines.encode()).hexdigest()[:16]}"


class ImageLock(Struct, frozen=True):
    """The content of an image lock. config: the name of the configuration file, without its directory."""

    config: str
    mirrors: tuple[LockedMirror, ...]

    @property
    def count(self) -> int:
        """The number of locked images."""
        return sum(len(tags) for mirror in self.mirrors for tags in mirror.images.values())

    def lines(self) -> Iterator[str]:
        """Yield the lines of the file. Image locks with equal content have equal lines."""
        yield "{"
        yield f'  "schema": {FORMAT},'
        yield f'  "config": {json.dumps(self.config)},'
        yield '  "mirrors": ['
        for number, mirror in enumerate(self.mirrors, 1):
            yield "    {"
            yield f'      "source": {json.dumps(mirror.source)},'
            yield f'      "targets": {json.dumps(mirror.targets)},'
            yield '      "images": {'
            yield from _repository_lines(mirror.images)
            yield "      }"
            yield "    }" + _comma(number, self.mirrors)
        yield "  ]"
        yield "}"


def _repository_lines(images: Mapping[str, Mapping[str, LockedImage]]) -> Iterator[str]:
    """Yield the lines of the file for the images of one mirror."""
    for number, (repository, tags) in enumerate(sorted(images.items()), 1):
        yield f"        {json.dumps(repository)}: {{"
        for position, (tag, image) in enumerate(sorted(tags.items()), 1):
            fields: Object = {"digest": image.digest} | ({"mediaType": image.media_type} if image.media_type else {})
            if image.attachments is not None:
                fields["attachments"] = [_attachment_fields(one) for one in image.attachments]
            yield f"          {json.dumps(tag)}: {json.dumps(fields)}{_comma(position, tags)}"
        yield "        }" + _comma(number, images)


def _attachment_fields(attachment: LockedAttachment) -> Object:
    """Return the JSON object for an attachment, without unknown values."""
    fields: Object = {
        "subject": attachment.subject,
        "digest": attachment.digest,
        "mediaType": attachment.media_type or None,
        "size": attachment.size,
        "artifactType": attachment.artifact_type or None,
        "tag": attachment.tag or None,
        "level": attachment.level if attachment.level > 1 else None,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _comma(number: int, items: Mapping[str, object] | tuple[object, ...]) -> str:
    """Return a comma, or an empty string after the last item. number: the position of the item, counted from 1."""
    return "," if number < len(items) else ""


# ---- reading


def read_image_lock(path: Path) -> ImageLock:
    """Read an image lock. Raises ConfigError if it cannot be read or is not valid."""
    try:
        too_large = path.stat().st_size > MAX_BYTES
        with path.open("rb") as file:
            data = b"" if too_large else file.read(MAX_BYTES + 1)
    except OSError as error:
        what = f"cannot read the image lock {printable(path)}: {error.strerror}"
        raise ConfigError(what, hint="create the file with `mirror lock CONFIG`, or correct the path") from error
    if too_large or len(data) > MAX_BYTES:
        raise ConfigError(f"{printable(path)} has more than {MAX_BYTES} bytes, the maximum size of an image lock")
    return parse_image_lock(data, printable(path))


def parse_image_lock(data: bytes, what: str) -> ImageLock:
    """Parse an image lock. what: the name of the file, for messages. Raises ConfigError if it is not valid."""
    try:
        document = strictjson.parse(data, what=what, fold=False, nodes=MAX_NODES)
        return _Reader(what).read(document)
    except Refused as error:
        raise ConfigError(error.what, hint=_CREATE) from error


class _Reader:
    """Converts the JSON document of an image lock to values. All methods raise ConfigError for an invalid value."""

    def __init__(self, what: str) -> None:
        self._what = what

    def read(self, document: Value) -> ImageLock:
        """Convert the document to an ImageLock."""
        if isinstance(document, dict) and type(document.get("schema")) is int and document["schema"] != FORMAT:
            hint = f"use another version of mirror, or {_CREATE}"
            what = f"{self._what} has format {document['schema']}, but this version of mirror reads format {FORMAT}"
            raise ConfigError(what, hint=hint)
        top = self._object(document, "the document", {"schema", "config", "mirrors"})
        self._require(type(top["schema"]) is int, "schema", f"expected {FORMAT}")
        mirrors = top["mirrors"]
        if not isinstance(mirrors, list):
            self._fail("mirrors", "expected a list")
        found = tuple(self._mirror(mirror, f"mirrors[{number}]") for number, mirror in enumerate(mirrors))
        return ImageLock(self._text(top["config"], "config"), found)

    def _mirror(self, value: Value, where: str) -> LockedMirror:
        """Parse the locked images of one mirror."""
        mirror = self._object(value, where, {"source", "targets", "images"})
        targets, images = mirror["targets"], mirror["images"]
        if not isinstance(targets, list) or not isinstance(images, dict):
            self._fail(where, "expected a list `targets` and an object `images`")
        return LockedMirror(
            self._text(mirror["source"], f"{where}.source"),
            tuple(self._text(one, f"{where}.targets") for one in targets),
            {name: self._tags(name, tags, f"{where}.images") for name, tags in images.items()},
        )

    def _tags(self, repository: str, value: Value, where: str) -> dict[str, LockedImage]:
        """Parse the images of one repository, and return them by tag."""
        self._require(not repository or is_path(repository), where, f"not a repository: {printable(repository, 80)!r}")
        where = f"{where}.{repository}"
        if not isinstance(value, dict):
            self._fail(where, "expected an object that maps tags to images")
        return {tag: self._image(tag, image, where) for tag, image in value.items()}

    def _image(self, tag: str, value: Value, where: str) -> LockedImage:
        """Parse one locked image."""
        place = f"{where}:{printable(tag, 140)}"
        image = self._object(value, place, {"digest"}, optional={"mediaType", "attachments"})
        digest = self._digest(image["digest"], place)
        self._require(is_tag(tag) or tag == digest, place, "neither a tag nor the digest of the image")
        attachments = image.get("attachments")
        if "attachments" in image and not isinstance(attachments, list):
            self._fail(f"{place}.attachments", "expected a list")
        found = (
            tuple(self._attachment(one, f"{place}.attachments[{number}]") for number, one in enumerate(attachments))
            if isinstance(attachments, list)
            else None
        )
        return LockedImage(digest, self._text(image.get("mediaType", ""), place), found)

    def _attachment(self, value: Value, where: str) -> LockedAttachment:
        """Parse one locked attachment of an image."""
        optional = {"mediaType", "size", "artifactType", "tag", "level"}
        fields = self._object(value, where, {"subject", "digest"}, optional=optional)
        subject, tag = self._digest(fields["subject"], where), self._text(fields.get("tag", ""), where)
        self._require(not tag or tag in signature_tags(subject), where, f"not a tag of cosign for {subject}")
        level = self._number(fields.get("level", 1), f"{where}.level", 1, MAX_DEPTH)
        return LockedAttachment(
            subject,
            self._digest(fields["digest"], where),
            self._text(fields.get("mediaType", ""), where),
            self._number(fields["size"], f"{where}.size", 0, _LARGEST_SIZE) if "size" in fields else None,
            self._text(fields.get("artifactType", ""), where),
            tag,
            level,
        )

    def _digest(self, value: Value, where: str) -> Digest:
        """Return a value if it is a digest. where: the path of the value, for messages."""
        try:
            return Digest.parse(value)
        except Refused as error:
            self._fail(where, error.what)

    def _number(self, value: Value, where: str, smallest: int, largest: int) -> int:
        """Return a value if it is a number within the limits."""
        if type(value) is not int or not smallest <= value <= largest:
            self._fail(where, f"expected a number from {smallest} to {largest}")
        return value

    def _object(self, value: Value, where: str, keys: Set[str], optional: Set[str] = frozenset()) -> Object:
        """Return a value if it is an object with all keys in `keys`, and no other keys than those in `optional`."""
        if not isinstance(value, dict):
            self._fail(where, "expected an object")
        missing, unknown = sorted(keys - value.keys()), sorted(value.keys() - keys - optional)
        if missing or unknown:
            self._fail(where, f"the key `{missing[0]}` is missing" if missing else f"unknown key {unknown[0]!r}")
        return value

    def _text(self, value: Value, where: str) -> str:
        """Return a value if it is a string without control characters."""
        if not isinstance(value, str) or len(value) > _LONGEST_TEXT or printable(value, _LONGEST_TEXT) != value:
            self._fail(where, "expected a string without control characters")
        return value

    def _require(self, condition: bool, where: str, message: str) -> None:
        """Raise ConfigError with a message unless a condition is met."""
        if not condition:
            self._fail(where, message)

    def _fail(self, where: str, message: str) -> NoReturn:
        """Raise ConfigError for an invalid value. where: the path of the value."""
        raise ConfigError(f"{self._what} is not a valid image lock: {where}: {message}", hint=_CREATE)
