"""Names to classes: built-in ones, a third party's, and what is said of one that nobody registered."""

import pytest

from qeval.core import registry
from qeval.core.errors import UsageError
from qeval.core.registry import Registry
from qeval.engines.base import ENGINES
from qeval.formats.base import FORMATS
from qeval.quant.base import METHODS
from qeval.tasks.base import TASKS

ALL = [METHODS, ENGINES, TASKS, FORMATS]


@pytest.mark.parametrize("found", ALL, ids=lambda found: found.kind)
def test_every_built_in_class_is_final_so_that_mypy_checks_it_against_its_protocol(found):
    for name in found.built_in:
        assert found[name].__final__, name
        assert found[name].__base__ is not object, name


def test_a_third_partys_classes_are_found(plugin):
    import qeval_testing

    assert METHODS["copy"] is qeval_testing.Copy
    assert ENGINES["ngram"] is qeval_testing.NgramEngine
    assert TASKS["misbehave"] is qeval_testing.Misbehave
    assert "copy" in METHODS and {*METHODS.built_in} < {*METHODS}


def test_a_built_in_name_cannot_be_replaced(monkeypatch):
    monkeypatch.setattr(registry, "from_outside", lambda group: {"sqrt": "os:nothing"})
    assert Registry("thing", {"sqrt": "math:sqrt"})["sqrt"](4) == 2


def test_an_unknown_name_is_one_line_with_the_closest(plugin):
    with pytest.raises(UsageError, match=r"^unknown engine 'lamacpp'.*llamacpp"):
        ENGINES["lamacpp"]
    assert "lamacpp" not in ENGINES


@pytest.mark.parametrize("target", ["no_such_module:X", "math:no_such_function"])
def test_another_packages_module_that_does_not_import_is_one_line(monkeypatch, target):
    monkeypatch.setattr(registry, "from_outside", lambda group: {"theirs": target})
    with pytest.raises(UsageError, match=rf"^thing 'theirs' \({target}\) does not import: \w+Error"):
        Registry("thing", {})["theirs"]


def test_every_method_finds_weights_or_makes_them():
    for name in METHODS.built_in:
        assert ("find" in vars(METHODS[name])) != ("build" in vars(METHODS[name])), name
