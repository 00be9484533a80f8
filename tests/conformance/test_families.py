"""Conformance: every family passes the tests that transformers holds its own models to."""

import inspect
import re
import unittest
from collections.abc import Callable, Iterator
from typing import Unpack

import pytest
import transformers
from packaging.version import Version
from transformers.models.auto import modeling_auto
from transformers.utils import TransformersKwargs, logging

from moe_hf.models.auto import FAMILIES
from tests.conformance.families import CASES, Case, CaseTester
from tests.conformance.shared_tests import shared_tests
from tests.conformance.skips import CASE_SKIPS, SINCE, SKIPS

pytestmark = [pytest.mark.conformance, pytest.mark.filterwarnings("default")]

modeling = shared_tests("test_modeling_common")
training = shared_tests("test_training_mixin")
configuration = shared_tests("test_configuration_common")


@pytest.fixture(autouse=True, scope="module")
def treated_like_native_models() -> Iterator[None]:
    """The shared tests go by transformers' tables of names, by annotations and by the warnings it prints."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_warning()
    with pytest.MonkeyPatch.context() as patch:
        for family, classes in FAMILIES.items():
            patch.setitem(modeling_auto.MODEL_MAPPING_NAMES, family, classes.model.__name__)
            classifiers = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
            patch.setitem(classifiers, family, classes.sequence_classification.__name__)
            for model_class in classes[1:]:
                annotations = inspect.unwrap(model_class.forward).__annotations__
                patch.setitem(annotations, "kwargs", Unpack[TransformersKwargs])
        yield
    logging.set_verbosity(verbosity)


class SharedTests(modeling.ModelTesterMixin, modeling.GenerationTesterMixin, training.TrainingTesterMixin):
    """The shared tests and how they are run; `_test_class` makes a test case of them."""

    case: Case
    model_tester = None
    # Else a test leaves out what has no copyright line of 2023 or later.
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self) -> None:
        self.model_tester = CaseTester(self.case)


def _config_test(check: str) -> Callable[[unittest.TestCase], None]:
    def test(self: SharedTests) -> None:
        tester = configuration.ConfigTester(self, self.model_tester.config_class, **self.model_tester.fields)
        getattr(tester, check)()

    return test


# transformers runs these one after the other, and the first that fails hides the rest.
for _check in vars(configuration.ConfigTester):
    if match := re.fullmatch(r"(?:create_and_test|check)_(config_.*)", _check):
        setattr(SharedTests, f"test_{match[1]}", _config_test(_check))


def _skipped(reason: str) -> Callable[[unittest.TestCase], None]:
    return unittest.skip(reason)(lambda self: None)


def _test_class(name: str, case: Case) -> type[unittest.TestCase]:
    classes = FAMILIES[case.family]
    given = {**SKIPS, **CASE_SKIPS.get(name, {})}
    skips = {test: reason for start, reason in given.items() for test in dir(SharedTests) if test.startswith(start)}
    members = {
        "__module__": __name__,
        "case": case,
        "has_attentions": case.has_attentions,
        "training_overfit_learning_rate": case.learning_rate,
        "all_model_classes": (classes.model, classes.causal_lm, classes.sequence_classification),
        **{test: _skipped(reason) for test, reason in skips.items()},
    }
    return type(f"Test{name}", (SharedTests, unittest.TestCase), members)


for _name, _case in CASES.items():
    globals()[f"Test{_name}"] = _test_class(_name, _case)


def test_every_family_is_among_the_cases() -> None:
    assert {case.family for case in CASES.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", sorted({*SKIPS, *(name for skips in CASE_SKIPS.values() for name in skips)}))
def test_what_is_skipped_is_there(name: str) -> None:
    if Version(transformers.__version__) >= Version(SINCE.get(name, "0")):
        assert any(test.startswith(name) for test in dir(SharedTests))
