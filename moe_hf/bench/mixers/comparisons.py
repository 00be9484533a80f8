"""The cases in which a mixer's layer is held against transformers', against attention and against its other forms."""

from collections.abc import Callable, Iterator
from types import ModuleType

from moe_hf.bench.mixers.attention_arms import BLOCK, SDPA, attention_arms
from moe_hf.bench.mixers.cases import FORWARD, PEAK, TRAINING, Arm, Case, Claim
from moe_hf.bench.mixers.layers import (
    ATTENTION,
    BLOCKS,
    KINDS,
    Layer,
    drawn,
    forward_arm,
    training_arm,
    transformers_layer,
    with_other_form,
)
from moe_hf.bench.mixers.peers import unbinding_scan
from moe_hf.layers.mixers import mamba, rwkv7
from moe_hf.ops.sequence.delta_rule import reference_delta_rule

OWN, HOST, PEER = "moe_hf", "transformers", "unbound tokens"
RECURRENT, PARALLEL = "recurrent form", "parallel form"
_ARMS: dict[str, Callable[..., Arm]] = {FORWARD: forward_arm, TRAINING: training_arm}
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
        make = _ARMS[mode]
        return [make(OWN, layer, x_BSD), make(HOST, transformers_layer(layer), x_BSD, once=once)]

    if memory:
        claim = Claim(quantity, must, (OWN,), HOST, higher=False, of=PEAK)
    else:
        claim = Claim(quantity, must, (HOST,), OWN)
    return Case(kind, mode, width, length, build, (claim,), memory)


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
        Claim("Mamba-1 forward+backward vs a scan of unbound tokens", 2.5, (PEER,), OWN),
        {PEER: (mamba, "selective_scan", unbinding_scan)},
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
    for width in (_WIDE, _NARROW)[quick:]:
        yield _host_case("RWKV-4", TRAINING, width, 1024, 3.0, "RWKV-4 forward+backward vs transformers")


def _form_case(
    kind: str, mode: str, width: int, claim: Claim, forms: dict[str, tuple[ModuleType, str, Callable]]
) -> Case:
    def build() -> list[Arm]:
        layer, x_BSD = Layer(kind, width), drawn(_SHORT, width)
        others = {name: with_other_form(layer, *form) for name, form in forms.items()}
        return [_ARMS[mode](name, call, x_BSD) for name, call in {OWN: layer, **others}.items()]

    return Case(f"{kind} and {' and '.join(forms)}", mode, width, _SHORT, build, (claim,))


def _against_own_forms(quick: bool) -> Iterator[Case]:
    width = _NARROW if quick else _WIDE
    recurrence = {RECURRENT: (rwkv7, "delta_rule", reference_delta_rule)}
    for mode, must in ((FORWARD, 1.8), (TRAINING, 4.0)):
        claim = Claim(f"RWKV-7 {_WORDS[mode]} vs its recurrence", must, (RECURRENT,), OWN)
        yield _form_case("RWKV-7", mode, width, claim, recurrence)
    for mode in (FORWARD, TRAINING):
        claim = Claim(f"RetNet {_WORDS[mode]} vs parallel and recurrent", 2.0, (PARALLEL, RECURRENT), OWN)
        yield Case("RetNet's forms", mode, width, _SHORT, _retention_forms(mode, width), (claim,))
    if not quick:
        claim = Claim("RWKV-7 memory, 8,192 / 2,048 tokens", 4.2, ("8,192",), "2,048", higher=False, of=PEAK)
        yield Case("RWKV-7", FORWARD, _WIDE, _LONG, _at_lengths("RWKV-7", FORWARD, _WIDE), (claim,), memory=True)


_WORDS = {FORWARD: "forward", TRAINING: "forward+backward"}


def _retention_forms(mode: str, width: int) -> Callable[[], list[Arm]]:
    def build() -> list[Arm]:
        x_BSD = drawn(_SHORT, width)
        forms = {OWN: "chunkwise", PARALLEL: "parallel", RECURRENT: "recurrent"}
        layers = {name: Layer("RetNet", width, retention_form=form) for name, form in forms.items()}
        return [_ARMS[mode](name, layer, x_BSD) for name, layer in layers.items()]

    return build


def _against_attention(quick: bool) -> Iterator[Case]:
    width = _NARROW if quick else _WIDE
    goals = {"Mamba-2": 1.5, "RetNet": 1.5, "RWKV-7": 1.5, "Hyena": 2.4, "RWKV-4": 2.4, "Mamba-1": 1.1}

    def build() -> list[Arm]:
        x_BSD = drawn(_LONG, width)
        return [forward_arm(kind, Layer(kind, width), x_BSD, output=None) for kind in (ATTENTION, BLOCKS, *goals)]

    claims = [Claim(f"{kind} forward vs sdpa, 8,192 tokens", must, (ATTENTION,), kind) for kind, must in goals.items()]
    yield Case("all layers", FORWARD, width, _LONG, build, tuple(claims))
    yield Case("attention alone", FORWARD, width, _LONG, _attention_alone(width), (_BLOCKS_CLAIM,))


_BLOCKS_CLAIM = Claim("top-k blocks vs sdpa, prefill of 8,192 tokens", 2.0, (SDPA,), BLOCK)


def _attention_alone(width: int) -> Callable[[], list[Arm]]:
    def build() -> list[Arm]:
        # Without the projections, which both share.
        return attention_arms(_LONG, _LONG, width)

    return build


def _growth(quick: bool) -> Iterator[Case]:
    kinds = [kind for kind in KINDS if kind not in (ATTENTION, BLOCKS)]
    for mode in (FORWARD, TRAINING)[: 1 if quick else 2]:
        width = _WIDE if mode == FORWARD and not quick else _NARROW
        for kind in kinds:
            claim = Claim(f"growth of {_WORDS[mode]}, 2,048 to 8,192 tokens", 4.8, ("8,192",), "2,048", higher=False)
            yield Case(f"growth of {kind}", mode, width, _LONG, _at_lengths(kind, mode, width), (claim,))


def _at_lengths(kind: str, mode: str, width: int) -> Callable[[], list[Arm]]:
    def build() -> list[Arm]:
        layer = Layer(kind, width)
        return [_ARMS[mode](f"{length:,}", layer, drawn(length, width), output=None) for length in (_SHORT, _LONG)]

    return build
