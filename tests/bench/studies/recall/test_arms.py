"""The models that are compared: of about the same size, and made by name."""

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.bench.studies.recall.arms import ARMS, make_model
from moe_hf.bench.studies.recall.learning import answers
from moe_hf.bench.studies.recall.tasks import TASKS


@pytest.mark.parametrize("arm", list(ARMS))
def test_every_mixer_is_of_about_the_same_size_and_answers(arm):
    task = TASKS["mqar"]
    model = make_model(arm, task, seed=0)
    assert 65_000 <= model.num_parameters() <= 112_000
    assert model.config.num_hidden_layers == 2
    accuracy, loss = answers(model, task.variants["4 pairs"](8, torch.Generator().manual_seed(0)))
    assert 0 <= accuracy < 0.6
    assert 1 < loss < 20


def test_an_unknown_mixer_is_an_error_that_says_what_there_is():
    with pytest.raises(ConfigError, match=r"unknown mixer 'atention'.*attention"):
        make_model("atention", TASKS["mqar"], seed=0)
