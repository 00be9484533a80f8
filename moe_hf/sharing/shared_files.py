"""Chooses which files of a model's folder are shared, and checks that they are a model and hold no secret."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from moe_hf.base.errors import CheckpointError
from moe_hf.models.dense.checkpoint_files import indexed_files, json_object, listed

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = frozenset(("adapter_config.json", "adapter_model.safetensors"))
"""What makes a folder that of an adapter, which peft loads on top of the model that it names."""

WEIGHT_FILE = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
"""Every name that transformers gives to weights, or to the index of their shards."""

_PICKLED = (".bin", ".pt", ".pth", ".pth.tar", ".pkl", ".pickle", ".dill", ".ckpt", ".joblib", ".npy", ".npz")
_STATE = re.compile(r"(optimizer|scheduler|scaler|rng_state|run_state).*\.(pt|pth|bin)|(trainer_state|manifest)\.json")
_STATE_FOLDERS = re.compile(r"checkpoint-\d+.*|tmp-.*|optimizer_.*|pytorch_model_fsdp.*|global_step.*|__pycache__")
# Not searched for tokens: they are large, and hold numbers.
_NUMBERS = (".safetensors", ".png", ".jpg", ".jpeg", ".gif", ".webp")
# Also behind an escaped end of a line, as in the JSON of notebooks.
_TOKEN = re.compile(rb"(?:\b|\\[nrt])hf_(?:[A-Za-z0-9]{30}|(?:oauth|jwt)_[\w.=-]{20})")
_CHUNK = 2**20
# What is read where a model or its tokenizer is loaded.
_OBJECTS = (
    *("config.json", "generation_config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("vocab.json", "added_tokens.json", "special_tokens_map.json", "preprocessor_config.json"),
)


class SharedFiles(NamedTuple):
    """What of a folder is shared: files by their names on the Hub; and what is not, with the reason."""

    files: dict[str, Path]
    left_out: dict[str, str]


def shared_files(folder: Path) -> SharedFiles:
    """The files of a model's folder that are shared.

    Left out are hidden files, pickles (they can run code), checkpoints and the state of a training run, and weights
    that no index names.

    Raises:
        CheckpointError: it is no folder, or a link leads out of it.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}; name the folder of a model")
    files: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    for path in _files(folder, left_out):
        name = path.relative_to(folder).as_posix()
        reason = _reason(path)
        if reason:
            left_out[name] = reason
        elif not path.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"{path} is a link that leads out of {folder}; put a copy in its place")
        else:
            files[name] = path
    for name in _strays(folder, files):
        left_out[name] = f"{INDEX} does not name it"
        del files[name]
    return SharedFiles(files, left_out)


def _files(folder: Path, left_out: dict[str, str]) -> Iterable[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            # Pipes and sockets are no files.
            yield from [path] if path.is_file() else []
        elif _STATE_FOLDERS.fullmatch(path.name):
            left_out[f"{path.name}/"] = "training state"
        elif path.is_symlink():
            raise CheckpointError(f"{path} is a link to a folder; put a copy in its place")
        else:
            inner: dict[str, str] = {}
            yield from _files(path, inner)
            left_out |= {f"{path.name}/{name}": reason for name, reason in inner.items()}


def _reason(path: Path) -> str:
    if _STATE.fullmatch(path.name):
        return "training state"
    return "a pickle, which can run code" if is_pickle(path.name) else ""


def is_pickle(name: str) -> bool:
    """Whether a file of this name may be a pickle, which can run code when it is read.

    >>> is_pickle("A.BIN"), is_pickle("model.bin.json")
    (True, False)
    """
    return name.lower().endswith(_PICKLED)


def _strays(folder: Path, files: dict[str, Path]) -> list[str]:
    """Shards of an earlier save, which whoever loads the model does not read."""
    if INDEX not in files:
        return []
    named = {Path(file).relative_to(folder).as_posix() for file in indexed_files(folder / INDEX)}
    return [name for name in files if WEIGHT_FILE.fullmatch(name) and name not in {*named, INDEX, WEIGHTS}]


def require_model_names(where: object, names: Iterable[str]) -> None:
    """Check by their names that the files of a folder or a repository are a model.

    Args:
        where: what errors call it.
        names: of all its files, pickles among them.

    Raises:
        CheckpointError: there is no configuration, or no weights as safetensors, nor an adapter with both.
    """
    names = set(names)
    if names >= ADAPTER or ("config.json" in names and names & {WEIGHTS, INDEX}):
        return
    if "config.json" not in names:
        raise CheckpointError(f"{where} has no config.json; name that of a model")
    pickled = sorted(name for name in names if is_pickle(name))
    why = f" but pickles ({listed(pickled)}), which can run code" if pickled else ""
    raise CheckpointError(
        f"{where} has no {WEIGHTS}{why}; load the model where you trust it and save_pretrained it, which writes one"
    )


def require_one_save(folder: Path, names: Iterable[str]) -> None:
    """Check that a folder does not hold the weights of two saves, of which transformers would read one.

    Raises:
        CheckpointError: it does.
    """
    if {WEIGHTS, INDEX} <= set(names):
        raise CheckpointError(f"{folder} holds both {WEIGHTS} and {INDEX}; delete the older one with its shards")


def require_sound_files(folder: Path, names: Iterable[str]) -> None:
    """Check that what is JSON is an object, each safetensors file is whole, and each index names what is there.

    Only headers are read.

    Raises:
        CheckpointError: one is not.
    """
    names, tensors = set(names), {}
    for name in sorted(names):
        if name.endswith(".safetensors"):
            tensors[name] = _tensors(folder / name)
        elif name.rpartition("/")[2] in _OBJECTS:
            json_object(folder / name)
    if INDEX in names:
        indexed_files(folder / INDEX)
        placed: dict[str, str] = json_object(folder / INDEX)["weight_map"]
        if unknown := sorted(set(placed.values()) - set(tensors)):
            raise CheckpointError(
                f"{folder / INDEX} names {listed(unknown)}, which is not by this name among the files that are shared; "
                "save the model again, with its shards beside the index"
            )
        lost = [tensor for tensor, file in placed.items() if tensor not in tensors[file]]
        if lost:
            raise CheckpointError(
                f"{folder / INDEX} names {len(lost)} tensors that its files lack ({listed(lost)}); the files are of "
                "several saves: save or download it again"
            )


def _tensors(path: Path) -> set[str]:
    try:
        # It compares the header with the length of the file. Opened for numpy, it needs no torch.
        with safe_open(path, framework="numpy") as file:
            return set(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} can't be read as safetensors ({error}); it is incomplete or damaged: save or download it again"
        ) from error


def require_no_secrets(files: Iterable[Path], token: str | None = None) -> None:
    """Check that no file holds a token of the Hub, in UTF-8 or UTF-16; weights and pictures are not searched.

    Args:
        files: the files.
        token: one that is looked for whatever its form.

    Raises:
        CheckpointError: one does; the text names the file, never the token.
    """
    for path in files:
        if path.suffix.lower() not in _NUMBERS and _holds_token(path, (token or "").encode()):
            raise CheckpointError(
                f"{path} holds what looks like a token of the Hub, which everybody could read; take it out, and "
                "revoke it if it was ever shared"
            )


def _holds_token(path: Path, token: bytes) -> bool:
    with path.open("rb") as file:
        rest = b""
        # With what may be the head of a token that two chunks share.
        while chunk := file.read(_CHUNK):
            rest += chunk
            # Without zeros, UTF-16 is ASCII.
            if any(_TOKEN.search(text) or (token and token in text) for text in (rest, rest.replace(b"\0", b""))):
                return True
            rest = rest[-1024:]
    return False
