"""The cases in which a mixer's layer is held against transformers', against attention and against its other forms."""

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType

from moe_hf.bench.harness.arms import FORWARD, TRAINING, Arm
from moe_hf.bench.harness.cases import PEAK, Case, Goal
from moe_hf.bench.mixers.attention_arms import BLOCK, SDPA, attention_arms
from moe_hf.bench.mixers.layers import (
    ATTENTION,
    BLOCKS,
    HOST,
    KINDS,
    OWN,
    Layer,
    drawn,
    layer_arm,
    layer_case,
    transformers_layer,
    with_other_form,
)
from moe_hf.bench.mixers.peers import unbinding_scan
from moe_hf.bench.mixers.sizes import LayerSize
from moe_hf.layers.mixers import mamba1, rwkv7
from moe_hf.ops.sequence.delta_rule import reference_delta_rule

UNBOUND = "unbound tokens"
RECURRENT, PARALLEL = "recurrent form", "parallel form"
# The median of the ratios within the rounds: bursts of other load shift it hardly.
_goal = partial(Goal, by_round=True)
_WIDE, _NARROW = 768, 256
_SHORT, _LONG = 2048, 8192


def comparison_cases(quick: bool) -> list[Case]:
    """Every row of the table of numbers to reach but those of decoding; `quick` leaves out what takes minutes."""
    return [*_against_transformers(quick), *_against_own_forms(quick), *_against_attention(quick), *_growth(quick)]


def _host_case(
    kind: str, mode: str, width: int, length: int, must: float, quantity: str, once: bool = False, memory: bool = False
) -> Case:
    def build() -> list[Arm]:
        layer, x_BSD = Layer(kind, width), drawn(length, width)
        host = transformers_layer(layer)
        return [layer_arm(mode, OWN, layer, x_BSD), layer_arm(mode, HOST, host, x_BSD, once=once)]

    if memory:
        goal = _goal(quantity, must, OWN, HOST, higher=False, of=PEAK)
    else:
        goal = _goal(quantity, must, HOST, OWN)
    return layer_case(kind, mode, LayerSize(width, length), build, goal, memory=memory)


def _against_transformers(quick: bool) -> Iterator[Case]:
    yield _host_case("Mamba-1", FORWARD, _WIDE, _SHORT, 2.2, "Mamba-1 forward vs transformers")
    yield _host_case("Mamba-1", TRAINING, _NARROW, 512, 30, "Mamba-1 forward+backward vs transformers, 512 tokens")
    if not quick:
        quantity = "Mamba-1 forward+backward vs transformers, 2,048 tokens"
        yield _host_case("Mamba-1", TRAINING, _NARROW, _SHORT, 300, quantity, once=True)
        yield _host_case(
            "Mamba-1", FORWARD, _WIDE, _LONG, 0.12, "Mamba-1 memory / transformers', 8,192 tokens", True, True
        )
    yield _form_case(
        "Mamba-1",
        TRAINING,
        _NARROW,
        _goal("Mamba-1 forward+backward vs a scan of unbound tokens", 2.5, UNBOUND, OWN),
        {UNBOUND: (mamba1, "selective_scan", unbinding_scan)},
    )
    yield _host_case("Mamba-2", FORWARD, _WIDE, _SHORT, 1.8, "Mamba-2 forward vs transformers")
    yield _host_case("Mamba-2", TRAINING, _WIDE, _SHORT, 1.7, "Mamba-2 forward+backward vs transformers")
    if not quick:
        yield _host_case("Mamba-2", FORWARD, _WIDE, _LONG, 2.8, "Mamba-2 forward vs transformers, 8,192 tokens")
        yield _host_case(
            "Mamba-2", FORWARD, _WIDE, _LONG, 0.12, "Mamba-2 memory / transformers', 8,192 tokens", memory=True
        )
    yield _host_case("RWKV-4", FORWARD, _WIDE, _SHORT, 1.4, "RWKV-4 forward vs transformers, width 768")
    yield _host_case("RWKV-4", FORWARD, _NARROW, _SHORT, 3.0, "RWKV-4 forward vs transformers, width 256")
    # A bool as an index: `quick` drops the wide layer.
    for width in (_WIDE, _NARROW)[quick:]:
        yield _host_case("RWKV-4", TRAINING, width, 1024, 3.0, "RWKV-4 forward+backward vs transformers")


def _form_case(
    kind: str, mode: str, width: int, goal: Goal, forms: dict[str, tuple[ModuleType, str, Callable]]
) -> Case:
    def build() -> list[Arm]:
        layer, x_BSD = Layer(kind, width), drawn(_SHORT, width)
        calls: dict[str, Callable] = {OWN: layer}
        calls |= {name: with_other_form(layer, *form) for name, form in forms.items()}
        return [layer_arm(mode, name, call, x_BSD) for name, call in calls.items()]

    return layer_case(f"{kind} and {' and '.join(forms)}", mode, LayerSize(width, _SHORT), build, goal)


def _against_own_forms(quick: bool) -> Iterator[Case]:
    width = _NARROW if quick else _WIDE
    recurrence = {RECURRENT: (rwkv7, "delta_rule", reference_delta_rule)}
    for mode, must in ((FORWARD, 1.8), (TRAINING, 4.0)):
        goal = _goal(f"RWKV-7 {_WORDS[mode]} vs its recurrence", must, RECURRENT, OWN)
        yield _form_case("RWKV-7", mode, width, goal, recurrence)
    for mode in (FORWARD, TRAINING):
        goal = _goal(f"RetNet {_WORDS[mode]} vs parallel and recurrent", 2.0, (PARALLEL, RECURRENT), OWN)
        yield layer_case("RetNet's forms", mode, LayerSize(width, _SHORT), _retention_forms(mode, width), goal)
    if not quick:
        goal = _goal("RWKV-7 memory, 8,192 / 2,048 tokens", 4.2, "8,192", "2,048", higher=False, of=PEAK)
        both = _at_lengths("RWKV-7", FORWARD, _WIDE)
        yield layer_case("RWKV-7", FORWARD, LayerSize(_WIDE, _LONG), both, goal, memory=True)


_WORDS = {FORWARD: "forward", TRAINING: "forward+backward"}


def _retention_forms(mode: str, width: int) -> Callable[[], list[Arm]]:
    def build() -> list[Arm]:
        x_BSD = drawn(_SHORT, width)
        forms = {OWN: "chunkwise", PARALLEL: "parallel", RECURRENT: "recurrent"}
        layers = {name: Layer("RetNet", width, retention_form=form) for name, form in forms.items()}
        return [layer_arm(mode, name, layer, x_BSD) for name, layer in layers.items()]

    return build


def _against_attention(quick: bool) -> Iterator[Case]:
    width = _NARROW if quick else _WIDE
    least = {"Mamba-2": 1.5, "RetNet": 1.5, "RWKV-7": 1.5, "Hyena": 2.4, "RWKV-4": 2.4, "Mamba-1": 1.1}

    def build() -> list[Arm]:
        x_BSD = drawn(_LONG, width)
        kinds = (ATTENTION, BLOCKS, *least)
        return [layer_arm(FORWARD, kind, Layer(kind, width), x_BSD, check=None) for kind in kinds]

    size = LayerSize(width, _LONG)
    goals = [_goal(f"{kind} forward vs sdpa, 8,192 tokens", must, ATTENTION, kind) for kind, must in least.items()]
    yield layer_case("all layers", FORWARD, size, build, *goals)
    goal = _goal("top-k blocks vs sdpa, prefill of 8,192 tokens", 2.0, SDPA, BLOCK)
    # Without the projections, which both share.
    yield layer_case("attention alone", FORWARD, size, lambda: attention_arms(_LONG, _LONG, width), goal)


def _growth(quick: bool) -> Iterator[Case]:
    kinds = [kind for kind in KINDS if kind not in (ATTENTION, BLOCKS)]
    for mode in (FORWARD, TRAINING)[: 1 if quick else 2]:
        width = _WIDE if mode == FORWARD and not quick else _NARROW
        for kind in kinds:
            goal = _goal(f"growth of {_WORDS[mode]}, 2,048 to 8,192 tokens", 4.8, "8,192", "2,048", higher=False)
            both = _at_lengths(kind, mode, width)
            yield layer_case(f"growth of {kind}", mode, LayerSize(width, _LONG), both, goal)


def _at_lengths(kind: str, mode: str, width: int) -> Callable[[], list[Arm]]:
    def build() -> list[Arm]:
        layer = Layer(kind, width)
        lengths = (_SHORT, _LONG)
        return [layer_arm(mode, f"{length:,}", layer, drawn(length, width), check=None) for length in lengths]

    return build
