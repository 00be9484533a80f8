"""Run by `python -I`: loads exported models where moe_hf cannot be imported, and checks what they can do.

Usage: without_the_package.py REPOSITORY FOLDER NAME...

A NAME with a plus sign behind it is also saved again, and loaded under its other heads. At the end the package is
imported beside the copies of its code.
"""

import importlib
import importlib.abc
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")


class Absent(importlib.abc.MetaPathFinder):
    """Keeps the package from being found, wherever it is installed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] == "moe_hf":
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


ABSENT = Absent()
if __name__ == "__main__":
    # Not where pytest only looks for doctests here: every test after that would miss the package.
    sys.meta_path.insert(0, ABSENT)

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch.utils.data import Dataset  # noqa: E402
from transformers import (  # noqa: E402
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
)

STATES = ("e_score_correction_bias", "score_threshold", "expert_of_id")


class Rows(Dataset):
    """The same few tokens, again and again."""

    def __init__(self, ids_BS: torch.Tensor) -> None:
        self.ids_BS = ids_BS

    def __len__(self) -> int:
        return len(self.ids_BS)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids_BS[place], "labels": self.ids_BS[place]}


def gives_the_logits(model: Any, expected: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        found = model(expected["ids"]).logits
    torch.testing.assert_close(found, expected["logits"], atol=1e-6, rtol=0)


def generates(model: Any, expected: dict[str, torch.Tensor]) -> None:
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(expected["ids"], use_cache=True, **options)
    assert torch.equal(cached, model.generate(expected["ids"], use_cache=False, **options))
    assert torch.equal(cached, expected["generated"]), "other tokens than with the package"


def switches_backends(model: Any, expected: dict[str, torch.Tensor]) -> None:
    assert model.config._experts_implementation == "auto"
    for name in ("eager", "sorted", "grouped_mm", "batched_mm"):
        model.set_experts_implementation(name)
        with torch.no_grad():
            found = model(expected["ids"]).logits
        torch.testing.assert_close(found, expected["logits"], atol=1e-5, rtol=0, msg=f"{name} differs")
    try:
        model.set_experts_implementation("triton")
    except (ValueError, KeyError):
        model.set_experts_implementation("auto")
    else:
        raise AssertionError("triton's kernels are not in the folder and were not refused")


def saves_itself(model: Any, folder: Path, expected: dict[str, torch.Tensor]) -> None:
    again = folder.with_name(f"{folder.name}-again")
    model.save_pretrained(again)
    code = sorted(path.name for path in folder.glob("*.py"))
    assert sorted(path.name for path in again.glob("*.py")) == code, "other files of code"
    gives_the_logits(AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True), expected)


def trains(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arguments = TrainingArguments(
        output_dir=str(folder.with_name("runs")),
        max_steps=2,
        learning_rate=1e-2,
        per_device_train_batch_size=2,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=True,
        label_smoothing_factor=0.1,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows(expected["ids"]))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[1] < losses[0], losses
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    still = {name for name in before if name not in moved}
    assert any(".experts." in name for name in moved), "no expert was trained"
    # What routers learn from their load the package's own callback moves alone, and a table of hashes nobody does.
    assert still == {name for name in before if name.endswith(STATES)}, still


def has_other_heads(folder: Path) -> None:
    base = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(base).__name__.endswith("WithMoEModel")
    labeller = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, num_labels=3)
    assert labeller.config.num_labels == 3


def cannot_import_the_package() -> None:
    try:
        importlib.import_module("moe_hf")
    except ModuleNotFoundError:
        return
    raise AssertionError("moe_hf can be imported")


def goes_on(models: dict[str, tuple[Any, dict[str, torch.Tensor]]]) -> None:
    """Each copy of the code goes on by itself, whoever was loaded after it."""
    for model, expected in models.values():
        gives_the_logits(model, expected)
        generates(model, expected)


def main() -> None:
    repository, folder = sys.argv[1], Path(sys.argv[2])
    cannot_import_the_package()
    models = {}
    for name in sys.argv[3:]:
        name, plus, _ = name.partition("+")
        expected = load_file(folder / f"{name}.expected")
        model = AutoModelForCausalLM.from_pretrained(folder / name, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
        assert type(model.config) is type(model).config_class, "two copies of the configuration"
        assert type(model) is getattr(sys.modules[type(model).__module__], type(model).__name__), "not its own class"
        gives_the_logits(model, expected)
        generates(model, expected)
        switches_backends(model, expected)
        trains(folder / name, expected)
        if plus:
            saves_itself(model, folder / name, expected)
            has_other_heads(folder / name)
        models[name] = (model, expected)
        sys.stdout.write(f"{name} passed\n")
    goes_on(models)

    sys.meta_path.remove(ABSENT)
    sys.path.insert(0, repository)
    importlib.import_module("moe_hf")
    own = {}
    for name, (_, expected) in models.items():
        model = AutoModelForCausalLM.from_pretrained(folder / name, trust_remote_code=True)
        assert type(model).__module__.startswith("moe_hf."), "the package that is imported does not come first"
        assert not hasattr(model.config, "auto_map"), "saved again it would name code that is not there"
        own[name] = (model, expected)
    goes_on(own)
    goes_on(models)
    sys.stdout.write("all passed\n")


if __name__ == "__main__":
    main()
