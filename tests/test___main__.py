"""`moe-hf` finds the command, begins at once, and ends in one line where something is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_hf.__main__ import COMMANDS, main
from moe_hf.cli import spin_count


def test_no_command_prints_all_commands_and_fails(capsys):
    assert main([]) == 2
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


def test_unknown_command_names_the_nearest(capsys):
    assert main(["inof"]) == 2
    assert "did you mean 'info'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["info", "50m"], "unknown model size '50m'"),
        (["info", "500m", "--num_experts_per_tok", "99"], "num_experts_per_tok=99"),
        (["info", "500m", "--mlp_layer_types", "spares"], "mlp_layer_types='spares'"),
        (["info", "./nowhere"], "there is no folder ./nowhere"),
        (["upcycle", "./nowhere", "./there"], "there is no folder ./nowhere"),
        (["upcycle", "./nowhere", "./there", "--mlp_layer_types", "all"], "there is no folder ./nowhere"),
        (["chat", "-p", "hi", "--model", "./nowhere"], "there is no folder ./nowhere"),
        (["train", "--model", "./nowhere"], "there is no folder ./nowhere"),
    ],
)
def test_wrong_input_is_one_line_on_stderr_and_a_code_of_2(capsys, words, message):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err


ROOT = Path(__file__).parents[1]


def run_python(code: str, **environment: str) -> str:
    lean = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=lean | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "moe_hf", "--help"],
        ["-m", "moe_hf", "--version"],
        ["chat.py", "--help"],
        ["-m", "moe_hf", "chat", "--help"],
    ],
)
def test_help_does_not_wait_for_torch_or_transformers(words) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not {"torch", "transformers", "numpy", "datasets"} & loaded


@pytest.mark.parametrize("name", ["train", "chat", "upcycle", "export", "bench", "profile", "info"])
def test_a_command_chooses_a_short_spin_before_torch_is_loaded(name) -> None:
    code = f"""
import os, sys
from moe_hf.__main__ import COMMANDS
class Look:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            os._exit(0)
sys.stdout.reconfigure(line_buffering=True)
sys.meta_path.insert(0, Look())
from moe_hf.__main__ import main
main([{name!r}, "-p", "x", "--model", "./nowhere"])
"""
    # By what else runs while the tests do.
    assert run_python(code).split() in (["10000"], ["1000"])


@pytest.mark.parametrize(("running", "cores", "spins"), [(1, 2, 10_000), (2, 2, 1_000), (2, 8, 10_000), (5, 8, 1_000)])
def test_threads_hardly_spin_where_others_want_half_of_the_cores(running: int, cores: int, spins: int) -> None:
    assert spin_count(f"9.99 9.99 9.99 {running}/500 4321\n", cores) == spins


def test_a_waiting_policy_that_the_user_chose_is_kept() -> None:
    code = "import os, moe_hf.cli; print(os.environ.get('GOMP_SPINCOUNT'))"
    assert run_python(code, GOMP_SPINCOUNT="7").split() == ["7"]
    assert run_python(code, OMP_WAIT_POLICY="ACTIVE").split() == ["None"]


def test_wrong_words_end_every_command_with_code_2(tmp_path) -> None:
    commands = [
        "moe_hf nosuch",
        "moe_hf info --nosuch",
        "moe_hf bench nosuch",
        "moe_hf.bench.studies.load_balance --output_dir there",
        "moe_hf.bench.studies.recall --output_dir there --mixers nosuch",
    ]
    # One process for all, since each would load torch again.
    code = f"""
import runpy, sys
for command in {commands!r}:
    sys.argv = command.split()
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as left:
        print(left.code, command)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout.splitlines() == [f"2 {command}" for command in commands], done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("program", ["train.py", "chat.py"])
def test_ctrl_c_while_torch_is_loaded_ends_with_code_130(program) -> None:
    code = f"""
import runpy, signal, sys
class Cut:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Cut())
sys.argv = [{program!r}]
runpy.run_path({program!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
