"""A fixture for the tests of the skills."""

import pytest


@pytest.fixture
def nobody_in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "moe_hf.text.skills.skill.hurried", lambda rng, template, slots, *rest: template.format(**slots)
    )
