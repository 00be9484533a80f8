"""The package's errors are also the built-in errors that callers already catch."""

import pytest

from moe_hf.base.errors import BackendUnavailableError, CheckpointError, ConfigError


@pytest.mark.parametrize(
    ("error", "built_in"),
    [(ConfigError, ValueError), (CheckpointError, RuntimeError), (BackendUnavailableError, ImportError)],
)
def test_errors_are_caught_as_built_in_ones(error: type[Exception], built_in: type[Exception]) -> None:
    assert issubclass(error, built_in)


def test_errors_can_be_told_apart() -> None:
    kinds = (ConfigError, CheckpointError, BackendUnavailableError)
    assert all(not issubclass(one, other) for one in kinds for other in kinds if one is not other)
