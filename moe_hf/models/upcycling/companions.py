"""Carries over what belongs to a model beside its weights: its tokenizer, chat template and generation settings."""

import shutil
from pathlib import Path

from transformers.utils import logging

from moe_hf.base.errors import first_line
from moe_hf.base.tokenizer_source import TOKENIZER_FILES, load_tokenizer
from moe_hf.models.upcycling.opened import OpenedModel

logger = logging.get_logger(__name__)

_GENERATION = "generation_config.json"


def carry_over(opened: OpenedModel, folder: Path) -> list[str]:
    """Write the tokenizer and the generation settings of a dense model into the folder of the model made of it.

    The tokenizer is loaded and saved, not copied: its class, its special tokens and its template may follow from the
    type of the dense model, which the new one has not.

    Returns:
        The names of the files. A tokenizer that can't be loaded is left behind, with a warning.
    """
    before = {path.name for path in folder.iterdir()}
    if opened.source.gguf_file is not None or any((opened.folder / name).is_file() for name in TOKENIZER_FILES):
        try:
            tokenizer = load_tokenizer(opened.source)
        except Exception as error:
            # Tokenizers raise whatever their files make them raise, and none of it makes the weights wrong.
            why = first_line(error)
            logger.warning(f"the tokenizer of {opened.name} is not carried over, since it can't be loaded: {why}")
        else:
            tokenizer.save_pretrained(folder)
    if (opened.folder / _GENERATION).is_file():
        shutil.copyfile(opened.folder / _GENERATION, folder / _GENERATION)
    return sorted({path.name for path in folder.iterdir()} - before)
