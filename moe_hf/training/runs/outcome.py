"""What is done when training has ended: the held-out questions, the final model on disk, the hub."""

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedTokenizerBase, Trainer

from moe_hf.base.errors import CheckpointError
from moe_hf.base.files import flush, one_disk_error
from moe_hf.sharing.push import PushReport
from moe_hf.text.corpus import EmbeddedCorpus
from moe_hf.text.free_wording import free_wording_questions
from moe_hf.text.scoreboard import Scoreboard, score_answers
from moe_hf.training.hub import share_output
from moe_hf.training.runs.answers import batch_answerer

ANSWER_TOKENS = 128

_STAGING = "tmp-model"


def answer_held_out(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, per_skill: int) -> Scoreboard:
    """The trained model's scores on the embedded corpus's held-out questions, in trained, new and free wordings."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    answerer = batch_answerer(model, tokenizer, ANSWER_TOKENS)
    corpus = EmbeddedCorpus()
    questions = corpus.heldout_questions(per_skill) + corpus.heldout_questions(per_skill, new_wording=True)
    free = free_wording_questions()
    given = answerer([question.messages for question in free])
    num_right = sum(text == question.answer for text, question in zip(given, free, strict=True))
    return score_answers(questions, answerer, batch_size=128)._replace(free_wording=(num_right, len(free)))


def can_generate_alone(trainer: Trainer) -> bool:
    """Whether one process has all weights, so that it can generate without the others."""
    return not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled) and trainer.args.world_size == 1


@contextmanager
def final_model(trainer: Trainer, folder: Path) -> Iterator[Path]:
    """Write model, tokenizer and generation settings into `folder`, beside its checkpoints, with what the body adds.

    All of it is written aside, into the folder that is given to the body, and moved when complete, `config.json` last:
    a folder that has it holds a finished run. Until then it is an interrupted one, and its end is done again.

    Raises:
        OSError: the disk is full, or does not take it.
    """
    staging, writer = folder / _STAGING, trainer.args.process_index == 0
    with one_disk_error(folder):
        if writer:
            shutil.rmtree(staging, ignore_errors=True)
        # Nobody writes into the folder before it was emptied.
        trainer.accelerator.wait_for_everyone()
        # _internal_call: without it a run with push_to_hub would push this folder here.
        trainer.save_model(str(staging), _internal_call=True)
        yield staging
        if not writer:
            return
        # A pickle, and run.yaml says the same.
        (staging / "training_args.bin").unlink(missing_ok=True)
        files = [file for file in sorted(staging.rglob("*")) if file.is_file()]
        for file in files:
            flush(file)
        for file in sorted(files, key=lambda file: file == staging / "config.json"):
            target = folder / file.relative_to(staging)
            target.parent.mkdir(exist_ok=True)
            # What was moved so far is on disk before the next name: after a power cut `config.json` never stands alone.
            flush(folder)
            os.replace(file, target)
        flush(folder)
        shutil.rmtree(staging)


def share_folder(trainer: Trainer, folder: Path) -> PushReport:
    """Push the run's folder, without its checkpoints, to the repository that the Trainer has made.

    Raises:
        CheckpointError, OSError: the Hub refuses, or fails; the text says that the folder is whole, and how to go on.
    """
    try:
        return share_output(trainer, folder, "Trained with moe_hf")
    except (CheckpointError, OSError) as error:
        kind = CheckpointError if isinstance(error, CheckpointError) else OSError
        again = f"moe-hf push {shlex.quote(str(folder))} {trainer.hub_model_id}"
        raise kind(f"the model is whole in {folder}, but not on the Hub: {error}. Then: {again}") from error
