import logging

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.models import keywords
from moe_hf.models.keywords import refuse_unknown
from tests.models.families import tiny_family


def test_a_setting_that_nobody_reads_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    type(keywords.logger).warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            refuse_unknown({"use_flash": True, "nothing": None}, attends=True)
    assert [record.getMessage() for record in caplog.records] == [
        "forward got use_flash=True, which nothing in this model reads; leave it out"
    ]


def test_what_attention_alone_reads_is_refused_where_no_layer_attends() -> None:
    bias = {"position_bias": torch.zeros(1)}
    refuse_unknown(bias, attends=True)
    with pytest.raises(ConfigError, match="position_bias=Tensor, which nothing in this model reads"):
        refuse_unknown(bias, attends=False)


def test_what_losses_and_recorders_read_passes() -> None:
    model, ids = tiny_family("retnet").train(), torch.arange(3, 15).view(2, 6)
    given = {"num_items_in_batch": torch.tensor(10), "output_hidden_states": True, "shift_labels": ids}
    assert model(ids, **given).loss.isfinite()
