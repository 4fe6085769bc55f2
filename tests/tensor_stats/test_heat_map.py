"""The picture: its size, its bands, its colours, and what is framed."""

import struct
import zlib

import pytest

from qeval.core.errors import StoreError, UsageError
from qeval.tensor_stats import heat_map
from qeval.tensor_stats.rows import Statistics

from .test_layers import ABOUT, row

pytest.importorskip("matplotlib")


def statistics(n_layers, column="sqnr_db", worst=(3, 1.0)):
    names = [f"self_attn.{x}_proj" for x in "qkvo"] + ["mlp.up_proj", "mlp.down_proj"]
    rows = []
    for i in range(n_layers):
        rows += [row("weight", i, n, **{column: 20 - 0.1 * i + j}) for j, n in enumerate(names)]
        rows += [row("input", i, n, **{column: 40.0}) for n in names[3:]]
        rows += [row("key", i, "", **{column: 25.0}), row("value", i, "", **{column: 26.0})]
    layer, found = worst
    rows.append(row("weight", layer, "mlp.gate_proj", **{column: found}))
    rows.append(row("weight", None, "project_in", **{column: 0.0}))
    return Statistics(ABOUT, tuple(rows))


def pixels(path):
    """Width and height, and how many different lines of pixels: a blank picture has one."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    at, packed = 8, b""
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        packed += data[at + 8 : at + 8 + size] if data[at + 4 : at + 8] == b"IDAT" else b""
        at += size + 12
    raw = zlib.decompress(packed)
    assert (depth, colour) == (8, 6)
    return width, height, len({raw[i : i + 4 * width] for i in range(0, len(raw), 4 * width + 1)})


@pytest.mark.parametrize("n_layers", [2, 30, 60])
@pytest.mark.parametrize("column", ["sqnr", "kurtosis"])
def test_a_picture_grows_with_the_layers(tmp_path, n_layers, column):
    name = "sqnr_db" if column == "sqnr" else column
    path = tmp_path / "map.png"
    heat_map.draw(path, statistics(n_layers, name, worst=(1, 1.0)), column)
    width, height, n_lines = pixels(path)
    assert 800 < width < 3000 and 500 < height < 1500 and n_lines > 100
    assert width > 33 * n_layers  # a layer is never thinner than this


def test_every_tensor_has_a_band_and_the_worst_is_framed():
    found = statistics(30)
    panels = {n: heat_map._bands(found.rows, k, "sqnr") for n, k in heat_map.PANELS.items()}
    figure = heat_map._figure(panels, 30, "sqnr", found)
    axes = [a for a in figure.axes if a.get_title(loc="left")]
    assert [a.get_title(loc="left") for a in axes] == [
        "weights: 4 bits per output channel",
        "inputs: 8 bits per token",
        "KV cache: 4 bits per token and head",
    ]
    labels = [[t.get_text() for t in a.get_yticklabels()] for a in axes]
    assert [len(x) for x in labels] == [7, 3, 2] and labels[2] == ["key", "value"]
    assert "org/model, bfloat16: SQNR in dB" in figure.get_suptitle()
    (frame,) = axes[0].patches
    assert frame.get_xy() == (3 - 0.5, labels[0].index("mlp.gate_proj") - 0.5)
    shown = axes[0].images[0]
    assert shown.cmap(shown.norm(1.0)) == shown.cmap(0.0)  # the least SQNR at the map's bright end
    assert sum(shown.cmap(shown.norm(1.0))[:3]) > sum(shown.cmap(shown.norm(20.0))[:3])
    assert axes[0].images[0].get_array().mask.sum() == 29  # gate_proj is in one layer only


def test_experts_share_a_band_with_the_worst_of_them_shown():
    rows = [row("weight", 0, f"mlp.experts.{i}.w1", kurtosis=3.0 + i % 5) for i in range(8)]
    bands = heat_map._bands(rows, ("weight",), "kurtosis")
    assert list(bands) == ["mlp.experts.*.w1"] and bands["mlp.experts.*.w1"][0].kurtosis == 7.0


def test_nothing_to_draw_and_nowhere_to_write(tmp_path):
    with pytest.raises(UsageError, match="no tensor of org/model is in a decoder layer"):
        heat_map.draw(tmp_path / "a.png", Statistics(ABOUT, (row("weight", None),)), "sqnr")
    with pytest.raises(StoreError, match="nope"):
        heat_map.draw(tmp_path / "nope" / "a.png", statistics(4), "sqnr")


def test_values_that_are_missing_or_all_equal_are_drawn(tmp_path):
    rows = tuple(row("weight", i, kurtosis=None, sqnr_db=None) for i in range(3))
    for column in ("kurtosis", "sqnr", "absmax"):
        heat_map.draw(tmp_path / f"{column}.png", Statistics(ABOUT, rows), column)
        assert pixels(tmp_path / f"{column}.png")[2] > 50
