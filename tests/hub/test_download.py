"""Models from a hub: which files, which commit, and what a plan says before."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qeval.core.errors import HubError, ModelError
from qeval.hub.download import Plan, download_model, planned_model
from qeval.hub.files import needed
from qeval.models.resolve import planned_download, tokenizer_of
from qeval.models.weights import weight_files

WEIGHTS = bytes(range(256)) * 20


def small_model(**more: bytes) -> dict[str, bytes]:
    files = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}"}
    return files | {"model.safetensors": WEIGHTS} | more


def index(*shards: str) -> bytes:
    return json.dumps({"weight_map": {f"w{i}": name for i, name in enumerate(shards)}}).encode()


def there(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


# Which files


GPT2 = [
    *(".gitattributes", "README.md", "64.tflite", "config.json", "flax_model.msgpack", "merges.txt"),
    *("generation_config.json", "model.safetensors", "onnx/decoder_model.onnx", "onnx/config.json"),
    *("pytorch_model.bin", "rust_model.ot", "tf_model.h5", "tokenizer.json", "tokenizer_config.json"),
    *("vocab.json", "onnx/decoder_model.onnx_data"),
]
MISTRAL = [
    *(
        "config.json",
        "consolidated.safetensors",
        "params.json",
        "tokenizer.model",
        "tokenizer.model.v3",
    ),
    *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
    *("model.safetensors.index.json", "tokenizer.json", "README.md"),
]
LLAMA = [
    *("LICENSE.txt", "USE_POLICY.md", "config.json", "original/consolidated.00.pth", "tokenizer.json"),
    *("original/params.json", "original/tokenizer.model", "model.safetensors.index.json"),
    *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    *("pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "training_args.bin"),
    "special_tokens_map.json",
]
QWEN = [
    *("modeling_x.py", "layers/attention.py", "chat_template.jinja", "qwen.tiktoken", "a/b.json"),
    *("additional_chat_templates/rag.jinja", "assets/logo.png", "logo.PNG", "vocab.bpe"),
]
OLD = ["config.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
OLD += ["pytorch_model.bin.index.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "vocab.txt"]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (
            GPT2,
            "config.json generation_config.json merges.txt model.safetensors tokenizer.json "
            "tokenizer_config.json vocab.json",
        ),
        (MISTRAL, " ".join(n for n in MISTRAL if n not in ("consolidated.safetensors", "README.md"))),
        (
            LLAMA,
            "LICENSE.txt config.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors "
            "model.safetensors.index.json special_tokens_map.json tokenizer.json",
        ),
        (OLD, " ".join([*OLD[:4], "vocab.txt"])),
        (["qmodel.pt", "config.json", "other.pt"], "qmodel.pt config.json"),
        (
            ["gptq_model-4bit-128g.safetensors", "gptq_model-4bit-128g.bin", "quantize_config.json"],
            "gptq_model-4bit-128g.safetensors quantize_config.json",
        ),
        (["a.Q4_K_M.gguf", "a.Q8_0.gguf", "config.json", "mmproj.gguf"], "config.json"),
        (
            QWEN,
            "modeling_x.py layers/attention.py chat_template.jinja qwen.tiktoken vocab.bpe "
            "additional_chat_templates/rag.jinja",
        ),
    ],
)
def test_only_what_is_read_is_needed(names: list[str], wanted: str):
    assert needed(names) == set(wanted.split())


weight_names = st.sets(
    st.sampled_from(
        [
            *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "qmodel.pt"),
            *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
            *("pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "x.gguf"),
            *("consolidated.safetensors", "gptq_model-4bit-128g.safetensors", "adapter.bin"),
            *("gptq_model-4bit-128g.bin", "original/model.safetensors"),
        ]
    )
)
INDEXES = {
    "model.safetensors.index.json": index(
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    ),
    "pytorch_model.bin.index.json": index("pytorch_model-00001-of-00001.bin"),
}


def taken(folder: Path, names: set[str]) -> list[str] | str:
    """What qeval would load of a folder that holds these files."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(INDEXES.get(name, b""))
    try:
        return sorted(path.name for path in weight_files(folder))
    except ModelError as err:
        return str(err).replace(str(folder), "")


@given(weight_names)
def test_the_same_weights_are_loaded_as_from_the_whole_repository(
    tmp_path_factory: pytest.TempPathFactory, names: set[str]
):
    part, whole = tmp_path_factory.mktemp("part"), tmp_path_factory.mktemp("whole")
    assert taken(part, needed(names)) == taken(whole, names)


# The download


def test_it_is_downloaded_once_and_into_the_hubs_own_cache(hub, tmp_path):
    more = {"onnx/model.onnx": b"o", "original/consolidated.00.pth": b"p", "pytorch_model.bin": b"b"}
    hub.model("org/model", small_model(**more, **{"README.md": b"# Model"}))
    commit = hub.models["org/model"].refs["main"]
    folder = download_model("org/model")
    assert folder == tmp_path / "hf/hub/models--org--model/snapshots" / commit
    assert there(folder) == small_model()
    blob = folder / "model.safetensors"
    assert blob.is_symlink() and blob.resolve().parent == folder.parents[1] / "blobs"
    assert (folder.parents[1] / "refs/main").read_text() == commit
    hub.log.clear()
    assert download_model("org/model") == folder
    assert [str(request) for request in hub.log] == ["GET /api/models/org/model"]  # is main still that?


def test_the_token_goes_to_the_hub_and_not_where_the_files_are(hub, monkeypatch):
    hub.tokens.add("hf_x")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    hub.model("org/model", small_model(), private=True, grants={"hf_x"})
    download_model("org/model")
    assert {r.authorized for r in hub.asked("/api/models|resolve/")} == {True}
    assert [r.authorized for r in hub.asked("/cdn/")] == [False]


def test_a_listing_of_many_pages_is_read_to_its_end(hub):
    hub.page = 7
    shards = [f"model-{i:05}-of-00020.safetensors" for i in range(1, 21)]
    files = {name: name.encode() for name in shards} | {f"x/{i}.png": b"" for i in range(9)}
    files |= {"model.safetensors.index.json": index(*shards), "config.json": b"{}"}
    hub.model("org/model", files)
    assert set(there(download_model("org/model"))) == {n for n in files if not n.endswith("png")}
    assert len(hub.asked("GET .*/tree/")) > 2 * 3


def test_shards_of_any_name_come_by_their_index(hub):
    files = {"config.json": b"{}", "a/one.safetensors": b"1", "two.safetensors": b"2"}
    files |= {"model.safetensors.index.json": index("a/one.safetensors", "two.safetensors", "../no")}
    hub.model("org/model", files)
    assert there(download_model("org/model")) == files


def test_a_renamed_model_is_found_by_its_old_name(hub):
    repo = hub.model("org/new", small_model())
    hub.renamed["org/old"] = "org/new"
    folder = download_model("org/old")
    assert folder.name == repo.refs["main"] and there(folder) == small_model()


def test_names_with_brackets_are_names_and_not_patterns(hub):
    files = small_model(**{"vocab[1].txt": b"a", "vocab1.txt": b"b"})
    hub.model("org/model", files)
    assert there(download_model("org/model")) == files


def test_a_disk_that_is_too_small_is_said_before_the_download(hub, monkeypatch):
    hub.model("org/model", small_model())
    monkeypatch.setattr("qeval.hub.download.shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(
        HubError, match=r"org/model: 5\.\d KiB to download, 100 B free in .*set HF_HOME"
    ):
        download_model("org/model")
    assert not hub.asked("resolve/")


# Revisions


@pytest.fixture
def history(hub) -> dict[str, str]:
    """Names of revisions -> commits of org/model: main, a tag, a branch, an old commit."""
    repo = hub.model("org/model", small_model())
    old = repo.commit(small_model(**{"old.json": b"1"}), "v1.0")
    branch = repo.commit(small_model(**{"branch.json": b"1"}), "float16", "refs/pr/3")
    main = repo.refs["main"]
    found = {"main": main, "v1.0": old, "float16": branch, "refs/pr/3": branch}
    return found | {old: old, old[:7]: old, branch[:12]: branch}


def test_every_kind_of_revision_leads_to_its_commit(hub, history, offline):
    found = {revision: download_model("org/model", revision) for revision in history}
    assert {revision: folder.name for revision, folder in found.items()} == history
    assert all(
        there(folder) == hub.models["org/model"].commits[folder.name] for folder in found.values()
    )
    offline()
    assert {revision: download_model("org/model", revision) for revision in history} == found
    assert download_model("org/model").name == history["main"]


def test_a_branch_that_moved_is_downloaded_again_and_only_what_changed(hub):
    repo = hub.model("org/model", small_model())
    first = download_model("org/model")
    hub.log.clear()
    second = repo.commit(small_model(**{"tokenizer.json": b'{"new": 1}'}))
    assert download_model("org/model").name == second != first.name
    assert not hub.asked("/cdn/")  # the weights are the same blob
    assert download_model("org/model", first.name) == first


def test_a_whole_commit_in_the_cache_asks_nobody(hub):
    folder = download_model("org/model", hub.model("org/model", small_model()).refs["main"])
    hub.log.clear()
    assert download_model("org/model", folder.name) == folder
    assert hub.log == []


# The plan


def summary(plan: Plan) -> tuple[str | None, list[str], int]:
    return plan.commit, [file.name for file in plan.missing], plan.n_bytes


def test_a_plan_lists_what_the_download_then_fetches_and_writes_nothing(hub, tmp_path):
    repo = hub.model("org/model", small_model(**{"pytorch_model.bin": b"b", "x.png": b"x"}))
    plan = planned_model("org/model")
    n_bytes = sum(map(len, small_model().values()))
    assert summary(plan) == (repo.refs["main"], sorted(small_model()), n_bytes)
    assert str(plan) == "org/model: 3 files to download, 5.0 KiB" and plan.out_of_reach is None
    assert not (tmp_path / "hf").exists() and not hub.asked("/cdn/")
    download_model("org/model")
    plan = planned_model("org/model")
    assert summary(plan) == (repo.refs["main"], [], 0) and str(plan) == "org/model: in the cache"
    assert len(plan.files) == 3
    repo.commit(small_model(**{"tokenizer.json": b'{"new": 1}'}))
    assert [file.name for file in planned_model("org/model").missing] == ["tokenizer.json"]


def test_a_plan_says_what_the_download_would_fail_with(hub, waits, monkeypatch, offline):
    hub.model("org/gated", small_model(), gated=True)
    with pytest.raises(HubError, match="gated: accept its terms") as planned:
        planned_model("org/gated")
    with pytest.raises(HubError) as failed:
        download_model("org/gated")
    assert str(planned.value) == str(failed.value)
    with pytest.raises(HubError, match="no such model"):
        planned_model("org/none")
    offline()
    plan = planned_model("org/none")
    assert (plan.commit, plan.files) == (None, ())
    assert plan.out_of_reach and "HF_HUB_OFFLINE is set" in plan.out_of_reach == str(plan)


def test_a_plan_without_a_hub_tells_the_cache_from_nothing(hub, waits, hub_server, offline):
    hub.model("org/model", small_model())
    folder = download_model("org/model")
    hub.faults.append(hub_server.Fault("api/models", hub_server.status(503), times=99))
    assert summary(planned_model("org/model")) == (folder.name, [], 0)
    unknown = planned_model("org/other")
    assert unknown.commit is None and "503 Service Unavailable" in str(unknown.out_of_reach)
    (folder / "model.safetensors").unlink()
    offline()
    plan = planned_model("org/model")
    assert summary(plan) == (folder.name, ["model.safetensors"], len(WEIGHTS))
    assert "HF_HUB_OFFLINE" in str(plan.out_of_reach)


def test_what_lies_here_is_no_download(hub, tmp_path):
    assert planned_download(str(tmp_path)) is None
    with pytest.raises(ModelError, match=r"no such model folder or \.gguf file"):
        planned_download("/no/such/folder")
    hub.model("org/model", small_model())
    assert planned_download("org/model").missing  # type: ignore[union-attr]


def test_a_tokenizer_comes_without_the_weights(hub, tmp_path):
    hub.model("org/model", small_model(tokenizer_config=b"{}"))
    plan = planned_download("org/model", weights=False)
    assert [file.name for file in plan.missing] == ["config.json", "tokenizer.json", "tokenizer_config"]
    folder, content = tokenizer_of("org/model", tmp_path)
    assert not (folder / "model.safetensors").exists() and (folder / "tokenizer.json").exists()
    assert not planned_download("org/model", weights=False).missing
    assert [file.name for file in planned_download("org/model").missing] == ["model.safetensors"]
    download_model("org/model")  # the weights are no part of a tokenizer
    assert tokenizer_of("org/model", tmp_path) == (folder, content)
    hub.model("org/gguf", {"tokenizer.json": b"{}", "model.gguf": b"GGUF"})  # no weights to load here
    assert tokenizer_of("org/gguf", tmp_path)[0].name != folder.name
