"""Optional packages: present or absent, and what a user is told."""

import importlib.util
import sys

import pytest

from moe_hf.base.errors import BackendUnavailableError
from moe_hf.base.optional import OPTIONAL_PACKAGES, OptionalPackage, is_available, require


@pytest.fixture
def json_as_optional(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(OPTIONAL_PACKAGES, "present", OptionalPackage("colorsys", "pip install colours"))
    return "present"


@pytest.fixture(params=["no_such_package_at_all", "no_such_package_at_all.inside", "colorsys.inside"])
def absent(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(OPTIONAL_PACKAGES, "absent", OptionalPackage(request.param, "pip install 'moe_hf[absent]'"))
    return "absent"


def test_a_present_package_is_found_without_importing_it(
    json_as_optional: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert is_available(json_as_optional)
    assert "colorsys" not in sys.modules


def test_requiring_a_present_package_gives_the_module(json_as_optional: str) -> None:
    assert require(json_as_optional, "painting").__name__ == "colorsys"


def test_an_absent_package_is_not_available(absent: str) -> None:
    assert not is_available(absent)


def test_requiring_an_absent_package_says_what_for_and_how_to_get_it(absent: str) -> None:
    with pytest.raises(BackendUnavailableError, match=r"needed for painting .* pip install 'moe_hf\[absent\]'"):
        require(absent, "painting")


def test_an_unlisted_name_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(KeyError):
        is_available("leftpad")


@pytest.mark.parametrize("name", sorted(OPTIONAL_PACKAGES))
def test_every_listed_package_can_be_asked_for(name: str) -> None:
    package = OPTIONAL_PACKAGES[name]
    assert package.install
    assert is_available(name) == _findable(package.module)


def _findable(module: str) -> bool:
    parent = module.split(".", maxsplit=1)[0]
    return importlib.util.find_spec(parent) is not None and importlib.util.find_spec(module) is not None
