"""Tables and pictures of the published load balance, made again from its data."""

import json
from pathlib import Path

import pytest

from moe_hf.bench.studies.load_balance_report import domain_table, draw_pictures, floor_table, layer_table, runs_table

DATA = Path(__file__).parents[3] / "docs" / "data"


@pytest.fixture(scope="module")
def result():
    return json.loads((DATA / "load_balance.json").read_text())


def test_each_sparse_layer_has_a_row_and_the_words_name_the_model(result):
    table, words = layer_table(result).split("\n\n")
    assert table.count("\n") == 1 + len(result["layers"])
    assert f"{result['tokens']:,} tokens" in words


def test_sorts_come_first_and_then_the_five_skills_that_differ_most(result):
    names = [line.split(" | ")[0].strip("| ") for line in domain_table(result).splitlines()[2:]]
    sorts = [domain["name"] for domain in result["domains"] if domain["kind"] == "sort"]
    assert names[: len(sorts)] == [f"**{name}**" for name in sorts]
    far = {
        domain["name"]: max(layer["distance"] for layer in domain["layers"])
        for domain in result["domains"]
        if domain["kind"] == "skill"
    }
    assert names[len(sorts) :] == sorted(far, key=far.__getitem__, reverse=True)[:5]


def test_the_floor_and_the_runs_have_a_row_for_each(result):
    assert floor_table(result).count("\n") == 1 + len(result["floor_check"])
    runs = json.loads((DATA / "load_balance_runs.json").read_text())
    assert runs_table(runs).count("\n") == 1 + len(runs)


def test_pictures_have_the_names_that_the_page_shows(result, tmp_path):
    draw_pictures(result, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "load_balance_domains.png",
        "load_balance_layers.png",
        "load_balance_std.png",
    ]
