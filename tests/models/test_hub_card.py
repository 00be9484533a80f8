"""A model is pushed with the card of whoever writes one, else with what transformers has."""

from pathlib import Path

from moe_hf.models.hub_card import PushesCard


def test_whoever_writes_cards_is_told_where_the_model_goes(hub, tiny_model, monkeypatch):
    told = []

    def put_card(model, folder, repo_id, revision, token):
        told.append((type(model).__name__, repo_id, revision, token))
        Path(folder, "README.md").write_text("---\nlicense: mit\n---\nWritten.\n")

    monkeypatch.setattr(PushesCard, "put_card", staticmethod(put_card))
    tiny_model().push_to_hub("me/moe", revision="v2", token=hub.token)
    assert told == [("GPT2WithMoE", "me/moe", "v2", hub.token)]
    assert hub.content("me/moe", "README.md", "v2").endswith(b"Written.\n")


def test_where_nobody_does_transformers_form_is_pushed(hub, tiny_model, monkeypatch):
    monkeypatch.setattr(PushesCard, "put_card", None)
    tiny_model().push_to_hub("me/moe")
    assert b"[More Information Needed]" in hub.content("me/moe", "README.md")
