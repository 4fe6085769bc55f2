"""GGUF files of a hub and of folders: which one a name means, and that nothing else is fetched."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from pathlib import Path

import pytest
from gguf_files import split
from hypothesis import given
from hypothesis import strategies as st

from qeval.core.artifact import ModelRef
from qeval.core.errors import HubError, ModelError
from qeval.core.units import human_bytes
from qeval.hub.download import download_model, planned_model
from qeval.hub.gguf import gguf_model, parts, split_name
from qeval.models.resolve import planned_download, resolve_model, tokenizer_of
from qeval.quant.checkpoint import Checkpoint, CheckpointOptions


def numbered(stem: str, count: int) -> list[str]:
    return [f"{stem}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]


# As the repositories of these owners are laid out (2025).
BARTOWSKI = [
    *(".gitattributes", "README.md", "Qwen2.5-7B-Instruct.imatrix", "Qwen2.5-7B-Instruct-IQ4_XS.gguf"),
    *("Qwen2.5-7B-Instruct-Q4_K_M.gguf", "Qwen2.5-7B-Instruct-Q4_K_L.gguf"),
    *("Qwen2.5-7B-Instruct-Q4_0.gguf", "Qwen2.5-7B-Instruct-f16.gguf"),
]
THEBLOKE = ["config.json", "mistral-7b.Q4_K_M.gguf", "mistral-7b.Q4_K_S.gguf", "mistral-7b.Q8_0.gguf"]
UNSLOTH = [
    *("config.json", "imatrix_unsloth.gguf", "Qwen3-235B-Q2_K.gguf", "Qwen3-235B-Q4_K_XL.gguf"),
    *numbered("BF16/Qwen3-235B-BF16", 3),
    *numbered("UD-Q4_K_XL/Qwen3-235B-UD-Q4_K_XL", 2),
]
GEMMA = ["gemma-3-4b-it-q4_0.gguf", "mmproj-model-f16-4B.gguf"]
STORIES = ["stories15M-q4_0.gguf", "stories15M-q8_0.gguf", "stories260K.gguf"]
SPLIT = numbered("q8/model-Q8_0", 3)
SPLIT_TINY = numbered("q8/tiny-Q8_0", 3)


@pytest.mark.parametrize(
    ("names", "asked", "wanted"),
    [
        (BARTOWSKI, "Q4_K_M", ["Qwen2.5-7B-Instruct-Q4_K_M.gguf"]),
        (BARTOWSKI, "q4_k_m", ["Qwen2.5-7B-Instruct-Q4_K_M.gguf"]),
        (BARTOWSKI, "F16", ["Qwen2.5-7B-Instruct-f16.gguf"]),
        (BARTOWSKI, "Qwen2.5-7B-Instruct-Q4_0.gguf", ["Qwen2.5-7B-Instruct-Q4_0.gguf"]),
        (THEBLOKE, "Q8_0", ["mistral-7b.Q8_0.gguf"]),
        (UNSLOTH, "BF16", numbered("BF16/Qwen3-235B-BF16", 3)),
        (UNSLOTH, "UD-Q4_K_XL", numbered("UD-Q4_K_XL/Qwen3-235B-UD-Q4_K_XL", 2)),
        (UNSLOTH, "Q4_K_XL", ["Qwen3-235B-Q4_K_XL.gguf"]),
        (UNSLOTH[4:], "Q4_K_XL", numbered("UD-Q4_K_XL/Qwen3-235B-UD-Q4_K_XL", 2)),
        (UNSLOTH, numbered("BF16/Qwen3-235B-BF16", 3)[0], numbered("BF16/Qwen3-235B-BF16", 3)),
        (GEMMA, None, ["gemma-3-4b-it-q4_0.gguf"]),
        (GEMMA, "mmproj-model-f16-4B.gguf", ["mmproj-model-f16-4B.gguf"]),
        (numbered("Q4_K_M/model", 2), "Q4_K_M", numbered("Q4_K_M/model", 2)),
        (SPLIT, None, SPLIT),
        (["model_Q4_0.gguf", "model_IQ4_NL.gguf"], "Q4_0", ["model_Q4_0.gguf"]),
        (["m-Q4_0.gguf", "model.safetensors"], None, []),
        (["m-Q4_0.gguf", "model.safetensors"], "Q4_0", ["m-Q4_0.gguf"]),
        (["mmproj-F16.gguf", "config.json"], None, []),
    ],
)
def test_a_name_means_one_model(names, asked, wanted):
    assert gguf_model("org/m", names, asked) == wanted


@pytest.mark.parametrize(
    ("names", "asked", "message"),
    [
        (
            BARTOWSKI,
            None,
            "org/m: 5 GGUF models: choose one, as in org/m:IQ4_XS; it has IQ4_XS, Q4_0, Q4_K_L, "
            "Q4_K_M, f16",
        ),
        (
            UNSLOTH,
            None,
            "org/m: 4 GGUF models: choose one, as in org/m:BF16; it has BF16, Q2_K, Q4_K_XL, "
            "UD-Q4_K_XL",
        ),
        (
            STORIES,
            "Q5_0",
            "org/m: no GGUF model of type Q5_0 in it; it has q4_0, q8_0, stories260K.gguf",
        ),
        (THEBLOKE, "Q4_K", "org/m: no GGUF model of type Q4_K in it; it has Q4_K_M, Q4_K_S, Q8_0"),
        (["a-BF16.gguf"], "F16", "org/m: no GGUF model of type F16 in it; it has BF16"),
        (
            ["1b-Q4_0.gguf", "3b-Q4_0.gguf"],
            "q4_0",
            "org/m: 2 GGUF models of type q4_0: choose a file: org/m/1b-Q4_0.gguf, org/m/3b-Q4_0.gguf",
        ),
        (
            ["1b-Q4_0.gguf", "3b-Q4_0.gguf"],
            None,
            "org/m: 2 GGUF models: choose one, as in org/m/1b-Q4_0.gguf; it has 1b-Q4_0.gguf, "
            "3b-Q4_0.gguf",
        ),
        (GEMMA, "x.gguf", "org/m: no file x.gguf in it; it has q4_0"),
        (["config.json"], "x.gguf", "org/m: no file x.gguf in it; it has no GGUF model"),
        (["mmproj-F16.gguf"], "F16", "org/m: no GGUF model in it"),
        (
            SPLIT,
            SPLIT[1],
            f"org/m: {SPLIT[1]} is a later part of a split model: give the first, {SPLIT[0]}",
        ),
        (
            SPLIT[:2],
            "Q8_0",
            f"org/m: {SPLIT[2]} is missing, part 3 of 3: get it, or choose another model",
        ),
        (
            SPLIT[1:],
            None,
            f"org/m: {SPLIT[0]} is missing, part 1 of 3: get it, or choose another model",
        ),
    ],
)
def test_a_name_that_means_none_or_several_is_one_line_with_the_choice(names, asked, message):
    with pytest.raises(ModelError) as caught:
        gguf_model("org/m", names, asked)
    assert str(caught.value) == message


WORDS = st.sampled_from(["a", "1b", "Q4_0", "Q4_K_M", "q8_0", "UD-Q4_K_M", "F16", "BF16", "i1", "v2"])


@st.composite
def repositories(draw: st.DrawFn) -> set[str]:
    names: set[str] = set()
    for words in draw(st.lists(st.lists(WORDS, min_size=1, max_size=3), min_size=1, max_size=6)):
        folder = draw(st.sampled_from(["", "Q4_0/", "sub/"]))
        stem = folder + draw(st.sampled_from("-._")).join(words)
        names |= set(draw(st.sampled_from([[f"{stem}.gguf"], numbered(stem, 2), numbered(stem, 11)])))
    return names


@given(repositories())
def test_what_a_message_offers_means_one_model_each_and_all_of_them(names):
    """Whatever the names are: to write what the message says is enough, and every model is offered."""
    try:
        chosen = [gguf_model("org/m", names, None)]
    except ModelError as err:
        offered = str(err).partition("; it has ")[2].split(", ")
        chosen = [gguf_model("org/m", names, choice) for choice in offered]
        example = re.search(r"as in (.*?);", str(err))[1]
        assert split_name(example) == ("org/m", offered[0])
    assert sorted(name for model in chosen for name in model) == sorted(names)
    for model in chosen:
        assert model == parts(model[0]) == gguf_model("org/m", names, model[0])


def llamacpp_takes(names: list[str], tag: str) -> str | None:
    """common/download.cpp's find_best_model."""
    for name in names:
        file = name.rpartition("/")[2]
        part = re.search(r"-(\d{5})-of-\d{5}\.gguf$", name)
        is_model = name.endswith(".gguf") and not re.search("mmproj|imatrix|mtp-", file)
        if is_model and re.search(f"{tag}[.-]", name, re.I) and (part is None or part[1] == "00001"):
            return name
    return None


@pytest.mark.parametrize("names", [BARTOWSKI, THEBLOKE, UNSLOTH, GEMMA, STORIES, SPLIT])
def test_types_mean_what_they_mean_to_llamacpp(names):
    for kind in ("Q4_0", "q4_0", "Q4_K_M", "Q4_K_L", "IQ4_XS", "F16", "BF16", "Q8_0", "Q2_K", "Q5_0"):
        theirs = llamacpp_takes(names, kind)
        if names is UNSLOTH and kind == "F16":
            assert theirs.startswith("BF16/")  # the first that it is a part of
            theirs = None
        try:
            assert gguf_model("org/m", names, kind)[0] == theirs
        except ModelError:
            assert theirs is None


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("org/m", ("org/m", None)),
        ("org/m-v1.0:Q4_K_M", ("org/m-v1.0", "Q4_K_M")),
        ("org/m:UD-Q4_K_XL", ("org/m", "UD-Q4_K_XL")),
        ("org/m/a/b.gguf", ("org/m", "a/b.gguf")),
        ("org/m/a", None),
        ("org/m:", None),
        ("./m", None),
        ("/org/m", None),
        ("../org/m.gguf", None),
    ],
)
def test_names_of_a_hub(name, found):
    assert split_name(name) == found


# The download


FILES = {
    "config.json": b"{}",
    "m-Q4_0.gguf": b"GGUF" + bytes(6000),
    "mmproj-F16.gguf": b"GGUF",
    **{name: b"GGUF" + bytes([i]) * 5000 for i, name in enumerate(SPLIT)},
}


def there(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [(":q4_0", ["m-Q4_0.gguf"]), (":Q8_0", SPLIT), (f"/{SPLIT[0]}", SPLIT)],
)
def test_only_the_files_of_the_model_are_planned_and_fetched(hub, tmp_path, asked, wanted, offline):
    repo = hub.model("org/m", FILES)
    plan = planned_model(f"org/m{asked}")
    assert [file.name for file in plan.missing] == wanted
    n_bytes = sum(len(FILES[name]) for name in wanted)
    files = f"{len(wanted)} files" if len(wanted) > 1 else "1 file"
    assert str(plan) == f"org/m {wanted[0]}: {files} to download, {human_bytes(n_bytes)}"
    assert not (tmp_path / "hf").exists()
    path = download_model(f"org/m{asked}")
    folder = tmp_path / "hf/hub/models--org--m/snapshots" / repo.refs["main"]
    assert path == folder / wanted[0] and there(folder) == set(wanted)
    assert str(planned_model(f"org/m{asked}")) == f"org/m {wanted[0]}: in the cache"
    hub.log.clear()
    offline()
    assert download_model(f"org/m{asked}") == path
    assert download_model(f"org/m{asked}", path.relative_to(folder.parent).parts[0][:9]) == path
    assert hub.log == []


def test_a_type_that_is_not_in_the_cache_needs_the_hub(hub, offline):
    hub.model("org/m", FILES)
    download_model("org/m:Q4_0")
    offline()
    out = planned_model("org/m:Q8_0").out_of_reach
    assert out.startswith(f"org/m {SPLIT[0]}: HF_HUB_OFFLINE is set and the cache (")
    with pytest.raises(HubError, match=f"^{re.escape(out)}$"):
        download_model("org/m:Q8_0")


def test_a_cache_without_a_listing_gives_what_is_in_it(hub, offline):
    from huggingface_hub import _tree_cache

    hub.model("org/m", FILES)
    path = download_model("org/m:Q4_0")
    shutil.rmtree(path.parents[2] / "trees")
    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    offline()
    assert download_model("org/m:Q4_0") == download_model("org/m") == path
    with pytest.raises(HubError, match="org/m: HF_HUB_OFFLINE is set"):
        download_model("org/m:Q8_0")


def test_a_revision_is_another_file_and_pins(hub, tmp_path):
    repo = hub.model("org/m", {"m-Q8_0.gguf": b"GGUF old"})
    old = repo.refs["v1"] = repo.refs["main"]
    repo.commit({"m-Q8_0.gguf": b"GGUF new", "m-Q4_0.gguf": b"GGUF"})
    assert download_model("org/m", "v1").read_bytes() == b"GGUF old"
    assert download_model("org/m:Q8_0").read_bytes() == b"GGUF new"
    assert download_model("org/m/m-Q8_0.gguf", old[:8]).parent.name == old
    with pytest.raises(ModelError, match="org/m: 2 GGUF models: choose one"):
        planned_model("org/m")
    assert str(planned_model("org/m:Q4_0", "main")).startswith("org/m m-Q4_0.gguf @main: 1 file")


def test_a_gated_repository_says_so_before_anything(hub):
    hub.model("org/m", FILES, gated=True)
    with pytest.raises(ModelError, match=r"org/m:Q8_0: no such folder, and the hub did not .* gated"):
        planned_download("org/m:Q8_0")
    with pytest.raises(
        ModelError, match=r"my/models/a\.gguf: no such file, and the hub did not give it"
    ):
        planned_download("my/models/a.gguf")  # a path here, with a slip of the pen


# The model


@pytest.fixture
def real(tiny_f32, tmp_path) -> dict[str, bytes]:
    """A repository of a tiny model, whole and in three parts, which call themselves of another type."""
    pieces = split(tiny_f32.path, tmp_path / "parts" / "tiny-Q8_0", 3, like="gguf-split")
    whole = {"tiny-F32.gguf": tiny_f32.path.read_bytes(), "mmproj-F16.gguf": b"GGUF"}
    return whole | {f"q8/{path.name}": path.read_bytes() for path in pieces}


def test_the_identity_is_the_contents_wherever_it_lies(hub, real, tmp_path):
    repo = hub.model("org/tiny-GGUF", real)
    local = tmp_path / "local"
    for name, data in real.items():
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_bytes(data)

    def resolve(name, **options):
        return resolve_model(str(name), dtype="float32", cache_dir=tmp_path / "c", **options)

    for asked in ("F32", "Q8_0"):
        here, hubs = resolve(f"{local}:{asked}"), resolve(f"org/tiny-GGUF:{asked}")
        assert here.identity == hubs.identity and hubs.identity.startswith("sha256:")
        snapshot = tmp_path / "hf/hub/models--org--tiny-GGUF/snapshots" / repo.refs["main"]
        assert here.path == local / hubs.path.relative_to(snapshot)
        assert planned_download(here.id) is None
    assert resolve("org/tiny-GGUF:F32").identity != hubs.identity
    model = ModelRef("here", local, "sha256:0", "float32")
    options = CheckpointOptions(path="org/tiny-GGUF:Q8_0", revision=repo.refs["main"][:8])
    artifact = Checkpoint().find(options, model, tmp_path / "c")
    assert (artifact.identity, artifact.path) == (hubs.identity, hubs.path)
    whole = Checkpoint().find(CheckpointOptions(path=f"{local}/tiny-F32.gguf"), model, tmp_path / "c")
    assert (artifact.weight_bytes, artifact.layers) == (whole.weight_bytes, whole.layers)
    with pytest.raises(ModelError, match="leave `revision` out"):
        resolve(f"{local}:F32", revision="main")
    with pytest.raises(ModelError, match=rf"{local}: 2 GGUF models: choose one, as in {local}:Q8_0"):
        resolve(local)


def test_a_file_has_a_tokenizer_and_a_folder_is_itself(hub, real, tmp_path):
    """Of a server's model: a folder's own tokenizer, whatever GGUF files lie beside it."""
    hub.model("org/tiny", real)
    for asked in ("org/tiny:F32", "org/tiny/tiny-F32.gguf"):
        assert planned_download(asked, weights=False) or hub.asked("cdn")
        assert tokenizer_of(asked, tmp_path / "c")[0].name == "tiny-F32.gguf"
    assert not hub.asked("cdn.*(mmproj|q8)")
    for name in ("tokenizer.json", "a-Q4_0.gguf", "b-Q8_0.gguf"):
        (tmp_path / name).write_bytes(b"{}")
    assert planned_download(str(tmp_path), weights=False) is None
    assert tokenizer_of(str(tmp_path), tmp_path / "c")[0] == tmp_path


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("how", ["changed", "cut", "text"])
def test_a_damaged_part_is_named_with_what_to_delete(hub, real, tmp_path, number, how):
    hub.model("org/tiny", real)

    def resolve():
        return resolve_model("org/tiny:Q8_0", dtype="float32", cache_dir=tmp_path / "c")

    found = resolve()
    part = found.path.with_name(numbered("tiny-Q8_0", 3)[number])
    blob, data = part.resolve(), part.read_bytes()
    blob.write_bytes(
        {"changed": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-9], "text": b"<html>"}[how]
    )
    with pytest.raises(ModelError) as caught:
        resolve()
    assert str(caught.value).startswith(f"{part}: corrupted: its sha256 is ")
    assert str(caught.value).endswith(f": delete {blob} and download it again")
    blob.unlink()  # as the message says
    assert resolve() == found


def test_a_part_of_hf_download_is_checked_by_its_note_in_the_folder_above(real, tmp_path):
    """`hf download --local-dir` keeps what the hub said of all files in one place."""
    folder = tmp_path / "dir"
    for name, data in real.items():
        note = folder / ".cache/huggingface/download" / f"{name}.metadata"
        for file in (folder / name, note):
            file.parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        note.write_text(f"{'0' * 40}\n{hashlib.sha256(data).hexdigest()}\n{time.time()}\n")
    resolve_model(f"{folder}:Q8_0", dtype="float32", cache_dir=tmp_path / "c")
    name = SPLIT_TINY[1]
    data = real[name]
    (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ModelError, match=f"{name}: corrupted: its sha256"):
        resolve_model(f"{folder}:Q8_0", dtype="float32", cache_dir=tmp_path / "c")


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("org/m-GGUF:Q4_K_M", "m-GGUF Q4_K_M"),
        ("org/m-GGUF", "m-GGUF"),
        ("org/m-GGUF/sub/a-Q4_0.gguf", "a-Q4_0.gguf"),
        ("folder/m:UD-Q4_K_XL", "m UD-Q4_K_XL"),
    ],
)
def test_a_rows_label(path, label):
    assert Checkpoint().label(CheckpointOptions(path=path)) == label


# The command line

SPEC = """
name: line
dtype: float32
device: cpu
n_threads: 1
models: [org/tiny-GGUF:F32]
quantizations: [none, checkpoint: org/tiny-GGUF:q8_0]
tasks: [perplexity: {{dataset: 'file:{text}', seq_len: 64, limit: 2}}]
"""


def test_gguf_files_of_a_hub_from_the_dry_run_to_the_table(hub, qeval, real, tmp_path):
    repo = hub.model("org/tiny-GGUF", real)
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven eight\n" * 200)
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC.format(text=text))
    sizes = {n: len(data) for n, data in real.items()}

    dry = qeval(hub, "run", "spec.yaml", "--dry-run")
    assert dry.code == 0, dry.err
    for first, files, n_bytes in (
        ("tiny-F32.gguf", "1 file", sizes.pop("tiny-F32.gguf")),
        (SPLIT_TINY[0], "3 files", sum(sizes[name] for name in SPLIT_TINY)),
    ):
        what = f"org/tiny-GGUF {first}: {files} to download, {human_bytes(n_bytes)}"
        assert f"to download: {what}" in dry.err
    assert hub.asked("GET .*(cdn|resolve)") == []

    done = qeval(hub, "run", "spec.yaml", "--no-table")
    assert done.code == 0, done.err
    fetched = {r.path.split(repo.refs["main"] + "/")[1] for r in hub.asked("GET /cdn")}
    assert fetched == set(real) - {"mmproj-F16.gguf"}
    path = tmp_path / "results/line/records.jsonl"
    none, split_one = map(json.loads, path.read_text().splitlines())
    values = [record["metrics"][0]["value"] for record in (none, split_one)]
    assert values[0] == values[1] > 0
    assert none["key"] != split_one["key"] and none["cell"]["baseline"]

    again = qeval(hub, "run", "spec.yaml", HF_HUB_OFFLINE="1")
    assert again.code == 0 and "2 of 2 cells are done" in again.err, again.err
    assert "tiny-GGUF q8_0 (F32)" in again.out and "float32" not in again.out, again.out
    shown = qeval(hub, "show", split_one["key"][:12], "results/line")
    assert "tiny-GGUF q8_0" in shown.out and repo.refs["main"] in shown.out, shown.err

    spec.write_text(SPEC.format(text=text).replace(":q8_0", ""))
    several = qeval(hub, "run", "spec.yaml", "--dry-run")
    assert several.code == 1 and several.err.splitlines()[-1].endswith(
        "org/tiny-GGUF: 2 GGUF models: choose one, as in org/tiny-GGUF:Q8_0; it has Q8_0, F32"
    ), several.err
