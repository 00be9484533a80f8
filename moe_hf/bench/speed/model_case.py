"""The whole model: a training step with AdamW, and greedy generation, beside the dense model.

Shapes: B sequences, S positions, T = B * S tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from moe_hf.base.errors import ConfigError
from moe_hf.bench.harness.arms import (
    ROOF,
    TRAINING,
    TRANSFORMERS,
    Arm,
    Check,
    Group,
    Options,
    Output,
    Skipped,
    released_gradients,
)
from moe_hf.bench.harness.cases import Goal
from moe_hf.bench.harness.timing import Step
from moe_hf.bench.harness.training import dense_gpt2, train_step
from moe_hf.bench.speed.configs import batch_shape, moe_config
from moe_hf.bench.speed.layer_cases import exchange_experts, in_dtype, layer_backends
from moe_hf.bench.speed.opponents import SUBJECT, family_of
from moe_hf.bench.speed.sizes import Size
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig
from moe_hf.models.gpt2_moe import GPT2WithMoE

MODEL = "model"
NUM_LAYERS = 4
PROMPT, NEW_TOKENS = 16, 16
DENSE_TWIN = "dense twin"
STOCK_GPT2 = "transformers' GPT-2"
# So small that the weights stay where they are, however often the step is repeated.
_LEARNING_RATE = 1e-7


def build_model(size: Size, mode: str, options: Options) -> Group:
    """`GPT2WithMoE` of 4 layers, every other one sparse, with every backend, beside two dense models.

    The dense twin is this package's model without experts; "transformers' GPT-2" is `GPT2LMHeadModel` of the same
    shape, with the activation as transformers composes it. With transformers' backends the experts are those of
    `StockExperts`, which have that activation too. A step is forward, backward, gradient clipping and fused AdamW on T
    tokens in contexts of 256; generation is 16 new tokens after a prompt of 16, greedy, for as many sequences as
    `size.tokens` says.
    """
    training = mode == TRAINING
    shape = batch_shape(size) if training else (size.tokens, PROMPT)
    ids_BS = torch.randint(4096, shape, generator=options.generator()).to(options.device)
    run = _training if training else _generation
    names, skipped = layer_backends(size, options, training)
    output_of = _training_output if training else _logits
    reference = output_of(_moe(size, "eager", options, reference=True), ids_BS)
    arms = []
    for name in names:
        try:
            model = _moe(size, name, options)
        except ConfigError as error:
            skipped.append(Skipped(name, str(error)))
            continue
        arms.append(Arm(name, run(model, ids_BS), family_of(name), Check(output_of(model, ids_BS), reference)))
    twin_config = _config(size, mlp_layer_types=["dense"] * NUM_LAYERS)
    for name, make in {DENSE_TWIN: lambda: GPT2WithMoE(twin_config), STOCK_GPT2: lambda: _stock_gpt2(size)}.items():
        arms.append(Arm(name, run(_seeded(make, size, options), ids_BS), ROOF))
    return Group(arms, skipped)


def _moe(size: Size, backend: str, options: Options, reference: bool = False) -> PreTrainedModel:
    config = _config(size, experts_implementation=backend)
    model = _seeded(lambda: GPT2WithMoE(config), size, options)
    if reference or family_of(backend) == TRANSFORMERS:
        exchange_experts(model, config, reference)
    return model


def _config(size: Size, **overrides: Any) -> GPT2WithMoEConfig:
    fields = {"num_hidden_layers": NUM_LAYERS, "mlp_layer_types": ["sparse", "dense"] * (NUM_LAYERS // 2)}
    return moe_config(size, **{**fields, **overrides})


def _seeded(make: Callable[[], Any], size: Size, options: Options) -> PreTrainedModel:
    torch.manual_seed(options.seed)
    return make().to(options.device, size.torch_dtype)


def _stock_gpt2(size: Size) -> PreTrainedModel:
    shape = _config(size)
    return dense_gpt2(
        vocab_size=shape.vocab_size,
        n_positions=shape.max_position_embeddings,
        n_embd=shape.hidden_size,
        n_layer=NUM_LAYERS,
        n_head=shape.num_attention_heads,
        n_inner=shape.ffn_width,
        activation_function=size.activation,
        bos_token_id=None,
        eos_token_id=None,
    )


def _training(model: PreTrainedModel, ids_BS: torch.Tensor) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, fused=True)
    return partial(train_step, model, optimizer, ids_BS)


def _generation(model: Any, ids_BS: torch.Tensor) -> Step:
    model.eval()
    mask_BS = torch.ones_like(ids_BS)

    def step() -> torch.Tensor:
        with torch.no_grad():
            return model.generate(ids_BS, attention_mask=mask_BS, max_new_tokens=NEW_TOKENS, do_sample=False)

    return step


def _logits(model: PreTrainedModel, ids_BS: torch.Tensor) -> Output:
    def output() -> list[torch.Tensor]:
        with torch.no_grad(), in_dtype(model.eval(), torch.float32):
            return [model(input_ids=ids_BS, use_cache=False).logits]

    return output


def _training_output(model: PreTrainedModel, ids_BS: torch.Tensor) -> Output:
    def output() -> list[torch.Tensor]:
        # In less, rounding sends some tokens to other experts in the later layers.
        with in_dtype(model.train(), torch.float32):
            found = model(input_ids=ids_BS, labels=ids_BS, use_cache=False)
            found.loss.backward()
            return [found.logits.detach(), *released_gradients(model.parameters())]

    return output


MODEL_GOALS = tuple(
    Goal(f"GPT-2 256x4 train step / {words}", 1.2, SUBJECT, dense, 1.12, higher=False, case=MODEL, mode=TRAINING)
    for dense, words in ((STOCK_GPT2, STOCK_GPT2), (DENSE_TWIN, "this package's dense twin"))
)
