"""Turns the validation errors of huggingface_hub's strict dataclasses into this package's ConfigError."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast, get_args

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
    cls.__init__ = _one_name_per_field(cls.__init__)  # type: ignore[misc]
    cls.__setattr__ = _no_bool_for_a_number(cls.__setattr__, cls)  # type: ignore[misc,assignment]
    for name in ("__init__", "__setattr__", "validate"):
        setattr(cls, name, _raising_config_errors(getattr(cls, name), cls.__name__))
    return cls


def _no_bool_for_a_number(assign: Callable[..., None], cls: Any) -> Callable[..., None]:
    # True is an int to Python, and would be one layer.
    numbers = {
        name
        for name, field in cls.__dataclass_fields__.items()
        if {int, float} & (kinds := {field.type, *get_args(field.type)}) and bool not in kinds
    }

    @wraps(assign)
    def wrapper(self: Any, name: str, value: Any) -> None:
        if isinstance(value, bool) and name in numbers:
            raise ConfigError(f"{cls.__name__}: field {name!r} expected a number, got {value!r}")
        assign(self, name, value)

    return wrapper


def _one_name_per_field(init: Callable[..., None]) -> Callable[..., None]:
    # Only here can it be seen what was given: afterwards a field that was not has its default.
    @wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        for alias, name in getattr(type(self), "attribute_map", {}).items():
            first, second = kwargs.get(alias), kwargs.get(name)
            if first is not None and second is not None and first != second:
                raise ConfigError(
                    f"{type(self).__name__}: {alias}={first!r} and {name}={second!r} name the same field; give one"
                )
        init(self, *args, **kwargs)

    return wrapper


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
