"""Prompts from flags and stdin are answered in order, as text or as JSON."""

import json
import os
import signal

import pytest
import torch

from moe_hf import GPT2WithMoE, create_moe_config
from moe_hf.base.optional import is_available
from moe_hf.base.printable import json_line
from moe_hf.cli.chat import main
from moe_hf.cli.chat_script import answer_prompts, reply_record
from moe_hf.cli.plain_console import PlainConsole
from moe_hf.inference.chat import Chat
from moe_hf.inference.chat_session import ChatSession, Reply
from moe_hf.inference.routing_recorder import RoutingTrace
from moe_hf.inference.streaming import Piece
from moe_hf.inference.text_model import CausalTextModel
from moe_hf.text.tokenizers import byte_tokenizer

SHORT = ["--max_new_tokens", "5", "--device", "cpu", "--seed", "1"]


def test_json_holds_what_a_script_needs(model_folder, capsys, stdin):
    assert main(["--model", str(model_folder), "-p", "hi", "-p", "and?", *SHORT, "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["prompt"], first["tokens"], first["finish_reason"], first["seed"]) == ("hi", 5, "max_new_tokens", 1)
    assert first["seconds"] > 0
    # The second prompt is the next turn of the same conversation.
    assert second["prompt_tokens"] > first["prompt_tokens"] + len("and?")


def test_all_of_stdin_is_one_prompt(model_folder, capsys, stdin):
    stdin("two\nlines\n")
    assert main(["--model", str(model_folder), "--json", *SHORT]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "two\nlines"


def test_per_line_each_line_is_a_conversation_of_its_own(model_folder, capsys, stdin):
    stdin("one\n\none\n")
    assert main(["--model", str(model_folder), "--per_line", "--json", *SHORT]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["text"] == second["text"]
    assert first["prompt_tokens"] == second["prompt_tokens"]


def test_a_dash_is_stdin_among_other_prompts(model_folder, capsys, stdin):
    stdin("from stdin")
    assert main(["--model", str(model_folder), "--json", "-p", "first", "-p", "-", *SHORT]) == 0
    assert [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()] == ["first", "from stdin"]


def test_stdin_that_is_no_text_is_refused(model_folder, capsys, stdin):
    stdin(b"\xff\xfe")
    assert main(["--model", str(model_folder), *SHORT]) == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_json_holds_the_experts_if_they_are_asked_for(model_folder, capsys, stdin):
    assert main(["--model", str(model_folder), "-p", "hi", "--experts", "--json", *SHORT]) == 0
    (layer,) = json.loads(capsys.readouterr().out)["experts"]
    # The fifth token was never fed back.
    assert (layer["layer"], len(layer["top_expert"])) == (0, 4)
    assert sum(layer["load"]) == pytest.approx(1)


def test_json_with_experts_names_the_text_of_each_token():
    experts = torch.zeros(1, 3, 1, dtype=torch.long)
    trace = RoutingTrace((Piece("a", 1), Piece("\u00e9", 2), Piece("\x9b", 1)), (0,), 2, experts, torch.ones(1, 3, 1))
    record = reply_record("p", "m", Reply("a\u00e9\x9b", 4, 9, 0.5, "stop", 7, 0, trace))
    assert record["token_texts"] == ["a", "", "\u00e9", "\x9b"]
    assert json.loads(json_line(record))["text"] == "a\u00e9\x9b"
    assert "\x9b" not in json_line(record)


def test_ctrl_c_in_a_script_is_no_success(model_folder, capsys, stdin):
    class InterruptedConsole(PlainConsole):
        def answer(self, text):
            super().answer(text)
            os.kill(os.getpid(), signal.SIGINT)

    model = CausalTextModel.load(str(model_folder), device="cpu")
    chat = Chat(ChatSession(model), InterruptedConsole(), CausalTextModel.load)
    with pytest.raises(KeyboardInterrupt):
        answer_prompts(chat, ["hi", "never"], as_json=False, per_line=False)
    assert "interrupted" in capsys.readouterr().err
    assert len(chat.replies) == 1


@pytest.fixture(scope="module")
def untrained_folder(tmp_path_factory):
    """A model with random weights that may write whatever it likes."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    folder = tmp_path_factory.mktemp("untrained")
    GPT2WithMoE(create_moe_config("tiny", vocab_size=len(tokenizer), **shape, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.skipif(not is_available("llguidance"), reason="needs the extra `json`")
def test_answers_by_a_schema_are_json_or_an_error(untrained_folder, tmp_path, capsys, stdin):
    schema = tmp_path / "schema.json"
    words = ["--model", str(untrained_folder), "-p", "one", "-p", "two", "--json_schema", str(schema)]
    schema.write_text('{"enum": ["a", "b"]}')
    assert main(words) == 0
    answers = capsys.readouterr().out.splitlines()
    assert len(answers) == 2
    assert {json.loads(answer) for answer in answers} <= {"a", "b"}
    assert main([*words, "--json"]) == 0
    assert {json.loads(json.loads(line)["text"]) for line in capsys.readouterr().out.splitlines()} <= {"a", "b"}
    # An answer that was cut off is no JSON: nothing of it is printed.
    schema.write_text('{"type": "string", "minLength": 50}')
    assert main([*words, "--max_new_tokens", "9"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "raise --max_new_tokens" in shown.err
    schema.write_text('{"type": "strnig"}')
    assert main(words) == 2
    assert "can't be held to" in capsys.readouterr().err
