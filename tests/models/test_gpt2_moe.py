"""The GPT-2 family as its users meet it: saving, tying, resizing, pipelines, LoRA, the dense twin, GPT-2 itself."""

import copy

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast, pipeline

from moe_hf import GPT2WithMoE, GPT2WithMoEForSequenceClassification, GPT2WithMoEModel
from moe_hf.base.optional import is_available


class TestSavingAndLoading:
    @pytest.mark.parametrize("model_class", [GPT2WithMoE, GPT2WithMoEModel, GPT2WithMoEForSequenceClassification])
    @pytest.mark.parametrize("shard", ["10KB", "5GB"])
    def test_round_trip_is_exact(self, tiny_model, token_ids, tmp_path, model_class, shard: str) -> None:
        model = tiny_model(model_class, mixer_short_conv=3, shared_expert_intermediate_size=16)
        model.save_pretrained(tmp_path, max_shard_size=shard)
        assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "10KB")
        loaded, loading = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(loading.values())
        assert loaded(token_ids)[0].equal(model(token_ids)[0])

    def test_a_body_serves_every_head(self, tiny_model, token_ids, tmp_path) -> None:
        model = tiny_model()
        model.save_pretrained(tmp_path)
        body = GPT2WithMoEModel.from_pretrained(tmp_path)
        hidden = model.model(token_ids).last_hidden_state
        assert body(token_ids).last_hidden_state.equal(hidden)
        body.save_pretrained(tmp_path / "body")
        again, loading = GPT2WithMoE.from_pretrained(tmp_path / "body", output_loading_info=True)
        assert again.model(token_ids).last_hidden_state.equal(hidden)
        # The head is tied to the embedding, which is there.
        assert not loading["missing_keys"]
        classifier, loading = GPT2WithMoEForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
        assert set(loading["missing_keys"]) == {"score.weight"}
        assert classifier.model(token_ids).last_hidden_state.equal(hidden)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_loads_in_half_precision_and_says_so_when_saved(self, tiny_model, token_ids, tmp_path, dtype) -> None:
        tiny_model().save_pretrained(tmp_path)
        model = GPT2WithMoE.from_pretrained(tmp_path, dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert model(token_ids).logits.isfinite().all()
        model.save_pretrained(tmp_path / "half")
        assert GPT2WithMoE.from_pretrained(tmp_path / "half").dtype == dtype

    def test_overrides_of_a_saved_model_reach_it(self, tiny_model, tmp_path) -> None:
        tiny_model().save_pretrained(tmp_path)
        model = GPT2WithMoE.from_pretrained(tmp_path, num_experts_per_tok=1, router_jitter_noise=0.1)
        assert model.model.layers[0].mlp.gate.num_experts_per_tok == 1
        assert model.model.layers[0].mlp.gate.jitter == 0.1

    def test_a_state_dict_loads_strictly(self, tiny_model, token_ids) -> None:
        model, other = tiny_model(), tiny_model(seed=1)
        other.load_state_dict(model.state_dict())
        assert other(token_ids).logits.equal(model(token_ids).logits)

    def test_pickles_and_deep_copies(self, tiny_model, token_ids) -> None:
        model = tiny_model(mixer_short_conv=3)
        assert copy.deepcopy(model)(token_ids).logits.equal(model(token_ids).logits)


class TestEmbeddings:
    def test_the_head_is_tied_and_stays_so(self, tiny_model, tmp_path) -> None:
        model = tiny_model()
        model.save_pretrained(tmp_path)
        for tied in (
            model,
            GPT2WithMoE.from_pretrained(tmp_path),
            GPT2WithMoE.from_pretrained(tmp_path, device_map="cpu"),
        ):
            assert tied.lm_head.weight is tied.model.embed_tokens.weight
        assert sum("embed_tokens" in name or "lm_head" in name for name, _ in model.named_parameters()) == 1

    def test_an_untied_head_is_its_own(self, tiny_model, token_ids, tmp_path) -> None:
        model = tiny_model(tie_word_embeddings=False)
        assert not model.lm_head.weight.equal(model.model.embed_tokens.weight)
        model.save_pretrained(tmp_path)
        loaded = GPT2WithMoE.from_pretrained(tmp_path)
        assert loaded.lm_head.weight is not loaded.model.embed_tokens.weight
        torch.testing.assert_close(loaded(token_ids).logits, model(token_ids).logits)

    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("size", [70, 50])
    def test_resizing_keeps_what_was_learnt(self, tiny_model, token_ids, tied: bool, size: int) -> None:
        model = tiny_model(tie_word_embeddings=tied)
        ids = token_ids % 47 + 3
        before = model(ids).logits
        model.resize_token_embeddings(size, mean_resizing=False)
        out = model(ids, labels=ids)
        kept = min(size, 61)
        assert out.logits.shape[-1] == model.config.vocab_size == size
        torch.testing.assert_close(out.logits[..., :kept], before[..., :kept])
        assert out.loss.isfinite()
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


class TestDenseTwin:
    def test_has_no_experts_and_trains(self, tiny_model, token_ids) -> None:
        model = tiny_model(mlp_layer_types=["dense"] * 4).train()
        assert not [name for name in model.state_dict() if "experts" in name or "gate" in name]
        out = model(token_ids, labels=token_ids)
        logits = out.logits[:, :-1].flatten(0, 1)
        torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(logits, token_ids[:, 1:].flatten()))
        out.loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_is_gpt2_itself(self, dense_folder, token_ids) -> None:
        twin = GPT2WithMoE.from_pretrained(dense_folder, mlp_layer_types=["dense"] * 3)
        gpt2 = GPT2LMHeadModel.from_pretrained(dense_folder).eval()
        assert sum(p.numel() for p in twin.parameters()) == sum(p.numel() for p in gpt2.parameters())
        gradients = []
        for model in (twin, gpt2):
            loss = model(token_ids, labels=token_ids).loss
            loss.backward()
            gradients.append((loss.detach(), model.get_input_embeddings().weight.grad))
        torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


class TestTraining:
    def test_learns_a_sequence_by_heart(self, tiny_model, token_ids) -> None:
        model = tiny_model(initializer_range=0.02).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(40):
            loss = model(token_ids, labels=token_ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[0] > 3.5
        assert losses[-1] < 0.5

    def test_every_parameter_gets_a_gradient(self, tiny_model) -> None:
        shape = {"mixer_short_conv": 3, "shared_expert_intermediate_size": 16, "num_experts_per_tok": 4}
        model = tiny_model(**shape).train()
        ids = torch.randint(0, 61, (4, 40))
        model(ids, labels=ids).loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            # A key's bias moves all scores of a query alike.
            if "k_proj.bias" not in name:
                assert parameter.grad.abs().max() > 1e-6, name


@pytest.fixture
def saved_with_tokenizer(tiny_model, tmp_path):
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(57))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
    ).save_pretrained(tmp_path)
    tiny_model(eos_token_id=None).save_pretrained(tmp_path)
    return tmp_path


class TestPipeline:
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_labels_do_not_depend_on_what_a_text_is_padded_with(self, saved_with_tokenizer, tiny_model, side) -> None:
        tokenizer = AutoTokenizer.from_pretrained(saved_with_tokenizer, padding_side=side)
        model = tiny_model(GPT2WithMoEForSequenceClassification, num_labels=3)
        classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu", top_k=None)
        texts = ["w1 w2 w3 w4 w5 w6", "w9", "w7 w8 w30"]
        batched, alone = classify(texts, batch_size=3), [classify([text])[0] for text in texts]
        assert [[found["label"] for found in row] for row in batched] == [[x["label"] for x in row] for row in alone]
        scores = [[found["score"] for found in row] for row in alone]
        assert [[found["score"] for found in row] for row in batched] == [
            pytest.approx(row, rel=1e-4) for row in scores
        ]

    def test_text_generation_from_a_folder(self, saved_with_tokenizer) -> None:
        generate = pipeline("text-generation", model=str(saved_with_tokenizer), device="cpu")
        settings = {"max_new_tokens": 4, "do_sample": False, "return_full_text": False}
        prompts = ["w1 w2 w3", "w9"]
        batched = generate(prompts, batch_size=2, **settings)
        alone = [generate(prompt, **settings) for prompt in prompts]
        assert batched == alone
        assert len(alone[0][0]["generated_text"].split()) == 4
        tokenizer = AutoTokenizer.from_pretrained(saved_with_tokenizer)
        model = AutoModelForCausalLM.from_pretrained(saved_with_tokenizer)
        inputs = tokenizer(prompts[0], return_tensors="pt")
        expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, 3:]
        assert alone[0][0]["generated_text"] == tokenizer.decode(expected)


# peft asks by a name that newer transformers call outdated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.skipif(not is_available("peft"), reason="peft is not installed")
class TestLoRA:
    @pytest.fixture
    def adapted(self, tiny_model):
        import peft

        config = peft.LoraConfig(
            r=2,
            lora_alpha=8,
            target_modules=["q_proj", "v_proj"],
            target_parameters=["mlp.experts.up_proj", "mlp.experts.down_proj"],
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(0)
        return peft.get_peft_model(tiny_model(), config)

    def trained(self, model, token_ids):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        model.train()
        losses = []
        for _ in range(8):
            loss = model(input_ids=token_ids, labels=token_ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        return losses

    def test_begins_as_the_model_itself(self, adapted, tiny_model, token_ids) -> None:
        torch.testing.assert_close(adapted.eval()(input_ids=token_ids).logits, tiny_model()(token_ids).logits)

    def test_trains_experts_and_attention_and_nothing_else(self, adapted, token_ids) -> None:
        frozen = {name: p.clone() for name, p in adapted.named_parameters() if not p.requires_grad}
        trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
        assert all("lora_" in name for name in trainable)
        assert any("mlp.experts" in name for name in trainable)
        assert any("q_proj" in name for name in trainable)
        before = {name: adapted.get_parameter(name).clone() for name in trainable}
        losses = self.trained(adapted, token_ids)
        assert losses[-1] < losses[0] - 0.1
        assert all(not adapted.get_parameter(name).equal(value) for name, value in before.items())
        assert all(adapted.get_parameter(name).equal(value) for name, value in frozen.items())

    def test_survives_saving(self, adapted, tiny_model, token_ids, tmp_path) -> None:
        import peft

        self.trained(adapted, token_ids)
        adapted.save_pretrained(tmp_path)
        loaded = peft.PeftModel.from_pretrained(tiny_model(), tmp_path).eval()
        torch.testing.assert_close(loaded(input_ids=token_ids).logits, adapted(input_ids=token_ids).logits)

    def test_merges_into_an_ordinary_model(self, adapted, token_ids, tmp_path) -> None:
        self.trained(adapted, token_ids)
        expected = adapted(input_ids=token_ids).logits.detach()
        merged = adapted.merge_and_unload()
        assert type(merged) is GPT2WithMoE
        torch.testing.assert_close(merged(token_ids).logits, expected, atol=1e-4, rtol=1e-4)
        merged.save_pretrained(tmp_path)
        torch.testing.assert_close(
            GPT2WithMoE.from_pretrained(tmp_path)(token_ids).logits, expected, atol=1e-4, rtol=1e-4
        )
