"""Turns the validation errors of huggingface_hub's strict dataclasses into this package's ConfigError."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError

from moe_hf.base.errors import ConfigError

Config = TypeVar("Config", bound=type)


def strict_config(cls: Config) -> Config:
    """The class with every field checked against its type, at construction and at assignment.

    Apply it to each config class, subclasses included: the checks are built from the fields of the class that is
    decorated. A method whose name begins with `validate_` runs after construction and before saving.
    """
    cls = cast(Config, strict(cls))
    for name in ("__init__", "__setattr__", "validate"):
        setattr(cls, name, _raising_config_errors(getattr(cls, name), cls.__name__))
    return cls


def _raising_config_errors(method: Callable[..., Any], owner: str) -> Callable[..., Any]:
    @wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except StrictDataclassFieldValidationError as error:
            raise ConfigError(f"{owner}: {error.__cause__ or error}") from error
        except StrictDataclassClassValidationError as error:
            cause = error.__cause__
            raise cause if isinstance(cause, ConfigError) else ConfigError(f"{owner}: {cause or error}") from error

    return wrapper
