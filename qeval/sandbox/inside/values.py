"""Plain values as JSON, both ways.

JSON's own forms stand for None, bool, int below 2^63, float, str and list; everything else is an
object with one key:

    {"t": [...]} tuple            {"s": [...]} set       {"z": [...]} frozenset
    {"d": [[key, value], ...]} dict                      {"i": hex} int of any size
    {"b": hex} bytes              {"a": hex} bytearray   {"c": [real, imaginary]} complex
    {"g": [start, stop, step]} range                     {"r": number} a reference to any other object

Nothing that is decoded carries code or a comparison of its own: that is what makes a verdict safe.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

Refer = Callable[[object], int]
Resolve = Callable[[int], object]
BIG = 1 << 63
_AS_THEY_ARE = frozenset({str, bool, float, type(None)})


class NotPlain(Exception):
    """A value without a plain form, or JSON that is not the form of a value."""


def encode(value: object, refer: Refer) -> object:
    """The JSON form of a value; ``refer`` gives the number of an object that is not plain (or raises
    NotPlain). A subclass arrives as its base: its own ``__eq__`` stays behind."""
    if type(value) in _AS_THEY_ARE:
        return value
    if type(value) is int:
        return value if -BIG < value < BIG else {"i": hex(value)}
    if type(value) is list:
        return _items(value, refer)
    if type(value) is tuple:
        return {"t": _items(value, refer)}
    return _other(value, refer)


def _items(values: Collection[object], refer: Refer) -> list[object]:
    if {type(v) for v in values} <= _AS_THEY_ARE:
        return list(values)
    return [encode(v, refer) for v in values]


def _other(value: object, refer: Refer) -> object:
    """Containers other than lists and tuples, subclasses of anything plain, and references."""
    if isinstance(value, int):
        return encode(int.__index__(value), refer)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, dict):
        return {"d": [[encode(k, refer), encode(v, refer)] for k, v in dict.items(value)]}
    if isinstance(value, list):
        return _items(list.copy(value), refer)
    if isinstance(value, tuple):
        return {"t": _items(list(tuple.__iter__(value)), refer)}
    if isinstance(value, set):
        return {"s": _items(list(set.__iter__(value)), refer)}
    if isinstance(value, frozenset):
        return {"z": _items(list(frozenset.__iter__(value)), refer)}
    if isinstance(value, bytes | bytearray):
        return {"a" if isinstance(value, bytearray) else "b": bytes(value).hex()}
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if isinstance(value, range):
        return {"g": [encode(n, refer) for n in (value.start, value.stop, value.step)]}
    return {"r": refer(value)}


def decode(form: object, resolve: Resolve) -> object:
    """The value of a JSON form; ``resolve`` gives the object of a reference's number.

    Raises:
        NotPlain: not the form of a value.
    """
    if type(form) is list:
        return _decoded(form, resolve)
    if type(form) is not dict:
        return form
    if len(form) != 1:
        raise NotPlain("not one key")
    [(tag, body)] = form.items()
    try:
        return _BUILD[tag](body, resolve)
    except (KeyError, TypeError, ValueError, OverflowError) as err:
        raise NotPlain(f"{type(err).__name__} in a value of kind {tag[:1]!r}") from err


def _decoded(forms: Collection[object], resolve: Resolve) -> list[Any]:
    if {type(form) for form in forms}.isdisjoint((list, dict)):
        return list(forms)
    return [decode(form, resolve) for form in forms]


def _pairs(body: Iterable[tuple[object, object]], resolve: Resolve) -> Iterable[tuple[object, object]]:
    return ((decode(key, resolve), decode(value, resolve)) for key, value in body)


_BUILD: dict[str, Callable[[Any, Resolve], object]] = {  # a body of the wrong type raises
    "t": lambda body, resolve: tuple(_decoded(body, resolve)),
    "s": lambda body, resolve: set(_decoded(body, resolve)),
    "z": lambda body, resolve: frozenset(_decoded(body, resolve)),
    "d": lambda body, resolve: dict(_pairs(body, resolve)),
    "i": lambda body, _: int(body, 16),
    "b": lambda body, _: bytes.fromhex(body),
    "a": lambda body, _: bytearray.fromhex(body),
    "c": lambda body, _: complex(*body),
    "g": lambda body, resolve: range(*_decoded(body, resolve)),
    "r": lambda body, resolve: resolve(body),
}
