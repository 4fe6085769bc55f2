"""uv in place of pip, with pip's settings: who has a mirror in pip.conf has it here, too.

uv reads none of pip's variables and files. What it has another word for is handed over; where pip is
told something that uv has no word for, pip it is. uv's own settings (UV_DEFAULT_INDEX, uv.toml) hold
and win.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TIMEOUT_S = 60.0  # for uv and pip to say their version and settings

# pip's word: uv's option, and its own variables, which win over it.
_OPTIONS = {
    "extra-index-url": ("--extra-index-url", ("UV_EXTRA_INDEX_URL", "UV_INDEX")),
    "find-links": ("--find-links", ("UV_FIND_LINKS",)),
    "constraint": ("--constraints", ()),
}
_INDEX = ("UV_DEFAULT_INDEX", "UV_INDEX_URL")
_VARIABLES = {"cert": "SSL_CERT_FILE", "trusted-host": "UV_INSECURE_HOST", "proxy": "ALL_PROXY"}
_ALIKE = {  # decides nothing of what is installed
    *("disable-pip-version-check", "default-timeout", "timeout", "retries", "resume-retries"),
    *("no-input", "no-color", "progress-bar", "quiet", "verbose", "log", "debug", "no-warn-conflicts"),
    *("cache-dir", "no-cache-dir", "compile", "no-compile", "root-user-action", "format"),
    *("no-warn-script-location", "no-python-version-warning", "break-system-packages", "index"),
    *("target", "prefix", "user", "require-virtualenv", "config-file", "prefer-binary"),
}


@dataclass(frozen=True)
class Uv:
    """A uv that can be used. ``options``: pip's settings in its words; ``index``: where from."""

    program: str
    version: str
    options: tuple[str, ...] = ()
    index: str | None = None  # None: its own
    variables: Mapping[str, str] = field(default_factory=dict)

    def venv(self, python: Path, path: Path) -> list[str]:
        return [self.program, "venv", "--no-project", "--python", str(python), str(path)]

    @property
    def has_folders(self) -> bool:
        return "--find-links" in self.options

    def install(self, python: Path, index: str | None = None) -> list[str]:
        """The command that packages and pip's ``-c`` and ``--no-deps`` are added to."""
        chosen = index or self.index
        return [
            *(self.program, "pip", "install", "--python", str(python)),
            # pip takes the best version of all indexes; uv would take the first index that has any.
            *("--index-strategy", "unsafe-best-match"),
            *(("--default-index", chosen) if chosen else ()),
            *self.options,
        ]


def found(python: Path, environment: Mapping[str, str]) -> tuple[Uv | None, str]:
    """uv where it can do what pip would with ``python``; else None and why not, "" where it is not on
    PATH."""
    program = shutil.which("uv", path=environment.get("PATH"))
    if program is None:
        return None, ""
    said = _asked([program, "--version"], environment).split()
    if len(said) < 2 or said[0] != "uv":
        return None, f"{program} does not run"
    return _told(Uv(program, said[1]), _pip_settings(python, environment), environment)


def _told(uv: Uv, settings: Mapping[str, str], environment: Mapping[str, str]) -> tuple[Uv | None, str]:
    """With pip's settings in its words."""
    options: list[str] = []
    variables: dict[str, str] = {}
    index = None
    for name, value in settings.items():
        if name in _OPTIONS:
            option, own = _OPTIONS[name]
            if not any(environment.get(variable) for variable in own):
                options += [word for one in value.split() for word in (option, _absolute(one))]
        elif name == "index-url":
            if not any(environment.get(variable) for variable in _INDEX):
                index = value
        elif name == "no-index":
            options += ["--no-index"] if value.lower() in ("1", "true", "yes", "on") else []
        elif name in _VARIABLES:
            variables |= {} if environment.get(_VARIABLES[name]) else {_VARIABLES[name]: value}
        elif name not in _ALIKE:
            return None, f"pip is told {name}, which uv has no word for"
    return Uv(uv.program, uv.version, tuple(options), index, variables), ""


def _absolute(place: str) -> str:
    """uv and pip need not agree from where."""
    return place if "://" in place else str(Path(place).expanduser().absolute())


def _pip_settings(python: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """pip's settings by its own word: of the files, then of the commands `install`, then of PIP_*. An
    interpreter without pip has the latter alone."""
    said = _asked([str(python), "-m", "pip", "config", "list"], environment)
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in said.splitlines():
        name, sign, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if sign and section in found:
            found[section][key] = str(ast.literal_eval(value)).strip()
    for name, value in environment.items():
        if name.startswith("PIP_") and value:
            found[":env:"][name[4:].lower().replace("_", "-")] = value
    merged = found["global"] | found["install"] | found[":env:"]
    return {name: value for name, value in merged.items() if value}


def _asked(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """Its standard output; "" where it does not run, or says nothing for too long."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=dict(environment),
            timeout=TIMEOUT_S,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
