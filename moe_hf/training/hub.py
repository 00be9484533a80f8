"""What a Trainer shares on the Hub: whole checkpoints while it trains, and the model at the end, each with a card."""

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import PreTrainedConfig, Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging
from transformers.utils.hub import hf_api

from moe_hf.base.errors import CheckpointError, first_line
from moe_hf.base.files import atomic_file
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.cards.card import CARD_FILE, PICTURES, is_unedited, placeholder
from moe_hf.models.cards.described import counts_of, described_card, logged_rows
from moe_hf.models.cards.loading import Loading, task_of
from moe_hf.models.info import get_moe_model_info
from moe_hf.sharing.push import (
    PushReport,
    Repository,
    card_there,
    open_repository,
    push_files,
    push_folder,
    require_token,
)
from moe_hf.sharing.shared_files import shared_files
from moe_hf.training.metrics import METRICS_NAME

logger = logging.get_logger(__name__)

_STAGING = "tmp-push-"


class SharesOnHub(Trainer):
    """transformers' Trainer, whose uploads are whole commits without pickles, and whose failed ones are told.

    With `push_to_hub`, checkpoints go up in the background as `hub_strategy` says. They are linked aside first, so that
    neither the run's folder nor an upload changes under the other. An upload that fails stops no training: it is
    said in a warning, and the next one brings what is newer.
    """

    hub_model_id: Any
    _uploads: Sequence["Future[Any]"] = ()

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, or look it up, before anything is trained.

        Raises:
            ConfigError: there is no token, or the Hub takes no such name.
            CheckpointError: the Hub refuses.
            OSError: the Hub cannot be reached.
        """
        if not self.is_world_process_zero():
            return
        args = self.args
        name = args.hub_model_id or Path(str(args.output_dir)).absolute().name
        wanted = args.hub_private_repo if private is None else private
        token = require_token(token or args.hub_token)
        self.hub_model_id = open_repository(name, bool(wanted), args.hub_revision, token).repo_id
        self.push_in_progress = None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model into the output folder and push that (`push_folder`).

        Args:
            commit_message: of the commit.
            blocking: return when all is there; otherwise a `Future` comes back.
            token, revision, private: as of the training arguments where they are left out.
            **kwargs: as of `create_model_card`.

        Returns:
            The `CommitInfo`, or a `Future` of it; None on processes that do not push.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        message = commit_message or "End of training"

        def push() -> CommitInfo:
            report = share_output(self, Path(str(self.args.output_dir)), message, token, revision)
            return CommitInfo(commit_url=report.url, commit_message=message, commit_description="", oid=report.commit)

        return push() if blocking else hf_api().run_as_future(push)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the card of the run into its folder, unless somebody wrote or changed the one that is there.

        Args as in Trainer; `language`, `tasks`, `dataset` and `dataset_args` are not told by this card.
        """
        config = self._card_config()
        path = Path(str(self.args.output_dir), CARD_FILE)
        if not self.is_world_process_zero():
            return
        if config is None:
            # Of an adapter; peft writes its own.
            super().create_model_card(license=license, tags=tags, model_name=model_name, finetuned_from=finetuned_from)
            return
        if path.is_file() and not is_unedited(path.read_text(encoding="utf-8", errors="replace")):
            return
        name = model_name or path.parent.absolute().name
        listed = [dataset_tags] if isinstance(dataset_tags, str) else dataset_tags
        text = self._card(
            self.hub_model_id or placeholder(name),
            [picture for picture in PICTURES if (path.parent / picture).is_file()],
            license=license,
            tags=[tags] if isinstance(tags, str) else tags or [],
            base_model=finetuned_from,
            datasets=listed or [],
        )
        with atomic_file(path) as aside:
            aside.write_text(text, encoding="utf-8")

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Plain TrainingArguments would be pickled beside the weights with all they hold.
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        self._tell_failed_uploads()
        if self._uploads and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        output_dir, step = Path(str(self.args.output_dir)), self.state.global_step
        if not self._uploads:
            for leftover in output_dir.glob(f"{_STAGING}*"):
                shutil.rmtree(leftover, ignore_errors=True)
        try:
            files = self._staged(Path(checkpoint_folder), output_dir / f"{_STAGING}{step}")
        except (CheckpointError, OSError) as error:
            self._tell_failed(error)
            return
        card = self._card(str(self.hub_model_id), []) if self._card_config() is not None else None
        # transformers' own, which does one after the other.
        job = hf_api().run_as_future(
            _upload_staged,
            staging=output_dir / f"{_STAGING}{step}",
            files=files,
            card=card,
            repo_id=self.hub_model_id,
            revision=self.args.hub_revision,
            token=require_token(self.args.hub_token),
            message=f"Training in progress, step {step}",
        )
        self._uploads = [*self._uploads, job]

    def _staged(self, checkpoint: Path, staging: Path) -> dict[str, Path | bytes]:
        """Links to the files of a checkpoint that go up, by their names on the Hub."""
        metrics = Path(str(self.args.output_dir), METRICS_NAME)
        files: dict[str, Path | bytes] = {}
        for name, path in shared_files(checkpoint).files.items():
            files[name] = _linked(path, staging / name)
        if metrics.is_file():
            # It is still written.
            files[METRICS_NAME] = metrics.read_bytes()
        whole = {
            HubStrategy.CHECKPOINT: "last-checkpoint",
            HubStrategy.ALL_CHECKPOINTS: checkpoint.name,
        }.get(HubStrategy(self.args.hub_strategy))
        if whole is not None:
            for path in sorted(checkpoint.rglob("*")):
                name = f"{whole}/{path.relative_to(checkpoint).as_posix()}"
                if path.is_file():
                    files[name] = _linked(path, staging / name)
        return files

    def _finish_current_push(self) -> None:
        for job in self._uploads:
            # Waits, and leaves the error for the one place that tells it.
            job.exception()
        self._tell_failed_uploads()

    def _tell_failed_uploads(self) -> None:
        """Warn of uploads that failed, and forget those that are done."""
        for job in self._uploads:
            error = job.exception() if job.done() else None
            if error is not None:
                self._tell_failed(error)
        self._uploads = [job for job in self._uploads if not job.done()]

    def _tell_failed(self, error: BaseException) -> None:
        logger.warning(
            f"a checkpoint was not pushed to {self.hub_model_id}: {first_line(error)}. Training goes on, and "
            f"{self.args.output_dir} has it"
        )

    def _card_config(self) -> PreTrainedConfig | None:
        """The configuration that a card is written of; None for an adapter."""
        model: Any = self.accelerator.unwrap_model(self.model)
        config = getattr(model, "config", None)
        is_adapter = getattr(model, "peft_config", None) is not None or getattr(model, "_hf_peft_config_loaded", False)
        return config if isinstance(config, PreTrainedConfig) and not is_adapter else None

    def _card(self, name: str, pictures: list[str], **metadata: Any) -> str:
        model, config = self.accelerator.unwrap_model(self.model), self._card_config()
        assert config is not None
        auto_class, pipeline_tag = task_of(type(model).__name__)
        loading = Loading(
            str(config.model_type),
            is_own=isinstance(config, MoEDecoderConfig),
            auto_class=auto_class,
            has_tokenizer=self.processing_class is not None,
        )
        numbers = logged_rows(self.state.global_step, self.state.log_history)
        return described_card(
            name, counts_of(config, get_moe_model_info), loading, pipeline_tag, numbers, pictures, **metadata
        )


def share_output(
    trainer: Trainer, folder: Path, message: str, token: str | None = None, revision: str | None = None
) -> PushReport:
    """Push the output folder of a Trainer, as its arguments say, to the repository that it has made."""
    args = trainer.args
    return push_folder(
        folder,
        str(trainer.hub_model_id),
        revision=revision or args.hub_revision,
        message=message,
        token=token or args.hub_token,
    )


def _linked(path: Path, target: Path) -> Path:
    """A second name for a file, which stays when the first one goes; a copy where the disk knows no such names."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
    return target


def _upload_staged(
    staging: Path,
    files: dict[str, Path | bytes],
    card: str | None,
    repo_id: str,
    revision: str | None,
    token: str,
    message: str,
) -> None:
    try:
        repository: Repository = open_repository(repo_id, False, revision, token)
        there = card_there(repository, token)
        if card is not None and (there is None or is_unedited(there)):
            files = {**files, CARD_FILE: card.encode()}
        push_files(files, repository, message, token)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
