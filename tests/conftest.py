"""What all tests share: no network, quiet progress bars, tiny configurations, models and dense checkpoints."""

import gc
import os
import signal
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers.utils.hub
from matplotlib.figure import Figure
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.utils import logging

from moe_hf import GPT2WithMoE, GPT2WithMoEConfig
from tests.sharing.hub_server import HubServer

TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    # Ten times the usual spread: logits, and so the choice of experts and of tokens, are far from ties.
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> Iterator[None]:
    """Ctrl-C does what it does in a terminal, also where a shell started the tests in the background, ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="session")
def quiet_and_single_threaded() -> Iterator[None]:
    """Tiny tensors are faster on one thread; bars and load reports would only hide what a test prints."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="module")
def what_was_imported_is_no_garbage() -> Iterator[None]:
    """Every training run ends with `gc.collect()`, which would look at all of torch and transformers: half its time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., GPT2WithMoEConfig]:
    """Makes a small configuration; keywords override its fields."""

    def make(**overrides: Any) -> GPT2WithMoEConfig:
        return GPT2WithMoEConfig(**{**TINY, **overrides})

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_config: Callable[..., GPT2WithMoEConfig]) -> Callable[..., PreTrainedModel]:
    """Makes a small model in eval mode from a seed, every parameter (biases, short convolution) away from zero."""

    def make(model_class: type[PreTrainedModel] = GPT2WithMoE, seed: int = 0, **overrides: Any) -> PreTrainedModel:
        torch.manual_seed(seed)
        model = model_class(tiny_config(**overrides)).eval()
        randomize(model)
        return model

    return make


def randomize(model: torch.nn.Module) -> None:
    """Give what starts at zero or one (biases, norms, convolutions) values that a mistake would show in."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "short_conv" in name or "norm" in name or "ln_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)


@pytest.fixture(scope="session")
def checkpointed() -> Callable[..., PreTrainedModel]:
    """Turns activation checkpointing on, under the name that every supported transformers has."""

    def enable(model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        with warnings.catch_warnings():
            # An alias in newer versions; the old ones have only this.
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable(**kwargs)
        return model

    return enable


@pytest.fixture
def token_ids() -> torch.Tensor:
    """Three sequences of seven tokens, none of them special."""
    return torch.randint(3, 61, (3, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def dense_gpt2() -> Callable[..., PreTrainedModel]:
    """Makes a small dense GPT-2 in eval mode whose every parameter is away from zero."""

    def make(model_class: type[PreTrainedModel] = GPT2LMHeadModel, seed: int = 0, **overrides: Any) -> PreTrainedModel:
        torch.manual_seed(seed)
        fields = {
            "vocab_size": 61,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 40,
            "initializer_range": 0.2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }
        model = model_class(GPT2Config(**{**fields, **overrides})).eval()
        randomize(model)
        return model

    return make


@pytest.fixture(scope="session")
def dense_folder(dense_gpt2: Callable[..., PreTrainedModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved dense GPT-2; tests that damage it copy it first."""
    folder = tmp_path_factory.mktemp("dense")
    dense_gpt2().save_pretrained(folder)
    return folder


@pytest.fixture
def empty_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are empty files: to draw them takes longer than the few steps of a tiny run."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: Path(file).touch())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A Hub on loopback where nothing is stored yet, and a user with a token that may write."""
    server, home = HubServer(), tmp_path_factory.mktemp("hub-home")
    constants = huggingface_hub.constants
    # What these variables say is read once, when huggingface_hub is imported.
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    monkeypatch.setenv("HF_TOKEN", server.token)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    huggingface_hub.utils.disable_progress_bars()
    yield server
    huggingface_hub.utils.enable_progress_bars()
    server.close()
