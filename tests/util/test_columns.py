"""The width of texts in columns, and texts that are cut or filled to a width."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from mirror.util.columns import cut_text, fill_text, text_width

# Names as they occur in paths: ASCII, Chinese, Japanese, Korean, full-width forms, accents as characters of their own.
NAMES = st.text("ab-/.é漢字テスト画像한글ＡＢ｜\u0301\u0300", max_size=40)


@pytest.mark.parametrize(
    ("text", "width"),
    [("", 0), ("abc", 3), ("é", 1), ("e\u0301", 1), ("画像", 4), ("한글", 4), ("ＡＢ", 4), ("a画…", 4)],
)
def test_wide_characters_count_twice_and_combining_ones_not_at_all(text: str, width: int) -> None:
    assert width == text_width(text)


@given(NAMES)
def test_the_width_is_the_one_that_the_live_display_assumes(text: str) -> None:
    assert cell_len(text) == text_width(text)


@given(NAMES, st.integers(0, 40))
def test_a_text_is_cut_to_the_longest_part_that_fits(text: str, width: int) -> None:
    beginning, end = cut_text(text, width), cut_text(text, width, keep_end=True)
    assert text.startswith(beginning)
    assert text.endswith(end)
    assert max(text_width(beginning), text_width(end)) <= width
    assert beginning == text or text_width(text[: len(beginning) + 1]) > width
    assert end == text or text_width(text[len(text) - len(end) - 1 :]) > width


@given(NAMES, st.integers(0, 40))
def test_a_text_is_filled_with_spaces_up_to_the_width(text: str, width: int) -> None:
    left, right = fill_text(text, width), fill_text(text, width, right=True)
    assert (text, text) == (left[: len(text)], right[len(right) - len(text) :])
    assert {max(width, text_width(text))} == {text_width(left), text_width(right)}
