"""Trains a model from settings: data, tokenizer, model, Trainer, and what is left on disk."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, set_seed

from moe_hf.base.errors import ConfigError
from moe_hf.base.memory import peak_memory
from moe_hf.models.info import get_moe_model_info
from moe_hf.training.checkpoint import newest_valid_checkpoint
from moe_hf.training.data.prepare import TrainingData, prepare_data, split_rows
from moe_hf.training.data.sources import EMBEDDED
from moe_hf.training.data.tokenizer_choice import choose_tokenizer, vocabulary_rows
from moe_hf.training.metrics import bits_per_byte, bytes_per_label
from moe_hf.training.processes import main_process_says
from moe_hf.training.runs.listeners import ListenerCallback, Listeners, RunListener, RunPlan, TrainingReport
from moe_hf.training.runs.model_building import (
    adopt_tokenizer,
    build_model,
    model_config,
    prepare_routers,
    set_generation,
)
from moe_hf.training.runs.outcome import (
    answer_held_out,
    can_generate_alone,
    final_model,
    share_folder,
)
from moe_hf.training.runs.planning import (
    MANY_PASSES,
    activation_bytes,
    epochs_follow_data,
    fit_to_data,
    fit_to_machine,
    guessed_seconds,
    make_plan,
    rows_in_seconds,
    rows_per_step,
    tokens_per_step,
    usual_context_length,
)
from moe_hf.training.runs.report import write_report
from moe_hf.training.runs.run_file import write_run_file
from moe_hf.training.runs.run_folder import RUN_FILE, RunFolder, choose_run_folder, taken_run_folder
from moe_hf.training.runs.settings import Settings, all_settings, resolve_settings
from moe_hf.training.trainer import MoETrainer

DRY_STEPS = 2
"""Optimizer steps that a dry run tries."""


class _Assembly(NamedTuple):
    """All that stands before the first weight is made."""

    settings: Settings
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    data: TrainingData
    context_length: int
    plan: RunPlan


class _RunTrainer(MoETrainer):
    """Says the held-out loss in bits per byte as well, if it is told the bytes of a held-out label."""

    bytes_per_label: float | None = None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "eval_loss" in logs and self.bytes_per_label:
            logs["eval_bits_per_byte"] = bits_per_byte(logs["eval_loss"], self.bytes_per_label)
        super().log(logs, start_time)


def train(settings: Settings, listeners: Sequence[RunListener] = ()) -> TrainingReport:
    """Train a model, or continue its training, and write model, tokenizer and report into its folder.

    Args:
        settings: from `parse_arguments` or `resolve_settings`.
        listeners: hear of each event on the main process; none are called elsewhere.

    Raises:
        ConfigError: settings or data that can't be used; raised before anything is trained.
        CheckpointError: a starting model or a checkpoint that can't be used.
    """
    hearers = Listeners(listeners if settings.training.process_index == 0 else ())
    try:
        return _dry_run(settings, hearers) if settings.run.dry_run else _whole_run(settings, hearers)
    # A second Ctrl-C is no Exception, and listeners must hear of it, too.
    except BaseException:
        hearers.failed()
        raise


def _whole_run(settings: Settings, listeners: Listeners) -> TrainingReport:
    # Twice: what can't be used is refused before the data is read, the folder is taken after all of it was checked.
    undecided = ("num_train_epochs",) if epochs_follow_data(settings) else ()
    main_process_says(settings.training, lambda: choose_run_folder(*_wish(settings), undecided))
    assembly = _assemble(settings, listeners)
    with _run_folder(settings) as folder:
        # Trainer writes where its arguments say, and those are older than the choice of the folder.
        settings.training.output_dir = str(folder.path)
        assembly = assembly._replace(plan=assembly.plan._replace(output_dir=folder.path, checkpoint=folder.checkpoint))
        # Before any checkpoint: by this file the next start knows the folder as an interrupted run of these settings.
        if settings.training.process_index == 0:
            write_run_file(folder.path / RUN_FILE, all_settings(settings), _headline(assembly.plan))
        return _train(assembly, listeners, keep=True)


def _wish(settings: Settings) -> tuple[Path, dict[str, Any], str, bool]:
    """The arguments of `choose_run_folder`."""
    named = bool(settings.given.get("output_dir"))
    path = Path(settings.given["output_dir"]) if named else Path("runs", _default_name(settings))
    return path, all_settings(settings), settings.training.resume_from_checkpoint or settings.run.resume, named


@contextmanager
def _run_folder(settings: Settings) -> Iterator[RunFolder]:
    """The folder of the run, which is kept for it; the main process chooses, and the others hear of it."""
    # On the main process it holds the lock to the end of the `with`; the others have entered nothing.
    with ExitStack() as stack:
        yield main_process_says(settings.training, lambda: stack.enter_context(taken_run_folder(*_wish(settings))))


def _dry_run(settings: Settings, listeners: Listeners) -> TrainingReport:
    """Plan the run and try its first steps, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="moe_hf-dry-run-") as folder:
        planned = _assemble(settings, listeners, cache_dir=folder)
        tried = {
            **settings.given,
            "output_dir": folder,
            "max_steps": DRY_STEPS,
            "per_device_train_batch_size": rows_in_seconds(
                planned.plan.info, settings.training, planned.context_length
            ),
            "gradient_accumulation_steps": 1,
            "warmup_steps": 0,
            "logging_steps": 1,
            "save_strategy": "no",
            "eval_strategy": "no",
            # Some schedules want to see evaluations.
            "lr_scheduler_type": "constant",
            "lr_scheduler_kwargs": None,
            "load_best_model_at_end": False,
            "report_to": "none",
            "push_to_hub": False,
        }
        # Made anew: transformers works out some arguments from others when they are made.
        assembly = planned._replace(settings=resolve_settings(tried))
        return _train(assembly, listeners, keep=False)


def _assemble(settings: Settings, listeners: Listeners, cache_dir: str | None = None) -> _Assembly:
    # One process fills the cache of `datasets`, the others read it.
    with settings.training.main_process_first():
        return _assemble_here(settings, listeners, cache_dir)


def _assemble_here(settings: Settings, listeners: Listeners, cache_dir: str | None) -> _Assembly:
    model_arguments, data_arguments, training = settings.model, settings.data, settings.training
    start = model_arguments.model or model_arguments.upcycle
    # Cheap and often wrong, so first: the shape of the model.
    config = model_config(model_arguments)
    listeners.working("reading the data")
    split = split_rows(data_arguments, training.seed, cache_dir)
    context_length = _context_length(settings, config)
    tokenizer = choose_tokenizer(data_arguments, split.train, context_length, start)
    # Only now is the vocabulary known; a starting model keeps its own.
    if start is None:
        config = model_config(model_arguments, max(vocabulary_rows(tokenizer), data_arguments.vocab_size or 0))
    adopt_tokenizer(config, tokenizer)
    listeners.working("making tokens")
    data = prepare_data(split, tokenizer, data_arguments, context_length, training.seed)
    if data.held_out is None and (training.eval_strategy != "no" or training.eval_on_start):
        raise ConfigError(
            "nothing is held out to evaluate on; give --eval_data, more data or a larger --eval_fraction, or turn "
            "evaluation off with --eval_strategy no (and without --eval_on_start)"
        )
    fitted = [*fit_to_machine(settings, get_moe_model_info(config), context_length), *fit_to_data(settings, data)]
    data = data._replace(notices=(*data.notices, *fitted))
    plan = make_plan(
        title=_title(settings),
        config=config,
        data=data,
        data_name=split.train.name,
        context_length=context_length,
        training=training,
        output_dir=_wish(settings)[0],
    )
    return _Assembly(settings, config, tokenizer, data, context_length, plan)


def _train(assembly: _Assembly, listeners: Listeners, keep: bool) -> TrainingReport:
    """Train; `keep` is False for a dry run, which leaves nothing behind."""
    settings, plan, data = assembly.settings, assembly.plan, assembly.data
    for notice in _notices(plan, data):
        listeners.noticed(notice)
    trained = plan if keep else _tried_plan(assembly)
    if not keep and not trained.fits:
        listeners.planned(plan)
        listeners.noticed("no step is tried: the estimated memory is more than is free")
        guess = guessed_seconds(plan, settings.training)
        report = TrainingReport(plan, tried=True, whole_seconds=guess, notices=data.notices)
    else:
        listeners.working("building the model")
        callback = ListenerCallback(listeners, trained)
        trainer = _trainer(assembly, callback)
        listeners.planned(plan)
        seconds = trainer.train(resume_from_checkpoint=plan.checkpoint).metrics["train_runtime"]
        listeners.trained()
        report = _report(assembly, trainer, callback, seconds)
        report = _finish(report, assembly, trainer, listeners) if keep else _tried(report, settings)
    listeners.ended(report)
    if keep and report.finished and settings.training.push_to_hub and settings.training.process_index == 0:
        # Last, so that an upload that fails takes nothing away that there is to see.
        listeners.noticed(f"pushing to {trainer.hub_model_id}")
        listeners.noticed(f"pushed: {share_folder(trainer, plan.output_dir).url}")
    return report


def _notices(plan: RunPlan, data: TrainingData) -> list[str]:
    """What the user should know before a run begins."""
    notices = list(data.notices)
    if (plan.passes or 0) > MANY_PASSES:
        few = f"the run reads the data {plan.passes:,.0f} times; give more of it with --data, or fewer steps"
        notices.insert(0, few)
    if not plan.fits:
        advice = "lower --per_device_train_batch_size or --context_length, or give --gradient_checkpointing"
        notices.append(f"the run may need more memory than is free: {advice}")
    return notices


def _trainer(assembly: _Assembly, callback: ListenerCallback) -> _RunTrainer:
    """The Trainer of a model with its first weights."""
    settings, data = assembly.settings, assembly.data
    # Right before the draws: nothing that was drawn while reading the data moves the first weights.
    set_seed(settings.training.seed)
    model = build_model(settings.model, assembly.config)
    prepare_routers(model, settings.model, data)
    set_generation(model, assembly.tokenizer, assembly.context_length)
    try:
        trainer = _RunTrainer(
            model=model,
            args=settings.training,
            train_dataset=data.train,
            eval_dataset=data.held_out,
            data_collator=data.collator,
            processing_class=assembly.tokenizer,
            callbacks=[callback],
        )
    except (ValueError, ImportError) as error:
        raise ConfigError(f"the training arguments don't fit together: {error}") from error
    if data.held_out is not None:
        trainer.bytes_per_label = bytes_per_label(data.held_out, assembly.tokenizer)
    # Both print; what a person sees is the listeners' business.
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def _report(assembly: _Assembly, trainer: MoETrainer, callback: ListenerCallback, seconds: float) -> TrainingReport:
    """What the training came to; what follows it is not in it yet."""
    state = trainer.state
    return TrainingReport(
        plan=assembly.plan,
        finished=state.global_step >= state.max_steps,
        # A Ctrl-C during the last step cuts nothing off.
        interrupted=trainer.interrupted and state.global_step < state.max_steps,
        steps=state.global_step,
        timed_steps=trainer.timed_steps,
        seconds=seconds,
        train_loss=_latest(trainer, "cross_entropy") or _latest(trainer, "loss"),
        tokens_per_second=callback.tokens_per_second or _latest(trainer, "tokens_per_second"),
        trained_tokens=state.global_step * callback.plan.tokens_per_step,
        peak_memory_bytes=peak_memory(assembly.settings.training.device) or 0,
        notices=assembly.data.notices,
    )


def _latest(trainer: MoETrainer, name: str) -> float | None:
    """The last logged value, also of an earlier call that this one goes on from."""
    return next((entry[name] for entry in reversed(trainer.state.log_history) if name in entry), None)


def _tried(report: TrainingReport, settings: Settings) -> TrainingReport:
    """The report of a dry run, which says how long the whole run would take."""
    plan, speed = report.plan, report.tokens_per_second
    seconds = plan.total_tokens / speed if speed else guessed_seconds(plan, settings.training)
    return report._replace(tried=True, whole_seconds=seconds)


def _tried_plan(assembly: _Assembly) -> RunPlan:
    """The plan of the steps that a dry run tries."""
    training, length = assembly.settings.training, assembly.context_length
    return assembly.plan._replace(
        num_steps=DRY_STEPS,
        tokens_per_step=tokens_per_step(assembly.data, rows_per_step(training), length),
        activation_bytes=activation_bytes(assembly.config, training.per_device_train_batch_size * length, training),
    )


def _finish(report: TrainingReport, assembly: _Assembly, trainer: MoETrainer, listeners: Listeners) -> TrainingReport:
    """Evaluate and write what stays; of a run that was stopped early the newest checkpoint stays."""
    settings, folder = assembly.settings, assembly.plan.output_dir
    if not report.finished:
        checkpoint = newest_valid_checkpoint(str(folder))
        return report._replace(model_dir=Path(checkpoint) if checkpoint else None)
    if assembly.data.held_out is not None:
        listeners.working("evaluating")
        report = report._replace(eval_loss=trainer.evaluate()["eval_loss"])
    questions = settings.run.questions_per_skill
    if questions and settings.data.data == [EMBEDDED] and can_generate_alone(trainer):
        listeners.working("answering the held-out questions")
        report = report._replace(scoreboard=answer_held_out(trainer, assembly.tokenizer, questions))
    listeners.working("saving")
    report = report._replace(model_dir=folder)
    with final_model(trainer, folder) as aside:
        if settings.training.process_index == 0:
            write_report(report, settings, aside)
    return report


def _default_name(settings: Settings) -> str:
    model = settings.model
    start = model.model or model.upcycle
    size = Path(start).name if start else model.moe_size
    kind = "upcycled" if model.upcycle and not model.is_dense else model.kind
    return f"{size}-{kind}"


def _context_length(settings: Settings, config: PreTrainedConfig) -> int:
    longest = config.max_position_embeddings
    asked = settings.data.context_length
    if asked is None:
        return usual_context_length(settings, longest)
    if asked > longest:
        raise ConfigError(
            f"--context_length {asked} is more than the model's longest sequence, {longest}; lower it, or for a fresh "
            f"model give --model_overrides max_position_embeddings={asked}"
        )
    return asked


def _title(settings: Settings) -> str:
    model = settings.model
    kind = "dense twin" if model.is_dense else "Mixture of Experts"
    if model.family != "gpt2":
        kind = f"{kind}, {model.family}"
    if model.upcycle:
        return f"{kind}, from the dense model {model.upcycle}"
    return f"{kind}, continued from {model.model}" if model.model else f"{kind}, {model.moe_size}, fresh weights"


def _headline(plan: RunPlan) -> str:
    return f"{plan.title}; on {plan.data}; {plan.num_steps:,} steps of {plan.tokens_per_step:,} tokens."
