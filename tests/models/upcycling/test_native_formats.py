"""The table names classes that transformers has, and refuses by name what has none."""

import json
from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from moe_hf.base.errors import CheckpointError
from moe_hf.models.auto import family_of_dense
from moe_hf.models.upcycling.directory import upcycle_directory
from moe_hf.models.upcycling.native_formats import NATIVE_FORMATS, WITHOUT_NATIVE
from tests.models.upcycling.conftest import MakeDense


@pytest.mark.parametrize("dense_type", list(NATIVE_FORMATS))
def test_both_types_are_transformers_own(dense_type: str) -> None:
    assert {dense_type, NATIVE_FORMATS[dense_type].moe_type} <= MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()


@pytest.mark.parametrize("dense_type", [*WITHOUT_NATIVE, "opt"])
def test_others_are_refused_by_name_and_reason(dense: MakeDense, tmp_path: Path, dense_type: str) -> None:
    config = dense("llama") / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": dense_type}))
    why = WITHOUT_NATIVE.get(dense_type, "or a Mixture of Experts already")
    # Some of them become a model of this package where nothing else is asked for.
    for target in ("native",) if family_of_dense(dense_type) else ("native", None):
        with pytest.raises(CheckpointError, match=f"type '{dense_type}', which can't be upcycled exactly: .*{why}"):
            upcycle_directory(str(config.parent), tmp_path / "moe", target=target)
