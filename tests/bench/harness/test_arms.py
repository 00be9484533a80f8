"""Steps and outputs of arms: forward alone, or forward and backward that leave nothing behind."""

import torch

from moe_hf.bench.harness.arms import Options, output_of, released_gradients, step_of


def leaves():
    return torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)


def test_a_step_without_a_gradient_builds_no_graph():
    x, _ = leaves()
    assert not step_of(lambda: 2 * x)().requires_grad
    assert [out.tolist() for out in output_of(lambda: 2 * x)()] == [[2.0] * 3]


def test_a_training_step_computes_gradients_and_releases_them():
    x, y = leaves()
    given = (lambda: 2 * x, [x, y], torch.full((3,), 5.0))
    result, of_x, of_y = output_of(*given)()
    assert result.tolist() == [2.0] * 3
    assert of_x.tolist() == [10.0] * 3
    assert of_y.tolist() == [0.0] * 3
    step_of(*given)()
    assert x.grad is None


def test_released_gradients_are_gone_from_the_leaves():
    x, y = leaves()
    (3 * x).sum().backward()
    assert [grad.tolist() for grad in released_gradients([x, y])] == [[3.0] * 3, [0.0] * 3]
    assert x.grad is None


def test_options_draw_the_same_each_time_and_want_what_was_asked_for():
    options = Options(seed=3, backends=("a",))
    draws = [torch.rand(2, generator=options.generator()) for _ in range(2)]
    assert torch.equal(*draws)
    assert options.wants("a")
    assert not options.wants("b")
    assert Options().wants("b")
