"""The summary and the picture of the published upcycling, made again from its data."""

import json
from pathlib import Path

from moe_hf.bench.studies.upcycling_report import plot_upcycling, summarise

RESULT = json.loads((Path(__file__).parents[3] / "docs" / "data" / "upcycling.json").read_text())


def test_the_published_summary_follows_from_the_published_curves():
    assert summarise(RESULT) == RESULT["summary"]


def test_the_picture_is_drawn_from_the_data_alone(tmp_path):
    plot_upcycling(RESULT, tmp_path / "images" / "upcycling.png")
    assert (tmp_path / "images" / "upcycling.png").stat().st_size > 10_000
