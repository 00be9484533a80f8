"""A causal language model with its tokenizer: messages in, text out piece by piece."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from moe_hf.base.errors import CheckpointError, ConfigError, first_line, reading
from moe_hf.base.memory import peak_memory
from moe_hf.base.model_source import find_model, without_progress_bar
from moe_hf.base.tokenizer_source import load_tokenizer
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.inference.answering import Completion, continued_text
from moe_hf.inference.json_answers import JsonAnswers
from moe_hf.inference.routing_recorder import RoutingRecorder, RoutingTrace, sparse_layers
from moe_hf.inference.settings import DEVICES, DTYPES, GenerationSettings, settings_of
from moe_hf.inference.streaming import StopWhenSet, TextPieces
from moe_hf.models.found_routers import find_routers
from moe_hf.models.info import get_moe_model_info
from moe_hf.text.chat_template import Message
from moe_hf.text.encoding import TextEncoder

SECONDS_BETWEEN_TRACES = 0.1


class CausalTextModel:
    """A model and a tokenizer that belong together, with what a chat needs to know of them.

    Args:
        model: any transformers causal language model, in eval mode.
        tokenizer: its tokenizer; without a chat template the model continues plain text.
        name: what to call it.
        raw: continue plain text whether there is a chat template or not.

    Attributes:
        json_answers: what all answers are held to, if `answer_by` named a schema.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, raw: bool = False
    ) -> None:
        embedding: Any = model.get_input_embeddings()
        rows = embedding.weight.shape[0]
        if len(tokenizer) > rows:
            raise CheckpointError(
                f"the tokenizer of {name} has {len(tokenizer)} tokens but the model embeds {rows}; "
                "they must come from the same training run"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.is_chat = bool(tokenizer.chat_template) and not raw
        self.encoder = TextEncoder(tokenizer)
        self.routers = find_routers(model)
        self.stop_ids = self._find_stop_ids()
        self.json_answers: JsonAnswers | None = None

    @classmethod
    def load(
        cls,
        source: str,
        device: str = "auto",
        dtype: str = "auto",
        attn_implementation: str | None = None,
        raw: bool = False,
    ) -> "CausalTextModel":
        """Reads a model by the words of `find_model`.

        Args:
            source: a folder, a Hub id, a `.gguf` file, or a model of an installed package.
            device: `auto` (cuda where there is one), `cpu` or `cuda`.
            dtype: `auto` (as stored), `float32`, `bfloat16` or `float16`.
            attn_implementation: as in `from_pretrained`; None for the model's default.
            raw: as for the class.

        Raises:
            ConfigError: device or dtype is unknown, or cuda is asked for and absent.
            CheckpointError: the folder or id can't be loaded, or its weights leave a part of the model untrained.
        """
        # Before the weights are read, which may take minutes.
        target = _pick_device(device)
        if dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        where = find_model(source)
        options: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        if where.gguf_file is not None:
            # Stored are a few bits for each number; it becomes what other CPU models are.
            dtype = "float32" if dtype == "auto" else dtype
        try:
            tokenizer = load_tokenizer(where)
            # With output_loading_info, two values: the model and what was missing or left over.
            loaded: Any
            report: Any
            with without_progress_bar():
                loaded, report = AutoModelForCausalLM.from_pretrained(
                    where.folder, dtype=dtype, output_loading_info=True, **where.options, **options
                )
        except Exception as error:
            raise CheckpointError(
                f"can't load {source}: {first_line(error)} (needed: config.json, *.safetensors and a tokenizer)"
            ) from error
        # transformers only warns of them, and fills them with random numbers.
        missing = sorted(report["missing_keys"])
        if missing:
            raise CheckpointError(
                f"{source} lacks {len(missing)} of the model's tensors ({', '.join(missing[:3])}, ...); "
                "it is not a whole checkpoint of this model"
            )
        if find_routers(loaded) and not isinstance(loaded.config, MoEDecoderConfig):
            # Models of this package take it by themselves; transformers' default does not take every width.
            loaded.set_experts_implementation("auto")
        with reading(source):
            return cls(loaded.to(target).eval(), tokenizer, source, raw)

    @property
    def place(self) -> str:
        """The device, and the type of the weights."""
        return f"{self.model.device}, {str(self.model.dtype).removeprefix('torch.')}"

    @property
    def own_settings(self) -> GenerationSettings:
        """What the model's generation config says."""
        return settings_of(self.model.generation_config)

    @property
    def no_experts(self) -> str:
        """Why it shows no experts, if it has no sparse layers."""
        return "this model is dense: it has no experts"

    def answer_by(self, schema: dict[str, Any]) -> None:
        """Makes all answers from now on JSON by a schema; those that are cut off are a beginning of it.

        Raises:
            ConfigError, BackendUnavailableError: as for `JsonAnswers`.
        """
        embedding: Any = self.model.get_output_embeddings() or self.model.get_input_embeddings()
        self.json_answers = JsonAnswers(schema, self.tokenizer, embedding.weight.shape[0], self.stop_ids)

    @property
    def context_limit(self) -> int | None:
        """Most tokens that prompt and answer may have together; None when the config names no limit."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return int(limit) if limit else None

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """The decoder layers that have experts; empty for a dense model."""
        return sparse_layers(self.routers)

    @property
    def experts_per_token(self) -> int:
        """How many experts of a layer a token visits; 1 where the config does not say."""
        return int(getattr(self.model.config.get_text_config(), "num_experts_per_tok", None) or 1)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the conversation, up to where the answer begins.

        Without turns it is plain text. What the messages hold never becomes a control token.

        Raises:
            ConfigError: the chat template refuses the conversation.
        """
        if self.is_chat:
            return self.encoder.encode(messages, add_generation_prompt=True)
        # What the tokenizer puts around a text begins with the start-of-text token, if the model wants one.
        frame: list[int] = self.tokenizer("")["input_ids"]
        start = frame[:1] if frame[:1] == [self.tokenizer.bos_token_id] else []
        return start + self.encoder.encode_texts([continued_text(messages)])[0]

    def complete(
        self,
        prompt_ids: Sequence[int],
        settings: GenerationSettings,
        seed: int,
        on_text: Callable[[str], None],
        stop: threading.Event | None = None,
        record_routing: bool = False,
        on_routing: Callable[[RoutingTrace], None] | None = None,
    ) -> Completion:
        """Generates after `prompt_ids` and hands over the text while it comes.

        The caller's random state is left as it was.

        Args:
            prompt_ids: at least one token.
            settings: `seed` in it is ignored.
            seed: start of the random numbers.
            on_text: called with each piece of text.
            stop: ends the answer after the current token once it is set.
            record_routing: also take down the experts of each token.
            on_routing: called with the routing so far, after a piece of text and at most ten times a second; takes
                effect with `record_routing` alone.
        """
        stop = stop or threading.Event()
        recorder = RoutingRecorder(self.routers if record_routing else {}, self.experts_per_token)
        show = on_text
        if on_routing is not None:
            show = _with_traces(on_text, on_routing, lambda: recorder.trace(ids.shape[1], streamer.pieces))
        streamer = TextPieces(self.tokenizer, self.stop_ids, show, strip_start=self.is_chat)
        device = self.model.device
        ids = torch.tensor([list(prompt_ids)], device=device)
        started = time.perf_counter()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), recorder.recording():
            torch.manual_seed(seed)
            generate: Any = self.model.generate
            generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=self._generation_config(settings),
                stopping_criteria=StoppingCriteriaList([StopWhenSet(stop)]),
                streamer=streamer,
                logits_processor=[] if self.json_answers is None else [self.json_answers.processor()],
            )
        return Completion(
            text=streamer.text,
            num_tokens=len(streamer.token_ids),
            seconds=time.perf_counter() - started,
            stopped=streamer.stopped,
            routing=recorder.trace(ids.shape[1], streamer.pieces),
        )

    def num_parameters(self) -> int:
        """All parameters, a shared matrix counted once."""
        return int(self.model.num_parameters())

    def num_active_parameters(self) -> int | None:
        """Parameters that one token meets; None for a dense model and for families that are not ours."""
        config = self.model.config
        if not (self.routers and isinstance(config, MoEDecoderConfig)):
            return None
        return int(get_moe_model_info(config)["active_params"])

    def peak_memory(self) -> int | None:
        """Most bytes in use so far: of the GPU where the model is on one, else of the process; None if not known."""
        return peak_memory(self.model.device)

    def _generation_config(self, settings: GenerationSettings) -> GenerationConfig:
        # Every field is given, since generate fills what is None from the model's own generation_config.
        sampling = settings.do_sample
        pad = self.tokenizer.pad_token_id
        return GenerationConfig(
            max_new_tokens=settings.max_new_tokens,
            do_sample=sampling,
            num_beams=1,
            # Without sampling the defaults: generate warns of any other value there.
            temperature=settings.temperature if sampling else 1.0,
            top_p=settings.top_p if sampling else 1.0,
            top_k=settings.top_k if sampling else 50,
            repetition_penalty=settings.repetition_penalty,
            eos_token_id=sorted(self.stop_ids) or None,
            pad_token_id=pad if pad is not None else min(self.stop_ids, default=0),
        )

    def _find_stop_ids(self) -> frozenset[int]:
        """End-of-text ids, and the special tokens that the chat template writes after an answer."""
        own = self.model.generation_config.eos_token_id
        stop_ids = set(own if isinstance(own, list) else [own]) | {self.tokenizer.eos_token_id}
        if not all(isinstance(token, int | None) for token in stop_ids):
            raise CheckpointError(
                f"eos_token_id={own!r} in generation_config.json is no id; it must be an integer, or a list"
            )
        if self.is_chat:
            # Words that no template is likely to trim or change.
            turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "xanswerx"}]
            turns.append({"role": "user", "content": "xquestionx"})
            try:
                rendered = self.encoder.render(turns)
            except ConfigError:
                # A template that takes no such turns says so when it is asked to; what ends an answer stays unknown.
                rendered = ""
            between = rendered.partition("xanswerx")[2].partition("xquestionx")[0]
            ids = self.tokenizer(between, add_special_tokens=False)["input_ids"]
            # Only special ones: what else stands between turns, such as a line end, occurs within answers, too.
            special = {token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special}
            stop_ids |= set(ids) & special
        return frozenset(token for token in stop_ids if token is not None)


def _with_traces(
    on_text: Callable[[str], None],
    on_routing: Callable[[RoutingTrace], None],
    trace_so_far: Callable[[], RoutingTrace | None],
) -> Callable[[str], None]:
    """What to call with each piece of text, so that the routing is shown behind some of them."""
    shown = 0.0

    def show(text: str) -> None:
        nonlocal shown
        on_text(text)
        # A trace costs more the longer the answer is, so that it is not made for every token of a quick model.
        if time.perf_counter() - shown >= SECONDS_BETWEEN_TRACES:
            trace = trace_so_far()
            if trace is not None:
                on_routing(trace)
            shown = time.perf_counter()

    return show


def _pick_device(device: str) -> torch.device:
    if device not in DEVICES:
        raise ConfigError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {device} but torch finds no CUDA GPU; use --device cpu or auto")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
