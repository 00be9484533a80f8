"""What goes wrong in a command becomes an exit code and one line that a terminal may show."""

from typing import Any

import pytest

from moe_hf.base.errors import BackendUnavailableError, CheckpointError, ConfigError
from moe_hf.base.exit_code import exit_code


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_what_a_command_returns_is_its_exit_code(returned: int | None, code: int, capsys) -> None:
    assert exit_code(lambda: returned, "prog") == code
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError, 2), (CheckpointError, 2), (BackendUnavailableError, 2), (OSError, 1), (ConnectionError, 1)],
)
def test_an_error_of_input_or_machine_is_one_line(error: type[Exception], code: int, capsys) -> None:
    def call() -> Any:
        raise error("bad \x1b[31m name\nsecond line")

    assert exit_code(call, "prog") == code
    assert capsys.readouterr().err == "prog: bad [31m name second line\n"


def test_ctrl_c_is_no_error_of_the_program(capsys) -> None:
    def call() -> Any:
        raise KeyboardInterrupt

    assert exit_code(call, "prog") == 130
    assert capsys.readouterr().err == "prog: interrupted\n"


def test_a_bug_passes_through_with_its_traceback() -> None:
    with pytest.raises(KeyError):
        exit_code(lambda: {}["no such"], "prog")
