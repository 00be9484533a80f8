"""The cases in which a layer brings forth one token after a context."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from transformers import Cache

from moe_hf.bench.harness.arms import DECODE, Arm
from moe_hf.bench.harness.cases import Case, Goal
from moe_hf.bench.mixers.attention_arms import EXACT, SDPA, attention_arms
from moe_hf.bench.mixers.layers import (
    HOST,
    OWN,
    Layer,
    drawn,
    layer_case,
    same,
    transformers_cache,
    transformers_layer,
)
from moe_hf.bench.mixers.peers import CachedDotProduct
from moe_hf.bench.mixers.sizes import LayerSize
from moe_hf.ops.sequence.fft_conv import dot_with_past
from moe_hf.ops.sequence.future_fill import epoch_length, future_fill_step

_WIDTH = 768
_goal = partial(Goal, by_round=True)
_SHORT, _LONG, _VERY_LONG = 512, 8192, 32768
_CONSTANT_STATE = ("RetNet", "Mamba-1", "Mamba-2", "RWKV-4", "RWKV-7")
DOT, RECOMPUTED = "dot product over the cache", "all tokens again"


def decoding_cases(quick: bool) -> list[Case]:
    """Every row of the table of numbers to reach that is about decoding."""
    hyena = [] if quick else [_long_convolution(), _hyena()]
    return [*_at_any_context(), *_against_transformers(), *hyena, _sparse_attention()]


def _case(name: str, length: int, build: Callable[[], list[Arm]], goal: Goal) -> Case:
    return layer_case(name, DECODE, LayerSize(_WIDTH, length), build, goal)


def _decode(call: Callable[..., torch.Tensor], cache: Cache, width: int) -> Callable[[], torch.Tensor]:
    token_B1D = drawn(1, width)

    @torch.no_grad()
    def step() -> torch.Tensor:
        return call(token_B1D, cache)

    return step


def _at_any_context() -> Iterator[Case]:
    for kind in _CONSTANT_STATE:

        def build(kind: str = kind) -> list[Arm]:
            # The kind is a default, and so bound now: this runs when the case's turn comes, when the loop has gone on.
            layer = Layer(kind, _WIDTH)
            caches = {length: layer.cache_after(drawn(length, _WIDTH)) for length in (_SHORT, _LONG)}
            return [Arm(f"{length:,}", _decode(layer, cache, _WIDTH)) for length, cache in caches.items()]

        quantity = "decoding a token, after 8,192 / after 512 (RetNet, Mamba, RWKV)"
        goal = _goal(quantity, 1.15, f"{_LONG:,}", f"{_SHORT:,}", higher=False)
        yield _case(f"{kind} at two contexts", _LONG, build, goal)


def _against_transformers() -> Iterator[Case]:
    for kind, must in (("Mamba-1", 1.3), ("Mamba-2", 1.6)):

        def build(kind: str = kind) -> list[Arm]:
            layer, context = Layer(kind, _WIDTH), drawn(_SHORT, _WIDTH)
            host, cache = transformers_layer(layer), transformers_cache(layer)
            with torch.no_grad():
                host(context, cache)
            own = _decode(layer, layer.cache_after(context), _WIDTH)
            other = _decode(host, cache, _WIDTH)
            return [Arm(OWN, own, check=same(own)), Arm(HOST, other, check=same(other))]

        yield _case(kind, _SHORT, build, _goal(f"{kind} decoding vs transformers", must, HOST, OWN))


def _long_convolution() -> Case:
    """Hyena's long convolution alone: the projections of a layer cost the same whatever is done about its history."""
    tokens = epoch_length(_LONG)

    def build() -> list[Arm]:
        filter_LD = drawn(_LONG + 2 * tokens, _WIDTH)[0] / _LONG
        inputs_BPD = drawn(_LONG + 2 * tokens, _WIDTH)
        reversed_LD = filter_LD.flip(0).contiguous()

        @torch.no_grad()
        def epoch() -> torch.Tensor:
            state = None
            for length in range(_LONG + 1, _LONG + tokens + 1):
                past_BPD = inputs_BPD[:, :length]
                out_BD, state = future_fill_step(past_BPD, lambda lags: filter_LD[:lags], len(filter_LD), epoch=state)
            return out_BD

        @torch.no_grad()
        def dot() -> torch.Tensor:
            length = _LONG + tokens
            return dot_with_past(inputs_BPD[:, :length], reversed_LD[-length:])

        return [Arm(OWN, epoch, tokens=tokens, check=same(epoch)), Arm(DOT, dot, check=same(dot))]

    quantity = "Hyena's long convolution, a token vs a dot product over the cache, 8,192 tokens"
    return _case("long convolution", _LONG, build, _goal(quantity, 3.0, DOT, OWN))


def _hyena() -> Case:
    # A whole epoch, so that what is done once per epoch counts.
    tokens = epoch_length(_LONG)

    def build() -> list[Arm]:
        layer, context = Layer("Hyena", _WIDTH), drawn(_LONG, _WIDTH)
        token = drawn(1, _WIDTH)
        own = _decode(layer, layer.cache_after(context), _WIDTH)
        peer = CachedDotProduct(layer.mixer, context, room=_LONG)

        def epoch() -> torch.Tensor:
            for _ in range(tokens - 1):
                own()
            return own()

        @torch.no_grad()
        def again() -> torch.Tensor:
            return layer(context)[:, -1:]

        return [
            Arm(OWN, epoch, tokens=tokens, check=same(own)),
            Arm(DOT, lambda: peer.step(token), check=same(lambda: peer.step(token))),
            Arm(RECOMPUTED, again),
        ]

    goal = _goal("Hyena decoding vs computing all tokens again, 8,192 tokens", 100.0, RECOMPUTED, OWN)
    return _case("Hyena", _LONG, build, goal)


def _sparse_attention() -> Case:
    goal = _goal("top-k vs sdpa, decoding against 32,768 keys", 1.8, SDPA, EXACT)
    return _case("attention alone", _VERY_LONG, lambda: attention_arms(1, _VERY_LONG, _WIDTH), goal)
