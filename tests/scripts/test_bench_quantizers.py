"""scripts/bench_quantizers.py: its table of the laboratory's solvers, and what it does with a program
to compare with. The programs here are made up: what they return is known."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
TINY = ["--rows", "16", "--columns", "32", "--tokens", "64", "--bits", "3", "--device", "cpu"]

# IST-DASLab/gptq's names. Plain: everything 0. By act_order: as it was, which is no grid.
GPTQ = """
class GPTQ:
    def __init__(self, layer):
        self.layer = layer

    def add_batch(self, inputs, out):
        print("noise")
        assert inputs.shape[-1] == self.layer.in_features

    def fasterquant(self, percdamp, groupsize, actorder, static_groups):
        assert (percdamp, groupsize) == (0.01, 16)
        if static_groups:
            raise ValueError("no static groups\\nhere")
        if not actorder:
            self.layer.weight.data.zero_()
"""
QUANT = """
class Quantizer:
    def configure(self, bits, perchannel, sym, mse):
        assert (bits, perchannel, sym, mse) == (3, True, False, False)

    def find_params(self, groups, weight):
        assert groups.shape == (16 * 2, 16)

    def quantize(self, groups):
        return groups.sign()
"""


@pytest.fixture
def bench(monkeypatch, capsys):
    """Runs the script: its rows by method (cells by column), all it printed, and the exit code."""
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    import bench_quantizers

    def run(*words: str):
        monkeypatch.setattr(sys, "argv", ["bench_quantizers.py", *words])
        try:
            code = bench_quantizers.main() or 0
        except SystemExit as stopped:
            code = stopped.code
        printed = capsys.readouterr()
        lines = [x for x in printed.out.splitlines() if x.startswith("| ")]
        cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
        rows = {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[1:]}
        return rows, printed.out + printed.err, code

    return run


def test_the_solvers_alone(bench):
    rows, said, code = bench(*TINY)
    assert code == 0 and "seed 0, 16 x 32, 64 tokens; cpu, torch" in said
    assert len(rows) == 15 and "GPTQ act-order, static groups" not in rows  # no groups: as without
    assert all(row["reference"] == row["loss, theirs"] == "" for row in rows.values())
    assert all(int(row["levels"]) <= 8 for row in rows.values())
    losses = {name: float(row["loss, ours"]) for name, row in rows.items()}
    assert losses["GPTQ+QuantEase"] <= losses["GPTQ act-order"] < losses["RTN"]
    assert (rows["RTN"]["grid"], rows["SpQR"]["grid"]) == ("W3", "W3g16")
    assert rows["QuantEase +1% outliers"]["outliers"] == f"{5 / 512:.2%}"
    assert float(rows["RTN"]["bits a weight"]) == 3 + (16 + 8) / 32  # scale; zero, a byte


def test_a_program_beside_them(bench, tmp_path):
    (tmp_path / "gptq.py").write_text(GPTQ)
    (tmp_path / "quant.py").write_text(QUANT)
    rows, said, code = bench(*TINY, "--group", "16", "--gptq", str(tmp_path))
    assert code == 0 and "noise" not in said
    assert "IST-DASLab/gptq (no commit: not a git clone)" in said
    zero, kept = rows["GPTQ"], rows["GPTQ act-order"]
    assert (zero["reference"], zero["loss, theirs"]) == ("gptq", "1")
    assert zero["levels"] == "1, 8"
    assert float(zero["ours / theirs"]) == pytest.approx(float(zero["loss, ours"]), abs=5e-4)
    assert (kept["loss, theirs"], kept["levels"]) == ("0", "**16, off grid**, 8")
    assert kept["ours / theirs"] == "" and kept["bits a weight"].startswith("?, ")
    failed = rows["GPTQ act-order, static groups"]
    assert failed["loss, theirs"] == "failed: ValueError: no static groups"
    assert float(rows["RTN"]["loss, theirs"]) > 0.05 and rows["RTN"]["levels"] == "2, 8"
    assert rows["QuantEase"]["reference"] == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--layer", "x"], "--model and --layer go together"),
        (["--only", "gptqq"], "--only: no method has 'gptqq' in its name"),
        (
            ["--spqr", "."],
            "--spqr: no spqr_engine.py in .: give a clone of https://github.com/Vahe1994/",
        ),
        (["--model", "nowhere/at/all", "--layer", "x"], "nowhere/at/all: no such model folder"),
    ],
)
def test_what_is_asked_wrongly(bench, words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, said, code = bench(*TINY, *words)
    assert code in (1, 2) and says in said and "Traceback" not in said


def test_a_layer_of_a_model(bench, tiny_llama):
    text = ["--n-samples", "2", "--seq-len", "64", "--only", "rtn", "--bits", "8", "--device", "cpu"]
    model = ["--model", str(tiny_llama)]
    rows, said, code = bench(*model, "--layer", "model.layers.1.mlp.up_proj", *text)
    assert code == 0 and "model.layers.1.mlp.up_proj, 172 x 64, 2 x 64 tokens of pydoc" in said
    assert 0 < float(rows["RTN"]["loss, ours"]) < 1e-4
    _, said, code = bench(*model, "--layer", "model.layers.1.mlp.upproj", *text)
    assert code == 2 and "did you mean 'model.layers.1.mlp.up_proj'?" in said


# llm-awq's names: scales of two operations, by the square root of what is read and by its square.
AUTO_SCALE = """
import awq_inference_engine
from .quantizer import EXPONENTS

def auto_scale_block(module, kwargs, bits, grid, inputs):
    assert (bits, grid) == (3, {"zero_point": True, "q_group_size": 4})
    assert inputs["mlp.gate_proj"].shape == (2, 64, 64)
    kept = module.state_dict()
    module.mlp.down_proj.weight.zero_()
    assert kept["mlp.down_proj.weight"].any()  # a copy
    scales = {n: inputs[n].abs().mean((0, 1)) ** r for n, r in EXPONENTS.items()}
    return [("before", (name, "another"), scale) for name, scale in scales.items()]
"""


def test_scales_beside_llm_awqs(bench, tiny_llama, tmp_path):
    folder = tmp_path / "awq" / "quantize"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("import nothing_that_is_installed")
    (folder / "auto_scale.py").write_text(AUTO_SCALE)
    (folder / "quantizer.py").write_text("EXPONENTS = {'self_attn.q_proj': 0.5, 'mlp.gate_proj': 2.0}")
    layer = ["--model", str(tiny_llama), "--layer", "model.layers.1.mlp.up_proj", "--only", "awq"]
    text = ["--n-samples", "2", "--seq-len", "64", "--bits", "3", "--device", "cpu"]
    rows, said, code = bench(*layer, *text, "--awq-group", "4", "--llm-awq", str(tmp_path))
    assert code == 0 and "mit-han-lab/llm-awq (no commit" in said
    attention, gate = rows["self_attn.q_proj, k_proj, v_proj"], rows["mlp.gate_proj, up_proj"]
    assert (attention["ratio, theirs"], gate["ratio, theirs"]) == ("0.50", "2.00")
    assert float(gate["loss, theirs"]) > float(gate["loss, ours"])  # no ratio of ours is that large
    for row in (attention, gate):
        assert row["grid"] == "W3g4" and float(row["scales differ by"]) > 1e-3
        assert 0 <= float(row["ratio, ours"]) <= 0.95
    _, said, code = bench("--llm-awq", str(tmp_path))
    assert code == 2 and "--llm-awq: AWQ's scales are those of a decoder block" in said
