"""The table of the dense architectures that have an exact Mixture of Experts among transformers' own classes."""

from collections.abc import Iterable
from typing import NamedTuple

from moe_hf.base.errors import CheckpointError
from moe_hf.base.registry import Registry


class ExpertNames(NamedTuple):
    """What a layer's experts are called in the files, within the layer.

    Attributes:
        router: the router's weight (E, D).
        gate, up, down: an expert's projections, with {} for its number; where gate is empty, up names the stack of
            gates over ups (E, 2F, D) and down that of all downs (E, D, F).
    """

    router: str
    gate: str
    up: str
    down: str


class NativeFormat(NamedTuple):
    """How a dense architecture becomes one of transformers' own Mixtures of Experts: all else keeps its name.

    Attributes:
        moe_type: the `model_type` of the Mixture of Experts.
        names: of its experts.
        shares: whether every layer has an expert that all tokens visit, beside a gate.
        mixes_dense: whether its layers may be dense.
        needs: fields of the dense configuration that the other has not, with the only value that is kept.
    """

    moe_type: str
    names: ExpertNames
    shares: bool = False
    mixes_dense: bool = False
    needs: tuple[tuple[str, object], ...] = ()


_MIXTRAL = "block_sparse_moe.experts.{}."
_MIXTRAL_NAMES = ExpertNames(
    "block_sparse_moe.gate.weight", f"{_MIXTRAL}w1.weight", f"{_MIXTRAL}w3.weight", f"{_MIXTRAL}w2.weight"
)
_QWEN = "mlp.experts.{}."
_QWEN_NAMES = ExpertNames(
    "mlp.gate.weight", f"{_QWEN}gate_proj.weight", f"{_QWEN}up_proj.weight", f"{_QWEN}down_proj.weight"
)
_GRANITE_NAMES = ExpertNames(
    "block_sparse_moe.router.layer.weight",
    "",
    "block_sparse_moe.input_linear.weight",
    "block_sparse_moe.output_linear.weight",
)

NATIVE_FORMATS: Registry[NativeFormat] = Registry(
    "dense model type",
    {
        "llama": NativeFormat("mixtral", _MIXTRAL_NAMES),
        "mistral": NativeFormat("mixtral", _MIXTRAL_NAMES),
        "qwen2": NativeFormat("qwen2_moe", _QWEN_NAMES, shares=True, mixes_dense=True),
        # Its windows are those of all layers, where the dense model names them layer by layer.
        "qwen3": NativeFormat("qwen3_moe", _QWEN_NAMES, mixes_dense=True, needs=(("use_sliding_window", False),)),
        "granite": NativeFormat("granitemoe", _GRANITE_NAMES),
        "olmo2": NativeFormat("flex_olmo", _QWEN_NAMES),
    },
)
"""By the `model_type` of the dense model."""

WITHOUT_NATIVE: dict[str, str] = {
    "phi3": "Phi-MoE norms by LayerNorm where Phi-3 has RMSNorm",
    "smollm3": "no class with experts leaves layers without rotary positions, as SmolLM3 does",
    "olmo": "OLMoE norms queries and keys, which OLMo does not",
    "olmo3": "FlexOlmo has no layers with a window, as OLMo-3 does",
}
"""Why others that people have are refused: the Mixture of Experts nearest to them would not keep their logits."""


def cannot_upcycle(source: str, model_type: str, others: Iterable[str]) -> CheckpointError:
    """The error for a model of a type that none of transformers' classes starts from, nor do those of the `others`."""
    why = WITHOUT_NATIVE.get(model_type, "it is dense of another kind, or a Mixture of Experts already")
    return CheckpointError(
        f"{source} holds a model of type {model_type!r}, which can't be upcycled exactly: {why}; only dense "
        f"{', '.join(dict.fromkeys([*NATIVE_FORMATS, *others]))} can"
    )
