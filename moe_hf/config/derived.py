"""Fields of a configuration that follow from others where they are left out."""

from typing import Any, ClassVar

from transformers import PreTrainedConfig


class DerivedFields(PreTrainedConfig):
    """A configuration some of whose fields are stored as None and read as what follows from the others.

    What was left out stays None in the object and in `config.json`, and so follows when another field is overridden.
    Whoever reads the attribute, transformers among them, gets its value.
    A list is made anew at each read: to change one, assign it whole.

    Attributes:
        derived_fields: the name of each such field, and of the method that gives its value.
    """

    derived_fields: ClassVar[dict[str, str]] = {}

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        # This runs at every read of any attribute: only one that holds None pays for the look-up.
        if value is None:
            cls = type(self)
            method = cls.derived_fields.get(cls.attribute_map.get(name, name))
            if method is not None:
                return getattr(self, method)()
        return value

    def stored(self, name: str) -> Any:
        """The value that was given for a field, None where it was left out."""
        return self.__dict__[name]
