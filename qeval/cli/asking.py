"""What `run`, `plan` and `init` are asked to do: a spec, or a model and a line that says the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qeval.core.errors import UsageError

if TYPE_CHECKING:
    from qeval.plan.one_line import Line
    from qeval.plan.spec import Parsed

DTYPES = ("float32", "float16", "bfloat16")
# -q is what people will type most with these commands, so it is not --quiet here.
LINE_OPTIONS = (
    click.option(
        "-q",
        "--quantizations",
        multiple=True,
        metavar="LIST",
        help="Of MODEL: Q4_K_M,gptq:4,awq,nf4,rtn:4:g64, ... (repeat); `none` is always there.",
    ),
    click.option(
        "-t",
        "--tasks",
        multiple=True,
        metavar="LIST",
        help="Of MODEL: perplexity,perplexity:c4,humaneval, ... (repeat) [default: perplexity].",
    ),
    click.option("--name", help="Of MODEL's spec and results folder [default: the model's]."),
    click.option("--dtype", type=click.Choice(DTYPES), help="Of MODEL [default: bfloat16]."),
)


def line_options(function: Callable[..., object]) -> Callable[..., object]:
    """Those that say a spec in one line."""
    for option in reversed(LINE_OPTIONS):
        function = option(function)
    return function


@dataclass(frozen=True)
class Asked:
    """The argument of a command and the options that belong to it."""

    what: str  # a model, or a spec
    quantizations: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    name: str | None = None
    dtype: str | None = None
    save: Path | None = None

    def parsed(
        self,
        *,
        limit: int | None = None,
        device: str | None = None,
        data_dir: Path | None = None,
        cache_dir: Path | None = None,
    ) -> Parsed:
        """The spec, with all that is wrong in it; where the command line says it, it is saved.

        Raises:
            UsageError: it is neither a spec nor a model, an option is wrong, or another file is where
                it is to be saved.
            SpecError: a file cannot be read as YAML.
        """
        from qeval.plan.one_line import STDIN, is_model
        from qeval.plan.spec import Parsed, parse_spec
        from qeval.plan.yaml_file import YamlFile

        over = {"limit": limit, "device": device}
        overrides: dict[str, object] = {key: value for key, value in over.items() if value is not None}
        if not is_model(self.what):
            self._check_alone()
            path = Path("/dev/stdin" if self.what == STDIN else self.what)
            return parse_spec(YamlFile(path), overrides)
        line = self.line(**over, data_dir=data_dir, cache_dir=cache_dir)
        found = parse_spec(line.file(), overrides)
        errors = (*line.wrong.told, *found.errors)
        if self.save is not None and not errors:
            save(self.save, line.text)
        return Parsed(found.experiment, errors)

    def line(self, **more: object) -> Line:
        from qeval.plan.one_line import Line

        said = {"dtype": self.dtype, **more}
        given = {k: str(v) if isinstance(v, Path) else v for k, v in said.items() if v is not None}
        return Line(self.what, self.quantizations, self.tasks, self.name, given)

    def _check_alone(self) -> None:
        """Raises UsageError for options that say what a spec says itself."""
        options: dict[str, object] = {"-q": self.quantizations, "-t": self.tasks, "--name": self.name}
        options |= {"--dtype": self.dtype, "--save": self.save}
        given = [option for option, value in options.items() if value]
        if given:
            raise UsageError(
                f"{', '.join(given)}: for a MODEL (a folder, a .gguf file, ORG/NAME); {self.what} is a "
                "spec: change it there"
            )


def save(path: Path, text: str) -> None:
    """Write a spec where no other file is.

    Raises:
        UsageError: one is.
    """
    from qeval.core.errors import SpecError
    from qeval.core.files import exists, read_bytes, write_atomic
    from qeval.plan.yaml_file import MAX_BYTES

    if exists(path) and read_bytes(path, MAX_BYTES, SpecError) != text.encode():
        raise UsageError(f"{path}: is there already, with other content: save it under another name")
    write_atomic(path, text)
