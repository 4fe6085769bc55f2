"""What is in the way of a run is told before its first job: all of it, and by a dry run alike."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qeval.cli.run import run_spec
from qeval.core import devices, extras
from qeval.core.artifact import ModelRef
from qeval.core.errors import (
    DataError,
    MissingExtraError,
    NotHereError,
    PreflightError,
    SeveralErrors,
    SpecError,
    UsageError,
    raise_all,
)
from qeval.core.units import human_bytes
from qeval.formats.bitsandbytes import check_4bit_on_cpu
from qeval.models.weights import read_tensors
from qeval.plan.preflight import Findings, Problem, ask, report, space
from qeval.plan.room import Room
from qeval.quant.base import METHODS
from qeval.store.records import Store

SPEC = """\
name: p
models: [{model}]
dtype: {dtype}
device: {device}
quantizations: [{quantizations}]
tasks: [{tasks}]
"""
TEXT = "perplexity: {dataset: 'file:text.txt', seq_len: 32, limit: 2}"
CAL = "{dataset: 'file:gone.txt', n_samples: 4, seq_len: 32, seed: 0}"


@pytest.fixture
def spec(tiny_llama, tmp_path, monkeypatch):
    """Writes a spec in a folder of its own, where text.txt is, on a machine without a GPU and a hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "gpus", lambda: ())
    monkeypatch.setattr(devices, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr("qeval.formats.bitsandbytes.cpu_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)

    def write(
        quantizations: str = "none",
        tasks: str = TEXT,
        *,
        model: object = tiny_llama,
        dtype: str = "float32",
        device: str = "auto",
    ) -> Path:
        text = SPEC.format(
            model=model,
            dtype=dtype,
            device=device,
            quantizations=", ".join(_entry(q) for q in quantizations.split("; ")),
            tasks=", ".join(_entry(t) for t in tasks.split("; ")),
        )
        Path("p.yaml").write_text(text)
        return Path("p.yaml")

    return write


def _entry(text: str) -> str:
    return f"{{{text}}}" if ":" in text else text


def in_the_way(path: Path, capsys, **how) -> list[str]:
    """The lines that a run ends with, which are those of its dry run; neither started anything."""
    capsys.readouterr()
    with pytest.raises(PreflightError) as caught:
        run_spec(path, **how)
    assert caught.value.exit_code == 1
    assert capsys.readouterr().out == ""
    assert run_spec(path, dry_run=True, **how).exit_code == 1
    out, err = capsys.readouterr()
    assert "refused" in out
    assert err.endswith("".join(f"qeval: {line}\n" for line in caught.value.lines))
    assert not Path("results").exists()
    assert not list(Path().glob("cache/artifacts/*"))
    return caught.value.lines


GONE = r"no such file: /.*/gone\.txt"
ONE = [  # quantizations, tasks, what else the spec has, the line
    ("none", "perplexity: {dataset: 'file:gone.txt'}", {}, GONE),
    ("none", "perplexity: {dataset: 'file:gone.txt', protocol: gptq-benchmark}", {}, GONE),
    ("none", "tensor_stats: {dataset: 'file:gone.txt'}", {}, GONE),
    ("none", "perplexity: {dataset: 'file:empty.txt'}", {}, "is empty"),
    ("none", "perplexity: {dataset: 'file:bad.jsonl'}", {}, r"bad\.jsonl:2: not "),
    ("none", "perplexity: {dataset: 'file:latin.txt'}", {}, "not UTF-8 text"),
    ("none", "perplexity: {dataset: 'file:cut.txt.gz'}", {}, r"cut\.txt\.gz: "),
    ("none", "perplexity: {dataset: 'file:folder'}", {}, "folder"),
    ("none", "perplexity: {dataset: c4}", {}, r"gptq/c4: dataset 'c4' not found: .*HF_HUB_OFFLINE"),
    ("none", "perplexity: {dataset: c4-new}", {}, "dataset 'c4' not found"),
    ("none", "perplexity: {dataset: wikitext2}", {}, "dataset 'wikitext2' not found"),
    ("none", "mbpp: {limit: 1}", {}, "dataset 'mbpp' not found"),
    ("quantease: {num_bits: 4}", TEXT, {}, r"QuantEase W4A16: dataset 'c4-train' not found"),
    *(
        (f"{q}, calibration: {CAL}}}", TEXT, {}, GONE)
        for q in (
            "gptq: {backend: laboratory, group_size: 4",
            "awq: {backend: laboratory, group_size: 4",
            "quantease: {num_bits: 4",
            "spqr: {group_size: 4",
            "smoothquant: {num_bits: 8",
            "gguf: {type: Q4_0, imatrix: true",
            "compressed-tensors: {scheme: W8A8, algorithm: gptq",
        )
    ),
    (
        "hqq: {group_size: 64}",
        TEXT,
        {},
        r"HQQ W4A16g64: hqq: group_size 64 needs .*\.down_proj \[64, 172\]",
    ),
    ("hqq: {group_size: 24, axis: 0}", TEXT, {}, "hqq needs a number of weights that 24 divides"),
    ("torchao: {scheme: int8wo, group_size: 64}", TEXT, {}, "torchao int8wo: group_size 64 needs"),
    ("compressed-tensors: {group_size: 64}", TEXT, {}, "compressed-tensors W4A16: group_size 64"),
    (
        f"quantease: {{group_size: 64, calibration: {CAL.replace('gone', 'text')}}}",
        TEXT,
        {},
        "quantease: group_size 64 needs",
    ),
    ("rtn: {group_size: 64}", TEXT, {}, "rtn: group_size 64 needs"),
    ("bitsandbytes: 4", TEXT, {}, r"NF4 needs on a CPU with AVX512-BF16 .*_proj \[172, 64\]"),
    ("bitsandbytes: {type: fp4}", TEXT, {}, "FP4 needs on a CPU with AVX512-BF16"),
    ("rtn: {format: gptq, group_size: 4, num_bits: 4}", TEXT, {}, ""),
    (
        "torchao: fp8dyn",
        TEXT,
        {"model": "even"},
        "torchao fp8dyn: needs a CUDA GPU .* use scheme: fp8wo",
    ),
    (
        "torchao: int4wo",
        TEXT,
        {"model": "even", "dtype": "bfloat16"},
        "torchao int4wo: needs a CUDA GPU",
    ),
    ("rtn: {format: gptq, group_size: 32}", TEXT, {"model": "even"}, "not float32"),
    (
        "rtn: {format: gptq, group_size: 32, kernel: marlin}",
        TEXT,
        {"model": "even", "dtype": "float16"},
        "rtn: kernel: marlin does not run on cpu: use aten or torch",
    ),
    ("none", TEXT, {"device": "cuda"}, "engine hf: device cuda: "),
    ("none", TEXT, {"device": "cuda:5"}, "engine hf: device cuda:5: "),
    ("gguf: Q8_0", TEXT, {"device": "cuda"}, "engine llamacpp: device cuda: "),
    ("none", TEXT, {"model": "nowhere"}, "nowhere: no such model folder or .gguf file"),
    ("none", TEXT, {"model": "org/model"}, "org/model: HF_HUB_OFFLINE is set"),
    ("checkpoint: nowhere", TEXT, {}, "nowhere: no such model folder"),
    ("checkpoint: org/model", TEXT, {}, "org/model: HF_HUB_OFFLINE is set"),
    ("checkpoint: {path: even, kernel: marlin}", TEXT, {}, "kernel: marlin is for GPTQ and AWQ"),
    ("none: {kv_cache: {num_bits: 4, group_size: 7}}", TEXT, {}, "group_size 7 does not divide"),
]
ONE = [case for case in ONE if case[3]]


@pytest.mark.parametrize(("quantizations", "tasks", "more", "line"), ONE)
def test_a_dry_run_finds_what_a_run_stops_at(spec, even, capsys, quantizations, tasks, more, line):
    Path("empty.txt").write_text(" \n")
    Path("bad.jsonl").write_text('{"text": "a"}\nnothing\n')
    Path("latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    Path("cut.txt.gz").write_bytes(gzip.compress(b"a text that is cut off" * 99)[:40])
    Path("folder").mkdir()
    [found] = in_the_way(spec(quantizations, tasks, **more), capsys)
    assert re.search(line, found), found


@pytest.fixture
def even(tmp_path):
    """A folder ``even``: a model of linears whose widths every format takes; weights are zeros."""
    names = ["embed_tokens", "layers.0.mlp.up_proj", "layers.0.mlp.down_proj"]
    size = 2 * 128 * 128
    header = {
        f"model.{name}.weight": {
            "dtype": "BF16",
            "shape": (128, 128),
            "data_offsets": (i * size, (i + 1) * size),
        }
        for i, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    folder = tmp_path / "even"
    folder.mkdir()
    head = len(text).to_bytes(8, "little") + text
    (folder / "model.safetensors").write_bytes(head + bytes(size * len(names)))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_all_problems_are_told_at_once_with_one_command(spec, monkeypatch, capsys):
    there = extras.find_spec
    missing = ("bitsandbytes", "hqq", "llama_cpp")
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in missing else there(name))
    path = spec(
        f"bitsandbytes: 8; bitsandbytes: 4; hqq: {{group_size: 64}}; gguf: Q8_0; "
        f"gptq: {{backend: laboratory, group_size: 64, calibration: {CAL}}}; rtn: {{num_bits: 4}}",
        f"{TEXT}; perplexity: {{datasets: ['file:gone.txt', 'file:away.txt']}}",
        device="cuda",
    )
    head, *lines, last = in_the_way(path, capsys)
    assert head == f"{len(lines)} problems, nothing was started:"
    assert last == "- install what is missing: pip install 'qeval[bitsandbytes,gguf,hqq]'"
    assert len(lines) == len(set(lines))
    assert not any("pip install" in line and "qeval" in line for line in lines)
    for wanted in (
        r"- LLM\.int8\(\), NF4: the package 'bitsandbytes' is not installed",
        "- HQQ W4A16g64: the package 'hqq' is not installed",
        r"- .*HQQ W4A16g64: hqq: group_size 64 needs",
        "- engine llamacpp, Q8_0: the package 'llama_cpp' is not installed",
        "- engine hf: device cuda: ",
        r"- .*gptq: group_size 64 needs",
        r"- (gptq/file:gone.txt, GPTQ W4A16g64|GPTQ W4A16g64.*, gptq/file:gone.txt).*no such file",
        r"- gptq/file:away.txt: .*no such file: .*away\.txt",
    ):
        assert any(re.match(wanted, line) for line in lines), wanted + "\n" + "\n".join(lines)


def test_a_dry_run_lists_every_cell_whatever_is_in_the_way(spec, capsys):
    path = spec("none; hqq: {group_size: 64}; rtn: {num_bits: 4}", f"{TEXT}; speed", model="org/model")
    assert run_spec(path, dry_run=True).exit_code == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("-  ") and "org/model · " in line for line in lines)
    assert "HQQ W4A16g64 · gptq/file:text.txt@32 [first 2]" in lines[2]


def test_states(spec, plugin, capsys, tiny_llama):
    """done, cached, to build, skipped and why, refused and why: each is what a run then does."""
    path = spec("copy: 8; copy: 4; rtn: {num_bits: 4}", "misbehave: {how: ok}; misbehave: {how: fine}")
    run_spec(path, only=["copy8 · misbehave ok"])
    path = spec(
        "copy: 8; copy: 4; rtn: {num_bits: 4}; rtn: {group_size: 64}",
        "misbehave: {how: ok}; misbehave: {how: fine}; speed",
    )
    capsys.readouterr()
    assert run_spec(path, dry_run=True).exit_code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[24:37].strip() for line in lines] == [
        *("done", "cached, run", "skip"),
        *("build, run", "build, run", "skip"),
        *("skip", "skip", "skip"),
        *("skip", "skip", "skip"),
    ]
    assert lines[2].endswith("speed (the engine ngram offers no generate)")
    assert "(simulated weights run as the float model does: nothing to measure)" in lines[8]


def test_simulated_rows_are_not_built_for_what_skips_them(spec, plugin):
    path = spec("rtn: {num_bits: 4}", "speed")
    assert run_spec(path).exit_code == 0
    (record,) = Store("results/p").read()  # no build
    assert (record.kind, record.status) == ("eval", "skipped")


def test_a_build_that_is_there_needs_nothing_of_what_made_it(spec, plugin, capsys):
    Path("calibration.txt").write_text("a text " * 3000)
    path = spec("copy: {num_bits: 8, reads: 'file:calibration.txt'}", "misbehave: {how: ok}")
    run_spec(path)
    Path("calibration.txt").unlink()
    path = spec("copy: {num_bits: 8, reads: 'file:calibration.txt'}", "misbehave: {how: fine}")
    capsys.readouterr()
    assert run_spec(path, dry_run=True).exit_code == 0
    assert "cached, run" in capsys.readouterr().out
    shutil.rmtree("cache/artifacts")
    [line] = in_the_way_again(path, capsys)
    assert "calibration.txt" in line


def in_the_way_again(path: Path, capsys) -> list[str]:
    """With results there already."""
    with pytest.raises(PreflightError) as caught:
        run_spec(path)
    return caught.value.lines


def test_what_a_text_or_a_mode_needs_of_the_model_is_told_before(spec, capsys):
    """Windows longer than the text, or than the model takes; a chat mode without a chat template; all
    of them without transformers."""
    Path("short.txt").write_text("the quick brown fox")
    short = "{{dataset: 'file:short.txt', n_samples: 2, seq_len: {}, seed: 0}}"
    path = spec(
        f"gptq: {{backend: laboratory, group_size: 4, calibration: {short.format(40)}}}",
        "perplexity: {dataset: 'file:short.txt', seq_len: 32}; "
        "perplexity: {dataset: 'file:short.txt', protocol: [llamacpp, gptq-benchmark]}; "
        "perplexity: {dataset: 'file:text.txt', seq_len: 513}; "
        "tensor_stats: {dataset: 'file:short.txt'}; "
        "humaneval: {mode: instruct}",
    )
    before = set(sys.modules)
    found = "\n".join(in_the_way(path, capsys))
    assert not {"torch", "transformers"} & (set(sys.modules) - before)
    for said in (
        "tokens are not enough for a window of 32: use a longer text",
        "tokens are not enough for a window of 40: use a longer text",
        "tokens are not enough for a window of 512: use a longer text",
        "perplexity: seq_len 513 is over the model's maximum of 512",
        "humaneval mode: instruct needs a chat template, this tokenizer has none: base",
    ):
        assert said in found
    path = spec(tasks=f"{TEXT}; perplexity: {{dataset: 'file:text.txt', seq_len: 512}}")
    assert run_spec(path, dry_run=True).exit_code == 0


def test_only_what_is_chosen_is_in_the_way(spec, capsys):
    path = spec("none; hqq: {group_size: 64}", f"{TEXT}; perplexity: {{dataset: 'file:gone.txt'}}")
    assert run_spec(path, dry_run=True, only=["none · gptq/file:text"]).exit_code == 0
    assert run_spec(path, dry_run=True, only=["hqq"]).exit_code == 1


def test_too_little_space_for_the_builds(spec, tiny_llama, capsys, monkeypatch):
    free = SimpleNamespace(free=1000)
    monkeypatch.setattr("qeval.plan.preflight.shutil.disk_usage", lambda _: free)
    [line] = in_the_way(spec("rtn: {num_bits: 4}; gguf: Q8_0"), capsys)
    n = sum(t.n_elements for t in read_tensors(tiny_llama))
    size = human_bytes(n * 4 + n * 4 + n)  # simulated in float32; the float GGUF; its Q8_0
    assert re.search(rf"cache: 3 builds will take {size} at the least, and .* has 1000 B free", line)
    free.free = n * 9
    assert run_spec(spec("rtn: {num_bits: 4}; gguf: Q8_0"), dry_run=True).exit_code == 0
    assert space(Room(), Path("/proc/none")).problems == ()


def test_a_cache_that_is_a_file(spec, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    [line] = in_the_way(spec("rtn: {num_bits: 4}"), capsys, cache_dir=tmp_path / "file")
    assert line.startswith(f"cache: {tmp_path / 'file'} is a file: choose another")


# The pieces


def test_a_check_finds_nothing_one_thing_or_several():
    def fails(*errors):
        def check():
            raise SeveralErrors(errors) if len(errors) > 1 else errors[0]

        return check

    assert ask("row", lambda: None) == Findings()
    found = ask(
        "row",
        fails(UsageError("a: b")),
        lambda: None,
        fails(MissingExtraError("p", "x"), DataError("c"), UsageError("a: b")),
        fails(NotHereError("text: 3 files", list)),
    )
    package = Problem("row", "the package 'p' is not installed", "x")
    assert found.problems == (Problem("row", "a: b"), package, Problem("row", "c"))
    assert [d.what for d in found.downloads] == ["text: 3 files"]
    assert ask("row", fails(UsageError("row: b"))).problems == (Problem("", "row: b"),)


def test_raise_all():
    def wrong(text):
        def check():
            raise UsageError(text)

        return check

    raise_all(lambda: None)
    with pytest.raises(UsageError, match=r"^one$"):
        raise_all(lambda: None, wrong("one"), wrong("one"))
    with pytest.raises(SeveralErrors, match=r"^one; two$") as caught:
        raise_all(wrong("one"), wrong("two"))
    assert [type(e) for e in caught.value.errors] == [UsageError, UsageError]


def test_reports():
    assert report([Problem("row", "is wrong: mend it")]) == ["row: is wrong: mend it"]
    lost = Problem("row", "the package 'p' is not installed", "x")
    assert report([lost]) == ["row: the package 'p' is not installed: pip install 'qeval[x]'"]
    many = [Problem(f"row {i}", "is wrong") for i in range(5)]
    assert report([*many, lost, Problem("other", "the package 'q' is not installed", "a")]) == [
        "3 problems, nothing was started:",
        "- row 0, row 1, row 2 and 2 more: is wrong",
        "- row: the package 'p' is not installed",
        "- other: the package 'q' is not installed",
        "- install what is missing: pip install 'qeval[a,x]'",
    ]


@pytest.mark.parametrize("name", METHODS.built_in)
def test_every_method_says_what_it_reads_and_writes(name):
    method = METHODS[name]()
    for options in OPTIONS.get(name, [{}]):
        made = method.Options.model_validate(options)
        given = getattr(made, "calibration", None)
        read = method.reads(made)
        assert read is None or given is None or read == given
        assert read is not None or given is None or options == {"iters": 0}
        for dtype, bits in (("float32", 32), ("bfloat16", 16)):
            assert 0 <= method.weight_bits(made, dtype) <= 32
            if method.simulates(made):
                assert method.weight_bits(made, dtype) == bits
        for extra, modules in method.packages(made):
            assert extra and modules


OPTIONS = {
    "rtn": [{}, {"format": "gptq"}],
    "gptq": [{}, {"backend": "laboratory"}, {"backend": "laboratory", "format": "gptq"}],
    "awq": [{}, {"backend": "laboratory"}, {"backend": "auto-awq"}],
    "gguf": [{"type": "F16"}, {"type": "Q4_K_M"}, {"type": "IQ2_XXS"}, {"type": "MXFP4_MOE"}],
    "auto-round": [{}, {"iters": 0}],
    "compressed-tensors": [{}, {"algorithm": "gptq"}, {"scheme": "FP8"}],
    "checkpoint": [{"path": "m"}],
    "endpoint": [{"base_url": "http://h/v1", "model": "m"}],
}


def test_four_bits_of_bitsandbytes_on_processors(monkeypatch):
    shapes = {"a.q": (32, 64)}
    wrong = {"b.q": (48, 64), "c.q": (32, 96)}
    monkeypatch.setattr("qeval.formats.bitsandbytes.cpu_flags", lambda: frozenset({"avx512f"}))
    check_4bit_on_cpu("NF4", shapes | wrong)
    monkeypatch.setattr("qeval.formats.bitsandbytes.cpu_flags", lambda: frozenset({"avx512_bf16"}))
    check_4bit_on_cpu("NF4", shapes)
    with pytest.raises(
        UsageError, match=r"2 linears are not: b.q \[48, 64\], c.q \[32, 96\]: use a GPU"
    ):
        check_4bit_on_cpu("NF4", shapes | wrong)


def test_cpu_flags(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16\n\nprocessor: 1\nflags\t: fpu\n")
    monkeypatch.setattr(devices, "CPUINFO", file)
    devices.cpu_flags.cache_clear()
    assert "avx512_bf16" in devices.cpu_flags()
    monkeypatch.setattr(devices, "CPUINFO", tmp_path / "none")
    devices.cpu_flags.cache_clear()
    assert devices.cpu_flags() == frozenset()
    devices.cpu_flags.cache_clear()


def test_a_model_that_is_packed_already_is_one_problem(spec, even, capsys):
    (even / "config.json").write_text(
        '{"model_type": "llama", "quantization_config": {"quant_method": "nonsense"}}'
    )
    [line] = in_the_way(spec("hqq: {group_size: 48}", model="even"), capsys)
    assert "quant_method 'nonsense' is none that qeval runs" in line


def test_a_gguf_model_and_methods_that_want_floats():
    ref = ModelRef("m", Path(__file__), "sha256:0", "float32")
    for name in ("gguf", "hqq", "quantease", "bitsandbytes", "rtn"):
        method = METHODS[name]()
        options = method.Options.model_validate({"type": "Q8_0"} if name == "gguf" else {})
        with pytest.raises(UsageError, match=r"m is a \.gguf file: it needs the float model's folder"):
            method.preflight(options, ref)


def test_hqqs_own_rule_for_groups_is_the_specs(spec):
    with pytest.raises(SpecError, match=r"p\.yaml:5: .*group_size: input should be a multiple of 8"):
        run_spec(spec("hqq: {group_size: 60, axis: 0}"), dry_run=True)
