"""Each token is scored once with enough before it, and intervals are those of resampled documents."""

import math

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.inference.scoring import (
    IGNORED,
    DocumentScore,
    bits_per_byte,
    difference_in_bits,
    nats_per_token,
    score_document,
)

IDS = torch.randint(3, 90, (61,), generator=torch.Generator().manual_seed(0)).tolist()


@torch.no_grad()
def nats_of(talker, ids: list[int], place: int) -> float:
    logits = talker.model(torch.tensor([ids[:place]])).logits[0, -1]
    return float(-logits.log_softmax(dim=-1)[ids[place]])


def test_a_document_within_the_context_costs_its_cross_entropy(talker) -> None:
    labels = [IGNORED, *IDS[1:20], *[IGNORED] * 5, *IDS[25:]]
    score = score_document(talker, IDS, labels, 70)
    places = [place for place, label in enumerate(labels) if label != IGNORED]
    assert score == (pytest.approx(sum(nats_of(talker, IDS, place) for place in places), rel=1e-4), len(places), 70)


@pytest.mark.parametrize("window", [2, 7, 16])
def test_a_longer_one_is_read_in_windows_that_overlap_by_half(talker, window: int) -> None:
    score = score_document(talker, IDS, IDS, 70, context_length=window)
    assert score.tokens == len(IDS) - 1
    expected, step = 0.0, window // 2
    for place in range(1, len(IDS)):
        # The window that scores it: the first, or one of those that begin a step later each.
        begin = 0 if place < window else ((place - window) // step + 1) * step
        expected += nats_of(talker, IDS[begin:], place - begin)
        assert place - begin >= min(place, window - step)
    assert score.nats == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("window", [1, 97])
def test_a_window_that_cannot_be_is_refused(talker, window: int) -> None:
    with pytest.raises(ConfigError, match=f"context_length={window} is not allowed; it must be 2 to 96"):
        score_document(talker, IDS, IDS, 70, context_length=window)


def test_nothing_to_score_costs_nothing(talker) -> None:
    assert score_document(talker, IDS[:1], IDS[:1], 1) == (0.0, 0, 1)
    assert score_document(talker, [], [], 0) == (0.0, 0, 0)


def test_ratios_weigh_documents_by_their_size() -> None:
    scores = [DocumentScore(10.0, 10, 40), DocumentScore(300.0, 90, 60)]
    assert nats_per_token(scores).value == pytest.approx(3.1)
    assert bits_per_byte(scores).value == pytest.approx(3.1 / math.log(2))
    assert nats_per_token(scores[:1]) == (1.0, None, None)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(60):
        nats = 40.0 + 10.0 * torch.randn(50, generator=generator)
        interval = nats_per_token([DocumentScore(float(value), 10, 10) for value in nats])
        assert interval.low is not None
        assert interval.high is not None
        held += interval.low <= 4.0 <= interval.high
    assert 51 <= held <= 60


def test_a_difference_on_the_same_documents_is_told_where_each_alone_is_not() -> None:
    nats = (40.0 + 10.0 * torch.randn(50, generator=torch.Generator().manual_seed(0))).tolist()
    one, other = ([DocumentScore(value + more, 10, 10) for value in nats] for more in (0.0, 0.5))
    a, b, difference = bits_per_byte(one), bits_per_byte(other), difference_in_bits(one, other)
    assert a.high is not None
    assert b.low is not None
    assert a.high > b.low
    assert difference == (pytest.approx(-0.05 / math.log(2)),) * 3
