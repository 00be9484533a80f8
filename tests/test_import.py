"""Importing the package: without optional packages, twice, and what it makes public."""

import subprocess
import sys
import textwrap

import pytest

import moe_hf
from moe_hf.base.optional import OPTIONAL_PACKAGES
from moe_hf.layers.experts.backends import EXPERTS_BACKENDS
from moe_hf.models.auto import FAMILIES, register_families

BLOCKED = sorted({package.module.split(".")[0] for package in OPTIONAL_PACKAGES.values()} | {"triton"})


@pytest.fixture(scope="module")
def lean_import() -> subprocess.CompletedProcess[str]:
    # Each finder of the import system is wrapped so that it does not find the packages, as if they were absent.
    script = f"""
    import sys
    class Hiding:
        def __init__(self, finder):
            self.finder = finder
        def find_spec(self, name, path=None, target=None):
            return None if name.split(".")[0] in {BLOCKED!r} else self.finder.find_spec(name, path, target)
        def __getattr__(self, name):
            return getattr(self.finder, name)
    sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
    import torch, moe_hf
    from moe_hf.base.optional import OPTIONAL_PACKAGES, is_available
    assert not any(is_available(name) for name in OPTIONAL_PACKAGES)
    config = moe_hf.create_moe_config("tiny", num_hidden_layers=2, vocab_size=50)
    print(moe_hf.GPT2WithMoE(config)(torch.arange(5)[None]).logits.shape)
    print(moe_hf.MoE(config)(torch.ones(3, config.hidden_size)).shape == (3, config.hidden_size))
    print(sorted(name for name in sys.modules if name in {BLOCKED!r}))
    """
    return subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", textwrap.dedent(script)], capture_output=True, text=True
    )


def test_imports_and_runs_where_every_optional_package_is_absent(
    lean_import: subprocess.CompletedProcess[str],
) -> None:
    assert lean_import.returncode == 0, lean_import.stderr
    assert lean_import.stdout.splitlines() == ["torch.Size([1, 5, 50])", "True", "[]"]


def test_importing_says_nothing(lean_import: subprocess.CompletedProcess[str]) -> None:
    assert lean_import.stderr == ""


def test_every_public_name_is_there_once() -> None:
    assert len(set(moe_hf.__all__)) == len(moe_hf.__all__)
    for name in moe_hf.__all__:
        assert getattr(moe_hf, name) is not None


@pytest.mark.parametrize(
    "name",
    [
        "GPT2WithMoE",
        "GPT2WithMoEModel",
        "GPT2WithMoEForSequenceClassification",
        "GPT2WithMoEConfig",
        "create_moe_config",
        "get_moe_model_info",
        "MoE",
        "HashRouter",
        "SwitchRouter",
        "load_balance_std",
        "expert_utilization",
        "ConfigError",
        "CheckpointError",
        "BackendUnavailableError",
    ],
)
def test_promised_names_are_public(name: str) -> None:
    assert name in moe_hf.__all__


def test_importing_makes_the_experts_backends_known_to_transformers() -> None:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    assert set(EXPERTS_BACKENDS) <= set(ALL_EXPERTS_FUNCTIONS)


def test_registering_twice_changes_nothing() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    register_families()
    register_families()
    for model_type, family in FAMILIES.items():
        config = AutoConfig.for_model(
            model_type, num_hidden_layers=1, hidden_size=32, num_attention_heads=2, vocab_size=50257
        )
        assert type(config) is family.config
        config.vocab_size = 17
        config.bos_token_id = config.eos_token_id = None
        assert type(AutoModelForCausalLM.from_config(config)) is family.causal_lm


@pytest.mark.parametrize(
    "first",
    [
        "import moe_hf; from transformers import AutoConfig",
        "from transformers import AutoConfig; import moe_hf",
        "from moe_hf.layers.ffn.standalone import MoE; from transformers import AutoConfig",
        "from moe_hf.ops.routing.routing import top_k_routing; from transformers import AutoConfig",
    ],
)
def test_transformers_knows_the_families_whatever_is_imported_first(first: str) -> None:
    script = f"{first}; print(type(AutoConfig.for_model({next(iter(FAMILIES))!r})).__name__)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == next(iter(FAMILIES.values())).config.__name__, run.stderr


def test_importing_loads_torch_only_for_a_name_that_needs_it() -> None:
    script = (
        "import sys, moe_hf; moe_hf.ConfigError; print('torch' in sys.modules); "
        "moe_hf.MoE; print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["False", "True"], run.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'GPT3WithMoE'"):
        _ = moe_hf.GPT3WithMoE
