import subprocess
import sys

import pytest

from moe_hf.base.optional import is_available
from moe_hf.cli.web.layout import heading

# gradio leaves sockets and event loops open where it builds a page that is never served.
DENSE_PAGE = """
import sys
from moe_hf.base.optional import require
from moe_hf.cli.web.layout import Layout
from moe_hf.cli.web.tabs import Tabs
from moe_hf.inference.settings import GenerationSettings
from moe_hf.inference.text_model import CausalTextModel

CausalTextModel.sparse_layers = ()
model = CausalTextModel.load(sys.argv[1], device="cpu")
blocks = Layout(require("gradio", "a test"), Tabs(model, GenerationSettings())).blocks
print([block.visible for block in blocks.blocks.values() if block.elem_id == "experts"])
"""


def by_id(config, name):
    return next(part["props"] for part in config["components"] if part["props"].get("elem_id") == name)


def by_label(config, label):
    return next(part["props"] for part in config["components"] if part["props"].get("label") == label)


def test_the_page_says_what_it_talks_with_and_offers_its_layers(babbler, config) -> None:
    assert f"{babbler.num_parameters():,} parameters" in by_id(config, "heading")["value"]
    assert by_id(config, "experts")["visible"]
    assert by_label(config, "Experts: layer that colours the tokens")["choices"] == [["0", 0]]
    assert config["title"] == f"{babbler.name} - moe_hf"


def test_what_is_needed_to_talk_is_there(config) -> None:
    assert by_label(config, "Message")["submit_btn"] == "Send"
    assert by_id(config, "conversation")["editable"] == "user"
    assert len(by_id(config, "conversation")["examples"]) > 1
    assert by_label(config, "System message")["value"] == ""


def test_a_models_name_writes_no_html(babbler, monkeypatch) -> None:
    monkeypatch.setattr(babbler, "name", "<script>\x1b")
    assert heading(babbler).startswith("<h1>&lt;script&gt;</h1>")


@pytest.mark.slow
def test_a_dense_model_has_no_expert_view(model_folder) -> None:
    if not is_available("gradio"):
        pytest.skip("the web page needs the extra `web`")
    run = subprocess.run([sys.executable, "-c", DENSE_PAGE, str(model_folder)], capture_output=True, text=True)
    assert run.stdout == "[False]\n", run.stderr


def test_answers_stand_in_a_queue_and_drawing_waits_for_none(config) -> None:
    queued = {event["api_name"] for event in config["dependencies"] if event["queue"] is not False}
    # The last is called when a tab is closed, by gradio itself.
    assert queued == {"say", "example", "retry", "edit", "stop_1"}
