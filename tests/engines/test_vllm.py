"""vLLM as an engine: what it takes, and its numbers beside those of transformers on the same weights.

The marked tests make the environment `vllm` (a minute) and run the real library in it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from program import qeval

from qeval.core import devices
from qeval.core.artifact import ModelRef
from qeval.core.errors import EngineError, UsageError
from qeval.core.execution import Execution
from qeval.core.settings import EngineSettings
from qeval.engines import vllm, vllm_limits
from qeval.engines.base import Packed, Sampling, environment_of
from qeval.engines.vllm import VllmEngine
from qeval.engines.vllm_running import Room, _take, blocks_of
from qeval.formats.describe import describe_folder

MODEL = ModelRef("some/model", Path("nowhere"), "sha256:0", "float32")


@pytest.mark.parametrize(
    ("packed", "device", "message"),
    [
        (("hqq", 4, None), None, "vLLM does not run weights packed by hqq: leave `engine: vllm` out"),
        (("bitsandbytes", 4, None), "cpu", "vLLM runs bitsandbytes on CUDA only: leave"),
        (("gptq", 4, False), "cpu", "symmetric grids only: set symmetric: true"),
        (("gptq", 3, True), None, "with 4 or 8 bits, not 3: leave `engine: vllm` out"),
    ],
)
def test_what_it_does_not_take_is_refused_with_the_fix(packed, device, message, monkeypatch):
    monkeypatch.setattr(vllm_limits, "cpu_flags", lambda: frozenset({"avx512f"}))
    with pytest.raises(UsageError, match=message):
        VllmEngine.check(Packed(*packed), MODEL, device)


@pytest.mark.parametrize(
    ("packed", "device"),
    [
        (None, "cpu"),
        (Packed("gptq", 4, True), "cpu"),
        (Packed("gptq", None, None), None),
        (Packed("fp8", 8, None), "cuda"),
    ],
)
def test_what_it_takes_passes(packed, device, monkeypatch):
    monkeypatch.setattr(vllm_limits, "cpu_flags", lambda: frozenset({"avx512f"}))
    VllmEngine.check(packed, MODEL, device)


@pytest.mark.parametrize(
    "packed", [("gptq", 8, True), ("awq", 4, None), ("compressed-tensors", 4, True)]
)
def test_few_bits_need_avx512_on_a_cpu(packed, monkeypatch):
    monkeypatch.setattr(vllm_limits, "cpu_flags", lambda: frozenset({"avx2"}))
    with pytest.raises(UsageError, match="needs AVX-512, which this CPU has not"):
        VllmEngine.check(Packed(*packed), MODEL, "cpu")
    VllmEngine.check(Packed(*packed), MODEL, "cuda")
    VllmEngine.check(Packed("compressed-tensors", 8, True), MODEL, "cpu")


@pytest.mark.parametrize(
    ("cards", "asked", "found"),
    [
        ((), "auto", "cpu"),
        ((), "cpu", "cpu"),
        (("A", "B"), "auto", "cuda:0"),
        (("A",), "cuda", "cuda:0"),
    ],
)
def test_it_runs_where_vllm_runs(cards, asked, found, monkeypatch):
    monkeypatch.setattr(devices, "gpus", lambda: cards)
    monkeypatch.setattr(vllm, "gpus", lambda: cards)
    assert VllmEngine.device(asked) == found


@pytest.mark.parametrize(
    ("asked", "fix"), [("cpu", "leave device out"), ("cuda:1", "set CUDA_VISIBLE_DEVICES=1")]
)
def test_a_device_that_vllm_would_not_use_is_refused(asked, fix, monkeypatch):
    monkeypatch.setattr(devices, "gpus", lambda: ("A", "B"))
    monkeypatch.setattr(vllm, "gpus", lambda: ("A", "B"))
    with pytest.raises(EngineError, match=fix):
        VllmEngine.device(asked)


HEADS = {"num_attention_heads": 12, "num_key_value_heads": 4}


@pytest.mark.parametrize(
    ("options", "device", "message"),
    [
        ({"tensor_parallel_size": 4}, "cuda", "4 x pipeline_parallel_size 1 takes 4 GPUs, and this"),
        (
            {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
            "cuda",
            "this machine shows 2: take a product of 2 at the most",
        ),
        ({"pipeline_parallel_size": 2}, "cpu", "no pipeline: leave pipeline_parallel_size out"),
        ({"tensor_parallel_size": 5}, "cpu", "does not divide the model's 12 heads and 4 of keys"),
        ({"tensor_parallel_size": 3}, "cpu", "take 1, 2, 4 or 12"),
    ],
)
def test_a_model_that_cannot_be_spread_so_is_refused(options, device, message, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_limits, "gpus", lambda: ("A", "B"))
    (tmp_path / "config.json").write_text(json.dumps(HEADS))
    model = ModelRef("m", tmp_path, "sha256:0", "float32")
    with pytest.raises(UsageError, match=message):
        VllmEngine.check_options(options, model, device)


@pytest.mark.parametrize(
    ("tensor", "pipeline", "device"), [(1, 1, "cpu"), (12, 1, "cpu"), (2, 1, "cuda"), (1, 2, "cuda")]
)
def test_a_model_that_can_be_spread_so_passes(tensor, pipeline, device, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_limits, "gpus", lambda: ("A", "B"))
    (tmp_path / "config.json").write_text(json.dumps({"text_config": HEADS}))
    options = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
    VllmEngine.check_options(options, ModelRef("m", tmp_path, "sha256:0", "float32"), device)


def test_never_more_sequences_than_the_option_says(tiny_llama, monkeypatch):
    """Also where a task asks for more at once, as `speed` does."""
    rooms = []

    def start(self, room):
        rooms.append(room)
        raise EngineError("enough")

    monkeypatch.setattr(VllmEngine, "_start", start)
    execution = Execution(engine={"max_num_seqs": 8})
    settings = EngineSettings("cpu", "float32", execution=execution)
    lm = VllmEngine.open(describe_folder(tiny_llama, "float32"), settings)
    lm.reserve(256, 40)
    with pytest.raises(EngineError, match="enough"):
        list(lm.generate([[1, 2]], Sampling(n=64, temperature=1.0, max_new_tokens=4, at_once=64)))
    assert rooms == [Room(8, 40, blocks_of(8, 40))]


def test_room_is_for_the_largest_of_what_is_asked_and_not_for_all_at_once():
    room = Room.of([(1, 2049), (256, 192)])
    assert room.sequences == 256 and room.tokens == 2049
    assert room.blocks == max(blocks_of(1, 2049), blocks_of(256, 192)) < blocks_of(256, 2049)
    assert blocks_of(1, 128) >= 2  # a sequence may touch one block more than it fills


class New:
    def __init__(self, ids: list[int], finish: str | None = None) -> None:
        self.token_ids, self.finish_reason = ids, finish


def test_a_sequence_ends_before_the_id_that_ends_it_and_right_after_a_stop():
    ids: list[int] = []
    assert _take(ids, New([5, 6]), {2}, None) is None
    assert _take(ids, New([7, 2, 9], "stop"), {2}, None) == "eos"
    assert ids == [5, 6, 7]
    ids = []
    assert _take(ids, New([5, 6, 7]), set(), lambda seen: seen[-1] == 6) == "stop"
    assert ids == [5, 6]  # what was drawn behind it is gone
    assert _take([1], New([3], "length"), set(), None) == "length"


# The real library


SCRIPT = """
import json, sys
from pathlib import Path
from qeval.core.settings import EngineSettings
from qeval.engines.base import Sampling
from qeval.engines.vllm import VllmEngine
from qeval.formats.describe import describe_folder

asked = json.loads(Path(sys.argv[1]).read_text())
settings = EngineSettings(asked["device"], "float32")
lm = VllmEngine.open(describe_folder(Path(asked["model"]), "float32"), settings)
lm.reserve(16, 64)
windows, prompts = asked["windows"], asked["prompts"]
plain = lambda completions: sorted([c.prompt, c.sample, c.ids, c.finish] for c in completions)
drawn = Sampling(n=3, temperature=0.8, top_p=0.9, max_new_tokens=6, seed=7)
some = Sampling(n=2, samples=(0, 2), temperature=0.8, top_p=0.9, max_new_tokens=6, seed=7)
crowd = Sampling(temperature=0.8, max_new_tokens=3, seed=7, at_once=40)
many = Sampling(n=asked["draws"], temperature=1.0, max_new_tokens=1)


def cached_tokens():
    "Of a prompt of many blocks, when it is asked for again."
    prompt, seen = [(windows[0] * 99)[: lm.max_seq_len - 8]], []
    list(lm.generate(prompt, Sampling(max_new_tokens=2)))
    step = lm._running._step

    def listen():
        outputs = step()
        seen.extend(output.num_cached_tokens for output in outputs)
        return outputs

    lm._running._step = listen
    list(lm.generate(prompt, Sampling(max_new_tokens=2)))
    del lm._running._step
    return seen


found = {
    "nll": [part.tolist() for part in lm.nll(windows, first=5)],
    "logits": [part.tolist() for part in lm.predictions(windows[:2], first=5)],
    "greedy": plain(lm.generate(prompts, Sampling(max_new_tokens=12))),
    "longest": plain(lm.generate([windows[0][:60]], Sampling(max_new_tokens=500)))[0][3],
    "stopped": plain(lm.generate(prompts, Sampling(max_new_tokens=12), lambda ids: len(ids) == 3)),
    "drawn": plain(lm.generate(prompts, drawn)),
    "again": plain(lm.generate(prompts[1:], some)),
    "crowd": plain(lm.generate([windows[0][:60]] * 20 + [windows[1][:60]] * 20, crowd)),
    "first": [c.ids[0] for c in lm.generate(prompts[:1], many)],
    "facts": lm.facts(),
    "broken": plain(lm.generate(asked["broken"], Sampling(max_new_tokens=5))),
    "broken drawn": plain(lm.generate(asked["broken"], drawn, lambda ids: False)),
}
first = found["greedy"][0][2][0]
ended = Sampling(max_new_tokens=12, stop_ids=(first,))
found["ended"] = plain(lm.generate(prompts[:1], ended))
found["cached"] = cached_tokens()
lm.close()
Path(sys.argv[2]).write_text(json.dumps(found))
"""
DRAWS = 400
NOT_A_NUMBER = 300  # the token whose embedding is NaN
WHOLE = [[5, 6, 7], [5, 1, 7], [8, 9], [1, 2, 3, 1], [10, 11, 12, 13]]
BROKEN = [[5, 6, 7], [5, NOT_A_NUMBER, 7], [8, 9], [1, 2, 3, NOT_A_NUMBER], [10, 11, 12, 13]]

# Workers of several devices are processes that import this file again.
IN_PARTS = """
import json, sys
from pathlib import Path
from qeval.core.execution import Execution
from qeval.core.settings import EngineSettings
from qeval.engines.base import Sampling
from qeval.engines.vllm import VllmEngine
from qeval.formats.describe import describe_folder

def main():
    asked = json.loads(Path(sys.argv[1]).read_text())
    execution = Execution(engine={"tensor_parallel_size": 2})
    settings = EngineSettings(asked["device"], "float32", execution=execution)
    lm = VllmEngine.open(describe_folder(Path(asked["model"]), "float32"), settings)
    lm.reserve(16, 64)
    plain = lambda completions: sorted([c.prompt, c.sample, c.ids, c.finish] for c in completions)
    drawn = Sampling(n=3, temperature=0.8, top_p=0.9, max_new_tokens=6, seed=7)
    found = {
        "nll": [part.tolist() for part in lm.nll(asked["windows"], first=5)],
        "logits": [part.tolist() for part in lm.predictions(asked["windows"][:2], first=5)],
        "greedy": plain(lm.generate(asked["prompts"], Sampling(max_new_tokens=12))),
        "drawn": plain(lm.generate(asked["prompts"], drawn)),
        "facts": lm.facts(),
        "broken": plain(lm.generate(asked["broken"], Sampling(max_new_tokens=5))),
    }
    lm.close()
    Path(sys.argv[2]).write_text(json.dumps(found))

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with heads of 64, which vLLM's attention takes on a CPU, and 64 positions."""
    from tiny_models import make_tiny_llama

    return make_tiny_llama(
        tmp_path_factory.mktemp("models") / "heads-of-64",
        hidden_size=128,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )


@pytest.fixture(scope="module")
def holed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, but for one token, which is NaN."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("holed") / "model"
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][NOT_A_NUMBER] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the environment, over the packages that are here; empty where vLLM is here."""
    from qeval.envs.build import create

    folder = tmp_path_factory.mktemp("cache")
    if environment_of("vllm"):
        assert create("vllm", folder, system_site_packages=True).state == "ready"
    return folder


@pytest.fixture(scope="module")
def asked(holed: Path, device: str) -> dict[str, Any]:
    import random

    draw = random.Random(0)
    known = [i for i in range(1, 400) if i != NOT_A_NUMBER]
    windows = [[draw.choice(known) for _ in range(n)] for n in (64, 64, 30, 64)]
    prompts = [[draw.choice(known) for _ in range(n)] for n in (9, 14)]
    return {
        "model": str(holed),
        "windows": windows,
        "prompts": prompts,
        "broken": BROKEN,
        "draws": DRAWS,
        "device": device,
    }


def answers(script: str, asked: dict[str, Any], cache: Path, folder: Path) -> dict[str, Any]:
    """What a script found that ran where vLLM is."""
    from qeval.envs.build import python_of, worker_path

    python, path = sys.executable, os.environ.get("PYTHONPATH", "")
    if environment_of("vllm"):
        python, path = str(python_of("vllm", cache)), str(worker_path(cache))
    (folder / "asked.json").write_text(json.dumps(asked))
    (folder / "script.py").write_text(script)
    argv = [python, folder / "script.py", folder / "asked.json", folder / "found.json"]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


@pytest.fixture(scope="module")
def theirs(
    cache: Path, asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    return answers(SCRIPT, asked, cache, tmp_path_factory.mktemp("vllm"))


@pytest.fixture(scope="module")
def ours(model: Path, device: str) -> Any:
    from qeval.engines.hf import HfEngine

    return HfEngine.open(describe_folder(model, "float32"), EngineSettings(device, "float32"))


@pytest.mark.real
def test_scores_and_logits_are_those_of_transformers(theirs, ours, asked, device):
    near = 2e-4 if device == "cpu" else 2e-2  # nats: .009 seen on a GPU, as TF32 gives
    for found, expected in zip(theirs["nll"], ours.nll(asked["windows"], first=5), strict=True):
        assert found == pytest.approx(expected.tolist(), abs=near)
    rows = ours.predictions(asked["windows"][:2], first=5)
    for found, expected in zip(theirs["logits"], rows, strict=True):
        assert len(found) == len(expected)  # a whole window, though it is as long as the model allows
        for a, b in zip(found, expected.tolist(), strict=True):
            assert a == pytest.approx(b, abs=5 * near)


@pytest.mark.real
def test_greedy_texts_are_those_of_transformers_and_end_where_they_end(theirs, ours, asked):
    expected = ours.generate(asked["prompts"], Sampling(max_new_tokens=12))
    assert set(theirs["cached"]) == {0}  # a second call of `speed` computes its prompt, too
    assert theirs["greedy"] == sorted([c.prompt, c.sample, c.ids, c.finish] for c in expected)
    assert theirs["longest"] == "length"  # at the model's maximum
    assert all(
        ids == full[2][:3] and finish == "stop"
        for (_, _, ids, finish), full in zip(theirs["stopped"], theirs["greedy"], strict=True)
    )
    assert theirs["ended"] == [[0, 0, [], "eos"]]


@pytest.mark.real
def test_a_sample_depends_on_its_seed_prompt_and_number_alone(theirs):
    again = {(1, s): ids for _, s, ids, _ in theirs["again"]}
    whole = {(p, s): ids for p, s, ids, _ in theirs["drawn"]}
    assert again == {key: whole[key] for key in again}
    assert len({tuple(ids) for ids in whole.values()}) > 1


@pytest.mark.real
def test_prompts_that_do_not_fit_one_step_are_drawn_as_any_others(theirs):
    """40 of 60 tokens are more than a step on a CPU: vLLM cannot cut one in two and keep a seed."""
    texts = {tuple(ids) for p, _, ids, _ in theirs["crowd"] if p < 20}
    assert len(theirs["crowd"]) == 40 and len(texts) == 1  # of one prompt, number and seed


@pytest.mark.real
def test_first_tokens_are_drawn_from_the_softmax(theirs, ours, asked):
    """Chi-square of the tokens that are expected five times and more; at p = 1e-4."""
    from scipy.stats import chi2

    logits = ours.logits(asked["prompts"][0])[-1].astype("float64")
    weights = [math.exp(x - logits.max()) for x in logits]
    expected = {i: DRAWS * w / math.fsum(weights) for i, w in enumerate(weights)}
    seen, common = Counter(theirs["first"]), [i for i, n in expected.items() if n >= 5]
    assert len(common) >= 5
    parts = [(seen[i] - expected[i]) ** 2 / expected[i] for i in common]
    rest = DRAWS - sum(expected[i] for i in common)
    others = DRAWS - sum(seen[i] for i in common)
    parts.append((others - rest) ** 2 / rest)
    assert sum(parts) < chi2.isf(1e-4, len(common))


@pytest.mark.real
def test_a_sequence_is_broken_where_its_logits_are_not_finite_and_no_other(theirs, ours):
    """Two of five prompts have the token that is NaN; a short one after them gets their blocks."""
    expected = ours.generate(WHOLE, Sampling(max_new_tokens=5))
    ids = {c.prompt: c.ids for c in expected}
    assert [c[:1] + c[2:] for c in theirs["broken"]] == [
        [0, ids[0], "length"],
        [1, [], "nonfinite"],
        [2, ids[2], "length"],
        [3, [], "nonfinite"],
        [4, ids[4], "length"],
    ]
    finishes = ["length", "nonfinite", "length", "nonfinite", "length"]
    assert [[p, end] for p, _, _, end in theirs["broken drawn"]] == [
        [p, end] for p, end in enumerate(finishes) for _ in range(3)
    ]


@pytest.mark.real
def test_several_devices_give_what_one_does(theirs, asked, cache, device, tmp_path):
    """Each has half of every layer, and they hear the logits of the whole."""
    import torch
    from torch.testing import assert_close

    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    found = answers(IN_PARTS, asked, cache, tmp_path)
    near = 2e-4 if device == "cpu" else 2e-2
    for key in ("nll", "logits"):
        for parts, whole in zip(found[key], theirs[key], strict=True):
            assert_close(torch.tensor(parts), torch.tensor(whole), rtol=0, atol=5 * near)
    assert found["greedy"] == theirs["greedy"]
    assert found["broken"] == theirs["broken"]
    assert len(found["drawn"]) == len(theirs["drawn"])
    if device == "cpu":  # elsewhere another rounding may draw another token
        assert found["drawn"] == theirs["drawn"]


@pytest.mark.real
def test_a_run_measures_both_engines_and_says_which(cache, model, device, tmp_path):
    """From a spec to records: a row for each engine, whose difference is within float32's rounding;
    what vLLM has no number of is skipped with the reason."""
    from qeval.store.records import Store

    (tmp_path / "text.txt").write_text(" ".join(str(n * n % 97) for n in range(400)))
    (tmp_path / "spec.yaml").write_text(
        f"name: both\nmodels: [{model}]\ndtype: float32\ndevice: {device}\ncache_dir: {cache}\n"
        "quantizations:\n  - none:\n    engine: [hf, vllm]\n"
        "tasks:\n"
        "  - perplexity: {dataset: 'file:text.txt', seq_len: 32, protocol: gptq-benchmark}\n"
        "  - divergence: {dataset: 'file:text.txt', seq_len: 32, limit: 4, floors: []}\n"
    )
    done = qeval("run", "spec.yaml", "--only", "vllm", "--only", "kl/", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {
        (r.cell["engine"]["name"], r.cell["task"]["label"]): r
        for r in Store(tmp_path / "results" / "both").read()
        if r.kind == "eval"
    }
    skipped = [key for key, r in found.items() if r.status == "skipped"]
    assert [engine for engine, _ in skipped] == ["vllm"]
    assert found[skipped[0]].error == "the engine vllm offers no steps"
    assert found[skipped[0]].cell["quantization"]["label"] == "none (vllm)"
    moved = {engine: r for (engine, task), r in found.items() if task.startswith("kl/")}
    assert len(found) == 3 and all(0 <= moved[e].metrics[0].value < 1e-6 for e in ("hf", "vllm"))
    assert moved["vllm"].conditions.engine_version.startswith("vllm 0.")


@pytest.mark.real
def test_its_server_writes_and_scores_what_the_model_does(cache, model, ours, tmp_path, monkeypatch):
    """Its server behind the engine openai: token ids as prompts, log-probabilities of an echo."""
    import completion_servers as servers

    from qeval.core.endpoint import Endpoint
    from qeval.engines.http_client import Client
    from qeval.engines.openai import OpenAiEngine
    from qeval.envs.build import python_of
    from qeval.models.endpoint import EndpointTokenizer, endpoint_model
    from qeval.models.tokenizer import load_tokenizer

    if environment_of("vllm") is None:
        pytest.skip("on a machine with vLLM beside qeval its server is not looked for")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    python = str(python_of("vllm", cache))  # the command `vllm` wants a package of that very name
    argv = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    argv += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8", "--host", "127.0.0.1"]
    argv += ["--served-model-name", "tiny", "--kv-cache-memory-bytes", str(2**26)]
    own = load_tokenizer(ModelRef("tiny", model, "sha256:0", "float32"))
    prompts = [own.encode(text) for text in ("Permission is hereby granted", "1 2 3 4 5 6")]
    window = own.encode("Permission is hereby granted, free of charge, to any person")[:60]
    with servers.running(argv, tmp_path) as url:
        endpoint = Endpoint(base_url=url, model="tiny", tokenizer=str(model))
        asked = endpoint_model(endpoint, "m", "float32", tmp_path / "cache")
        lm = OpenAiEngine(endpoint, lambda: Client(endpoint, None), lambda: load_tokenizer(asked))
        done = sorted(lm.generate(prompts, Sampling(max_new_tokens=8)), key=lambda c: c.prompt)
        (scores,) = lm.nll([window])
        written = EndpointTokenizer(endpoint, load_tokenizer(asked))
        lm.close()
    expected = sorted(ours.generate(prompts, Sampling(max_new_tokens=8)), key=lambda c: c.prompt)
    for theirs, mine in zip(done, expected, strict=True):  # vLLM keeps back half a character at the end
        text = own.decode(mine.ids, after=prompts[mine.prompt])
        assert written.decode(theirs.ids).rstrip("\ufffd") == text.rstrip("\ufffd")
    assert scores.tolist() == pytest.approx(next(ours.nll([window])).tolist(), abs=2e-4)
