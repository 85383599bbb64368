"""The table of changed images."""

from __future__ import annotations

import random
from typing import Any

from mirror.output.report import ChangeRow, ImageEntry, change_table
from mirror.output.report.changes import FIRST, Changes, sort_key
from mirror.util.columns import text_width

OLD, NEW = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def entry(name: str, result: Any = "copied", **more: Any) -> ImageEntry:
    return ImageEntry(f"quay.io/{name}", f"localhost:5000/{name}", result, **{"change": "new", "digest": NEW, **more})


def lines_of(*entries: ImageEntry, width: int = 80) -> list[str]:
    changes = Changes()
    for each in entries:
        changes.add(each)
    return change_table(changes.rows(), width)


def test_the_table_has_a_heading_for_each_repository_and_aligned_columns() -> None:
    cost: dict[str, Any] = {"blobs": {"copied": 2, "mounted": 1}, "bytes": {"sent": 2048}, "seconds": 1.25}
    assert [
        "  localhost:5000/app",
        "    v9             moved  aaaaaaaaaaaa -> bbbbbbbbbbbb  2.0 KiB  2 + 1  1.2 s",
        "    v10            new                    bbbbbbbbbbbb  0 bytes      0  0.0 s",
        "    @bbbbbbbbbbbb  new                    bbbbbbbbbbbb  0 bytes      0  0.0 s",
        "  localhost:5000/web",
        "    latest         new                    bbbbbbbbbbbb  0 bytes      0  0.0 s",
    ] == lines_of(
        entry("web:latest"),
        entry("app:v10"),
        entry(f"app@{NEW}"),
        entry("app:v9", change="moved", old_digest=OLD, **cost),
        entry("app:same", "up-to-date"),
    )


def test_a_long_tag_is_on_a_line_of_its_own() -> None:
    tag = "v1.2.3-" + "x" * 60
    lines = lines_of(entry(f"app:{tag}", change="moved", old_digest=OLD), entry("app:v1"))
    assert f"    {tag}" in lines
    assert max(map(len, lines)) <= 80
    assert ["moved", "new"] == sorted(word for line in lines for word in line.split() if word in ("moved", "new"))


def test_the_first_images_are_kept_in_any_order_and_the_others_counted() -> None:
    entries = [entry(f"app:v{number}") for number in range(200)]
    expected = [f"v{number}" for number in range(FIRST)]
    for seed in range(3):
        changes = Changes()
        for each in random.Random(seed).sample(entries, len(entries)):
            changes.add(each)
        assert 200 == changes.count
        assert expected == [row.name.removeprefix(":") for row in changes.rows()]
    everything = Changes(keep_all=True)
    for each in entries:
        everything.add(each)
    assert 200 == len(everything.rows())


def test_references_are_sorted_by_repository_and_number() -> None:
    names = ["a/x:2", "a/x:10", "a/x:10-rc1", "a/x:v1", f"a/x@{NEW}", "a/y:1", "a:5000/x:1"]
    assert sorted(names, key=sort_key) == sorted(random.Random(1).sample(names, len(names)), key=sort_key)
    assert ["a/x:2", "a/x:10"] == [name for name in sorted(names, key=sort_key) if name in ("a/x:2", "a/x:10")]


def test_names_and_notes_cannot_control_the_terminal() -> None:
    row = ChangeRow("a/\x1b[2J", ":\x07", "new", None, None, note="v1")
    assert [] == [sign for line in change_table([row], 80) for sign in line if not sign.isprintable()]


def test_the_columns_are_aligned_if_a_tag_has_wide_characters() -> None:
    lines = lines_of(entry("app:画像"), entry("app:v1"), entry("app:" + "画" * 30))
    found = {text_width(line.partition("new")[0]) for line in lines if "  new  " in line}
    assert 1 == len(found)
    assert max(map(text_width, lines)) <= 80
