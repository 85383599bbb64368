"""The file of an image lock: its format, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.errors import ConfigError
from mirror.oci.digest import Digest
from mirror.sync import image_lock
from mirror.sync.image_lock import (
    ImageLock,
    LockedAttachment,
    LockedImage,
    LockedMirror,
    parse_image_lock,
    read_image_lock,
)

FIRST, SECOND = Digest.of(b"first"), Digest.of(b"second", "sha512")
INDEX = "application/vnd.oci.image.index.v1+json"

attachments = st.builds(
    LockedAttachment,
    subject=st.just(FIRST),
    digest=st.sampled_from([FIRST, SECOND]),
    media_type=st.sampled_from(["", INDEX]),
    size=st.sampled_from([None, 0, (1 << 63) - 1]),
    artifact_type=st.sampled_from(["", "application/spdx+json"]),
    tag=st.sampled_from(["", f"sha256-{FIRST.hex}.sig"]),
    level=st.sampled_from([1, 16]),
)
images = st.builds(
    LockedImage,
    st.sampled_from([FIRST, SECOND]),
    st.sampled_from(["", INDEX]),
    st.none() | st.lists(attachments, max_size=2).map(tuple),
)
tags = st.dictionaries(st.sampled_from(["v1", "1.10", "_.-", "latest"]), images, max_size=3)
repositories = st.dictionaries(st.sampled_from(["", "app", "team/web", "a/b/c"]), tags, max_size=3)
texts = st.sampled_from(["", "oci:/a b", 'quoted "text"', "a\\b", "docker.io/team/*", "größe"])
mirrors = st.builds(LockedMirror, texts, st.lists(texts, max_size=3).map(tuple), repositories)


@settings(max_examples=30)
@given(st.builds(ImageLock, texts, st.lists(mirrors, max_size=3).map(tuple)))
def test_a_lock_is_read_as_it_was_written(lock: ImageLock) -> None:
    text = "".join(f"{line}\n" for line in lock.lines())
    assert lock == parse_image_lock(text.encode(), "file")
    assert list(lock.lines()) == list(parse_image_lock(text.encode(), "file").lines())


def test_a_lock_has_one_line_for_each_image_sorted_by_repository_and_tag() -> None:
    found = LockedMirror(
        "docker.io/team/*",
        ("b.example.com/{repository}",),
        {
            "team/web": {"v1": LockedImage(FIRST, INDEX)},
            "team/app": {"v2": LockedImage(FIRST), "v10": LockedImage(SECOND), FIRST: LockedImage(FIRST)},
        },
    )
    assert [
        "{",
        '  "schema": 1,',
        '  "config": "prod.yaml",',
        '  "mirrors": [',
        "    {",
        '      "source": "docker.io/team/*",',
        '      "targets": ["b.example.com/{repository}"],',
        '      "images": {',
        '        "team/app": {',
        f'          "{FIRST}": {{"digest": "{FIRST}"}},',
        f'          "v10": {{"digest": "{SECOND}"}},',
        f'          "v2": {{"digest": "{FIRST}"}}',
        "        },",
        '        "team/web": {',
        f'          "v1": {{"digest": "{FIRST}", "mediaType": "{INDEX}"}}',
        "        }",
        "      }",
        "    }",
        "  ]",
        "}",
    ] == list(ImageLock("prod.yaml", (found,)).lines())


def document(**changes: Any) -> bytes:
    """Return a valid lock with one image, with changed or, if their value is None, without some keys."""
    mirror = {"source": "a.example.com/app", "targets": [], "images": {"app": {"v1": {"digest": FIRST}}}}
    mirror |= {key: changes.pop(key) for key in list(changes) if key in mirror}
    found = {"schema": 1, "config": "mirror.yaml", "mirrors": [mirror], **changes}
    return json.dumps({key: value for key, value in found.items() if value is not None}).encode()


def locked_with(attachments: object) -> bytes:
    """Return a lock whose image has these attachments."""
    return document(images={"app": {"v1": {"digest": FIRST, "attachments": attachments}}})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is not valid JSON"),
        (b"[]", "the document: expected an object"),
        (b'{"schema": 1, "schema": 1}', "duplicate key"),
        (b"[" * 100_000, "nested"),
        (document(schema=2), "has format 2, but this version of mirror reads format 1"),
        (document(schema="1"), "schema: expected 1"),
        (document(schema=True), "schema: expected 1"),
        (document(config=None), "the key `config` is missing"),
        (document(config=7), "config: expected a string"),
        (document(config="a\u001bb"), "config: expected a string without control characters"),
        (document(platforms=[]), "unknown key 'platforms'"),
        (document(mirrors={}), "mirrors: expected a list"),
        (document(mirrors=[[]]), "mirrors[0]: expected an object"),
        (document(targets={}), "mirrors[0]: expected a list `targets`"),
        (document(targets=[1]), "mirrors[0].targets: expected a string"),
        (document(images=[]), "mirrors[0]: expected a list `targets` and an object `images`"),
        (document(images={"../etc": {}}), "not a repository: '../etc'"),
        (document(images={"app": []}), "mirrors[0].images.app: expected an object that maps tags to images"),
        (document(images={"app": {"v1": FIRST}}), "mirrors[0].images.app:v1: expected an object"),
        (document(images={"app": {"a/b": {"digest": FIRST}}}), "neither a tag nor the digest of the image"),
        (document(images={"app": {SECOND: {"digest": FIRST}}}), "neither a tag nor the digest of the image"),
        (document(images={"app": {"v1": {}}}), "the key `digest` is missing"),
        (document(images={"app": {"v1": {"digest": "sha256:abc"}}}), "not a digest: 'sha256:abc'"),
        (document(images={"app": {"v1": {"digest": 1}}}), "not a digest"),
        (document(images={"app": {"v1": {"digest": FIRST, "mediaType": None}}}), "app:v1: expected a string"),
        (document(images={"app": {"v1": {"digest": FIRST, "size": 1}}}), "unknown key 'size'"),
        (locked_with({}), "app:v1.attachments: expected a list"),
        (locked_with(None), "app:v1.attachments: expected a list"),
        (locked_with([FIRST]), "app:v1.attachments[0]: expected an object"),
        (locked_with([{"subject": FIRST}]), "app:v1.attachments[0]: the key `digest` is missing"),
        (locked_with([{"subject": "sha256:../x", "digest": FIRST}]), "app:v1.attachments[0]: not a digest"),
        (locked_with([{"subject": FIRST, "digest": FIRST, "size": -1}]), "attachments[0].size: expected a number"),
        (locked_with([{"subject": FIRST, "digest": FIRST, "size": True}]), "attachments[0].size: expected a number"),
        (locked_with([{"subject": FIRST, "digest": FIRST, "level": 17}]), "level: expected a number from 1 to 16"),
        (locked_with([{"subject": FIRST, "digest": FIRST, "tag": "latest"}]), "not a tag of cosign for"),
        (locked_with([{"subject": FIRST, "digest": FIRST, "x": 1}]), "unknown key 'x'"),
    ],
)
def test_a_file_that_is_not_a_valid_lock_is_a_configuration_error(data: bytes, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_image_lock(data, "my.lock")
    assert says in caught.value.what
    assert caught.value.what.startswith("my.lock")
    assert "`mirror lock CONFIG`" in caught.value.hint


def test_a_missing_and_a_too_large_file_are_configuration_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the image lock"):
        read_image_lock(tmp_path / "none.lock")
    large = tmp_path / "large.lock"
    with large.open("wb") as file:
        file.truncate(image_lock.MAX_BYTES + 1)
    with pytest.raises(ConfigError, match="the maximum size of an image lock"):
        read_image_lock(large)
