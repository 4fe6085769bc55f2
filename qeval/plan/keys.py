"""The keys that a spec file takes beside those of methods and tasks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, field_validator, model_validator

from qeval.core.devices import device_name
from qeval.core.endpoint import Endpoint
from qeval.core.errors import UsageError
from qeval.core.execution import KEYS
from qeval.core.files import user_path
from qeval.core.options import Options

Dtype = Literal["float32", "float16", "bfloat16"]
LONGEST_S = 366 * 86400.0  # of a job's timeout: a year
SECTIONS = ("models", "quantizations", "tasks")
_LONGEST_NAME = 255  # bytes of a folder's name


class ModelEntry(Options):
    """One model: ``- bigcode/starcoder2-15b`` is short for ``- {id: bigcode/starcoder2-15b}``. Of an
    ``endpoint`` the id is only a name."""

    id: str = Field(min_length=1)  # hub id, local folder, or a .gguf file
    revision: str | None = None  # branch, tag or commit on the hub
    dtype: Dtype | None = None  # None: the spec's
    trust_remote_code: bool = False
    endpoint: Endpoint | None = None  # it runs on a server

    @model_validator(mode="after")
    def _server_decides(self) -> ModelEntry:
        if self.endpoint is not None:
            for key in ("revision", "dtype", "trust_remote_code"):
                if getattr(self, key):
                    raise ValueError(f"{key}: an endpoint's server decides that: leave it out")
        return self


class Spec(Options):
    """The top level of a spec file. Every key but the first four has a default."""

    name: str
    models: list[object]
    quantizations: list[object]
    tasks: list[object]
    dtype: Dtype = "bfloat16"
    baseline: str | None = None  # label or method of the row that differences are taken from
    engine: object = None  # of every row that it can run; a list: a row for each
    defaults: dict[str, dict[str, object]] = Field(default_factory=dict)
    limit: int | None = Field(default=None, ge=1)  # first units (windows, problems) of every task
    data_dir: str | None = None
    cache_dir: str | None = None
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    batch_size: int | None = Field(default=None, ge=1, le=65_536)
    n_threads: int | None = Field(default=None, ge=1, le=4096)
    timeout: float | None = Field(default=86400.0, gt=0, le=LONGEST_S)  # of a job; None: no limit

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, value: str) -> str:
        plain = value.isprintable() and value == value.strip() and len(value.encode()) <= _LONGEST_NAME
        if not value or "/" in value or value.startswith(".") or not plain:
            raise ValueError("must be a plain name: it becomes the folder results/<name>")
        return value

    @field_validator("data_dir", "cache_dir")
    @classmethod
    def _somebodys(cls, value: str | None) -> str | None:
        try:
            user_path(value or ".")
        except UsageError as err:
            raise ValueError(str(err)) from err
        return value

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        return device_name(value)

    @field_validator("models", "quantizations", "tasks")
    @classmethod
    def _not_empty(cls, value: list[object]) -> list[object]:
        if not value:
            raise ValueError("must name at least one")
        return value


class TaskCommon(Options):
    """Keys that every task takes beside its own options."""

    limit: int | None = Field(default=None, ge=1)
    timeout: float | None = Field(default=None, gt=0, le=LONGEST_S)


COMMON = frozenset(TaskCommon.model_fields)
BESIDE_METHODS = ("engine", *KEYS)
BESIDE: dict[str, Iterable[str]] = {"tasks": COMMON, "quantizations": BESIDE_METHODS}
