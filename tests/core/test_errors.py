"""Lines that errors become."""

from qeval.core.errors import first_line, with_class


def test_the_first_line_of_a_text_or_an_error():
    assert first_line("\n  what it is \n why") == "what it is"
    assert first_line("") == first_line("\n \n") == ""
    assert first_line(ValueError("\nno\nyes")) == "no"
    assert first_line(KeyError()) == "KeyError"


def test_the_class_of_an_error_stands_once():
    assert with_class(ValueError("no\nyes")) == "ValueError: no"
    assert with_class(ValueError()) == "ValueError"
