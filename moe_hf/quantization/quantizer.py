"""How transformers loads and saves a model whose experts are stored in 8 or 4 bits."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.layers.experts.quantized import (
    BUFFERS,
    QuantizedExperts,
    align,
    dequantize_module,
    expect_quantized,
    experts_modules,
    quantize_weight,
    require_shapes,
    weight_names,
)
from moe_hf.models.dense.checkpoint_files import listed
from moe_hf.ops.experts.quantized_weights import empty_weights
from moe_hf.quantization.quantization_config import METHOD, MoEQuantizationConfig


class MoEQuantizer(HfQuantizer):
    """What `from_pretrained` asks where the `quantization_config` is a `MoEQuantizationConfig`.

    The stacks of a float model are quantised one after the other, each as soon as it is read, so that no more than
    one of them is in memory as numbers.
    """

    quantization_config: MoEQuantizationConfig

    def __init__(self, quantization_config: MoEQuantizationConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._refused: list[str] = []

    @property
    def _format(self) -> tuple[int, int | None]:
        return self.quantization_config.bits, self.quantization_config.group_size

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to quantise what is to be left on the disk."""
        device_map = kwargs.get("device_map")
        if not self.pre_quantized and isinstance(device_map, dict) and "disk" in device_map.values():
            raise ConfigError(
                "experts can't be quantised while they are left on the disk; quantise the folder first: moe-hf quantize"
            )

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        modules = experts_modules(model)
        if not modules:
            raise ConfigError(
                f"{type(model).__name__} has no stacked experts that can be quantised; name a Mixture of Experts of "
                "this package, or of transformers' classes with an experts_implementation"
            )
        distributed = getattr(model.config, "distributed_config", None)
        if any((getattr(distributed, size, None) or 1) > 1 for size in ("tp_size", "ep_size")):
            raise ConfigError("quantised experts can't be cut for tensor or expert parallelism; load them whole")
        for module in modules.values():
            if self.pre_quantized:
                expect_quantized(module, *self._format)
                continue
            # What does not fit is said before anything is read.
            for name in weight_names(module):
                weight: Any = module._parameters[name]
                shape_EOI = (weight.mT if module.is_transposed else weight).shape
                empty_weights(shape_EOI, *self._format, torch.device("meta"))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if self._refused:
            raise CheckpointError(f"{listed(self._refused)}; look for what made them so, or name another checkpoint")
        for name, module in quantized_modules(model):
            if self.pre_quantized:
                _require_loaded(name, module)
            require_shapes(name, module, *self._format)
            align(module)
        return model

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Whether it is a stack of weights."""
        path, _, name = param_name.rpartition(".")
        module = model.get_submodule(path)
        return bool(experts_modules(module).get("") is module and name in weight_names(module))

    def get_quantize_ops(self) -> ConversionOps:
        """What quantises one stack."""
        return _QuantizeStack(*self._format, self._refused)

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """The codes and scales are tensors like others."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters are, on top; transformers' Trainer refuses to train the model itself."""
        return True

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        for _, module in quantized_modules(model):
            dequantize_module(module, dtype or model.dtype)
        return model


class _QuantizeStack(ConversionOps):
    """Takes the numbers of one stack and leaves codes and scales in its module.

    What can't be quantised goes into `refused`, and zeros take its place: of an error that is raised here transformers
    makes one of its own, which does not say the reason.
    """

    def __init__(self, bits: int, group_size: int | None, refused: list[str]) -> None:
        self.bits, self.group_size, self.refused = bits, group_size, refused

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        *args: Any,
        full_layer_name: str = "",
        model: PreTrainedModel | None = None,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """Gives back no parameters, since the module has none of that name any more."""
        assert model is not None
        [value] = input_dict.values()
        path, _, name = full_layer_name.rpartition(".")
        module = model.get_submodule(path)
        weight = value[0] if isinstance(value, list) else value
        try:
            quantize_weight(module, name, weight, self.bits, self.group_size)
        except CheckpointError as error:
            self.refused.append(f"{full_layer_name}: {error}")
            quantize_weight(module, name, torch.zeros_like(weight), self.bits, self.group_size)
        if missing_keys is not None:
            missing_keys.discard(full_layer_name)
        return {}

    @property
    def reverse_op(self) -> ConversionOps:
        """There is none: what was rounded away is gone."""
        raise NotImplementedError("quantised experts are saved as codes")


def _require_loaded(name: str, module: nn.Module) -> None:
    """Refuse codes that no file held: transformers only warns, and leaves in them what was in memory."""
    # What went to another device has lost the loader's mark.
    absent = [
        buffer
        for buffer in BUFFERS
        if getattr(module, buffer).is_cpu and not getattr(getattr(module, buffer), "_is_hf_initialized", False)
    ]
    if absent:
        lacking = ", ".join(f"{name}.{buffer}" for buffer in absent)
        raise CheckpointError(f"the checkpoint lacks {lacking}; it is not a whole one: copy or download it again")


def quantized_modules(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """The quantised experts of a model, with their names."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QuantizedExperts))


def register_quantizer() -> None:
    """Make `MoEQuantizationConfig` known to transformers, by its `quant_method`."""
    AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = MoEQuantizationConfig
    AUTO_QUANTIZER_MAPPING[METHOD] = MoEQuantizer
