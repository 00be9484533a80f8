"""Scores documents with a model: the nats that their tokens cost, per token and per byte, and how sure that is.

Shapes: S tokens of a document, N documents, R resamples.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.inference.text_model import CausalTextModel

IGNORED = -100
"""The label of a token that is not scored."""

# Where the model names no limit, or one that would take minutes per document on a CPU.
_MOST_CONTEXT = 1024
_RESAMPLES = 2000
_BOUNDS = (2.5, 97.5)


class DocumentScore(NamedTuple):
    """What one document cost: nats in all, the tokens that were scored, and the bytes of their text in UTF-8."""

    nats: float
    tokens: int
    num_bytes: int


class Interval(NamedTuple):
    """A value over all documents, and the ends of the interval that holds 95% of its resamples; of one, none."""

    value: float
    low: float | None
    high: float | None


@torch.inference_mode()
def score_document(
    talker: CausalTextModel,
    ids: Sequence[int],
    labels: Sequence[int],
    num_bytes: int,
    context_length: int | None = None,
) -> DocumentScore:
    """The cross-entropy of a document's labels.

    A document longer than the context is read in windows that overlap by half, so that each token has at least half a
    context before it, and is scored once.

    Args:
        talker: the model.
        ids: (S,) tokens; the first is never scored, since nothing stands before it.
        labels: (S,) the ids that are scored, `IGNORED` elsewhere.
        num_bytes: of the text that the labels stand for.
        context_length: tokens of a window; None takes the model's own limit, 1,024 at most.

    Raises:
        ConfigError: a window is shorter than two tokens, or longer than the model takes.
    """
    window = context_length or min(talker.context_limit or _MOST_CONTEXT, _MOST_CONTEXT)
    most = talker.context_limit or window
    if not 2 <= window <= most:
        raise ConfigError(f"context_length={window} is not allowed; it must be 2 to {most}, the limit of {talker.name}")
    step = max(window // 2, 1)
    nats, tokens, done = 0.0, 0, 1
    while done < len(ids):
        begin = 0 if done == 1 else max(done - (window - step), 0)
        end = min(begin + window, len(ids))
        wanted_S = torch.tensor(labels[done:end], device=talker.model.device)
        if bool((wanted_S != IGNORED).any()):
            logits: Any = talker.model(torch.tensor([ids[begin:end]], device=talker.model.device)).logits
            predicted_SV = logits[0, done - begin - 1 : end - begin - 1].float()
            nats += float(torch.nn.functional.cross_entropy(predicted_SV, wanted_S, reduction="sum").double())
            tokens += int((wanted_S != IGNORED).sum())
        done = end
    return DocumentScore(nats, tokens, num_bytes)


def nats_per_token(scores: Sequence[DocumentScore]) -> Interval:
    """Cross-entropy; its exponential is the perplexity."""
    return _ratio(np.array([score.nats for score in scores]), np.array([score.tokens for score in scores]))


def bits_per_byte(scores: Sequence[DocumentScore]) -> Interval:
    """Bits that a byte of the text costs, which models with other tokenizers can be compared by."""
    bits = np.array([score.nats for score in scores]) / math.log(2)
    return _ratio(bits, np.array([score.num_bytes for score in scores]))


def difference_in_bits(scores: Sequence[DocumentScore], others: Sequence[DocumentScore]) -> Interval:
    """Bits per byte less those of another model on the same documents, resampled together (paired bootstrap)."""
    nats = np.array([a.nats - b.nats for a, b in zip(scores, others, strict=True)])
    return _ratio(nats / math.log(2), np.array([score.num_bytes for score in scores]))


def _ratio(costs_N: np.ndarray, sizes_N: np.ndarray) -> Interval:
    """The sum of costs over the sum of sizes, with the interval of a bootstrap over documents (Efron 1979).

    The same documents give the same interval: resamples come from a seed.
    """
    value = float(costs_N.sum() / max(sizes_N.sum(), 1))
    if len(costs_N) < 2:
        return Interval(value, None, None)
    rng = np.random.default_rng(0)
    # One at a time: of many documents all together would fill the memory.
    values_R = np.empty(_RESAMPLES)
    for resample in range(_RESAMPLES):
        chosen_N = rng.integers(len(costs_N), size=len(costs_N))
        values_R[resample] = costs_N[chosen_N].sum() / max(sizes_N[chosen_N].sum(), 1)
    low, high = np.percentile(values_R, _BOUNDS)
    return Interval(value, float(low), float(high))
