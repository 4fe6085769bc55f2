"""A spec that the command line says: `qeval run MODEL -q Q4_K_M,awq -t perplexity`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from qeval.core.errors import SpecError, UsageError, short
from qeval.core.files import exists, user_path
from qeval.hub.gguf import split_name
from qeval.plan.shorthand import is_server, quantization, server, split, task, written
from qeval.plan.validate import Wrong
from qeval.plan.yaml_file import YamlFile

STDIN = "-"
_SPEC_SUFFIXES = (".yaml", ".yml")
DEFAULT_TASK = "perplexity"


def is_model(argument: str) -> bool:
    """Whether a command's argument names a model: a folder, a ``.gguf`` file, ORG/NAME on the hub or a
    server. Else it is a spec: a ``.yaml`` file, any other file that is there, or ``-``.

    Raises:
        UsageError: it is neither.
    """
    if argument == STDIN or argument.endswith(_SPEC_SUFFIXES):
        return False
    if is_server(argument) or argument.endswith(".gguf"):
        return True
    path = user_path(argument)
    if exists(path):
        if path.is_dir() and (path / "records.jsonl").exists():
            raise UsageError(
                f"{argument}: a results folder: `qeval table {argument}` shows it, `qeval run "
                f"{argument}/spec.yaml` goes on with it"
            )
        return path.is_dir()
    if (beside := f"{argument}.yaml") and exists(user_path(beside)):
        raise UsageError(f"{argument}: no such file or model; did you mean {beside!r}?")
    folder = argument.rpartition(":")[0]
    if split_name(argument) is not None or (folder and exists(user_path(folder))):
        return True
    raise UsageError(
        f"{short(argument)}: neither a spec (a .yaml file, or - for standard input) nor a model (a "
        "folder, a .gguf file, or ORG/NAME on the hub)"
    )


class Line:
    """What of a spec a command line says. ``more``: further keys of the spec's top level."""

    def __init__(
        self,
        model: str,
        quantizations: Sequence[str] = (),
        tasks: Sequence[str] = (),
        name: str | None = None,
        more: Mapping[str, object] | None = None,
    ) -> None:
        self.wrong = Wrong()
        self._lines: list[str] = []
        self._said: dict[int, str] = {}
        self.name = name or name_of(model)
        self._add(f"name: {written(self.name)}", f"--name {self.name}" if name else model)
        self._add("models:")
        endpoint = {"endpoint": server(model)} if is_server(model) else model
        self._add(f"  - {written(endpoint)}", short(model))
        for key, value in (more or {}).items():
            self._add(f"{key}: {written(value)}", f"--{key.replace('_', '-')} {value}")
        rows = [item for text in quantizations for item in split(text)]
        named = ["none"] if not any(row.partition(":")[0] == "none" for row in rows) else []
        self._section("quantizations", "-q", [*named, *rows], quantization)
        columns = [item for text in tasks for item in split(text)] or [DEFAULT_TASK]
        self._section("tasks", "-t", columns, task)

    @property
    def text(self) -> str:
        return "\n".join(self._lines) + "\n"

    def file(self) -> YamlFile:
        return YamlFile(Path(f"{self.name}.yaml"), text=self.text, said=self._said)

    def _add(self, text: str, said: str = "") -> None:
        if said:
            self._said[len(self._lines) + 1] = said
        self._lines.append(text)

    def _section(
        self, name: str, option: str, items: Sequence[str], entry: Callable[[str], str]
    ) -> None:
        self._add(f"{name}:")
        found = len(self._lines)
        for item in dict.fromkeys(items):
            with self.wrong.noted():
                try:
                    lines = entry(item).splitlines()
                except UsageError as err:
                    raise SpecError(f"{option} {short(item)}: {err}") from err
                for i, line in enumerate(lines):
                    self._add(f"{'    ' if i else '  - '}{line}", f"{option} {short(item)}")
        if found == len(self._lines):  # all of them are wrong, which is told
            self._lines[-1] = f"{name}: []"


def name_of(model: str) -> str:
    """The name of a model's spec, and so of its results folder."""
    if is_server(model):
        model = model.partition("#")[2] or "server"
    last = user_path(model).name or user_path(model).resolve().name
    return re.sub(r"[^\w.+-]+", "-", last.removesuffix(".gguf")).lstrip(".-") or "model"
