"""The whole model: a training step with AdamW or with Muon, and greedy generation, beside the dense model.

Shapes: B sequences, S positions, T = B * S tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from moe_hf.base.errors import ConfigError
from moe_hf.bench.harness.arms import (
    OWN,
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
from moe_hf.config.presets import create_moe_config
from moe_hf.models.gpt2_moe import GPT2WithMoE
from moe_hf.models.optim import moe_muon

MODEL, STEP = "model", "step"
NUM_LAYERS = 4
PROMPT, NEW_TOKENS = 16, 16
DENSE_TWIN = "dense twin"
STOCK_GPT2 = "transformers' GPT-2"
EVERY_OTHER, EVERY_LAYER = "every other layer sparse", "every layer sparse"
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


def build_step(size: Size, mode: str, options: Options) -> Group:
    """The recipe's training step, or generation: the tiny preset, experts of `size` in half of its layers or in all.

    The dense twin has one FFN in their place, as wide as what a token meets: its experts, and the shared one that
    fills them up to the preset's width. A step is forward with the router losses, backward, gradient clipping and
    `moe_muon` on T tokens in contexts of 256; generation is as in `build_model`. The routers are fresh, so that loads
    are as uneven as at the start.
    """
    training = mode == TRAINING
    shape = batch_shape(size) if training else (size.tokens, PROMPT)
    ids_BS = torch.randint(1024, shape, generator=options.generator()).to(options.device)
    run, output_of = (_muon_training, _training_output) if training else (_generation, _logits)
    sparse = {EVERY_OTHER: ["sparse", "dense"] * (NUM_LAYERS // 2), EVERY_LAYER: ["sparse"] * NUM_LAYERS}
    arms = []
    for name, layers in sparse.items():
        if options.wants(name):
            checked = output_of(_tiny(size, layers, options, experts_implementation="eager"), ids_BS)
            model = _tiny(size, layers, options)
            arms.append(Arm(name, run(model, ids_BS), OWN, Check(output_of(model, ids_BS), checked)))
    twin = _tiny(size, ["dense"] * NUM_LAYERS, options)
    arms.append(Arm(DENSE_TWIN, run(twin, ids_BS), ROOF))
    return Group(arms)


def _tiny(size: Size, layers: list[str], options: Options, **overrides: Any) -> PreTrainedModel:
    experts = size.k * size.expert_width
    shared = max(0, 4 * size.hidden_size - experts)
    config = create_moe_config(
        "tiny",
        hidden_size=size.hidden_size,
        max_position_embeddings=max(batch_shape(size)[1], PROMPT + NEW_TOKENS),
        mlp_layer_types=layers,
        num_experts=size.num_experts,
        num_experts_per_tok=size.k,
        moe_intermediate_size=size.expert_width,
        shared_expert_intermediate_size=shared or None,
        intermediate_size=experts + shared,
        norm_topk_prob=size.k > 1,
        hidden_act=size.activation,
        router_type=size.router_type,
        router_capacity_factor=size.capacity_factor,
        **overrides,
    )
    return _seeded(lambda: GPT2WithMoE(config), size, options)


def _muon_training(model: PreTrainedModel, ids_BS: torch.Tensor) -> Step:
    optimizer = moe_muon(model, learning_rate=_LEARNING_RATE, muon_learning_rate=_LEARNING_RATE)
    return partial(train_step, model, optimizer, ids_BS)


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

# The tiny preset's own experts, and finer ones of which a token meets as much.
TINY_STEP = Size(1536, 128, 128, 8, 1, activation="gelu_new")
FINE_STEP = TINY_STEP._replace(num_experts=32, k=2)


def _experts_of(shape: Size) -> Callable[[Any], bool]:
    return lambda size: (
        (size.num_experts, size.k, size.expert_width) == (shape.num_experts, shape.k, shape.expert_width)
    )


STEP_GOALS = (
    Goal(
        "tiny train step with Muon / its dense twin",
        1.08,
        EVERY_OTHER,
        DENSE_TWIN,
        higher=False,
        case=STEP,
        mode=TRAINING,
        sizes=_experts_of(TINY_STEP),
    ),
    Goal(
        "the same, every layer of 32 experts",
        1.12,
        EVERY_LAYER,
        DENSE_TWIN,
        higher=False,
        case=STEP,
        mode=TRAINING,
        sizes=_experts_of(FINE_STEP),
    ),
)
