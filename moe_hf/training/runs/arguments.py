"""What a training run can be told of its model and itself: dataclasses behind the flags of `train.py`."""

import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from moe_hf.config.presets import PRESETS
from moe_hf.config.validation import ROUTER_TYPES
from moe_hf.training.rules import Checked, Conflict, Range

MODEL_CONFLICTS = (
    Conflict(
        lambda s: s.model and s.upcycle,
        "--model {model} continues a saved model and --upcycle {upcycle} starts from a dense one; give one of the two",
    ),
    Conflict(
        lambda s: (
            s.model and (s.architecture != "moe" or s.dense_twin or s.num_experts or s.router_type or s.model_overrides)
        ),
        "--model {model} keeps its shape: drop {flags}",
        ("architecture", "dense_twin", "num_experts", "router_type", "model_overrides"),
    ),
    Conflict(
        lambda s: s.upcycle and s.architecture not in ("moe", "dense"),
        "--upcycle {upcycle} brings its own architecture: drop --architecture {architecture}",
    ),
    Conflict(
        lambda s: not s.upcycle and (s.expert_init or s.router_init),
        "{flags}: only --upcycle makes experts of a dense model; give --upcycle as well",
        ("expert_init", "router_init"),
    ),
)

RUN_RANGES = {"questions_per_skill": Range()}


@dataclass
class ModelArguments(Checked):
    """Which model is trained and where its first weights come from.

    Three sources: fresh weights of a preset (`moe_size`), a dense GPT-2 turned into experts (`upcycle`), or a
    directory that this package saved (`model`).
    """

    # By this name HfArgumentParser makes a group of the flags in its help.
    _argument_group_name: ClassVar[str] = "model"
    CONFLICTS = MODEL_CONFLICTS

    architecture: str = field(
        default="moe",
        metadata={
            "help": "moe (GPT-2 with experts), dense (its twin: the same configuration with every layer dense), "
            "llama, retnet, mamba, hyena, rwkv, megabyte, or a pattern of mixers such as mamba*3,attention."
        },
    )
    dense_twin: bool = field(default=False, metadata={"help": "Every layer dense, whatever the architecture."})
    moe_size: str = field(default="tiny", metadata={"help": f"Preset: {', '.join(PRESETS)}."})
    model: str | None = field(
        default=None, metadata={"help": "Continue from this model: a directory that moe_hf saved, or a hub id."}
    )
    upcycle: str | None = field(
        default=None, metadata={"help": "Build the experts from this dense GPT-2: a directory or a hub id."}
    )
    num_experts: int | None = field(default=None, metadata={"help": "Experts per sparse layer."})
    num_experts_per_tok: int | None = field(default=None, metadata={"help": "Experts that each token visits."})
    router_type: str | None = field(
        default=None,
        metadata={"help": f"{', '.join(ROUTER_TYPES)}: see docs/load_balance.md."},
    )
    freeze_routers: bool = field(default=False, metadata={"help": "Keep the routers' weights as they are."})
    balanced_hash: bool = field(
        default=False,
        metadata={"help": "With hash routing: spread the ids over the experts by how often the data has them."},
    )
    expert_init: Literal["copy", "noise", "drop"] | None = field(
        default=None, metadata={"help": "With --upcycle: how the experts are made from the dense FFN."}
    )
    router_init: Literal["random", "zero"] | None = field(
        default=None, metadata={"help": "With --upcycle: the router's first weights."}
    )
    flash_attention: bool = field(
        default=True,
        metadata={"help": "PyTorch's fused attention, a flash kernel on CUDA; without it, the unfused reference."},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa, flex_attention, flash_attention_2, _3 or _4."}
    )
    experts_implementation: str | None = field(
        default=None,
        metadata={
            "help": "auto (the default: by device and shape), sorted, triton, scattermoe, grouped_mm, batched_mm or "
            "eager."
        },
    )
    model_overrides: list[str] = field(
        default_factory=list,
        metadata={"help": "Any other field of the model's configuration, as key=value (value is YAML)."},
    )

    @property
    def family(self) -> str:
        """The architecture as `moe_hf.config.architectures.architecture_config` knows it."""
        return "gpt2" if self.architecture in ("moe", "dense") else self.architecture

    @property
    def is_dense(self) -> bool:
        """Whether every layer is to be dense."""
        return self.dense_twin or self.architecture == "dense"

    @property
    def kind(self) -> str:
        """What to call it in the name of a folder.

        >>> ModelArguments(architecture="mamba*3,attention", dense_twin=True).kind
        'mamba3-attention-dense'
        """
        if self.architecture in ("moe", "dense"):
            return "dense" if self.is_dense else "moe"
        name = re.sub(r"[^a-z0-9]+", "-", self.architecture.replace("*", "").replace(" ", ""))
        return f"{name}-dense" if self.is_dense else name


@dataclass
class RunArguments(Checked):
    """How the run is begun and what is written when it ends."""

    _argument_group_name: ClassVar[str] = "run"
    RANGES = RUN_RANGES

    resume: str = field(
        default="auto",
        metadata={"help": "auto: continue an interrupted run of the same settings; never; or a checkpoint directory."},
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Print what would be trained, try two steps if they fit, keep nothing."}
    )
    questions_per_skill: int = field(
        default=30,
        metadata={"help": "On the embedded corpus: held-out questions to answer at the end, per skill; 0 for none."},
    )
    license: str | None = field(default=None, metadata={"help": "License named in the model card."})
    allow_any_learning_rate: bool = field(
        default=False, metadata={"help": "Train even with a learning rate far above what the optimizer can learn with."}
    )
