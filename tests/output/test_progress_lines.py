from __future__ import annotations

import pytest

from mirror.limits import HostWait
from mirror.output.progress import BlobAction, BlobSnapshot, Phase, Snapshot
from mirror.output.progress_lines import display_lines, plain_line
from mirror.util.columns import text_width
from mirror.util.structs import replace

MIB = 1024**2
DIGEST = "sha256:a1b2c3d4e5f6" + "0" * 52


def blob(place: str, size: int | None, position: int, action: BlobAction = "copy") -> BlobSnapshot:
    return BlobSnapshot(place, DIGEST, size, position, action)


def snapshot(seconds: float, moved: int, *, phase: Phase = "copying", images: int = 240, done: int = 12) -> Snapshot:
    return Snapshot(phase, images, done, 1 if done else 0, moved, moved, 3 * 1024 * MIB, False, seconds)


BEFORE = snapshot(10, 1000 * MIB)
BUSY = replace(
    snapshot(20, 1200 * MIB),
    is_estimate=True,
    blobs=(
        blob("registry.example.com/hub/library/postgres", 500 * MIB, 203 * MIB),
        blob("docker.io/library/postgres", 80 * MIB, 80 * MIB, "read"),
        blob("registry.example.com/old", None, 3 * MIB),
    ),
    more_blobs=2,
    hosts=(HostWait("docker.io", "rate limited", 41.3), HostWait("quay.io", "down", 125.0)),
)


def shown(now: Snapshot, width: int, *, height: int = 24, unicode: bool = True) -> list[str]:
    lines = display_lines(BEFORE, now, width=width, height=height, unicode=unicode)
    return ["".join(text for text, _ in line) for line in lines]


def test_a_display_of_80_columns() -> None:
    assert [
        "copying: 12 of 240 images, 1 failed",
        "━━━━━━━─────────────  39 %, 1.2 of about 3.0 GiB, 20.0 MiB/s, 6 min 20 s left",
        "docker.io: rate limited, 42 s left",
        "quay.io: down, 2 min 5 s left",
        "  copy …/hub/library/postgres a1b2c3d4e5f6  ━━━━━━─────────    203 of 500 MiB",
        "  read …r.io/library/postgres a1b2c3d4e5f6  ━━━━━━━━━━━━━━━  80.0 of 80.0 MiB",
        "  copy …istry.example.com/old a1b2c3d4e5f6                            3.0 MiB",
        "  and 2 more",
    ] == shown(BUSY, 80)


def test_a_display_of_40_columns_leaves_out_bars_and_digests() -> None:
    assert [
        "copying: 12 of 240 images, 1 failed",
        "39 %, 1.2 of about 3.0 GiB",
        "docker.io: rate limited, 42 s left",
        "quay.io: down, 2 min 5 s left",
        "  copy …ry/postgres    203 of 500 MiB",
        "  read …ry/postgres  80.0 of 80.0 MiB",
        "  copy …ple.com/old           3.0 MiB",
        "  and 2 more",
    ] == shown(BUSY, 40)


def test_a_display_without_unicode_has_only_ascii_characters() -> None:
    lines = shown(BUSY, 80, unicode=False)
    assert all(line.isascii() for line in lines)
    assert "#######-------------  39 %" in lines[1]
    assert lines[4].startswith("  copy ...")


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("width", [1, 2, 5, 10, 20, 39, 59, 60, 61, 79, 120, 300])
def test_each_line_leaves_room_for_the_characters_of_ctrl_c(width: int, unicode: bool) -> None:
    long = replace(BUSY, hosts=(HostWait("h" * 300, "rate limited", 1e6),), blobs=(blob("r" * 500, 2**60, 2**59),))
    for now in (BUSY, long):
        assert max(len(line) for line in shown(now, width, unicode=unicode)) <= max(1, width - 3)


@pytest.mark.parametrize(
    ("position", "size", "text"),
    [
        (0, 300 * 1024, "0.0 of 300 KiB"),
        (700 * 1024, 500 * MIB, "0.7 of 500 MiB"),
        (203 * MIB, 500 * MIB, "203 of 500 MiB"),
        (1023 * MIB, 1023 * MIB, "1023 of 1023 MiB"),
        (3, 7, "3 of 7 bytes"),
        (5 * 1024**4, 7 * 1024**4, "5.0 of 7.0 TiB"),
    ],
)
def test_the_amounts_of_a_blob_have_the_same_unit(position: int, size: int, text: str) -> None:
    line = shown(replace(BUSY, blobs=(blob("app", size, position),), hosts=()), 80)[2]
    assert (77, True) == (len(line), line.endswith(f" {text}"))


@pytest.mark.parametrize("height", [1, 2, 3, 5])
def test_the_display_is_lower_than_the_terminal(height: int) -> None:
    assert max(1, height - 1) == len(shown(BUSY, 80, height=height))


def test_while_no_bytes_are_known_the_bar_shows_images() -> None:
    planning = replace(snapshot(20, 0, phase="planning", done=60), expected=0, complete=0, failed=0, moved=0)
    assert ["planning: 60 of 240 images", "━" * 17 + "─" * 54 + "  25 %"] == shown(planning, 80)
    assert ["listing"] == shown(replace(planning, phase="listing", images=0, done=0), 80)


def test_without_a_total_only_the_bytes_are_shown() -> None:
    verifying = replace(snapshot(20, 1200 * MIB, phase="verifying", images=0, done=0), expected=0, complete=0)
    assert ["verifying", "1.2 GiB, 20.0 MiB/s"] == shown(verifying, 80)


def test_a_plain_line_has_the_same_facts() -> None:
    assert (
        "copying: 12 of 240 images, 1 failed, 1.2 of about 3.0 GiB, 20.0 MiB/s, 6 min 20 s left; "
        "copy registry.example.com/hub/library/postgres@sha256:a1b2c3d4e5f6: 203 of 500 MiB; "
        "read docker.io/library/postgres@sha256:a1b2c3d4e5f6: 80.0 of 80.0 MiB; "
        "copy registry.example.com/old@sha256:a1b2c3d4e5f6: 3.0 MiB; 2 more blobs; "
        "docker.io: rate limited, 42 s left; quay.io: down, 2 min 5 s left"
    ) == plain_line(BEFORE, BUSY)


def test_a_plain_line_without_numbers_has_the_phase() -> None:
    nothing = Snapshot("listing", 0, 0, 0, 0, 0, 0, False, 30)
    assert "listing" == plain_line(nothing, nothing)


@pytest.mark.parametrize("width", [20, 40, 59, 60, 80, 81, 120])
def test_no_line_is_too_wide_if_names_have_wide_characters(width: int) -> None:
    name = "oci:/srv/画像のミラー/公開レイアウト/テスト用イメージ/최종:library/postgres"
    now = replace(
        BUSY,
        blobs=(blob(name, 500 * MIB, 203 * MIB), blob("app", 500 * MIB, 203 * MIB)),
        hosts=(HostWait(name, "error", 3.0),),
    )
    lines = shown(now, width)
    assert max(map(text_width, lines)) <= width - 3
    ends = [text_width(line) for line in lines if line.endswith("203 of 500 MiB")]
    assert ends == ([width - 3] * 2 if width >= 40 else [])


def test_a_prune_counts_tags_and_attachments() -> None:
    now = replace(snapshot(20, 0, phase="deleting", images=8, done=6), expected=0)
    lines = shown(now, 80)
    assert "deleting: 6 of 8 tags and attachments, 1 failed" == lines[0]
    assert lines[1].endswith("  75 %, 7 s left")
    assert "deleting: 6 of 8 tags and attachments, 1 failed, 7 s left" == plain_line(BEFORE, now)
