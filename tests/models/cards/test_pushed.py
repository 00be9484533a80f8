"""Every family's `push_to_hub` shares a model that loads as it was, with a card of its own."""

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from moe_hf import GPT2WithMoEForSequenceClassification
from moe_hf.models.auto import FAMILIES
from moe_hf.models.cards.card import is_unedited, split_card
from moe_hf.models.info import get_moe_model_info
from tests.models.families import KINDS, tiny_family

REPO = "me/moe"
MINE = b"---\nlicense: mit\n---\n# Mine\n"
KIND_OF_FAMILY = {model_type: kind for kind, (model_type, _) in reversed(KINDS.items())}


def card(hub, revision="main"):
    return hub.content(REPO, "README.md", revision).decode()


@pytest.mark.parametrize("model_type", [*FAMILIES])
def test_what_a_family_pushes_loads_from_the_hub_as_it_was(hub, model_type):
    model = tiny_family(KIND_OF_FAMILY[model_type])
    model.push_to_hub(REPO, max_shard_size="40KB", private=True, tags=["mine"])
    assert hub.repos[REPO].private
    assert {"config.json", "generation_config.json", "model.safetensors.index.json"} <= hub.names(REPO)
    there = AutoModelForCausalLM.from_pretrained(REPO)
    assert type(there) is type(model)
    other = dict(there.named_parameters())
    assert all(torch.equal(value, other[name]) for name, value in model.named_parameters())
    text, info = card(hub), get_moe_model_info(model.config)
    assert f"| active per token | {info['active_params']:,} " in text
    assert f'AutoModelForCausalLM.from_pretrained("{REPO}")' in text
    assert "import moe_hf" in text
    assert {"moe_hf", "mine", "mixture-of-experts"} <= set(split_card(text).metadata["tags"])
    assert is_unedited(text)


def test_a_classifier_says_that_it_is_one(hub, tiny_model):
    tiny_model(GPT2WithMoEForSequenceClassification, num_labels=3).push_to_hub(REPO)
    assert split_card(card(hub)).metadata["pipeline_tag"] == "text-classification"
    assert "AutoModelForSequenceClassification" in card(hub)
    assert AutoModelForSequenceClassification.from_pretrained(REPO).config.num_labels == 3


def test_a_model_without_a_head_says_so(hub, tiny_model):
    tiny_model().model.push_to_hub(REPO)
    assert 'AutoModel.from_pretrained("me/moe")' in card(hub)


def test_a_card_that_somebody_changed_stays_and_one_that_nobody_did_is_renewed(hub, tiny_model):
    model = tiny_model()
    hub.add(REPO, {"README.md": MINE})
    model.push_to_hub(REPO)
    assert card(hub) == MINE.decode()
    hub.add(REPO, {"README.md": MINE.replace(b"Mine", b"Mine on a branch")}, branch="v2")
    model.push_to_hub(REPO, revision="v2", commit_message="again")
    assert card(hub, "v2") == MINE.decode().replace("Mine", "Mine on a branch")
    hub.repos.clear()
    model.push_to_hub(REPO)
    first = card(hub)
    # As transformers, or the Hub's editor, writes the same anew.
    hub.add(REPO, {"README.md": str(ModelCard(first)).encode()})
    tiny_model(num_experts=3).push_to_hub(REPO)
    assert "| experts per sparse layer | 3, 2 per token |" in card(hub)


def test_a_new_branch_has_the_card_of_main(hub, tiny_model):
    model = tiny_model()
    hub.add(REPO, {"README.md": MINE})
    model.push_to_hub(REPO, revision="v2")
    assert card(hub, "v2") == MINE.decode()
    hub.repos.clear()
    model.push_to_hub(REPO, revision="v2")
    assert is_unedited(card(hub, "v2"))
    assert "README.md" not in hub.names(REPO)


def test_saving_with_push_to_hub_pushes_the_card_as_well(hub, tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "moe", push_to_hub=True, repo_id=REPO)
    assert is_unedited(card(hub))
    assert (tmp_path / "moe" / "README.md").read_text() == card(hub)
