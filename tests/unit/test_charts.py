"""Histograms, bars and shaded tables: every count is drawn, to scale, and data is never markup."""

import re

import pytest
from tests_support import Seen

from vlp.charts import bars, histogram, matrix

EVIL = "</td><script>alert('x')</script>\"&{0}{title}"


def rectangles(drawn):
    found = re.findall(
        r'<rect class="c(\d)" x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)"', drawn
    )
    return [(int(colour), *map(float, place)) for colour, *place in found]


@pytest.mark.parametrize(
    ("edges", "is_log"),
    [
        ([0, 1, 2], False),
        ([-1e9, 0, 1e9], False),
        ([1, 1000, 1e9], True),
        ([0.1, 0.11, 0.12], False),
    ],
)
def test_bars_of_a_histogram_stay_inside_the_frame_and_keep_their_proportions(edges, is_log):
    drawn = histogram("t", edges, {"a": [30, 10], "b": [0, 20]}, x="score", is_log=is_log)
    Seen(drawn)
    first, second, on_top = sorted(rectangles(drawn), key=lambda bar: (bar[0], bar[1]))
    for _, x, y, width, height in (first, second, on_top):
        assert 0 <= x <= x + width <= 360
        assert 0 <= y <= y + height <= 210
    assert first[4] == pytest.approx(3 * second[4], abs=0.5)
    assert on_top[2] + on_top[4] == pytest.approx(second[2], abs=0.2)


def test_thresholds_are_drawn_where_they_are():
    drawn = histogram("t", [0, 1, 2, 3, 4], {"a": [1, 1, 1, 1]}, x="score", marks=[2])
    (at,) = re.findall(r'class="mark" x1="(.*?)"', drawn)
    assert float(at) == pytest.approx(rectangles(drawn)[2][1])


def test_a_histogram_of_nothing_and_bars_of_nothing_are_left_out():
    assert histogram("t", [0, 1], {"a": [0]}, x="x") == bars("t", []) == ""


def test_bars_are_as_long_as_they_are_told():
    drawn = bars("t", [("a", 0.25, "1"), ("b", 1.0, "4")])
    assert re.findall(r"width:([\d.]+)%", drawn) == ["25.0", "100.0"]


def test_cells_of_a_matrix_are_shaded_by_their_share_of_the_row():
    drawn = matrix("rule", ["a", "b"], [[4, 1], [1, None]])
    assert re.findall(r"--share:([\d.]+)\">([^<]*)<", drawn) == [
        ("1.00", "4"),
        ("0.25", "1"),
        ("0.00", "1"),
        ("0.00", ""),
    ]


def test_estimates_of_a_matrix_are_marked_in_row_and_column():
    drawn = matrix("rule", ["a", "b"], [[4, 1], [1, 2]], estimates=[1])
    assert re.findall(r"--share:[\d.]+\">([^<]*)<", drawn) == ["4", "~1", "~1", "~2"]


def test_text_is_never_markup_in_any_chart():
    parts = [
        histogram(EVIL, [0, 1], {EVIL: [1], "b": [2]}, x=EVIL),
        bars(EVIL, [(EVIL, 0.5, EVIL)]),
        matrix(EVIL, [EVIL], [[1]]),
    ]
    for part in parts:
        seen = Seen(part)
        assert "script" not in seen.tags
        assert any(EVIL in text for text in seen.text)
