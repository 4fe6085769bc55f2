"""What a hub does wrong, and what is said of it: one line with the repository, revision and fix."""

from __future__ import annotations

import hashlib
import logging
import socket
import sys
import traceback
from email.utils import formatdate
from pathlib import Path

import httpx
import pytest
from huggingface_hub import _tree_cache

from qeval.core.artifact import ModelRef
from qeval.core.errors import DataError, HubError, ModelError, UsageError
from qeval.data.datasets import DataSource, Hub, _hub_file
from qeval.hub.client import TRIES, TRIES_FILE, TRIES_NO_CONNECTION, Place, explain, scrub
from qeval.hub.download import download_file, download_model, planned_model
from qeval.models.resolve import resolve_model
from qeval.quant.checkpoint import Checkpoint, CheckpointOptions

IN_A_MINUTE = 1_800_000_000.0  # s since 1970
BIG = bytes(range(256)) * 64  # 16 KiB, in chunks of 1
FILES = {"config.json": b"{}", "model.safetensors": BIG}


def error(*args: str, of=download_model) -> str:
    with pytest.raises(HubError) as caught:
        of(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Refused


def test_what_is_not_there(hub):
    hub.model("org/model", FILES)
    hub.model("org/private", FILES, private=True)
    for name in ("org/none", "org/private"):
        assert error(name) == (
            f"{name}: no such model on {hub.url}, or a private one: correct the name, or set HF_TOKEN"
        )
    assert error("org/model", "v9") == (
        f"org/model @v9: the hub has no such revision: {hub.url}/org/model/commits has its commits; "
        "correct `revision`"
    )
    for commit in ("f" * 40, "f" * 7):
        assert f"org/model @{commit[:12]}: the hub has no such revision" in error("org/model", commit)
    hub.dataset("org/data", {"a.txt": b"a"})
    assert error("org/data", "b.txt", of=download_file) == (
        f"dataset org/data b.txt: the hub has no such file: {hub.url}/datasets/org/data/tree/main "
        "lists them"
    )
    assert "dataset org/none a.txt: no such dataset on" in error("org/none", "a.txt", of=download_file)
    assert "not a name that a hub could have" in error("org/na--me")


def test_no_weights(hub):
    hub.model("org/onnx", {"onnx/model.onnx": b"x", "config.json": b"{}", "mmproj-F16.gguf": b"GGUF"})
    for of in (download_model, planned_model):
        assert error("org/onnx", of=of) == (
            "org/onnx: no weights (model.safetensors, its index, pytorch_model.bin or .gguf files)"
        )
    assert not hub.asked("resolve")


def test_gated(hub, monkeypatch):
    hub.model("org/gated", FILES, gated=True, grants={"hf_friend"})
    hub.tokens |= {"hf_friend", "hf_stranger"}
    page = f"{hub.url}/org/gated"
    assert error("org/gated") == (
        f"org/gated: gated: accept its terms at {page}, then set HF_TOKEN to a token of that account"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    refused = f"org/gated: gated, and not open to the account of your token: accept its terms at {page}"
    assert error("org/gated").startswith(refused)
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    assert error("org/gated") == (
        "org/gated: the hub does not accept your token (Invalid credentials in Authorization header): "
        "set HF_TOKEN to a valid one, or unset it"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_friend")
    assert (download_model("org/gated") / "model.safetensors").read_bytes() == BIG


def test_a_hub_that_refuses_with_a_reason(hub, hub_server):
    hub.model("org/model", FILES)
    reason = {"X_Error_Message": "Access to this resource is disabled."}
    hub.faults.append(hub_server.Fault("resolve/", hub_server.status(403, **reason), times=9))
    assert error("org/model") == (
        "org/model: the hub refuses it: 403 Forbidden: Access to this resource is disabled. "
        f"({hub.url}/org/model)"
    )


# Busy


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (r"GET /api/models/org/model$", 429),
        ("/tree/", 500),
        ("HEAD /org", 503),
        ("GET /cdn/", 429),
        ("GET /cdn/", 529),
    ],
)
def test_a_busy_hub_is_asked_again(hub, hub_server, waits, path, code):
    hub.model("org/model", FILES)
    refuse = hub_server.status(code, Retry_After="7")
    hub.faults.append(hub_server.Fault(path, lambda handler, data: refuse(handler, b""), times=2))
    assert (download_model("org/model") / "model.safetensors").read_bytes() == BIG
    assert waits == [7.0, 7.0]


@pytest.mark.parametrize(
    ("headers", "waited"),
    [
        ({}, [1, 2, 4, 8]),
        ({"Retry_After": "30"}, [30, 30, 30, 30]),
        ({"Retry_After": formatdate(IN_A_MINUTE, usegmt=True)}, [60, 60, 60, 60]),
        ({"Retry_After": formatdate(IN_A_MINUTE - 100, usegmt=True)}, [0, 0, 0, 0]),
        ({"Retry_After": "soon"}, [1, 2, 4, 8]),
        ({"RateLimit": '"api";r=0;t=55'}, [55, 55, 55, 55]),
        ({"RateLimit": '"api";r=20;t=55'}, [1, 2, 4, 8]),
    ],
)
def test_it_waits_as_long_as_the_hub_asks(hub, hub_server, waits, monkeypatch, headers, waited):
    monkeypatch.setattr("qeval.hub.client.time.time", lambda: IN_A_MINUTE - 60)
    busy = hub_server.status(429, **headers)
    hub.faults.append(hub_server.Fault("GET /api/models", busy, times=99))
    assert error("org/model") == (
        f"org/model: {hub.url} answers 429 Too Many Requests, 5 times: run again later, complete files "
        "are kept; requests with a token (HF_TOKEN) have a higher limit"
    )
    assert waits == waited
    assert len(hub.asked("GET /api/models")) == TRIES


@pytest.mark.parametrize("path", ["GET /api/models", "GET /cdn/"])
def test_it_does_not_wait_for_a_day(hub, hub_server, waits, path):
    hub.model("org/model", FILES)
    busy = hub_server.status(429, Retry_After="86400")
    hub.faults.append(hub_server.Fault(path, lambda handler, data: busy(handler, b""), times=99))
    assert "answers 429 Too Many Requests, not before 86400 s from now" in error("org/model")
    assert waits == [] and len(hub.asked(path)) == 1


def test_a_hub_that_is_down_is_not_asked_for_ever(hub, hub_server, waits):
    """huggingface_hub has loops of its own around some requests: together they must stay bounded."""
    hub.model("org/model", FILES)
    for path, tries in (("HEAD /org/model", TRIES), ("GET /cdn/", TRIES), ("/tree/", TRIES)):
        hub.log.clear()
        hub.faults[:] = [hub_server.Fault(path, lambda h, _: hub_server.status(502)(h, b""), times=999)]
        hub.models["org/model"].commit({**FILES, "config.json": path.encode()})
        assert "502 Bad Gateway, 5 times: run again later" in error("org/model")
        most = tries * 2 if path.startswith("HEAD") else tries  # two files are asked for at once
        assert tries <= len(hub.asked(path)) <= most


# Broken connections


def test_a_cut_download_goes_on_where_it_was(hub, hub_server, waits, caplog):
    hub.model("org/model", FILES)
    for do in (hub_server.cut(5000), hub_server.reset(4000), hub_server.cut(0)):
        hub.faults.append(hub_server.Fault("GET /cdn/", do))
    folder = download_model("org/model")
    assert (folder / "model.safetensors").read_bytes() == BIG
    starts = [int((r.range or "bytes=0-")[6:-1]) for r in hub.asked("GET /cdn/")]
    assert starts[:2] == [0, 4096] and len(starts) == 4
    assert starts[1] < starts[2] == starts[3] <= 4096 + 4000
    assert waits == [1, 1, 1]  # huggingface_hub's own
    said = caplog.text
    assert "Trying to resume download" in said and "Signature" not in said


def test_a_download_that_stays_cut_ends_and_leaves_no_part(hub, hub_server, waits):
    hub.model("org/model", FILES)
    hub.faults.append(hub_server.Fault("GET /cdn/", hub_server.cut(0), times=99))
    assert "org/model: the download broke off (" in error("org/model")
    folder = Path(download_model.__globals__["constants"].HF_HUB_CACHE)
    assert not list(folder.rglob("*.incomplete"))
    hub.faults.clear()
    hub.log.clear()
    download_model("org/model")
    assert not hub.asked("GET .*config.json")  # what was whole is kept


def test_a_file_of_another_length_is_not_kept(hub, hub_server, waits):
    def short(handler, data: bytes) -> None:
        handler.begin(data[:100])
        handler.wfile.write(data[:100])

    hub.model("org/model", FILES)
    hub.faults.append(hub_server.Fault("GET /cdn/", short, times=99))
    assert "file should be of size 16384 but has size 100" in error("org/model")


def test_a_hub_that_does_not_answer(hub, hub_server, waits, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 5.0)  # of no effect on BEST_EFFORT_S
    monkeypatch.setattr("qeval.hub.client.BEST_EFFORT_S", 0.0)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.faults.append(hub_server.Fault("GET /api/models", hub_server.stall(0.3), times=9))
    assert f"org/model: {hub.url} is out of reach (timed out): check the network" in error("org/model")
    assert waits == [1, 2] and len(hub.asked("GET /api/models")) == TRIES_NO_CONNECTION


def test_no_hub_at_all(hub, waits, monkeypatch):
    from huggingface_hub import constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    assert error("org/model") == (
        f"org/model: {nobody} is out of reach ([Errno 111] Connection refused): check the network, the "
        "proxy and HF_ENDPOINT"
    )
    assert len(waits) == TRIES_NO_CONNECTION - 1
    monkeypatch.setattr(constants, "ENDPOINT", "huggingface.co")
    assert "is out of reach (Request URL is missing an 'http://' or 'https://' protocol.)" in error(
        "org/m"
    )


def test_a_network_that_goes_during_a_file_may_take_a_while_to_come_back(hub, waits, monkeypatch):
    """Away once the first bytes came, and back at the last try."""
    hub.model("org/model", FILES)
    send, tries = httpx.HTTPTransport.handle_request, []

    def away(self: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/cdn/") and len(tries) < TRIES_FILE - 1:
            tries.append(request)
            raise httpx.ConnectError("no route to host", request=request)
        return send(self, request)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", away)
    assert (download_model("org/model") / "model.safetensors").read_bytes() == BIG
    assert waits == [1, 2, 4, 8, 16, 32, 64]


def test_what_is_no_hub(hub, hub_server):
    hub.faults.append(hub_server.Fault("GET /api/models", hub_server.portal, times=9))
    assert f"org/model: {hub.url} does not answer as a hub does (Expecting value" in error("org/model")
    hub.faults[:] = [
        hub_server.Fault("GET /api/models", lambda h, _: h.answer(200, b'{"id": "org/model"}', {}))
    ]
    assert "does not answer as a hub does (its commit is None): check HF_ENDPOINT" in error("org/model")
    hub.model("org/model", FILES)
    hub.faults[:] = [hub_server.Fault("HEAD /org", hub_server.status(200), times=9)]
    assert "does not answer as a hub does" in error("org/model")


def test_a_full_disk(hub, monkeypatch):
    hub.model("org/model", FILES)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    assert "no space left on the device: free some" in error("org/model")


# Without the hub


def test_a_warm_cache_does_without_the_hub_and_says_so(hub, hub_server, waits, capsys):
    hub.model("org/model", FILES)
    hub.dataset("org/data", {"a.txt": b"a"}, "refs/convert/parquet")
    folder, file = (
        download_model("org/model"),
        download_file("org/data", "a.txt", "refs/convert/parquet"),
    )
    hub.faults.append(hub_server.Fault("api/models|resolve", hub_server.status(503), times=99))
    capsys.readouterr()
    assert download_model("org/model") == folder
    assert f"going on with the cache's copy, commit {folder.name[:12]}" in capsys.readouterr().err
    assert download_file("org/data", "a.txt", "refs/convert/parquet") == file
    assert "dataset org/data a.txt @refs/convert/parquet: " in capsys.readouterr().err


def test_a_model_that_is_no_longer_given_is_taken_from_the_cache(hub, capsys):
    repo = hub.model("org/model", FILES)
    folder = download_model("org/model")
    repo.private = True
    assert download_model("org/model") == folder
    assert "org/model: no such model on" in capsys.readouterr().err
    repo.private = False
    with pytest.raises(HubError, match="no such revision"):
        download_model("org/model", "gone")


def test_an_incomplete_copy_is_not_taken_for_whole(hub, offline):
    hub.model("org/model", FILES)
    (download_model("org/model") / "model.safetensors").unlink()
    offline()
    assert error("org/model").startswith(
        "org/model model.safetensors: HF_HUB_OFFLINE is set and the cache ("
    )


def test_a_cache_of_an_older_huggingface_hub_has_no_listing(hub, offline):
    hub.model("org/model", FILES)
    folder = download_model("org/model")
    for listing in (folder.parents[1] / "trees").iterdir():
        listing.unlink()
    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    offline()
    assert download_model("org/model") == folder
    assert planned_model("org/model").out_of_reach is None


# What came is what the hub has


def test_a_damaged_copy_is_refused_and_named(hub, tmp_path, tiny_llama, offline):
    hub.model("org/model", {p.name: p.read_bytes() for p in tiny_llama.iterdir()})

    def resolve():
        return resolve_model("org/model", dtype="float32", cache_dir=tmp_path)

    found = resolve()
    assert found.identity == f"hub:org/model@{hub.models['org/model'].refs['main']}"
    for name, what in (("tokenizer.json", "git id"), ("model.safetensors", "sha256")):
        blob = (found.path / name).resolve()
        data = bytearray(blob.read_bytes())
        data[-2] ^= 1
        blob.write_bytes(data)
        with pytest.raises(ModelError, match=rf"{name}: corrupted: its {what} is .*delete {blob}"):
            resolve()
        blob.unlink()  # as the message says
        assert resolve() == found


def test_a_mirror_may_name_small_files_by_the_sha1_of_their_content(hub, tmp_path, tiny_llama):
    hub.model("org/model", {p.name: p.read_bytes() for p in tiny_llama.iterdir()})
    config = download_model("org/model") / "config.json"
    content = config.read_bytes()
    blob = config.resolve().with_name(hashlib.sha1(content).hexdigest())
    config.resolve().rename(blob)
    config.unlink()
    config.symlink_to(blob)
    resolve_model("org/model", dtype="float32", cache_dir=tmp_path)
    blob.write_bytes(content + b"\n")
    with pytest.raises(ModelError, match=f"config.json: corrupted: .*{blob.name}"):
        resolve_model("org/model", dtype="float32", cache_dir=tmp_path)


def test_a_checkpoint_of_the_hub_is_downloaded_and_pinned(hub, tmp_path, tiny_llama):
    repo = hub.model("org/weights", {p.name: p.read_bytes() for p in tiny_llama.iterdir()})
    repo.refs["v2"] = repo.refs["main"]
    model = ModelRef("here", tiny_llama, "sha256:0", "float32")
    options = CheckpointOptions(path="org/weights", revision="v2")
    found = Checkpoint().find(options, model, tmp_path)
    assert found.identity == f"hub:org/weights@{repo.refs['v2']}"
    with pytest.raises(
        ModelError, match="org/weights @v3: no such folder, and the hub did not give it"
    ):
        Checkpoint().find(options.model_copy(update={"revision": "v3"}), model, tmp_path)


def test_a_store_that_repositories_share_has_names_of_its_own(hub, tmp_path, tiny_llama):
    """Large files of the real hub: the blob links to a file named by a hash that is no sha256."""
    hub.model("org/model", {p.name: p.read_bytes() for p in tiny_llama.iterdir()})
    folder = download_model("org/model")
    blob = (folder / "model.safetensors").resolve()
    shared = folder.parents[2] / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(shared)
    resolve_model("org/model", dtype="float32", cache_dir=tmp_path)
    data = bytearray(shared.read_bytes())
    data[-1] ^= 1
    shared.write_bytes(data)
    with pytest.raises(ModelError, match=f"corrupted: .* the hub's {blob.name}"):
        resolve_model("org/model", dtype="float32", cache_dir=tmp_path)


def test_a_dataset_that_is_damaged_says_which_file(hub, monkeypatch):
    from qeval.data import datasets as data

    files = {"a.jsonl": b'{"text": "a"}\n', "b.jsonl": b'{"text": "b"}\n'}
    hub.dataset("org/data", files)
    entry = data.Dataset(
        name="x",
        about="",
        rows=2,
        sha256=data.documents_sha256(["a", "b"]),
        licence="",
        redistribute=True,
        files=(data.LocalFile("x.jsonl"),),
        hub=Hub("org/data", ("a.jsonl", "b.jsonl")),
    )
    monkeypatch.setattr(data, "manifest", lambda: {"x": entry})
    assert DataSource().load("x").documents == ("a", "b")
    path = _hub_file(entry.hub, "b.jsonl").resolve()
    path.write_bytes(b'{"text": "c"}\n')
    with pytest.raises(
        DataError, match=rf"hub org/data a\.jsonl, b\.jsonl is not 'x': .* remove .*{path}"
    ):
        DataSource().load("x")


# An environment of its own with an older huggingface_hub


def test_a_dataset_without_the_patient_client(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "qeval.hub.download", None)  # as where httpx is missing
    hub.dataset("org/data", {"a.txt": b"a"})
    assert _hub_file(Hub("org/data", ("a.txt",)), "a.txt").read_text() == "a"
    with pytest.raises(HubError, match=r"^dataset org/data b\.txt: RemoteEntryNotFoundError: 404"):
        _hub_file(Hub("org/data", ("b.txt",)), "b.txt")


def test_a_model_needs_the_newer_one(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "qeval.hub.download", None)
    with pytest.raises(
        UsageError, match=r"org/m: huggingface_hub is older than 1\.25 .*pip install -U"
    ):
        resolve_model("org/m", dtype="float32", cache_dir=tmp_path)


# Secrets


def test_a_token_that_cannot_be_sent_is_not_shown(hub, monkeypatch):
    for token in ("hf_sec ret", "hf_secré", "hf_sec\tret"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(HubError) as caught:
            download_model("org/model")
        said = "".join(traceback.format_exception(caught.value))
        assert "HF_TOKEN (or the file of `hf auth login`) holds what no token does" in said
        assert "hf_sec" not in said and hub.log == []


def test_no_secret_gets_into_a_message(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    text = "a hf_secret b https://me:pw@mirror.org/x?X-Amz-Signature=abc&y=1' c\nsecond line"
    assert scrub(text) == "a *** b https://mirror.org/x' c"
    request = httpx.Request("GET", "https://me:pw@cdn.org/f?sig=abc", headers={"a": "hf_secret"})
    for err in (
        httpx.ConnectError(
            "no route to https://me:pw@cdn.org/f?sig=abc for hf_secret", request=request
        ),
        httpx.ReadTimeout("hf_secret", request=request),
        OSError("https://cdn.org/f?sig=abc gave hf_secret"),
        RuntimeError("Bearer hf_secret"),
        ValueError("https://me:pw@cdn.org?sig=abc"),
    ):
        message = str(explain(err, Place("org/model", "model")))
        assert not any(secret in message for secret in ("hf_secret", "pw@", "sig=abc"))


def test_the_debug_log_of_requests_hides_the_token(hub, hub_server, monkeypatch, caplog, waits, capsys):
    """Everything that is logged or printed, on the way to a failure in each of the steps."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_DEBUG", True)
    hub.tokens.add("hf_secret")
    hub.model("org/model", FILES)
    logger = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.DEBUG, logger="huggingface_hub")
    for path in ("api/models", "HEAD", "GET /cdn"):
        hub.faults[:] = [hub_server.Fault(path, lambda h, _: hub_server.status(503)(h, b""), times=99)]
        with pytest.raises(HubError) as caught:
            download_model("org/model")
        said = (
            "".join(traceback.format_exception(caught.value)) + caplog.text + str(capsys.readouterr())
        )
        assert "hf_secret" not in said and "Authorization" not in said.replace("<TOKEN>", "")
