"""A card that nobody changed is known, renamed and replaced; one that somebody changed is left alone."""

import pytest
import yaml

from moe_hf import CheckpointError
from moe_hf.models.cards.card import (
    is_unedited,
    metadata_of,
    placeholder,
    renamed,
    shown,
    size_rows,
    split_card,
    table,
    told_name,
    with_metadata,
    with_section,
    written_card,
)

METADATA = metadata_of(["upcycled"], is_sparse=True, license="mit")


def card(name="YOUR-NAME/moe"):
    return written_card(name, METADATA, ["# moe", f'Load "{name}", not "{name}-large".', table([("size", "3")])])


def test_metadata_can_be_read_back_and_says_only_what_is_known(tmp_path, monkeypatch):
    assert split_card(card()).metadata == METADATA
    assert METADATA["tags"] == ["moe_hf", "mixture-of-experts", "moe", "upcycled"]
    assert not {"base_model", "datasets"} & set(METADATA)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path.parent))
    for folder in (str(tmp_path), f"~/{tmp_path.name}"):
        assert "base_model" not in metadata_of([], True, base_model=folder)
        assert told_name(folder) == tmp_path.name
    monkeypatch.chdir(tmp_path)
    assert (told_name("."), told_name("openai/gpt2")) == (tmp_path.name, "openai/gpt2")
    assert metadata_of([], False, base_model="openai/gpt2") == {
        **{"library_name": "transformers", "pipeline_tag": "text-generation"},
        **{"tags": ["moe_hf", "dense"], "base_model": "openai/gpt2"},
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("# moe", "# My moe"),
        lambda text: text.replace("license: mit", "license: apache-2.0"),
        lambda text: text + "\nMore.\n",
        lambda text: text.replace("<!-- written by moe_hf", "<!-- "),
        lambda text: "",
    ],
    ids=["title", "license", "end", "mark", "empty"],
)
def test_a_card_that_somebody_changed_is_his(change):
    assert is_unedited(card())
    assert not is_unedited(change(card()))
    assert renamed(change(card()), "me/moe") == change(card())


def test_metadata_in_another_style_and_other_line_ends_are_no_change():
    _, front, body = card().split("---\n", 2)
    restyled = yaml.safe_dump(dict(reversed(yaml.safe_load(front).items())), default_flow_style=True, sort_keys=False)
    assert is_unedited(f"---\n{restyled}---\n{body}".replace("\n", "\r\n"))


def test_a_renamed_card_names_the_model_everywhere_and_is_still_known():
    text = renamed(card(), "me/mixture")
    assert 'Load "me/mixture", not "YOUR-NAME/moe-large".' in text
    assert is_unedited(text)
    assert text == renamed(text, "me/mixture")


def test_a_section_takes_the_place_of_the_one_with_its_heading():
    text = written_card("me/moe", METADATA, ["# moe", "## Use\n\nOld.", "## Training\n\nLong."])
    changed = with_section(text, "## Use\n\nNew \\1.\n")
    assert "Old." not in changed
    assert "## Use\n\nNew \\1.\n\n## Training\n\nLong.\n" in changed
    assert is_unedited(changed)
    edited = text.replace("# moe", "# Mine")
    assert with_section(edited, "## Use\n\nNew.\n") == edited


def test_metadata_goes_before_what_somebody_wrote():
    mine = "# Mine\n\n---\na rule\n---\n"
    completed = with_metadata(mine, METADATA)
    assert split_card(completed).metadata == METADATA
    assert completed.endswith(mine)
    assert with_metadata("---\n---\n# Mine\n", METADATA).count("---") == 2
    own = "---\nlicense: mit\n---\n# Mine\n"
    assert with_metadata(own, METADATA) == own


@pytest.mark.parametrize("front", ["a: [", "- a\n- b", "a: !!python/object/apply:os.getcwd []"])
def test_metadata_that_is_none_is_refused(front):
    with pytest.raises(CheckpointError, match="metadata at the head"):
        split_card(f"---\n{front}\n---\n# Mine\n")


@pytest.mark.parametrize(("folder", "name"), [("my moe!", "my-moe"), ("..", "model"), ("größe", "gr-e")])
def test_a_placeholder_is_an_id_that_the_hub_would_take(folder, name):
    assert placeholder(folder) == f"YOUR-NAME/{name}"


def test_sizes_of_a_dense_model_speak_of_no_experts():
    assert size_rows(10, 10, 1, 1, 0, 2) == [("parameters", "10")]
    assert ("active per token", "1,500 (75.0%)") in size_rows(2000, 1500, 4, 2, 1, 1)


def test_pictures_are_shown_by_their_names():
    assert shown(["expert_utilization.png"]) == "![expert utilization](expert_utilization.png)\n\n"
