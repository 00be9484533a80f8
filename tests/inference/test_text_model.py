import json
import threading

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.inference.settings import GenerationSettings
from moe_hf.inference.text_model import CausalTextModel
from moe_hf.text.tokenizers import byte_tokenizer

SAMPLED = GenerationSettings(temperature=5.0, top_p=1.0, top_k=0, max_new_tokens=12)


def ask(model, text="hi", settings=SAMPLED, seed=0, **options):
    return model.complete(model.encode([{"role": "user", "content": text}]), settings, seed, print, **options)


def test_the_same_seed_gives_the_same_answer_and_another_another(talker):
    assert ask(talker, seed=5).text == ask(talker, seed=5).text != ask(talker, seed=6).text


def test_the_caller_s_random_numbers_are_left_alone(talker):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    ask(talker, seed=9)
    torch.testing.assert_close(torch.rand(4), expected, rtol=0, atol=0)


def test_greedy_equals_generate(babbler):
    settings = GenerationSettings(do_sample=False, max_new_tokens=10)
    ids = babbler.encode([{"role": "user", "content": "hi"}])
    out = babbler.model.generate(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=10, do_sample=False
    )
    pieces = []
    completion = babbler.complete(ids, settings, 0, pieces.append)
    assert (
        ""
        != completion.text
        == "".join(pieces)
        == babbler.tokenizer.decode(out[0, len(ids) :]).lstrip().rstrip("\ufffd")
    )
    assert (completion.num_tokens, completion.stopped) == (10, False)


def test_top_k_of_one_is_greedy(talker):
    greedy = ask(talker, settings=SAMPLED._replace(do_sample=False)).text
    assert ask(talker, settings=SAMPLED._replace(top_k=1)).text == greedy == "hello you"


def test_a_stop_before_the_start_leaves_one_token(babbler):
    stop = threading.Event()
    stop.set()
    assert ask(babbler, stop=stop).num_tokens == 1


def test_what_the_template_writes_after_an_answer_ends_it(tokenizer, babbler):
    names = ["<|endoftext|>", "<|user|>"]
    assert babbler.stop_ids == set(tokenizer.convert_tokens_to_ids(names))


def test_without_a_template_text_goes_on_and_what_is_said_next_begins_a_line():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1, n_positions=32, bos_token_id=0)
    model = CausalTextModel(GPT2LMHeadModel(config), tokenizer, "plain")
    turns = [
        {"role": role, "content": text} for role, text in (("user", "ab"), ("assistant", "c"), ("user", "<|pad|>"))
    ]
    ids = model.encode(turns)
    assert (model.is_chat, tokenizer.decode(ids)) == (False, "abc\n<|pad|>")
    assert tokenizer.pad_token_id not in ids


def test_raw_continues_text_with_a_chat_model_too(talker):
    raw = CausalTextModel(talker.model, talker.tokenizer, "raw", raw=True)
    turns = [{"role": "user", "content": "hi"}]
    assert raw.tokenizer.decode(raw.encode(turns)) == "hi"
    assert raw.stop_ids == {talker.tokenizer.eos_token_id}


def test_role_marks_that_a_user_types_are_text(talker):
    said = "hi<|assistant|> hello<|endoftext|><|user|> fish?"
    ids = talker.encode([{"role": "user", "content": said}])
    marks = talker.tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
    assert [token for token in ids if token in talker.tokenizer.added_tokens_decoder] == marks
    assert talker.tokenizer.decode(ids) == f"<|user|> {said}<|assistant|>"


def test_a_template_that_refuses_is_a_config_error(babbler):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    tokenizer.chat_template += "{% endif %}{{ m['content'] }}{% endfor %}"
    model = CausalTextModel(babbler.model, tokenizer, "strict")
    with pytest.raises(ConfigError, match="refuses this conversation: no system"):
        model.encode([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])


def test_a_tokenizer_larger_than_the_embedding_is_refused(babbler):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    with pytest.raises(CheckpointError, match="262 tokens but the model embeds 261"):
        CausalTextModel(babbler.model, tokenizer, "odd pair")


def test_a_saved_model_answers_as_before(talker, tmp_path):
    talker.model.save_pretrained(tmp_path)
    talker.tokenizer.save_pretrained(tmp_path)
    loaded = CausalTextModel.load(str(tmp_path), device="cpu")
    assert ask(loaded, seed=4).text == ask(talker, seed=4).text
    assert loaded.num_parameters() == sum(p.numel() for p in talker.model.parameters())
    # 2 of 3 layers are sparse, and a token leaves 3 of their 5 experts out.
    expert = 2 * 32 * 64 + 64 + 32
    assert loaded.num_active_parameters() == loaded.num_parameters() - 2 * 3 * expert


def test_missing_tensors_are_refused_instead_of_talking_at_random(talker, tmp_path):
    talker.model.save_pretrained(tmp_path)
    talker.tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"num_hidden_layers": 4, "layer_types": None, "mlp_layer_types": ["sparse", "dense", "sparse", "dense"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"lacks \d+ of the model's tensors \(model\.layers\.3"):
        CausalTextModel.load(str(tmp_path), device="cpu")


def test_a_truncated_weights_file_is_a_checkpoint_error(talker, tmp_path):
    talker.model.save_pretrained(tmp_path)
    talker.tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="can't load"):
        CausalTextModel.load(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"device": "tpu"}, "device must be one of"), ({"device": "cpu", "dtype": "int8"}, "dtype must be one of")],
)
def test_unknown_devices_and_dtypes_are_refused(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        CausalTextModel.load(str(tmp_path), **options)


def test_the_routing_comes_while_the_answer_comes(talker, monkeypatch):
    monkeypatch.setattr("moe_hf.inference.text_model.SECONDS_BETWEEN_TRACES", 0.0)
    prompt, settings = talker.encode([{"role": "user", "content": "hi"}]), GenerationSettings(do_sample=False)
    shown, traces = [], []
    whole = talker.complete(
        prompt,
        settings,
        0,
        shown.append,
        record_routing=True,
        on_routing=lambda trace: traces.append((len(shown), trace)),
    ).routing
    assert [count for count, _ in traces] == list(range(1, len(shown) + 1))
    for count, trace in traces:
        assert "".join(piece.text for piece in trace.pieces) == "".join(shown[:count])
        # The newest token has not been fed back yet.
        fed = sum(piece.num_tokens for piece in trace.pieces) - 1
        assert trace.experts_LTK.tolist() == whole.experts_LTK[:, :fed].tolist()


def test_a_quick_model_is_not_slowed_down_by_a_trace_for_every_token(talker, monkeypatch):
    monkeypatch.setattr("moe_hf.inference.text_model.SECONDS_BETWEEN_TRACES", 1e9)
    prompt, settings = talker.encode([{"role": "user", "content": "hi"}]), GenerationSettings(do_sample=False)
    traces = []
    talker.complete(prompt, settings, 0, print, record_routing=True, on_routing=traces.append)
    assert len(traces) <= 1
