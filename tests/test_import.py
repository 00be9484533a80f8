"""Importing the package: without optional packages, twice, and what it makes public."""

import os
import subprocess
import sys
import textwrap

import pytest

import moe_hf
from moe_hf.base.optional import OPTIONAL_PACKAGES
from moe_hf.models.auto import FAMILIES

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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that share what they have loaded")
def test_transformers_knows_the_families_whatever_is_imported_first() -> None:
    first = [
        "import moe_hf; from transformers import AutoConfig",
        "from transformers import AutoConfig; import moe_hf",
        "from moe_hf.layers.ffn.standalone import MoE; from transformers import AutoConfig",
        "from moe_hf.ops.routing.routing import top_k_routing; from transformers import AutoConfig",
    ]
    # Torch is loaded once for all, and nothing else.
    script = f"""
import os, torch
for first in {first!r}:
    if not os.fork():
        exec(first)
        print(type(AutoConfig.for_model({next(iter(FAMILIES))!r})).__name__, flush=True)
        os._exit(0)
    os.wait()
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert run.stdout.split() == [next(iter(FAMILIES.values())).config.__name__] * len(first), run.stderr


def test_importing_loads_torch_only_for_a_name_that_needs_it_and_lets_threads_wait_as_they_did() -> None:
    script = (
        "import os, sys, moe_hf; moe_hf.ConfigError; print('torch' in sys.modules); "
        "moe_hf.MoE; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"
    )
    lean = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=lean)
    assert run.stdout.split() == ["False", "True", "None"], run.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'GPT3WithMoE'"):
        _ = moe_hf.GPT3WithMoE
