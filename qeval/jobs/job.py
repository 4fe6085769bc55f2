"""The job: what the parent hands to a worker process, and what it gets back.

One JSON file in, one JSON file out. The worker may run under another Python interpreter, so a job
holds plain data only.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.endpoint import Endpoint
from qeval.core.execution import Execution
from qeval.core.settings import EngineSettings


@dataclass(frozen=True)
class Against:
    """What a row is compared with: weights and how they run; ``reference``: the key of their
    predictions in the cache, None where they are computed beside the row's."""

    artifact: Artifact
    execution: Execution
    reference: str | None = None

    def to_json(self) -> dict[str, object]:
        made, running = self.artifact.to_json(), self.execution.to_json()
        return {"artifact": made, "execution": running, "reference": self.reference}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Against:
        artifact = Artifact.from_json(data["artifact"])
        return Against(artifact, Execution.from_json(data["execution"]), data["reference"])


@dataclass(frozen=True)
class Job:
    """``build``: run ``name`` (a method) with ``options`` into ``out``. ``eval``: open ``artifact``
    and run ``name`` (a task); ``out`` is the cell's own folder, where samples stay. ``reference``:
    open ``artifact``, and keep under ``key`` what it predicts of the text of the task ``name``."""

    kind: Literal["build", "eval", "reference"]
    key: str
    title: str  # for people: "SmolLM2 · Q8_0 · gptq/wikitext2"
    model: ModelRef
    name: str
    options: dict[str, object]
    out: Path
    cache_dir: Path
    data_dir: Path | None
    settings: EngineSettings
    artifact: Artifact | None = None  # eval: what to open; build: the base that the method asked for
    limit: int | None = None
    weak_sandbox: bool = False
    python: Path | None = None  # the interpreter of another environment; None: the parent's
    against: Against | None = None

    def to_json(self) -> str:
        data = asdict(self)
        asked = self.model.endpoint
        data["model"]["endpoint"] = asked.model_dump(mode="json") if asked else None
        data["artifact"] = self.artifact.to_json() if self.artifact else None
        data["settings"] = self.settings.to_json()
        data["against"] = self.against.to_json() if self.against else None
        return json.dumps(data, indent=1, default=str)

    @staticmethod
    def from_json(text: str) -> Job:
        data = json.loads(text)
        asked = data["model"].pop("endpoint", None)
        endpoint = Endpoint.model_validate(asked) if asked else None
        path = Path(data["model"].pop("path"))
        data["model"] = ModelRef(**data["model"], path=path, endpoint=endpoint)
        old = (data["artifact"] or {}).get("details", {}).pop("execution", {})  # where 0.1.0 had it
        execution = Execution.from_json(data["settings"].pop("execution", old))
        data["settings"] = EngineSettings(**data["settings"], execution=execution)
        data["artifact"] = Artifact.from_json(data["artifact"]) if data["artifact"] else None
        data["against"] = Against.from_json(data["against"]) if data.get("against") else None
        for name in ("out", "cache_dir", "data_dir", "python"):
            data[name] = Path(data[name]) if data[name] else None
        return Job(**data)


class Stopwatch:
    """When something began and ended, in seconds since the epoch, and how long it took: the clock may
    be set meanwhile, and no duration is read from it."""

    def __init__(self) -> None:
        self.start, self._began = time.time(), time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def timing(self) -> dict[str, float]:
        """``start`` and ``end``, for a record."""
        return {"start": self.start, "end": self.start + self.seconds()}


@dataclass(frozen=True)
class JobResult:
    """What a worker found. ``payload`` is the Artifact's JSON (build) or the metrics (eval)."""

    status: Literal["ok", "failed", "oom", "timeout", "killed", "skipped"]
    error: str | None = None  # one line; the traceback is in the log
    payload: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] | None = None
    timing: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, object] = field(default_factory=dict)
    conditions: dict[str, Any] | None = None  # record.Conditions; None where no worker answered
    log: str | None = None  # the file with all that the worker and its libraries printed
