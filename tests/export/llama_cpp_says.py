"""Asks llama.cpp about a GGUF file, in a process of its own: JSON on stdin, JSON on stdout."""

import json
import sys
from typing import Any


def main() -> None:
    """Read {"file", "texts", "ids", "prompts", "length"}; tell their tokens, their logits and their greedy answers."""
    asked = json.load(sys.stdin)
    model = _open(asked["file"])
    said = {
        "tokens": [model.tokenize(text.encode(), special=True) for text in asked.get("texts", [])],
        "logits": [_logits(model, ids).tolist() for ids in asked.get("ids", [])],
        "answers": [_greedy(model, prompt, asked["length"]) for prompt in asked.get("prompts", [])],
    }
    json.dump(said, sys.stdout)


def _open(file: str) -> Any:
    import llama_cpp
    from llama_cpp import llama_cpp as bindings

    default_params = bindings.llama_model_default_params

    def plain_params() -> Any:
        # Some machines name AMX but do not allow it, and llama.cpp dies of that in the middle of a matrix.
        params = default_params()
        params.use_extra_bufts = False
        return params

    bindings.llama_model_default_params = plain_params
    return llama_cpp.Llama(
        file,
        n_ctx=512,
        n_batch=512,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        # What transformers keeps its keys and values in; the default is half precision.
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )


def _logits(model: Any, ids: list[int]) -> Any:
    model.reset()
    model.eval(ids)
    return model.scores[: len(ids)].copy()


def _greedy(model: Any, prompt: str, length: int) -> list[int]:
    scores = _logits(model, model.tokenize(prompt.encode(), special=True))
    answer = [int(scores[-1].argmax())]
    while len(answer) < length and answer[-1] != model.token_eos():
        model.eval(answer[-1:])
        answer.append(int(model.scores[model.n_tokens - 1].argmax()))
    return answer


if __name__ == "__main__":
    main()
