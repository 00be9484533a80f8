"""Pictures are drawn of what was logged, and of nothing else."""

import numpy
from matplotlib.axes import Axes

from moe_hf.training.runs.plots import draw_expert_utilization, draw_loss, expert_loads

EVENTS = [
    {"step": 5, "loss": 3.0, "layers": {"load": [[0.5, 0.25, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25]]}},
    {"step": 10, "loss": 2.0, "layers": {"load": [[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]}},
    {"step": 10, "eval_loss": 1.5},
]


def test_loads_are_in_units_of_the_fair_share():
    loads = expert_loads(EVENTS, layers=[0, 2])
    steps, load_SE = loads[0]
    assert list(loads) == [0, 2]
    assert steps == [5, 10]
    numpy.testing.assert_allclose(load_SE, [[2.0, 1.0, 0.5, 0.5], [4.0, 0.0, 0.0, 0.0]])


def test_pictures_are_drawn_where_something_was_logged(tmp_path):
    assert draw_loss(EVENTS, "loss", tmp_path / "loss.png")
    assert draw_expert_utilization(EVENTS, [0, 2], "experts", tmp_path / "experts.png")
    assert draw_expert_utilization(EVENTS[:1], [0, 2], "experts", tmp_path / "one.png")
    for name in ("loss", "experts", "one"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_no_loss_is_drawn_of_a_lone_dot(tmp_path):
    lone = [{"step": 5, "loss": 3.0}, {"step": 5, "eval_loss": 2.0}]
    assert not draw_loss(lone, "loss", tmp_path / "loss.png")


def test_both_curves_are_the_cross_entropy_of_the_answers(tmp_path, monkeypatch):
    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, **style: (drawn.append((x, y)), plot(self, x, y, **style)))
    events = [{"step": i, "loss": 9.0, "cross_entropy": 3.0 - i} for i in (1, 2)] + [{"step": 2, "eval_loss": 1.5}]
    draw_loss(events, "loss", tmp_path / "loss.png")
    assert drawn == [([1, 2], [2.0, 1.0]), ([2], [1.5])]


def test_nothing_is_drawn_of_nothing(tmp_path):
    assert not draw_loss([{"step": 1}], "loss", tmp_path / "loss.png")
    assert not draw_expert_utilization([{"step": 1, "loss": 2.0}], [0], "experts", tmp_path / "experts.png")
    assert list(tmp_path.iterdir()) == []
