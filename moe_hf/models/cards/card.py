"""The text of a model card: metadata that the Hub reads, sections, and a mark by which an unedited card is known."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from moe_hf.base.errors import CheckpointError

CARD_FILE = "README.md"

PICTURES = ("loss.png", "expert_utilization.png")
"""What a training run may draw beside its model, in the order in which a card shows it."""

_MARK = re.compile(r"<!-- written by moe_hf for (\S+), ([0-9a-f]{12}); a card that you change is kept as it is -->")
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$\n?", re.DOTALL | re.MULTILINE)


class Card(NamedTuple):
    """A card in its two parts: metadata, empty where there is none, and what people read."""

    metadata: dict[str, Any]
    body: str


def written_card(name: str, metadata: dict[str, Any], sections: Iterable[str]) -> str:
    """The text of a card that this package writes; `is_unedited` knows it again until somebody changes it.

    Args:
        name: the id on the Hub that its code loads, or `placeholder` of a folder's name.
        metadata: as `metadata_of` gives it.
        sections: Markdown, which follows one another with an empty line in between.
    """
    body = "\n".join(section.strip("\n") + "\n" for section in sections)
    mark = (
        f"<!-- written by moe_hf for {name}, {_checksum(metadata, body)}; a card that you change is kept as it is -->"
    )
    return f"---\n{_yaml(metadata)}---\n\n{body}\n{mark}\n"


def placeholder(name: str) -> str:
    """What stands for the id of a model that is on no Hub yet; `renamed` puts the id in its place."""
    allowed = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")
    return f"YOUR-NAME/{allowed or 'model'}"


def split_card(text: str) -> Card:
    """Metadata and body of a card.

    Raises:
        CheckpointError: what stands between the two lines `---` at its head is no table in YAML.
    """
    front = _FRONT.match(text)
    if front is None:
        return Card({}, text)
    try:
        metadata = yaml.safe_load(front[1])
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"the metadata at the head of {CARD_FILE} is no YAML ({reason}); correct it") from error
    if not isinstance(metadata, dict | None):
        raise CheckpointError(f"the metadata at the head of {CARD_FILE} is no table of names and values; correct it")
    return Card(metadata or {}, text[front.end() :])


def is_unedited(text: str) -> bool:
    """Whether this package wrote the card and nobody has changed it since."""
    mark = _MARK.search(text)
    try:
        card = split_card(text)
    except CheckpointError:
        return False
    return mark is not None and _checksum(card.metadata, _MARK.sub("", card.body)) == mark[2]


def renamed(text: str, name: str) -> str:
    """The unedited card as one whose code loads `name`; any other text as it is."""
    mark = _MARK.search(text)
    if mark is None or not is_unedited(text):
        return text
    metadata, body = split_card(text)
    # As a whole word: an id may be the head of another.
    body = re.sub(rf"(?<![\w./-]){re.escape(mark[1])}(?![\w/-])", lambda _: name, _MARK.sub("", body))
    return written_card(name, metadata, [body])


def with_section(text: str, section: str) -> str:
    """The unedited card with this section in place of the one that has its heading; any other text as it is."""
    mark = _MARK.search(text)
    if mark is None or not is_unedited(text):
        return text
    metadata, body = split_card(text)
    heading = re.escape(section.splitlines()[0])
    body = re.sub(rf"^{heading}\n.*?(?=^## |\Z)", lambda _: f"{section}\n", _MARK.sub("", body), flags=re.M | re.S)
    return written_card(mark[1], metadata, [body])


def with_metadata(text: str, metadata: dict[str, Any]) -> str:
    """The card with metadata at its head where it has none; what somebody wrote stays as it is."""
    return text if split_card(text).metadata else f"---\n{_yaml(metadata)}---\n\n{_FRONT.sub('', text)}"


def told_name(source: str) -> str:
    """What a card calls the model that a person named: of a folder or file its name alone, else the id on the Hub."""
    path = Path(os.path.expanduser(source))
    return path.resolve().name if path.exists() else source


def metadata_of(
    tags: Iterable[str],
    is_sparse: bool,
    pipeline_tag: str = "text-generation",
    license: str | None = None,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
) -> dict[str, Any]:
    """What the Hub sorts a model by; nothing is said that is not known.

    Args:
        tags: more than those that follow from `is_sparse`.
        is_sparse: whether some layer has experts.
        pipeline_tag: its task; empty where that is not known.
        license: as the Hub names it.
        base_model: what it was made of. A folder means nothing to a reader elsewhere, and is left out.
        datasets: ids of the Hub.
    """
    kind = ["mixture-of-experts", "moe"] if is_sparse else ["dense"]
    metadata: dict[str, Any] = {"library_name": "transformers"}
    if pipeline_tag:
        metadata["pipeline_tag"] = pipeline_tag
    if license:
        metadata["license"] = license
    metadata["tags"] = list(dict.fromkeys(["moe_hf", *kind, *tags]))
    if base_model and not Path(os.path.expanduser(base_model)).exists():
        metadata["base_model"] = base_model
    if datasets:
        metadata["datasets"] = list(datasets)
    return metadata


def table(rows: Iterable[tuple[str, str]]) -> str:
    """A table of two columns without a header."""
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)


def size_rows(
    total: int, active: int, num_experts: int, num_experts_per_tok: int, sparse_layers: int, dense_layers: int
) -> list[tuple[str, str]]:
    """How large a model is, and how much of it a token meets, as rows of `table`."""
    rows = [("parameters", f"{total:,}")]
    if sparse_layers:
        rows += [
            ("active per token", f"{active:,} ({active / total:.1%})"),
            ("experts per sparse layer", f"{num_experts}, {num_experts_per_tok} per token"),
            ("layers", f"{sparse_layers} sparse, {dense_layers} dense"),
        ]
    return rows


def shown(pictures: Iterable[str]) -> str:
    """Pictures that lie beside the card."""
    return "".join(f"![{name.removesuffix('.png').replace('_', ' ')}]({name})\n\n" for name in pictures)


def _checksum(metadata: dict[str, Any], body: str) -> str:
    # Others write the metadata anew, in another order or style; the Hub's editor ends lines in its own way.
    lines = "\n".join(line.rstrip() for line in body.strip().splitlines())
    told = f"{json.dumps(metadata, sort_keys=True, default=str)}\n{lines}"
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _yaml(metadata: dict[str, Any]) -> str:
    return str(yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True))
