"""The laws of verdicts, in the sandbox of this machine: what an honest program may do and still passes,
what each end is called, and that neither workers nor load change a verdict. Hostile programs are in
test_attacks.py.
"""

from __future__ import annotations

import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qeval.core.errors import SandboxError
from qeval.sandbox import Limits, Program, Sandbox, Verdict, find_sandbox
from qeval.sandbox.clock import Clock

sys.path.insert(0, str(Path(__file__).parent))
from attacks import _host

REPO = Path(__file__).parents[2]
MIB = 1 << 20
ORDINARY = 12345  # a user without rights
LIMITS = Limits(timeout_s=1.0, memory_bytes=512 * MIB, scratch_bytes=16 * MIB)
RIGHT = "def f(x):\n    return x + 1\n"
TEST = "assert f(1) == 2"


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return find_sandbox()
    except SandboxError as err:
        if os.environ.get("QEVAL_REQUIRE_SANDBOX"):
            raise
        pytest.skip(str(err))


class Bench:
    """One lane that stays warm: every call of ``judge`` is one program of one and the same ``run``,
    whose iterable blocks in between."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._programs: queue.Queue[Program | None] = queue.Queue()
        self._verdicts = sandbox.run(iter(self._programs.get, None), LIMITS, workers=1)

    def judge(
        self, code: str, test: str = TEST, names: tuple[str, ...] = ("f",), **parts: Any
    ) -> Verdict:
        self._programs.put(Program("p", code, test, names=names, **parts))
        return next(self._verdicts)

    def close(self) -> None:
        self._programs.put(None)
        assert list(self._verdicts) == []


@pytest.fixture(scope="module")
def bench(sandbox: Sandbox) -> Iterator[Bench]:
    bench = Bench(sandbox)
    yield bench
    bench.close()


# -- honest programs ---------------------------------------------------------------------------------

HONEST = {
    "plain": (RIGHT, TEST),
    "reads its input": ("import sys\ndef f(): return sys.stdin.read()", "assert f() == ''"),
    "asks": ("def f():\n try: input()\n except EOFError: return 1", "assert f() == 1"),
    "prints 10 MB": (
        "import sys\ndef f():\n"
        " for _ in range(100): print('x' * 99_999); sys.stderr.write('y' * 1000)\n"
        " return 1",
        "assert f() == 1",
    ),
    "prints while it is loaded": ("print('x')\nimport sys\nsys.stdout.flush()\n" + RIGHT, TEST),
    "recurses 950 deep": ("def f(n): return n and 1 + f(n - 1)", "assert f(950) == 950"),
    "raises the limit and recurses": (
        "import sys\nsys.setrecursionlimit(20_000)\ndef f(n): return n and 1 + f(n - 1)",
        "assert f(10_000) == 10_000",
    ),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def f(xs):\n with ThreadPoolExecutor(8) as pool: return list(pool.map(str, xs))",
        "assert f([1, 2]) == ['1', '2']",
    ),
    "leaves a thread running": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(9,)).start()\n" + RIGHT,
        TEST,
    ),
    "leaves hooks": ("import atexit, time\natexit.register(time.sleep, 9)\n" + RIGHT, TEST),
    "coroutine": (
        "import asyncio\nasync def g(x): return x + 1\ndef f(x): return asyncio.run(g(x))",
        TEST,
    ),
    "temporary files": (
        "import os, tempfile\n"
        "def f(text):\n"
        " with tempfile.TemporaryDirectory() as d:\n"
        "  path = os.path.join(d, 'a')\n"
        "  with open(path, 'w') as file: file.write(text)\n"
        "  os.rename(path, path + 'b')\n"
        "  with open(path + 'b') as file: return file.read()",
        "assert f('é') == 'é'",
    ),
    "working folder": (
        "def f():\n open('a', 'w').write('b')\n return open('a').read()",
        "assert f() == 'b'",
    ),
    "a main block": ("if __name__ == '__main__':\n    raise Exception\n" + RIGHT, TEST),
    "dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass D:\n x: 'int' = 1\n"
        "def f(x): return D(x).x + 1",
        TEST,
    ),
    "pickles its own class": (
        "import pickle\nclass C: x = 1\ndef f(x): return pickle.loads(pickle.dumps(C())).x + x",
        TEST,
    ),
    "tabs and returns": ("def f(x):\r\n\treturn x + 1\r\n", TEST),
    "sleeps": ("import time\ndef f(x):\n time.sleep(0.3)\n return x + 1", TEST),
    "a handler and an alarm": (
        "import signal, time\n"
        "def f():\n"
        " got = []\n"
        " signal.signal(signal.SIGALRM, lambda *_: got.append(1))\n"
        " signal.setitimer(signal.ITIMER_REAL, 0.01)\n"
        " while not got: time.sleep(0.01)\n"
        " return got",
        "assert f() == [1]",
    ),
    "a lambda": ("f = lambda x: x + 1", TEST),
    "a partial": ("from functools import partial\nimport operator\nf = partial(operator.add, 1)", TEST),
    "a class with __call__": ("class C:\n def __call__(self, x): return x + 1\nf = C()", TEST),
    "keywords and defaults": (
        "def f(a, *rest, b=2, **more): return [a, rest, b, more]",
        "assert f(1, 3, b=4, c=5) == [1, (3,), 4, {'c': 5}]",
    ),
    "state between calls": (
        "n = 0\ndef f():\n global n\n n += 1\n return n",
        "assert [f(), f(), f()] == [1, 2, 3]",
    ),
    "takes 200 MiB": ("def f(): return len(bytearray(200 << 20))", "assert f() == 200 << 20"),
    "returns an odd text": ("def f(): return '\\ud800\\x1b\\0'", "assert f() == '\\ud800\\x1b\\0'"),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_program_passes(bench: Bench, name: str):
    code, test = HONEST[name]
    verdict = bench.judge(code, test)
    assert (verdict.text, verdict.detail) == ("passed", "")


MODULES = (
    *(
        "array",
        "ast",
        "asyncio",
        "base64",
        "bz2",
        "calendar",
        "cmath",
        "concurrent.futures",
        "csv",
        "ctypes",
    ),
    *(
        "decimal",
        "difflib",
        "doctest",
        "email.message",
        "fractions",
        "glob",
        "graphlib",
        "gzip",
        "hashlib",
        "hmac",
    ),
    *(
        "html.parser",
        "http.client",
        "inspect",
        "json",
        "locale",
        "logging",
        "lzma",
        "mmap",
        "multiprocessing",
    ),
    *(
        "numbers",
        "pathlib",
        "pickle",
        "pprint",
        "queue",
        "secrets",
        "selectors",
        "shutil",
        "socket",
        "sqlite3",
    ),
    *(
        "ssl",
        "statistics",
        "struct",
        "subprocess",
        "tempfile",
        "textwrap",
        "tokenize",
        "traceback",
        "typing",
    ),
    *(
        "unicodedata",
        "unittest.mock",
        "urllib.request",
        "uuid",
        "weakref",
        "xml.etree.ElementTree",
        "zipfile",
    ),
    "zoneinfo",
)
USES = {
    "sqlite3": "sqlite3.connect(':memory:').execute('select 1').fetchone() == (1,)",
    "fcntl": "fcntl.flock(open('a', 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB) is None",
    "fcntl of a part": "fcntl.lockf(open('a', 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB) is None",
    "shelve": "dict(shelve.open('a')) == {}",
    "sqlite3 on disk": "sqlite3.connect('a.db').execute('create table t (x)') is not None",
    "ssl": "ssl.create_default_context() is not None",
    "ctypes": "ctypes.CDLL(None).abs(-3) == 3",
    "zoneinfo": "str(zoneinfo.ZoneInfo('Europe/Berlin')) == 'Europe/Berlin'",
    "decimal": "str(decimal.Decimal(1) / 3)[:5] == '0.333'",
    "multiprocessing": "multiprocessing.cpu_count() >= 1",
    "uuid": "uuid.uuid4() != uuid.uuid4()",
    "hashlib": "hashlib.sha256(b'').hexdigest()[:4] == 'e3b0'",
    "secrets": "len(secrets.token_bytes(8)) == 8",
    "lzma": "lzma.decompress(lzma.compress(b'x')) == b'x'",
    "mmap": "len(mmap.mmap(-1, 4096)) == 4096",
    "pathlib": "not any(pathlib.Path('.').iterdir())",
    "shutil": "shutil.disk_usage('.').total == 16 << 20",
}


@pytest.mark.parametrize("module", MODULES)
def test_the_standard_library_can_be_imported(bench: Bench, module: str):
    verdict = bench.judge(f"import {module}\ndef f(x): return {module} is not None and x + 1")
    assert (verdict.text, verdict.detail) == ("passed", "")


@pytest.mark.parametrize("name", USES)
def test_the_standard_library_works(bench: Bench, name: str):
    verdict = bench.judge(
        f"import {name.split()[0]}\ndef f(): return {USES[name]}", "assert f() is True"
    )
    assert (verdict.text, verdict.detail) == ("passed", "")


@pytest.mark.parametrize("module", ["numpy", "click", "pytest", "pip", "qeval"])
def test_nothing_else_can_be_imported_on_either_side(bench: Bench, module: str):
    assert bench.judge(f"import {module}").text == "failed: ModuleNotFoundError"
    assert bench.judge(RIGHT, f"import {module}").text == "failed: ModuleNotFoundError"


def test_two_thirds_of_the_time_may_be_used(bench: Bench):
    code = "import time\ndef f(seconds):\n    while time.process_time() < seconds: pass\n    return 1\n"
    verdict = bench.judge(code, "assert f(1.0) == 1", timeout_s=1.5)
    assert verdict.passed, verdict.detail
    assert 1.0 <= verdict.seconds < 1.5


def test_sets_and_draws_are_the_same_every_time(bench: Bench):
    code = (
        "import random\nraise Exception(f'{set(map(str, range(9)))} {random.random()} {hash(\"x\")}')"
    )
    assert len({bench.judge(code).detail for _ in range(3)}) == 1


def test_the_tests_draws_are_the_programs_own_and_it_cannot_foresee_them(bench: Bench):
    """... though it knows this package's source; the same program is asked the same every time."""
    show = "import random\nraise Exception(random.random())"
    drawn = [bench.judge(f"{RIGHT}# {i % 3}", show).detail for i in range(6)]
    assert drawn[:3] == drawn[3:] and len(set(drawn)) == 3
    for seed in ("", "random.seed(0)\n", "random.seed(None)\n"):
        code = f"import random\n{seed}def f(): return random.random()"
        verdict = bench.judge(code, "import random\nx = random.random()\nassert f() == x")
        assert verdict.text == "failed: AssertionError"


def test_setup_test_and_call_run_in_this_order_in_one_module(bench: Bench):
    verdict = bench.judge(
        RIGHT, "def check(g):\n    assert g(one) == two", setup="one, two = 1, 2", call="check(f)"
    )
    assert (verdict.text, verdict.detail) == ("passed", "")


def test_the_tests_see_none_but_the_names_and_the_code_none_of_the_tests(bench: Bench):
    assert bench.judge("secret = 1\n" + RIGHT, "secret").text == "failed: NameError"
    assert bench.judge("def f(x): return expected", "expected = 2\n" + TEST).text == "failed: NameError"
    assert bench.judge("", TEST).text == "failed: NameError"
    assert bench.judge("f = 3", TEST).text == "failed: TypeError"


# -- values ------------------------------------------------------------------------------------------

SAME = """\
import math

def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return a != a and b != b or a == b and math.copysign(1, a) == math.copysign(1, b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, (set, frozenset)):
        return len(a) == len(b) and all(any(same(x, y) for y in b) for x in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
"""
numbers = st.integers() | st.integers(min_value=-(10**400), max_value=10**400) | st.booleans()
texts = st.text(st.characters(exclude_categories=()), max_size=20) | st.binary(max_size=20)
keys = st.none() | numbers | texts | st.floats(allow_nan=False)
hashable = st.recursive(
    keys, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4), max_leaves=6
)
plain = st.recursive(
    keys | st.floats() | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.sets(hashable, max_size=4)
        | hashable
    ),
    max_leaves=12,
)


def source(value: Any) -> str:
    """An expression for a plain value; ``repr`` is none for NaN, infinities and huge integers."""
    if isinstance(value, bool) or value is None:
        return repr(value)
    if isinstance(value, int):
        return hex(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f"float({str(value)!r})"
    if isinstance(value, complex):
        return f"complex({source(value.real)}, {source(value.imag)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{source(k)}: {source(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        return f"{type(value).__name__}([{', '.join(map(source, value))}])"
    return ascii(value)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(plain, min_size=1, max_size=6))
def test_a_plain_value_arrives_as_itself_in_both_directions(bench: Bench, values: list[Any]):
    known = f"{SAME}\nVALUES = {source(values)}\n"
    code = f"{known}def get(): return VALUES\ndef echo(x): return [same(x, VALUES), x]"
    test = f"{known}assert same(get(), VALUES)\n"
    test += "arrived, back = echo(VALUES)\nassert arrived is True\nassert same(back, VALUES)"
    verdict = bench.judge(code, test, ("get", "echo"))
    assert verdict.passed, f"{verdict.detail} {values!r}"


VALUES = {
    "a huge integer": ("10 ** 5000", "v == 10 ** 5000"),
    "a negative one": ("-(10 ** 5000)", "v == -(10 ** 5000)"),
    "true is not one": ("[True, 1, 1.0]", "list(map(type, v)) == [bool, int, float]"),
    "signed zero": ("-0.0", "math.copysign(1, v) == -1"),
    "infinity": ("[float('inf'), -float('inf')]", "v == [math.inf, -math.inf]"),
    "not a number": ("float('nan')", "math.isnan(v) and v != v"),
    "the smallest float": ("5e-324", "v == 5e-324 > 0"),
    "one that is hard to print": ("0.1 + 0.2", "v == 0.1 + 0.2 != 0.3"),
    "a large integer as float": ("float(2 ** 60 + 1)", "v == float(2 ** 60) and type(v) is float"),
    "a lone surrogate": ("'\\ud800'", "v == '\\ud800'"),
    "line separators": ("'\\r\\n\\x00\\u2028'", "v == '\\r\\n\\x00\\u2028'"),
    "keys of many types": (
        "{1: 'a', '1': 'b', (1,): 'c', None: 'd'}",
        "v[1] + v['1'] + v[(1,)] + v[None] == 'abcd'",
    ),
    "the order of a dict": ("{'b': 1, 'a': 2}", "list(v) == ['b', 'a']"),
    "a tuple is not a list": ("((1, 2), [3])", "v == ((1, 2), [3]) and v != [(1, 2), [3]]"),
    "deep": ("eval('[' * 80 + ']' * 80)", "v == eval('[' * 80 + ']' * 80)"),
    "many": ("list(range(200_000))", "v == list(range(200_000))"),
    "a long text": ("'é' * 1_000_000", "v == 'é' * 1_000_000"),
    "a subclass of int": (
        "type('I', (int,), {'__eq__': lambda *_: True})(3)",
        "type(v) is int and v == 3 and v != 4",
    ),
    "an enumeration of ints": ("__import__('enum').IntEnum('E', 'A B').B", "type(v) is int and v == 2"),
    "a counter": (
        "__import__('collections').Counter('aab')",
        "type(v) is dict and v == {'a': 2, 'b': 1}",
    ),
    "a default dict": ("__import__('collections').defaultdict(int, a=1)", "v == {'a': 1}"),
    "a named tuple": (
        "__import__('collections').namedtuple('N', 'x y')(1, 2)",
        "v == (1, 2) and v[1] == 2",
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_worth_a_look(bench: Bench, name: str):
    expression, holds = VALUES[name]
    verdict = bench.judge(f"def f(): return {expression}", f"import math\nv = f()\nassert {holds}")
    assert (verdict.text, verdict.detail) == ("passed", "")


ITERABLES = {
    "generator": ("def f(n):\n for i in range(n): yield i", "list(f(3)) == [0, 1, 2]"),
    "next": (
        "def f(n):\n for i in range(n): yield i",
        "[next(g := f(3)), next(g), next(g), next(g, 'end')] == [0, 1, 2, 'end']",
    ),
    "map": ("def f(n): return map(str, range(n))", "sorted(f(3), reverse=True) == ['2', '1', '0']"),
    "zip": ("def f(n): return zip(range(n), 'abc')", "dict(f(2)) == {0: 'a', 1: 'b'}"),
    "filter": ("def f(n): return filter(None, range(n))", "sum(f(4)) == 6"),
    "reversed": ("def f(n): return reversed(range(n))", "[x for x in f(3)] == [2, 1, 0]"),
    "keys": ("def f(n): return dict.fromkeys(range(n)).keys()", "set(f(3)) == {0, 1, 2}"),
    "items": ("def f(n): return {'a': n}.items()", "list(f(3)) == [('a', 3)]"),
    "endless": (
        "import itertools\ndef f(n): return itertools.count(n)",
        "[x for x, _ in zip(f(3), 'ab')] == [3, 4]",
    ),
    "range": ("def f(n): return range(n)", "list(f(3)) == [0, 1, 2] and 2 in f(3)"),
    "of generators": (
        "def f(n): return (iter(range(i)) for i in range(n))",
        "[list(g) for g in f(3)] == [[], [0], [0, 1]]",
    ),
    "a class": (
        "class f:\n def __init__(self, n): self.n = n\n def __iter__(self): return iter([self.n])",
        "list(f(3)) == [3]",
    ),
    "deque": (
        "from collections import deque\ndef f(n): return deque(range(n))",
        "list(f(3)) == [0, 1, 2]",
    ),
}


@pytest.mark.parametrize("name", ITERABLES)
def test_an_iterable_can_be_consumed_by_the_tests(bench: Bench, name: str):
    code, holds = ITERABLES[name]
    verdict = bench.judge(code, f"assert {holds}")
    assert (verdict.text, verdict.detail) == ("passed", "")


def test_an_object_of_the_codes_own_class_can_be_passed_back_and_called(bench: Bench):
    code = (
        "class Node:\n"
        "    def __init__(self, value, rest=None): self.value, self.rest = value, rest\n"
        "def total(node): return node.value + total(node.rest) if node else 0\n"
        "def adder(n): return lambda x: x + n\n"
        "def apply(function, x): return function(x)\n"
        "def same(a, b): return a is b\n"
    )
    test = (
        "one = Node(1)\n"
        "two = Node(2, one)\n"
        "assert total(Node(3, two)) == 6\n"
        "assert one == one and one != two and one != Node(1) and one != 1\n"
        "assert len({one, two, one}) == 2\n"
        "assert total([one][0]) == 1\n"
        "assert adder(2)(3) == 5 and apply(adder(1), 1) == 2 and same(one, one) is True\n"
    )
    verdict = bench.judge(code, test, ("Node", "total", "adder", "apply", "same"))
    assert (verdict.text, verdict.detail) == ("passed", "")


CHANGED = {
    "list": ("def f(x): x.append(3); x[0] = 9", "x = [1, 2]; f(x); assert x == [9, 2, 3]"),
    "sort": ("def f(x): x.sort(); return x", "x = [2, 1]; assert f(x) == [1, 2] and x == [1, 2]"),
    "dict": ("def f(x): del x['a']; x['b'] = 1", "x = {'a': 1}; f(x); assert x == {'b': 1}"),
    "set": ("def f(x): x.discard(1); x.add(2)", "x = {1}; f(x); assert x == {2}"),
    "nested": ("def f(x): x[0][0].append(1)", "x = [[[]]]; f(x); assert x == [[[1]]]"),
    "emptied": ("def f(x): x.clear()", "x = [1]; f(x); assert x == []"),
    "the second": ("def f(a, b): b.append(a)", "x = []; f(1, x); assert x == [1]"),
    "by keyword": ("def f(*, x): x.append(1)", "x = []; f(x=x); assert x == [1]"),
    "within a tuple": ("def f(x): x[0].append(1)", "y = []; f((y,)); assert y == [1]"),
    "before an exception": ("def f(x): x.append(1); raise ValueError",
                            "x = []\ntry: f(x)\nexcept ValueError: pass\nassert x == [1]"),
    "the same object": ("def f(x): x.append(1)", "x = y = []; f(x); assert y is x and y == [1]"),
    "not changed": ("def f(x): return sorted(x)", "x = [2, 1]; assert f(x) == [1, 2] and x == [2, 1]"),
    "not the code's own": ("kept = []\ndef f(x): kept.append(x); return len(kept)",
                           "x = [1]; f(x); x.append(2); assert f(x) == 2 and x == [1, 2]"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_argument_is_changed_for_the_test(bench: Bench, name: str):
    code, test = CHANGED[name]
    verdict = bench.judge(code, test)
    assert (verdict.text, verdict.detail) == ("passed", "")


RAISED = {
    "ValueError": "raise ValueError('a')",
    "KeyError": "{}['a']",
    "IndexError": "[][1]",
    "ZeroDivisionError": "1 / 0",
    "TypeError": "1 + 'a'",
    "AttributeError": "None.a",
    "RecursionError": "f()",
    "StopIteration": "next(iter([]))",
    "AssertionError": "assert False",
    "NotImplementedError": "raise NotImplementedError",
    "FileNotFoundError": "open('/nowhere')",
    "UnicodeDecodeError": "b'\\xff'.decode()",
    "OverflowError": "2.0 ** 10_000",
    "Exception": "raise Exception('a')",
    "LookupError": "[][1]",
    "ArithmeticError": "1 / 0",
    "OSError": "open('/nowhere')",
    "ValueError by its subclass": "__import__('json').loads('{')",
    "KeyError by its subclass": "raise type('Missing', (KeyError,), {})('a')",
}


@pytest.mark.parametrize("name", RAISED)
def test_a_test_can_catch_what_the_code_raises_by_its_class(bench: Bench, name: str):
    test = f"try:\n    f()\nexcept {name.split()[0]}:\n    caught = True\nassert caught"
    verdict = bench.judge(f"def f():\n    {RAISED[name]}", test)
    assert (verdict.text, verdict.detail) == ("passed", "")


def test_the_text_of_an_exception_is_the_codes(bench: Bench):
    for raised in ("ValueError('a b')", "KeyError('a')", "Exception()", "OSError(2, 'gone')"):
        test = f"try: f()\nexcept Exception as err: text = str(err)\nassert text == str({raised})"
        verdict = bench.judge(f"def f(): raise {raised}", test)
        assert (raised, verdict.text, verdict.detail) == (raised, "passed", "")


# -- what each end is called -------------------------------------------------------------------------

ENDS = {
    "wrong": ("def f(x): return x", "failed: AssertionError", ""),
    "missing": ("", "failed: NameError", "NameError: name 'f' is not defined"),
    "raises": ("def f(x): raise ValueError('no')", "failed: ValueError", "ValueError: no"),
    "raises its own": (
        "class Odd(Exception): pass\ndef f(x): raise Odd('no')",
        "failed: Odd",
        "Odd: no",
    ),
    "raises while it is loaded": ("1 / 0", "failed: ZeroDivisionError", "ZeroDivisionError: division"),
    "syntax": ("def f(x) return x", "syntax", "SyntaxError: expected ':' (<program>, line 1)"),
    "indentation": ("def f(x):\nreturn x", "syntax", "IndentationError"),
    "null byte": ("x = '\0'", "syntax", ""),
    "lone surrogate": ("x = '\ud800'", "syntax", "UnicodeEncodeError"),
    "nested too deeply": ("(" * 5000 + ")" * 5000, "syntax", ""),
    "syntax error at run time": ("exec('(')", "failed: SyntaxError", ""),
    "loop": ("while True: pass", "timeout", "1 s"),
    "loop in the function": ("def f(x):\n    while True: pass", "timeout", "1 s"),
    "sleep": ("import time; time.sleep(60)", "timeout", "1 s"),
    "memory": ("x = bytearray(1 << 30)", "memory", ""),
    "memory in the function": ("def f(x): return [0] * (1 << 28)", "memory", ""),
    "output": ("def f(x): return 'x' * (17 << 20)", "output", ""),
    "recursion": ("def f(x): return f(x)", "failed: RecursionError", ""),
    "crash": ("import ctypes; ctypes.string_at(0)", "killed", "signal 11"),
    "kills itself": ("import os; os.kill(os.getpid(), 9)", "killed", "signal 9"),
    "abort": ("import os\ndef f(x): os.abort()", "killed", "signal 6"),
    "exit code": ("import os; os._exit(7)", "failed: exit", "exit: 7, before the end of the tests"),
    "exit": ("import sys; sys.exit()", "failed: SystemExit", "SystemExit"),
    "exit with a message": (
        "def f(x): raise SystemExit('bye')",
        "failed: SystemExit",
        "SystemExit: bye",
    ),
    "interrupt": ("raise KeyboardInterrupt", "failed: KeyboardInterrupt", ""),
    "long message": ("raise Exception('x' * 10_000)", "failed: Exception", "Exception: xxx"),
    "message of many lines": ("raise Exception('a\\n\\tb')", "failed: Exception", "Exception: a b"),
    "bad message": (
        "class E(Exception):\n    def __str__(self): raise SystemExit\nraise E",
        "failed: E",
        "E",
    ),
    "too large a file": (
        "open('f', 'wb').write(bytes(17 << 20))",
        "failed: OSError",
        "OSError: [Errno 27]",
    ),
    "a full disk": (
        "for i in range(99): open(f'f{i}', 'wb').write(bytes(1 << 20))",
        "failed: OSError",
        "OSError: [Errno 28]",
    ),
    "descriptors": (
        "x = [open('/dev/null') for _ in range(999)]",
        "failed: OSError",
        "OSError: [Errno 24]",
    ),
    "threads": (
        "import threading, time\nthreading.stack_size(1 << 16)\n"
        "for _ in range(999): threading.Thread(target=time.sleep, args=(60,)).start()",
        "failed: RuntimeError",
        "RuntimeError: can't start new thread",
    ),
    "fork": ("import os; os.fork()", "failed: PermissionError", "PermissionError: [Errno 1]"),
    "program": ("import subprocess; subprocess.run(['/bin/true'])", "failed: PermissionError", ""),
    "network": (
        "import socket; socket.create_connection(('127.0.0.1', 80))",
        "failed: PermissionError",
        "",
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_status_and_detail(bench: Bench, name: str):
    code, text, detail = ENDS[name]
    verdict = bench.judge(code)
    assert (verdict.text, verdict.detail[: len(detail)]) == (text, detail)
    assert verdict.id == "p"
    assert len(verdict.detail) <= 200
    assert verdict.detail.isprintable()


def test_a_program_may_have_a_time_of_its_own(bench: Bench):
    verdict = bench.judge("while True: pass", timeout_s=0.2)
    assert (verdict.status, verdict.detail) == ("timeout", "0.2 s")


def test_the_time_of_the_tests_is_limited_too(bench: Bench):
    verdict = bench.judge(RIGHT, "while True: pass", timeout_s=0.3)
    assert (verdict.status, verdict.detail) == ("timeout", "0.3 s")
    assert bench.judge(RIGHT).passed


FORGED = """\
import json, os
body = json.dumps({"error": %r, "bases": ["Exception"], "text": %r, "status": "failed", "final": True})
os.write(3, len(body).to_bytes(4, "little") + body.encode())
os._exit(0)
"""


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07\x1b[2J", "a\u202eb\x00c", "\ud800", "x\x85y" * 200])
def test_a_detail_cannot_speak_to_the_terminal(bench: Bench, name: str):
    for verdict in (
        bench.judge(FORGED % (name, name)),
        bench.judge(f"raise Exception({name!r})"),
        bench.judge(f"raise type({name!r}.replace(chr(0), ''), (Exception,), {{}})()"),
    ):
        assert verdict.status == "failed"
        assert verdict.detail.isprintable() and len(verdict.detail) <= 200


SWALLOWED = {
    "a loop": ("def f(x):\n    while True: pass", "timeout"),
    "an exit": ("import os\ndef f(x): os._exit(0)", "failed: exit"),
    "a crash": ("import ctypes\ndef f(x): ctypes.string_at(0)", "killed"),
    "too much": ("def f(x): return 'x' * (17 << 20)", "output"),
}


@pytest.mark.parametrize("name", SWALLOWED)
def test_tests_that_catch_everything_do_not_hide_the_end_of_the_program(bench: Bench, name: str):
    code, text = SWALLOWED[name]
    verdict = bench.judge(code, "try:\n    f(1)\nexcept:\n    pass")
    assert verdict.text == text


def test_wrong_tests_are_not_a_pass_and_not_the_end_of_the_lane(bench: Bench):
    for test in (
        "assert f(1) == 2 and unknown",
        "f(1",
        "raise SystemExit(0)",
        "import os; os._exit(0)",
    ):
        assert not bench.judge(RIGHT, test).passed
    assert bench.judge(RIGHT).passed


# -- many programs -----------------------------------------------------------------------------------


def mixed() -> list[Program]:
    """Programs of every kind of verdict, by name."""
    kinds = {
        name: code for name, (code, _, _) in ENDS.items() if "loop" not in name and name != "sleep"
    }
    rights = {f"right {i}": RIGHT for i in range(20)}
    wrongs = {f"wrong {i}": f"def f(x): return x + {i}" for i in range(2, 12)}
    return [Program(id, code, TEST, names=("f",)) for id, code in {**kinds, **rights, **wrongs}.items()]


def verdicts(sandbox: Sandbox, programs: list[Program], workers: int) -> dict[str, tuple[str, str]]:
    found = [(v.id, (v.text, v.detail)) for v in sandbox.run(programs, LIMITS, workers)]
    assert len(found) == len(programs)  # one verdict each
    return dict(found)


def test_workers_order_and_repetition_change_no_verdict(sandbox: Sandbox):
    programs = mixed()
    once = verdicts(sandbox, programs, 1)
    assert {v[0] for k, v in once.items() if k.startswith("right")} == {"passed"}
    assert {v[0] for k, v in once.items() if k.startswith("wrong")} == {"failed: AssertionError"}
    assert verdicts(sandbox, programs, 1) == once
    assert verdicts(sandbox, programs[::-1], 4) == once


@contextmanager
def busy_machine(niceness: int) -> Iterator[None]:
    """A process that never pauses, for every core."""
    command = ["nice", "-n", str(niceness), sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(command) for _ in range(len(os.sched_getaffinity(0)))]
    try:
        yield
    finally:
        for process in busy:
            with process:
                process.kill()


def test_a_busy_machine_turns_no_pass_into_a_timeout(sandbox: Sandbox):
    limits = Limits(timeout_s=0.5, memory_bytes=512 * MIB)
    burn = "import time\ndef f(x):\n    while time.process_time() < 0.3: pass\n    return x + 1"
    programs = [Program(str(i), burn, TEST, names=("f",)) for i in range(2)]
    programs.append(Program("endless", "while True: pass", TEST))
    with busy_machine(0):
        found = list(sandbox.run(programs, limits, 2))
    assert {v.id: v.text for v in found} == {"0": "passed", "1": "passed", "endless": "timeout"}


def test_an_answer_that_is_there_counts_however_late_it_is_heard(bench: Bench, monkeypatch):
    """The scoring process itself may wait for a core, and hear of a verdict after the time is over."""
    late = iter((0.3, 0.0))
    monkeypatch.setattr(Clock, "left", lambda *_: time.sleep(next(late)) or 0.0)
    assert bench.judge(RIGHT).passed


def test_a_busy_machine_gives_no_more_time_to_a_program_and_its_tests(bench: Bench):
    """Each of them is ready, and waits for a core, while the other still has it: that is their time."""
    with busy_machine(10):
        verdict = bench.judge(RIGHT, "while True: f(1)", timeout_s=0.5)
    assert verdict.status == "timeout"
    assert verdict.seconds < 2 * 0.5  # CPU time of both


def test_programs_are_taken_only_as_fast_as_they_run(sandbox: Sandbox):
    taken = []

    def endless() -> Iterator[Program]:
        for i in count():
            taken.append(i)
            yield Program(str(i), RIGHT, TEST, names=("f",))

    running = sandbox.run(endless(), LIMITS, 2)
    for _ in range(3):
        assert next(running).passed
    time.sleep(0.5)
    running.close()
    assert len(taken) < 20


def test_no_programs_no_verdicts(sandbox: Sandbox):
    assert list(sandbox.run([], LIMITS, 2)) == []


def test_an_error_of_the_iterable_is_raised(sandbox: Sandbox):
    def broken() -> Iterator[Program]:
        yield Program("p", RIGHT, TEST, names=("f",))
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(sandbox.run(broken(), LIMITS, 2))


def test_closing_early_leaves_nothing(sandbox: Sandbox):
    before = _host.belongings()
    _host.adopt_orphans(True)
    try:
        programs = [
            Program(str(i), "" if i else RIGHT, TEST if i == 0 else "while True: pass", names=("f",))
            for i in range(9)
        ]
        running = sandbox.run(programs, Limits(timeout_s=600), 2)
        assert next(running).passed
        started = time.monotonic()
        running.close()
        assert time.monotonic() - started < 300
        assert _host.leaks(before) == []
    finally:
        _host.adopt_orphans(False)


def test_another_thread_may_close(sandbox: Sandbox):
    """The one that waits for a verdict is told that there is none."""
    programs = [Program(str(i), "while True: pass", "pass") for i in range(3)]
    running = sandbox.run(programs, Limits(timeout_s=600), 2)
    closing = threading.Timer(0.5, running.close)
    closing.start()
    started = time.monotonic()
    assert list(running) == []
    closing.join()
    assert time.monotonic() - started < 300


SCORER = """\
import itertools, sys
from qeval.sandbox import Limits, Program, find_sandbox
right, endless = Program("r", "", "pass"), Program("e", "import time; time.sleep(60)", "pass")
for verdict in find_sandbox().run(itertools.chain([right], itertools.repeat(endless)), Limits(60), 2):
    print(verdict.text, flush=True)
"""


def test_nothing_outlives_a_scorer_that_is_killed(sandbox: Sandbox):
    before = _host.belongings()
    _host.adopt_orphans(True)
    try:
        environment = {**os.environ, "PYTHONPATH": str(REPO)}
        command = [sys.executable, "-c", SCORER]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as scorer:
            assert scorer.stdout is not None
            assert scorer.stdout.readline() == b"passed\n"
            wait_for(lambda: len(_host.descendants(scorer.pid)) >= 6)  # 2 judges, zygotes, programs
            scorer.kill()
        assert _host.leaks(before) == []
    finally:
        _host.adopt_orphans(False)


def test_a_fork_draws_no_seed():
    """After a fork `random` asks the kernel for a new seed if it can: 50 pages and a system call."""
    script = """\
import sys
sys.path.insert(0, sys.argv[1])
import inside.preload, os, random
state = random.getstate()
pid = os.fork()
if pid == 0:
    os._exit(random.getstate() != state)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    where = str(REPO / "qeval" / "sandbox")
    assert subprocess.run([sys.executable, "-S", "-c", script, where]).returncode == 0


def wait_for(condition: Callable[[], bool], patience_s: float = 10.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_a_crash_calls_no_handler_of_the_host(sandbox: Sandbox):
    """Where core_pattern is a pipe the kernel starts a program as root for every crash, whatever the
    limit on core files, unless the process is not dumpable: then its files in /proc belong to root."""

    def slow() -> Iterator[Program]:
        yield Program("r", "", "pass")
        yield Program("p", "import time; time.sleep(60)", "pass")

    before = set(_host.descendants(os.getpid()))
    running = sandbox.run(slow(), LIMITS, 1)
    assert next(running).passed

    def owner(pid: int | str) -> int:
        return Path(f"/proc/{pid}/limits").stat().st_uid

    def lane() -> list[str]:
        return [line.split()[0] for line in set(_host.descendants(os.getpid())) - before]

    wait_for(lambda: len(lane()) >= 3)
    owners = {pid: owner(pid) for pid in lane()}
    running.close()
    with subprocess.Popen(["sleep", "60"], user=ORDINARY if os.getuid() == 0 else None) as other:
        assert owner(other.pid) != 0  # what a dumpable one looks like
        other.kill()
    assert set(owners.values()) == {0}
