"""Every dense format answers to the one interface by which checkpoints are read."""

import pytest

from moe_hf.models.auto import FAMILIES
from moe_hf.models.dense.format import DenseFormat
from moe_hf.models.dense.formats import DENSE_FORMATS


def test_a_format_that_reads_nothing_cannot_be_made() -> None:
    class Unfinished(DenseFormat):
        name = "unfinished"

    with pytest.raises(TypeError, match="recognises"):
        Unfinished()


@pytest.mark.parametrize("name", list(DENSE_FORMATS))
def test_a_format_names_its_architecture_and_real_fields(name: str) -> None:
    dense_format = DENSE_FORMATS[name]
    families = [family for family in FAMILIES.values() if dense_format in family.model.dense_formats]
    assert families
    config = families[0].config()
    assert all(hasattr(config, field) for field in dense_format.fixed_fields)
    assert not dense_format.recognises(["some.other.tensor"])
