"""Tells what a person means by the name of a model: a folder, a GGUF file, an installed package, or a Hub id."""

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from moe_hf.base.errors import CheckpointError, first_line
from moe_hf.base.files import json_object
from moe_hf.base.optional import OPTIONAL_PACKAGES, require

_SECONDS = 5.0
# Models that come inside a package of the same name in `OPTIONAL_PACKAGES`, each as one GGUF file.
PACKAGED_MODELS = ("smollm2",)
# Files of a model's folder that are JSON objects.
_OBJECTS = ("config.json", "generation_config.json", "tokenizer_config.json")
_NUMBERS_OF_LAYERS = {"num_hidden_layers", "num_layers", "n_layer", "n_layers"}
_MOST_LAYERS = 10_000
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class ModelSource(NamedTuple):
    """Where the files of a model are: a folder or a Hub id, and the GGUF file in it, where one holds the weights."""

    folder: str
    gguf_file: str | None = None

    @property
    def options(self) -> dict[str, str]:
        """What `from_pretrained` has to be told besides the folder."""
        return {} if self.gguf_file is None else {"gguf_file": self.gguf_file}


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Let transformers read GGUF files in silence; of the bars that it draws, this one has no switch."""
    from transformers import modeling_gguf_pytorch_utils as reading

    drawn = vars(reading)["tqdm"]
    vars(reading)["tqdm"] = lambda tensors, **_: tensors
    try:
        yield
    finally:
        vars(reading)["tqdm"] = drawn


def find_model(source: str, gguf_file: str | None = None, needs_owner: bool = False) -> ModelSource:
    """Where the files of the model are that a person named.

    Args:
        source: a folder, a Hub id, a `.gguf` file, or the name of a model that a package holds, such as smollm2.
        gguf_file: the file of the folder or the Hub's repository that holds the weights; None for safetensors, or where
            the folder holds a GGUF file alone.
        needs_owner: as in `folder_or_hub_id`.

    Raises:
        CheckpointError: there is no such model, it can't be told which file is meant, or a small file is damaged.
        BackendUnavailableError: a package that holds or reads it is not installed.
    """
    path = Path(source).expanduser()
    if gguf_file is None and path.suffix == ".gguf" and path.is_file():
        found = ModelSource(str(path.parent), path.name)
    elif source in PACKAGED_MODELS and not ((path / "config.json").is_file() or _gguf_files(path)):
        found = _packaged(source)
    else:
        folder = folder_or_hub_id(source, needs_owner)
        found = ModelSource(folder, gguf_file or _only_gguf_file(Path(folder)))
    if found.gguf_file is not None:
        require("gguf", f"reading {found.gguf_file}")
        if Path(found.folder).is_dir() and not Path(found.folder, found.gguf_file).is_file():
            raise CheckpointError(f"{found.folder} has no file {found.gguf_file}; found {_gguf_files(found.folder)}")
    _refuse_damaged(Path(found.folder))
    return found


def _refuse_damaged(folder: Path) -> None:
    """Refuse a folder whose small files are no JSON objects, or whose model or its text part has layers without end."""
    # What reads them fails in ways that say nothing, or takes a list for a dictionary.
    contents = {name: json_object(folder / name) for name in _OBJECTS if (folder / name).is_file()}
    config = contents.get("config.json", {})
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for name in sorted(_NUMBERS_OF_LAYERS & part.keys()):
            number = part[name]
            if isinstance(number, str | float) or (isinstance(number, int) and number > _MOST_LAYERS):
                raise CheckpointError(
                    f"{folder}/config.json says {name}={number!r}; it must be a whole number, and at most "
                    f"{_MOST_LAYERS} are built: correct it, or download it again"
                )


def _packaged(name: str) -> ModelSource:
    package = OPTIONAL_PACKAGES[name]
    # Only looked for, not imported: what its code needs is no concern of a reader of its file.
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(
            f"the model {name} comes in the package {package.module!r}, which is not installed; {package.install}"
        )
    folder = spec.submodule_search_locations[0]
    return ModelSource(folder, _only_gguf_file(Path(folder)))


def _only_gguf_file(folder: Path) -> str | None:
    """The GGUF file of a folder that holds nothing else to load; None where there is something else."""
    files = _gguf_files(folder)
    if not files or (folder / "config.json").is_file():
        return None
    if len(files) > 1:
        raise CheckpointError(f"{folder} holds {len(files)} GGUF files ({', '.join(files)}); name one of them")
    return files[0]


def _gguf_files(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).glob("*.gguf"))


def folder_or_hub_id(source: str, needs_owner: bool = False) -> str:
    """The folder that `source` names, with `~` filled in, or `source` itself where the Hub has a model of that id.

    Where the Hub can't be reached it is the folder of the local cache that holds the model.

    Args:
        source: what a person gave as the place of a model.
        needs_owner: a Hub id must be of the form owner/name; a few old ones, such as gpt2, have no owner.

    Raises:
        CheckpointError: it is no folder, and can't be a Hub id, is not on the Hub, or the Hub can't be reached.
    """
    path = Path(source).expanduser()
    # The empty name would be the present folder.
    if source and path.is_dir():
        return str(path)
    # "runs/first" is meant as a folder where there is a folder runs/, else it may be a Hub id.
    meant_as_folder = source.startswith((".", "~", "/")) or ("/" in source and path.parent.is_dir())
    if meant_as_folder or not _HUB_ID.fullmatch(source) or (needs_owner and "/" not in source):
        raise CheckpointError(f"there is no folder {source}; name a model folder or a Hub id (openai-community/gpt2)")
    found, reason = ask_hub(source)
    if found:
        return source
    cached = cached_folder(source)
    if found is None and cached is not None:
        return str(cached)
    raise CheckpointError(f"there is no folder {source}, and {reason}; name a model folder or another Hub id")


class HubAnswer(NamedTuple):
    """Whether the Hub has a repository, None where it could not be asked, and in words why it is not at hand."""

    found: bool | None
    reason: str


def ask_hub(repo_id: str, repo_type: Literal["model", "dataset"] = "model") -> HubAnswer:
    """What the Hub says of a repository, asked once and briefly.

    What reads a repository itself tries for up to a minute before it says that the network is absent.
    """
    # Slow to import, and not needed for a folder.
    from huggingface_hub import HfApi, errors

    try:
        HfApi().repo_info(repo_id, repo_type=repo_type, timeout=_SECONDS)
    except errors.GatedRepoError:
        return HubAnswer(True, "")
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        return HubAnswer(False, f"the Hub has no public {repo_type} {repo_id} (for a private one: hf auth login)")
    except Exception as error:
        # Whatever keeps the Hub from answering: no network, HF_HUB_OFFLINE, a proxy, a server that fails.
        return HubAnswer(None, f"the Hub can't be asked for the {repo_type} {repo_id} ({first_line(error)})")
    return HubAnswer(True, "")


def cached_folder(repo_id: str) -> Path | None:
    """The folder in the local cache of the Hub that holds the newest known state of a model; None without one."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo_id, "config.json")
    return Path(config).parent if isinstance(config, str) else None
