"""Pictures of the house: one style, looks by name, and files that appear whole or not at all."""

import matplotlib
import numpy
import pytest
from matplotlib.colors import to_hex

from moe_hf.bench.harness.drawing import (
    HOUSE_STYLE,
    draw_lines,
    legend_below,
    load_bar,
    load_norm,
    look_number,
    look_of,
    picture,
    shown,
)


def test_a_picture_has_the_style_of_the_house_and_leaves_the_reader_s_own_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    with picture(tmp_path / "new" / "a.png", 1, 2, title="t") as (figure, panels):
        axes = panels[0, 0]
        axes.plot([1, 2], [1, 2])
        assert not axes.spines["top"].get_visible()
        assert to_hex(axes.xaxis.label.get_color()) == "#222222"
        assert axes.title.get_text() == ""
        assert axes.get_title(loc="left") == ""
        assert figure.get_figwidth() > 8
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before
    assert HOUSE_STYLE.is_file()


def test_a_picture_that_fails_is_not_there(tmp_path):
    with pytest.raises(RuntimeError, match="while drawing"), picture(tmp_path / "a.png"):
        raise RuntimeError("while drawing")
    assert list(tmp_path.iterdir()) == []


def test_looks_are_told_apart_and_stay_the_same():
    known = ["eager", "grouped_mm", "batched_mm", "sorted", "auto", "triton"]
    assert len({look_of(name) for name in known}) == len(known)
    assert look_of("unheard of") == look_of("unheard of")
    assert len({look_number(index) for index in range(21)}) == 21


def test_lines_are_in_order_of_x_and_the_rest_is_hidden(tmp_path):
    with picture(tmp_path / "a.png", 2, 2) as (figure, panels):
        first, *others = shown(panels, 3)
        draw_lines(first, {"auto": [(2048, 3.0), (1, 1.0)], "eager": [(1, 5.0)]}, "title", "x", "y")
        assert [list(line.get_xdata()) for line in first.lines] == [[1, 2048], [1]]
        assert first.xaxis.get_major_formatter()(2048) == "2k"
        assert len(others) == 2
        assert not panels[1, 1].get_visible()
        legend_below(figure, ["auto", "eager", "auto"], {"auto": "ours"})
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "eager"]


@pytest.mark.parametrize(("highest", "most", "ends"), [(1.5, 9.0, 2.0), (3.0, 9.0, 3.0), (30.0, 4.0, 4.0)])
def test_a_fair_share_is_white_and_the_bar_says_what_red_is(tmp_path, highest, most, ends):
    norm = load_norm([numpy.array([[0.5, highest]])], most)
    assert [norm(value) for value in (0.0, 1.0, ends)] == [0.0, 0.5, 1.0]
    with picture(tmp_path / "a.png") as (figure, panels):
        load_bar(figure, list(panels[0]), norm)
        assert len(figure.axes) == 2
