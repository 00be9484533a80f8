"""Arguments about data name every source, and refuse what does not go together."""

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.training.data.arguments import DataArguments
from moe_hf.training.data.sources import SOURCES


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data": []}, "--data must not be empty"),
        ({"data_split": ""}, "--data_split must not be empty"),
        ({"text_column": "a", "messages_column": "a"}, "are both 'a'"),
        ({"context_length": 1}, "--context_length must be at least 2, got 1"),
    ],
)
def test_what_does_not_go_together_is_refused_with_its_values(fields, words):
    with pytest.raises(ConfigError) as error:
        DataArguments(**fields)
    assert words in str(error.value)


def test_the_help_of_data_names_every_source():
    text = DataArguments.__dataclass_fields__["data"].metadata["help"]
    assert [name for name in SOURCES if name not in text] == []
