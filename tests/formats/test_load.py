"""What a library chose to run, what its modules hold, and when a row says that weights were unpacked.

Modules made here; those of the libraries themselves are in tests/quant/test_neighbours.py."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from qeval.core.artifact import Artifact, Format
from qeval.core.errors import ModelError
from qeval.core.settings import EngineSettings
from qeval.formats import load as packed
from qeval.formats.base import FORMATS
from qeval.formats.gptqmodel import OnGptqModel
from qeval.formats.hqq import Hqq
from qeval.formats.quanto import Quanto

torch = pytest.importorskip("torch")
nn = torch.nn

ARTIFACT = Artifact(Path("folder"), "hf", False, 900, 100, 4.0, 4.0)


class Kept(Mapping):
    """compressed-tensors' parameters after the first forward: a Mapping, and no dict."""

    def __init__(self, items: dict[str, object]) -> None:
        self._items = items

    def __getitem__(self, key: str) -> object:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def floats(n: int):
    return torch.zeros(n, dtype=torch.float32)


def test_tensors_are_found_wherever_a_kernel_keeps_them():
    module = nn.Module()
    module.weight = nn.Parameter(floats(1))
    module.register_buffer("table", floats(10))
    module.meta = {"scale": floats(100), "shape": (4, 4), "name": "int4"}  # hqq
    module.lists = [floats(1000), (floats(10_000), None)]
    model = nn.Sequential(module, nn.Module())
    assert packed.resident_bytes(model) == 4 * 11_111
    module.weight.quant_state = SimpleNamespace(absmax=floats(100_000))  # bitsandbytes
    assert packed.resident_bytes(model) == 4 * 111_111


def test_parameters_in_a_mapping_that_is_no_dict_are_found():
    """A layer that unpacks itself puts its floats there: not to see them is not to say so."""
    module = nn.Linear(4, 8, bias=False)
    model = nn.Sequential(module)
    assert packed.resident_bytes(model) == 4 * 32
    object.__setattr__(module, "_parameters", Kept({"weight": nn.Parameter(torch.zeros(8, 4))}))
    assert packed.resident_bytes(model) == 4 * 32
    module._parameters = Kept({"weight": nn.Parameter(torch.zeros(64, 4)), "empty": None})
    assert packed.resident_bytes(model) == 4 * 256


def test_what_is_shared_or_without_memory_is_not_counted_twice():
    embedding, head = nn.Embedding(16, 4), nn.Linear(4, 16, bias=False)
    head.weight = embedding.weight
    head.view = embedding.weight[:2]
    head.empty = torch.zeros(1000, device="meta")
    assert packed.resident_bytes(nn.Sequential(embedding, head)) == 4 * 64


@pytest.mark.parametrize(("resident", "said"), [(1000, False), (1250, False), (1251, True)])
def test_a_row_says_so_where_a_kernel_holds_a_quarter_more_than_the_files(resident, said):
    note = packed.unpacked_note(ARTIFACT, resident)
    assert (note is not None) == said
    if said:
        assert note == "its kernel holds 1.2 KiB of weights for 1000 B stored: unpacked in memory"


class QuantLinear(nn.Module):
    """The torch kernels of auto-round: their own words for widths, and no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.infeatures = self.outfeatures = 4
        self.register_buffer("qweight", torch.zeros(1, 4))


class TorchLinear(nn.Module):
    """GPTQModel's: ``weight`` is a description."""

    in_features = out_features = 4
    weight = SimpleNamespace(dtype=torch.bfloat16)


def test_kernels_are_the_classes_that_do_the_work():
    packed_linear, unpacked_linear = nn.Linear(4, 4), nn.Linear(4, 4)
    packed_linear.quantization_scheme = unpacked_linear.quantization_scheme = object()
    del packed_linear.weight  # compressed-tensors before its first use: weight_packed in its place
    whole = nn.Linear(4, 4)
    whole.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    whole.quantization_scheme = object()
    layers = [packed_linear, whole, unpacked_linear, QuantLinear(), TorchLinear(), TorchLinear()]
    model = nn.Sequential(*layers, nn.Linear(4, 4), nn.Embedding(4, 4), nn.LayerNorm(4))
    assert packed.kernels(model) == {
        "Linear(packed)": 2,
        "Linear(unpacked)": 1,
        "QuantLinear": 1,
        "TorchLinear": 2,
    }
    assert packed.kernels(nn.Sequential(nn.Linear(4, 4))) == {}


# -- loading ----------------------------------------------------------------------------------


@pytest.fixture
def whole(monkeypatch):
    monkeypatch.setattr(packed, "read_tensors", lambda folder: [])


@pytest.mark.parametrize("name", [*FORMATS, None])
def test_each_format_is_loaded_by_the_library_that_runs_it(monkeypatch, whole, name):
    """GPTQModel, hqq and quanto load their own; transformers the rest, and floats."""
    settings = EngineSettings(dtype="bfloat16")
    monkeypatch.setattr(packed, "load_model", lambda *args: args)
    monkeypatch.setattr("qeval.models.loading.load_model", lambda *args: args)
    for own in (OnGptqModel, Hqq, Quanto):
        monkeypatch.setattr(own, "load", lambda self, *args: (self.name, *args))
    found = Format(name, "hf", (), name, 4, 128, True) if name else None
    artifact = replace(ARTIFACT, format=found)
    if name in ("gptq", "awq", "hqq", "quanto"):
        assert packed.load(artifact, settings, "cpu") == (name, artifact, settings, "cpu")
    else:
        assert packed.load(artifact, settings, "cpu") == (artifact.path, "bfloat16", "cpu", False)


def test_code_that_came_with_the_original_model_is_trusted_with_its_quantized_one(monkeypatch, whole):
    monkeypatch.setattr(packed, "load_model", lambda *args: args)
    artifact = replace(ARTIFACT, trust_remote_code=True)
    assert packed.load(artifact, EngineSettings(), "cpu")[-1] is True


def test_a_damaged_file_is_named_before_any_library_reads_it(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(bytes(4))
    monkeypatch.setattr(packed, "load_model", lambda *args: pytest.fail("was loaded"))
    with pytest.raises(ModelError, match=r"model\.safetensors: not a safetensors file, or cut off"):
        packed.load(replace(ARTIFACT, path=tmp_path), EngineSettings(), "cpu")
