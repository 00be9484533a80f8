"""The numbers of a server, as Prometheus reads them."""

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.serving.metrics import METRICS, Meter, Sample


def test_counts_are_kept_by_label_and_speed_follows() -> None:
    meter = Meter()
    meter.add("moe_hf_completion_tokens_total", 6, model="m")
    meter.add("moe_hf_completion_tokens_total", 4, model="m")
    meter.add("moe_hf_generation_seconds_total", 2.5, model="m")
    meter.add("moe_hf_completion_tokens_total", 1, model="idle")
    lines = meter.text().splitlines()
    assert 'moe_hf_completion_tokens_total{model="m"} 10' in lines
    assert 'moe_hf_generation_seconds_total{model="m"} 2.5' in lines
    assert [line for line in lines if line.startswith("moe_hf_tokens_per_second")] == [
        'moe_hf_tokens_per_second{model="m"} 4'
    ]
    assert meter.value("moe_hf_completion_tokens_total", model="m") == 10


def test_every_metric_is_explained_and_labels_are_escaped() -> None:
    meter = Meter()
    meter.collect_from(lambda: [Sample("moe_hf_generating", (("model", 'a"b\\c\nd'),), 1.0)])
    lines = meter.text().splitlines()
    assert sum(line.startswith("# HELP") for line in lines) == len(METRICS)
    assert sum(line.startswith("# TYPE") for line in lines) == len(METRICS)
    assert r'moe_hf_generating{model="a\"b\\c\nd"} 1' in lines


def test_a_metric_that_is_in_no_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="moe_hf_generating"):
        Meter().add("moe_hf_generatin")
