"""Questions about Python that a model wrote: does it parse, what does it define, what does it need?"""

from __future__ import annotations

import ast
import builtins
import symtable
import warnings
from collections.abc import Iterator

BUILTINS = frozenset(dir(builtins))
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def parsed(code: str) -> ast.Module | None:
    """The program, or None where it is none."""
    try:
        return _parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def inside_a_string(code: str) -> bool:
    """Whether it ends inside a docstring, or another string over several lines."""
    try:
        _parse(code)
    except SyntaxError as err:
        return "unterminated triple-quoted" in str(err.msg)
    except (ValueError, RecursionError, MemoryError):
        return False
    return False


def _parse(code: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\d" in a model's string is its own business
        return ast.parse(code)


def solves(tree: ast.Module, name: str) -> bool:
    """Whether the program binds ``name`` at its top level, a function with a body that is more than a
    docstring, ``pass`` or ``...``."""
    return any(_solves(statement, name) for statement in tree.body)


def _solves(statement: ast.stmt, name: str) -> bool:
    if isinstance(statement, FUNCTION):
        return statement.name == name and not all(map(_is_filler, statement.body))
    own = not isinstance(statement, ast.Import | ast.ImportFrom)
    return own and name in bound(statement)


def has_words(tree: ast.Module) -> bool:
    """Whether some of it is prose that happens to parse: a heading of one word, or ``a is b``."""
    values = [statement.value for statement in tree.body if isinstance(statement, ast.Expr)]
    return any(isinstance(value, ast.Name | ast.Compare | ast.BoolOp | ast.UnaryOp) for value in values)


def _is_filler(statement: ast.stmt) -> bool:
    constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return constant or isinstance(statement, ast.Pass)


def bound(statement: ast.stmt) -> set[str]:
    """The names that a definition, an assignment or an import binds; ``*`` for all of a module."""
    if isinstance(statement, (*FUNCTION, ast.ClassDef)):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    if isinstance(statement, ast.Assign):
        targets: list[ast.expr] = statement.targets
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        targets = [statement.target]
    else:
        return set()
    nodes = [node for target in targets for node in ast.walk(target)]
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def lines_of(code: str, statement: ast.stmt) -> str:
    """The statement's own lines, decorators included."""
    decorators = getattr(statement, "decorator_list", [])
    first = min([statement.lineno, *(d.lineno for d in decorators)])
    return "\n".join(code.split("\n")[first - 1 : statement.end_lineno])


def needed(code: str) -> set[str]:
    """The names that a program reads and neither binds nor finds among the built-ins."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = symtable.symtable(code, "answer", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    own = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    return set(_read(table)) - own - BUILTINS


def _read(table: symtable.SymbolTable) -> Iterator[str]:
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module"):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _read(child)


def split_future(code: str) -> tuple[str, str]:
    """The program's ``from __future__`` imports, which must come before everything, and the rest."""
    tree = parsed(code)
    if tree is None:
        return "", code
    lines, taken = code.split("\n"), []
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            taken.append(lines_of(code, statement))
            for n in range(statement.lineno - 1, statement.end_lineno or statement.lineno):
                lines[n] = ""
    return "".join(f"{line}\n" for line in taken), "\n".join(lines)
