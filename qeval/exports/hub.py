"""What a model repository of the Hugging Face hub keeps of results: ``.eval_results/*.yaml``, and the
``model-index`` and table of its card.

https://huggingface.co/docs/hub/eval-results: an entry names a dataset of the hub and a task of it; the
hub shows those whose dataset is a benchmark. What was measured on a text that the hub does not have
(``pydoc``, a file), or on the first units only, has no entry. huggingface_hub writes both formats.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qeval.core.errors import UsageError
from qeval.core.extras import require
from qeval.core.files import write_atomic
from qeval.data.datasets import manifest
from qeval.exports.rows import ExportRow, Line

FOLDER = ".eval_results"


@dataclass(frozen=True)
class HubDataset:
    """``task``: what the hub calls one of its parts, its configuration."""

    id: str
    task: str
    revision: str | None = None


_PROBLEMS = {
    "humaneval": HubDataset("openai/openai_humaneval", "openai_humaneval"),
    "mbpp": HubDataset("google-research-datasets/mbpp", "full"),
    "mbpp-sanitized": HubDataset("google-research-datasets/mbpp", "sanitized"),
}


def dataset_of(protocol: object) -> HubDataset | None:
    """The hub's dataset that a protocol measures on: ``gptq/wikitext2``, ``kl/llamacpp/c4``,
    ``humaneval/base/greedy``."""
    parts = re.split(r"[@ ]", str(protocol or ""))[0].split("/")
    if parts[0] in _PROBLEMS:
        return _PROBLEMS[parts[0]]
    if parts[0] == "lambada":
        parts[-1] = "lambada"
    known = manifest().get(parts[-1])
    if known is None or known.hub is None:
        return None
    first = known.hub.files[0] if known.hub.files else ""
    task = first.split("/")[0] if "/" in first else "default"
    return HubDataset(known.hub.path, task, known.hub.revision)


def eval_results(row: ExportRow) -> dict[str, str]:
    """The files of a row's model repository, by their paths in it. Metrics of one dataset share a file,
    each with its protocol, interval and conditions in the notes.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        UsageError: nothing was measured on a dataset of the hub.
    """
    require("hub", "huggingface_hub")
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    files: dict[str, list[EvalResultEntry]] = {}
    for line, dataset in _of_datasets(row.numbers):
        name = re.sub(r"[^\w.-]+", "_", dataset.id.rpartition("/")[2])
        entry = EvalResultEntry(
            dataset_id=dataset.id,
            task_id=dataset.task,
            dataset_revision=dataset.revision,
            value=line["value"],
            date=str(line["measured"]) if line["measured"] else None,
            notes=_notes(line),
        )
        files.setdefault(f"{FOLDER}/{name}.yaml", []).append(entry)
    if not files:
        raise UsageError(f"{row.name}: nothing of it was measured on the whole of a dataset of the hub")
    return {
        name: yaml.safe_dump(
            eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True, width=1000
        )
        for name, entries in files.items()
    }


def write_eval_results(row: ExportRow, folder: Path) -> list[Path]:
    """``.eval_results`` in the folder of the model repository; the files written."""
    found = []
    for name, text in eval_results(row).items():
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        write_atomic(folder / name, text)
        found.append(folder / name)
    return found


def model_index(row: ExportRow, name: str) -> list[dict[str, object]]:
    """``model-index`` of the card's metadata.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
    """
    require("hub", "huggingface_hub")
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset.id,
            dataset_name=str(line["protocol"]),
            dataset_config=dataset.task,
            dataset_revision=dataset.revision,
            metric_type="perplexity" if line["metric"] == "ppl" else str(line["metric"]),
            metric_name=f"{line['metric']} ({line['protocol']})",
            metric_value=line["value"],
        )
        for line, dataset in _of_datasets(row.numbers)
    ]
    found: list[dict[str, object]] = eval_results_to_model_index(name, results) if results else []
    return found


def _of_datasets(lines: Iterable[Line]) -> list[tuple[Line, HubDataset]]:
    """Qualities with their datasets. Not those of a slice, which readers of a leaderboard would take
    for the whole."""
    whole = [line for line in lines if line["better"] != "none" and not line["limit"]]
    pairs = [(line, dataset_of(line["protocol"])) for line in whole]
    return [(line, dataset) for line, dataset in pairs if dataset is not None]


def _notes(line: Line) -> str:
    said = [f"{line['metric']} by qeval {line['qeval'] or ''}".rstrip(), f"protocol {line['protocol']}"]
    if line["low"] is not None and line["high"] is not None:
        said.append(f"95% interval [{line['low']:.6g}, {line['high']:.6g}]")
    if line["difference"] is not None:
        said.append(
            f"difference from the float model {line['difference']:+.4g} ({line['difference_kind']})"
        )
    said += [f"row {line['row']}", f"engine {line['engine']}"]
    said += [str(line["conditions"])] if line["conditions"] else []
    return "; ".join(said)
