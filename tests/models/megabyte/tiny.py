"""A small MegaByte for the tests of its parts."""

from typing import Any

import torch

from moe_hf.models.megabyte.model import MegaByteWithMoE
from tests.models.families import tiny_family

B, S, P, NEW = 3, 14, 4, 9
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
# Left padding, so that the rows stand at different places of their patch.
PADS = (0, 3, 9)


def tiny(seed: int = 0, **overrides: Any) -> MegaByteWithMoE:
    model = tiny_family("megabyte", seed, **{"num_hidden_layers": 2, **overrides})
    # Loud mixers: each byte depends on many of those before it.
    with torch.no_grad():
        for decoder in (model.model.global_decoder, model.model.local_decoder):
            for layer in decoder.layers:
                layer.mixer.o_proj.weight *= 4
    return model


def greedy(model: MegaByteWithMoE, prompt: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return model.generate(prompt, max_new_tokens=NEW, do_sample=False, **kwargs)
