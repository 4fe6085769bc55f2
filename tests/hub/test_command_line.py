"""`qeval` in processes of its own, as it is used: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from qeval.core.units import human_bytes
from qeval.data.datasets import DataSource, manifest

REPO = Path(__file__).parents[2]
UNREAD = (
    "consolidated.safetensors",
    "pytorch_model.bin",
    "original/a.pth",
    "onnx/m.onnx",
    "a.gguf",
)
TOKEN = "hf_plantedTokenThatNobodyMayEverSee"
SPEC = """
name: line
dtype: float32
models: [{{id: org/tiny, revision: {revision}}}]
quantizations: [none]
tasks: [perplexity: {{dataset: lambada, seq_len: 64, limit: 2}}]
"""


@pytest.fixture
def sharded(tiny_llama: Path, tmp_path: Path) -> dict[str, bytes]:
    """tiny_llama as the hub has large models: in shards, beside copies that must stay there."""
    tensors = load_file(tiny_llama / "model.safetensors")
    names = sorted(tensors)
    halves = {"1": names[::2], "2": names[1::2]}
    files = {p.name: p.read_bytes() for p in tiny_llama.iterdir() if p.name != "model.safetensors"}
    places = {}
    for number, part in halves.items():
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, tmp_path / "part", {"format": "pt"})
        files[shard] = (tmp_path / "part").read_bytes()
        places |= dict.fromkeys(part, shard)
    (tmp_path / "part").unlink()
    index = {"metadata": {}, "weight_map": places}
    return (
        files
        | {"model.safetensors.index.json": json.dumps(index).encode()}
        | dict.fromkeys(UNREAD, b"x")
    )


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def holding(secret: str, folder: Path, *texts: str) -> list[str]:
    """Where the secret is found."""
    found = [name for name, data in everything(folder).items() if secret.encode() in data]
    return found + [text for text in texts if secret in text]


def test_a_private_sharded_model_is_measured_and_then_known_offline(
    hub, qeval, sharded, shared, tmp_path
):
    hub.tokens.add(TOKEN)
    repo = hub.model("org/tiny", sharded, private=True, grants={TOKEN})
    repo.refs["v1.0"] = repo.refs["main"]
    entry = manifest()["lambada"]
    text = (shared / "data" / entry.files[0].path).read_bytes()
    hub.dataset(entry.hub.path, {entry.hub.files[0]: text}, sha=entry.hub.revision)
    (tmp_path / "spec.yaml").write_text(SPEC.format(revision="v1.0"))

    first = qeval(hub, "run", "spec.yaml", HF_TOKEN=TOKEN)
    assert first.code == 0, first.err
    [record] = map(json.loads, (tmp_path / "results/line/records.jsonl").read_text().splitlines())
    assert record["cell"]["model"]["identity"] == f"hub:org/tiny@{repo.refs['main']}"
    assert record["provenance"]["text_sha256"] == entry.sha256
    fetched = {path.rsplit("/", 1)[1] for path in (r.path for r in hub.asked("GET /(cdn|api/resolve)"))}
    assert {"model-00001-of-00002.safetensors", "tokenizer.json", "lambada_test.jsonl"} <= fetched
    assert not {"consolidated.safetensors", "pytorch_model.bin", "a.pth", "m.onnx", "a.gguf"} & fetched
    assert (
        len(hub.asked("GET /api/models/org/tiny")) <= 6
    )  # of the parent, before and after the download; the worker asks nothing more

    hub.log.clear()
    for revision in ("v1.0", repo.refs["main"], repo.refs["main"][:8]):
        (tmp_path / "spec.yaml").write_text(SPEC.format(revision=revision))
        offline = qeval(hub, "run", "spec.yaml", HF_HUB_OFFLINE="1")
        assert offline.code == 0 and "1 of 1 cells are done" in offline.err, offline.err
    assert hub.log == []

    for secret in (TOKEN, "planted-signature"):
        assert holding(secret, tmp_path, first.out, first.err, offline.out, offline.err) == []


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_a_refusal_is_one_line_and_no_secret_is_in_its_traceback(hub, qeval, sharded, tmp_path, debug):
    hub.tokens.add(TOKEN)
    hub.model("org/tiny", sharded, gated=True)
    (tmp_path / "spec.yaml").write_text(SPEC.format(revision="main").replace("lambada", "pydoc"))
    done = qeval(hub, *debug, "run", "spec.yaml", HF_TOKEN=TOKEN)
    assert done.code == 1 and "qeval: org/tiny @main: no such folder, and the hub did not" in done.err
    assert debug or len(done.err.splitlines()) == 1
    assert f"accept its terms at {hub.url}/org/tiny" in done.err
    assert ("Traceback" in done.err) == bool(debug)
    assert holding(TOKEN, tmp_path, done.out, done.err) == []
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_download_that_is_ended_ends_then_and_can_be_made_again(hub, hub_server, tmp_path, number):
    """huggingface_hub alone finishes its files before it looks at Ctrl-C."""
    weights = bytes(100_000)
    files = {"config.json": b"{}", "model.safetensors": weights}
    hub.model("org/big", files)
    hub.faults.append(hub_server.Fault("GET /cdn/", hub_server.slow(parts=100)))
    code = "from qeval.hub.download import download_model; print(download_model('org/big'))"
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        while not hub.asked("GET /cdn/"):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(number)
    kept = {p.stat().st_size for p in tmp_path.rglob("blobs/*")}
    assert process.returncode in (-number, 1, 130, -signal.SIGINT) and len(weights) not in kept
    if number != signal.SIGKILL:
        assert not list(tmp_path.rglob("*.incomplete"))
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (Path(done.stdout.strip()) / "model.safetensors").read_bytes() == weights


def test_data_fetch(hub, qeval, shared, tmp_path):
    entry = manifest()["ptb"]
    rows = DataSource(shared / "data", offline=True).load("ptb").documents
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"sentence": rows}), tmp_path / "p")
    files = {entry.hub.files[0]: (tmp_path / "p").read_bytes()}
    hub.dataset(entry.hub.path, files, entry.hub.revision)
    done = qeval(hub, "data", "fetch", "ptb", "--data-dir", "data")
    assert done.code == 0 and "ptb: downloaded, 3370 documents" in done.out, done.err
    assert entry.files[0].sha256 in done.out
    done = qeval(hub, "data", "fetch", "ptb", "lambada", "--data-dir", "data")
    assert done.code == 1 and "ptb: already there" in done.out
    assert "dataset 'lambada' not found" in done.err and "Traceback" not in done.err


def test_a_hub_with_a_password_in_its_address(hub, qeval, sharded, tmp_path):
    hub.model("org/tiny", sharded)
    (tmp_path / "spec.yaml").write_text(SPEC.format(revision="gone"))
    address = hub.url.replace("http://", "http://me:planted-password@")
    done = qeval(hub, "run", "spec.yaml", HF_ENDPOINT=address)
    assert done.code == 1 and "the hub has no such revision" in done.err
    assert holding("planted-password", tmp_path, done.out, done.err) == []


def test_a_dry_run_says_what_would_be_downloaded_and_downloads_nothing(
    hub, qeval, sharded, shared, tmp_path
):
    repo = hub.model("org/tiny", sharded)
    entry = manifest()["lambada"]
    text = (shared / "data" / entry.files[0].path).read_bytes()
    hub.dataset(entry.hub.path, {entry.hub.files[0]: text}, sha=entry.hub.revision)
    text = SPEC.format(revision="main").replace("[none]", "[none, {rtn: {num_bits: 4}}]")
    (tmp_path / "spec.yaml").write_text(text + "device: cpu\n")
    done = qeval(hub, "run", "spec.yaml", "--dry-run")
    assert done.code == 0, done.err
    label = "gptq/lambada@64 [first 2]"
    lines = [line.split(maxsplit=1)[1] for line in done.out.splitlines()]
    assert lines == [
        f"-         download, run org/tiny · none · {label}",
        f"hf        download, run org/tiny · RTN W4A16 · {label}",
    ]
    wanted = {name for name in sharded if name not in UNREAD}
    size = human_bytes(sum(len(sharded[name]) for name in wanted))
    assert f"to download: org/tiny @main: {len(wanted)} files to download, {size}" in done.err
    assert "to download: lambada: dataset EleutherAI/lambada_openai" in done.err
    assert hub.asked("GET .*(cdn|resolve)") == []
    blobs = [p for p in (tmp_path / "hf").rglob("*") if p.is_file() and "blobs" in p.parts]
    assert blobs == [] and not (tmp_path / "results").exists()

    assert qeval(hub, "run", "spec.yaml", "--dry-run", HF_HUB_OFFLINE="1").code == 1
    run = qeval(hub, "run", "spec.yaml", "--only", "none", "--no-table")
    assert run.code == 0 and "downloading org/tiny @main" in run.err, run.err
    again = qeval(hub, "run", "spec.yaml", "--dry-run", HF_HUB_OFFLINE="1")
    assert again.code == 0 and "to download" not in again.err, again.err
    assert [line.split()[2] for line in again.out.splitlines()] == ["done", "build,"]
    assert repo.refs["main"]


def test_what_this_machine_lacks_is_told_before_a_download(hub, qeval, sharded, tmp_path):
    hub.model("org/tiny", sharded)
    text = SPEC.format(revision="main").replace("lambada", "file:gone.txt")
    (tmp_path / "spec.yaml").write_text(text)
    done = qeval(hub, "run", "spec.yaml")
    assert done.code == 1 and "no such file" in done.err and "downloading" not in done.err
    assert hub.asked("GET .*(cdn|resolve)") == []
