"""The Mamba family's configuration reads those of dense Mambas, and refuses what it cannot carry over."""

from pathlib import Path

import pytest
from transformers import MambaConfig

from moe_hf import CheckpointError, MambaWithMoEConfig


def test_an_activation_of_its_own_is_refused(tmp_path: Path) -> None:
    MambaConfig(hidden_size=32, num_hidden_layers=3, hidden_act="gelu").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="sets hidden_act='gelu'; only 'silu'"):
        MambaWithMoEConfig.from_pretrained(tmp_path)
