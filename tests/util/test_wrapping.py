"""Lines are wrapped between words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.util.wrapping import MIN_WIDTH, line_width, wrap_line

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one two", ["one two"]),
        ("  " + "word " * 9 + "end", ["  word word word word word word word", "      word word end"]),
        (f"the target has {DIGEST} now", ["the target has", f"    {DIGEST}", "    now"]),
        ("to fix it: run `mirror sync --deep prod.yaml`", ["to fix it: run", "    `mirror sync --deep prod.yaml`"]),
        ("画像の 保存先 " * 3 + "end", ["画像の 保存先 画像の 保存先 画像の", "    保存先 end"]),
        ("a `quote that does not end, " + "x " * 10, ["a `quote that does not end, x x x x x x", "    x x x x"]),
    ],
)
def test_a_line_is_split_between_words_and_not_within_commands(text: str, lines: list[str]) -> None:
    assert lines == wrap_line(text, 40)


@given(st.lists(st.text("abc/:`", min_size=1, max_size=60), min_size=1, max_size=30), st.integers(40, 120))
def test_no_word_is_lost_or_changed(words: list[str], width: int) -> None:
    lines = wrap_line(" ".join(words), width)
    assert " ".join(words).split() == " ".join(lines).split()
    assert [] == [line for line in lines if len(line) > width and "`" not in line and " " in line.strip()]


@pytest.mark.parametrize(("columns", "width"), [("132", 132), ("10", MIN_WIDTH), ("0", 80), ("x", 80)])
def test_the_width_is_that_of_the_terminal_or_80(columns: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert width == line_width()
