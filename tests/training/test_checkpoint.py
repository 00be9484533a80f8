import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
)

from moe_hf.base.errors import CheckpointError
from moe_hf.training import checkpoint
from moe_hf.training.checkpoint import (
    MANIFEST_NAME,
    atomic_checkpoint,
    checkpoint_problems,
    newest_valid_checkpoint,
    remove_leftovers,
    remove_old_checkpoints,
    require_valid_checkpoint,
    safetensors_problem,
)
from moe_hf.training.trainer import MoETrainer
from moe_hf.training.training_arguments import MoETrainingArguments
from tests.training import tiny

KILLED_RUN = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_checkpoint import make_trainer
from moe_hf.training.trainer import MoETrainer

class KilledTrainer(MoETrainer):
    def _save_rng_state(self, output_dir):
        if self.state.global_step == 4:
            assert Path(output_dir, "optimizer.pt").is_file()
            os.kill(os.getpid(), signal.SIGKILL)
        super()._save_rng_state(output_dir)

make_trainer(sys.argv[2], KilledTrainer).train()
"""


def make_trainer(output_dir, trainer_class=MoETrainer, **options):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=8))
    rows = torch.randint(0, 40, (16, 8), generator=torch.Generator().manual_seed(1))
    arguments = {"max_steps": 6, "save_steps": 2, "save_total_limit": None, "learning_rate": 1e-2} | options
    args = MoETrainingArguments(
        output_dir=str(output_dir), per_device_train_batch_size=4, disable_tqdm=True, use_cpu=True, **arguments
    )
    return trainer_class(model=model, args=args, train_dataset=[{"input_ids": row, "labels": row} for row in rows])


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run of 6 steps with checkpoint-2, -4 and -6, and its final weights."""
    folder = tmp_path_factory.mktemp("finished")
    trainer = make_trainer(folder)
    trainer.train()
    return folder, {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.fixture
def run_folder(finished_run, tmp_path):
    """A copy of the run that may be damaged."""
    return Path(shutil.copytree(finished_run[0], tmp_path / "run"))


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def test_newest_checkpoint_is_the_one_of_the_highest_step(run_folder):
    shutil.copytree(run_folder / "checkpoint-6", run_folder / "checkpoint-10")
    (run_folder / "checkpoint-11.old").mkdir()
    assert newest_valid_checkpoint(str(run_folder)) == str(run_folder / "checkpoint-10")


def test_no_checkpoint_is_none(tmp_path):
    assert newest_valid_checkpoint(str(tmp_path)) is None
    assert newest_valid_checkpoint(str(tmp_path / "absent")) is None


@pytest.mark.parametrize("with_manifest", [True, False])
@pytest.mark.parametrize("damage", [truncate, Path.unlink])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
def test_a_damaged_checkpoint_is_passed_over(run_folder, name, damage, with_manifest):
    newest = run_folder / "checkpoint-6"
    if not with_manifest:
        (newest / MANIFEST_NAME).unlink()
    damage(newest / name)
    assert newest_valid_checkpoint(str(run_folder)) == str(run_folder / "checkpoint-4")
    with pytest.raises(CheckpointError, match=rf"{name}.* use .*checkpoint-4"):
        require_valid_checkpoint(str(newest))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "run_state.pt", "config.json"])
def test_a_flipped_bit_makes_the_older_checkpoint_win_and_is_told(run_folder, name, caplog):
    path = run_folder / "checkpoint-6" / name
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 4
    path.write_bytes(content)
    with caplog.at_level("WARNING", logger="moe_hf"):
        assert newest_valid_checkpoint(str(run_folder)) == str(run_folder / "checkpoint-4")
    assert re.search(rf"checkpoint-6 is damaged and passed over: .*{name}", caplog.text)
    with pytest.raises(CheckpointError, match=rf"{name}.* use .*checkpoint-4"):
        require_valid_checkpoint(str(run_folder / "checkpoint-6"))


def test_a_checkpoint_without_checksums_is_still_valid(run_folder):
    manifest = run_folder / "checkpoint-6" / MANIFEST_NAME
    content = json.loads(manifest.read_text())
    assert content.pop("crc32").keys() == content["files"].keys()
    manifest.write_text(json.dumps(content))
    assert newest_valid_checkpoint(str(run_folder)) == str(run_folder / "checkpoint-6")


ODD = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"3",
    b'"x"',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"\xff": 1}',
    b"1" * 5000,
    b"\0" * 9,
]
ODD += [b'{"files": []}', b'{"files": {"a": 1, "%s": 2}}' % (b"a" * 5000), b'{"files": {"model.safetensors": "x"}}']
ODD += [b'{"weight_map": {"a": 3}}', b'{"weight_map": [1]}', b'{"global_step": "6"}', b'{"global_step": 6, "x": 1}']


@pytest.mark.parametrize("with_manifest", [True, False])
@pytest.mark.parametrize("name", ["trainer_state.json", "config.json", MANIFEST_NAME, "model.safetensors.index.json"])
def test_odd_json_makes_a_checkpoint_not_valid(run_folder, name, with_manifest):
    newest = run_folder / "checkpoint-6"
    if not with_manifest:
        (newest / MANIFEST_NAME).unlink()
    for odd in ODD:
        # An object that says nothing of its own is all that a configuration has to be.
        if (
            name == "config.json"
            and not with_manifest
            and odd.startswith(b'{"')
            and odd.endswith(b"}")
            and odd[2] != 255
        ):
            continue
        (newest / name).write_bytes(odd)
        assert newest_valid_checkpoint(str(run_folder)) == str(run_folder / "checkpoint-4"), odd[:40]


def test_an_odd_header_of_safetensors_makes_a_checkpoint_not_valid(run_folder):
    path = run_folder / "checkpoint-6" / "model.safetensors"
    (run_folder / "checkpoint-6" / MANIFEST_NAME).unlink()
    for odd in ODD:
        path.write_bytes(len(odd).to_bytes(8, "little") + odd)
        assert checkpoint_problems(str(path.parent)), odd[:40]


def test_a_file_that_cannot_be_read_makes_a_checkpoint_not_valid(run_folder, monkeypatch):
    real = Path.open

    def failing(self, *args, **kwargs):
        if self.name == "optimizer.pt" and self.parent.name == "checkpoint-6":
            raise OSError(5, "Input/output error", str(self))
        return real(self, *args, **kwargs)

    os.utime(run_folder / "checkpoint-6" / "optimizer.pt", ns=(1, 1))
    monkeypatch.setattr(Path, "open", failing)
    assert checkpoint_problems(str(run_folder / "checkpoint-6")) == ["optimizer.pt cannot be read (Input/output error)"]
    assert newest_valid_checkpoint(str(run_folder)) == str(run_folder / "checkpoint-4")


@pytest.mark.parametrize("name", ["config.json", "training_args.bin", "run_state.pt"])
def test_the_manifest_misses_any_file(run_folder, name):
    (run_folder / "checkpoint-6" / name).unlink()
    assert checkpoint_problems(str(run_folder / "checkpoint-6")) == [f"{name} is missing"]


def test_a_missing_shard_is_noticed(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "trainer_state.json").write_text('{"global_step": 1}')
    assert checkpoint_problems(str(tmp_path)) == ["model-00002-of-00002.safetensors is missing"]
    save_file({"b": torch.ones(3)}, tmp_path / "model-00002-of-00002.safetensors")
    assert checkpoint_problems(str(tmp_path)) == []


@pytest.mark.parametrize("length", [0, 5, 20, 60, -1])
def test_a_safetensors_file_is_checked_by_its_length(tmp_path, length):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3, 4), "b": torch.zeros(2)}, path)
    assert safetensors_problem(path) is None
    path.write_bytes(path.read_bytes()[:length])
    assert safetensors_problem(path)


def test_weights_alone_are_complete_when_saved_on_purpose(tmp_path):
    make_trainer(tmp_path, max_steps=2, save_only_model=True).train()
    assert not (tmp_path / "checkpoint-2" / "optimizer.pt").exists()
    assert newest_valid_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-2")


@pytest.mark.parametrize("alone", [True, False])
def test_going_on_without_the_optimizer_s_state_is_said(tmp_path, monkeypatch, alone):
    make_trainer(tmp_path, max_steps=2, save_only_model=alone).train()
    said = []
    monkeypatch.setattr(checkpoint.logger, "warning", said.append)
    make_trainer(tmp_path, max_steps=3).train(resume_from_checkpoint=True)
    assert [("holds weights alone" in text) for text in said] == [True] * alone


def test_only_a_complete_checkpoint_is_given_back(run_folder):
    assert require_valid_checkpoint(str(run_folder / "checkpoint-2")) == str(run_folder / "checkpoint-2")
    with pytest.raises(CheckpointError, match="no such folder"):
        require_valid_checkpoint(str(run_folder / "checkpoint-3"))


def test_a_failed_save_leaves_no_checkpoint(tmp_path):
    def save():
        with atomic_checkpoint(str(tmp_path), 3) as folder:
            Path(folder, "checkpoint-3").mkdir()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_save_left_is_deleted(tmp_path):
    (tmp_path / "tmp-checkpoint-3" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "checkpoint-2").mkdir()
    assert remove_leftovers(str(tmp_path)) == [str(tmp_path / "tmp-checkpoint-3")]
    assert list(tmp_path.iterdir()) == [tmp_path / "checkpoint-2"]


def test_everything_is_on_disk_before_the_checkpoint_appears(tmp_path, monkeypatch):
    events = []
    real_fsync, real_replace = os.fsync, os.replace

    def note_fsync(descriptor):
        events.append(os.fstat(descriptor).st_ino)
        real_fsync(descriptor)

    def note_replace(source, target):
        events.append("visible")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    with atomic_checkpoint(str(tmp_path), 3) as folder:
        inner = Path(folder, "checkpoint-3", "inner")
        inner.mkdir(parents=True)
        (inner / "weights").write_bytes(b"w")
        (inner.parent / "state").write_bytes(b"s")
    final = tmp_path / "checkpoint-3"
    before, after = events[: events.index("visible")], events[events.index("visible") + 1 :]
    assert {path.stat().st_ino for path in [final, *final.rglob("*")]} == set(before)
    assert after == [tmp_path.stat().st_ino]
    # A folder's names are made durable after what they stand for.
    assert before.index(final.stat().st_ino) > before.index((final / "inner" / "weights").stat().st_ino)


def test_a_broken_checkpoint_of_the_same_step_is_replaced(run_folder):
    (run_folder / "checkpoint-6" / "optimizer.pt").unlink()
    trainer = make_trainer(run_folder)
    trainer.train(resume_from_checkpoint=True)
    assert checkpoint_problems(str(run_folder / "checkpoint-6")) == []
    assert sorted(path.name for path in run_folder.iterdir() if path.is_dir()) == [
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-6",
    ]


def test_old_checkpoints_go_but_never_the_newest_or_the_best(tmp_path):
    for step in (2, 4, 6, 8, 30):
        (tmp_path / f"checkpoint-{step}").mkdir()
    newest, best = str(tmp_path / "checkpoint-8"), str(tmp_path / "checkpoint-2")
    for every in (None, 0, -1):
        remove_old_checkpoints(str(tmp_path), newest, every, best)
    assert len(list(tmp_path.iterdir())) == 5
    remove_old_checkpoints(str(tmp_path), newest, 3, best)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-6", "checkpoint-8"}
    remove_old_checkpoints(str(tmp_path), newest, 1, best)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-8"}


def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(finished_run, tmp_path):
    command = [sys.executable, "-c", KILLED_RUN, str(Path(__file__).parent), str(tmp_path)]
    killed = subprocess.run(command, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (tmp_path / "tmp-checkpoint-4" / "checkpoint-4" / "optimizer.pt").is_file()
    assert not (tmp_path / "checkpoint-4").exists()
    assert newest_valid_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-2")

    trainer = make_trainer(tmp_path)
    trainer.train(resume_from_checkpoint=newest_valid_checkpoint(str(tmp_path)))
    assert not (tmp_path / "tmp-checkpoint-4").exists()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, finished_run[1][name]), name


def test_resuming_when_nothing_is_complete_is_an_error(run_folder):
    for step in (2, 4, 6):
        truncate(run_folder / f"checkpoint-{step}" / "optimizer.pt")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        make_trainer(run_folder).train(resume_from_checkpoint=True)


def test_a_place_that_cannot_be_loaded_safely_is_refused_when_saved(tmp_path):
    class Careless(tiny.EndlessStream):
        def state_dict(self):
            return {"position": Path("x")}

    with pytest.raises(CheckpointError, match="plain Python values"):
        tiny.make_trainer(tmp_path, data=Careless(), save_strategy="steps", save_steps=1).train()
    assert newest_valid_checkpoint(str(tmp_path)) is None
