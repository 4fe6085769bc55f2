"""The cache of quantized models: whole or not at all."""

import json
import os
import time

import pytest

from qeval.cli.cache import cache_table, remove_cached
from qeval.core.artifact import Artifact, LayerReport
from qeval.core.errors import StoreError, UsageError
from qeval.store.artifacts import ArtifactCache

KEY = "ab" * 32
WHAT = {"model": {"id": "m"}, "quantization": {"label": "Q"}}


def build(cache: ArtifactCache, key: str = KEY) -> Artifact:
    with cache.building(key) as out:
        (out / "model.bin").write_bytes(b"x" * 1000)
        layers = (LayerReport("l", (2, 3), "int4", 7),)
        artifact = Artifact(out / "model.bin", "hf", True, 10, 5, 4.0, 5.0, layers, ("note",), {"a": 1})
        return cache.publish(key, out, artifact, WHAT)


def test_published_and_loaded_are_the_same(tmp_path):
    cache = ArtifactCache(tmp_path)
    assert cache.load(KEY) is None
    published = build(cache)
    assert cache.load(KEY) == published
    assert published.path == tmp_path / "artifacts" / KEY / "model.bin"
    assert published.layers[0].shape == (2, 3)


def test_a_model_folder_says_by_itself_what_made_it(tmp_path):
    cache = ArtifactCache(tmp_path)
    with cache.building(KEY) as out:
        (out / "model").mkdir()
        layers = (LayerReport("l", (2, 3), "int4", 7, loss=0.5),)
        artifact = Artifact(out / "model", "hf", True, 10, 5, 4.0, 5.0, layers, (), {"calibration": {}})
        published = cache.publish(KEY, out, artifact, WHAT)
    said = json.loads((published.path / "qeval.json").read_text())
    assert said == json.loads((published.path.parent / "artifact.json").read_text())
    assert said["description"] == WHAT and said["qeval"]
    assert said["artifact"]["simulated"] is True
    assert said["artifact"]["layers"][0]["loss"] == 0.5


def test_a_cache_may_be_moved(tmp_path):
    build(ArtifactCache(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    assert ArtifactCache(tmp_path / "b").load(KEY).path.is_file()


def test_a_build_that_fails_leaves_nothing(tmp_path):
    cache = ArtifactCache(tmp_path)
    with pytest.raises(RuntimeError), cache.building(KEY) as out:
        (out / "half").write_text("x")
        raise RuntimeError
    assert cache.load(KEY) is None
    assert not out.exists()


def test_what_a_killed_build_left_is_never_taken_and_swept_by_the_next(tmp_path):
    cache = ArtifactCache(tmp_path)
    left = tmp_path / "artifacts" / f".building-{KEY[:16]}-dead"
    left.mkdir(parents=True)
    (left / "artifact.json").write_text(json.dumps({"artifact": {}}))
    assert cache.load(KEY) is None
    assert cache.entries() == []
    build(cache)
    assert not left.exists()


def test_list_and_remove(tmp_path):
    cache = ArtifactCache(tmp_path)
    build(cache)
    build(cache, "ac" * 32)
    old = time.time() - 10 * 86400
    os.utime(tmp_path / "artifacts" / KEY / "artifact.json", (old, old))
    assert "2 models" in cache_table(tmp_path)
    assert "m · Q" in cache_table(tmp_path)
    with pytest.raises(UsageError, match="fits 2 cached"):
        remove_cached(tmp_path, ("a",), None, False)
    with pytest.raises(UsageError, match="fits 0 cached"):
        remove_cached(tmp_path, ("ff",), None, False)
    with pytest.raises(UsageError, match="give KEYS"):
        remove_cached(tmp_path, (), None, False)
    assert "removed 1 models" in remove_cached(tmp_path, (), 5.0, False)
    assert [e.key for e in cache.entries()] == ["ac" * 32]
    assert "removed 1 models" in remove_cached(tmp_path, ("ac",), None, False)
    assert cache.entries() == []


def test_a_cache_folder_that_is_a_file(tmp_path):
    (tmp_path / "artifacts").write_text("")
    with (
        pytest.raises(StoreError, match=r"choose another folder|File exists"),
        ArtifactCache(tmp_path).building(KEY),
    ):
        pass


def test_what_an_unfinished_build_keeps_outlives_it_until_one_is_whole(tmp_path):
    cache = ArtifactCache(tmp_path)
    for key in (KEY, "ac" * 32):
        cache.unfinished(key).mkdir(parents=True)
        (cache.unfinished(key) / "block").write_bytes(bytes(2048))
    with pytest.raises(RuntimeError), cache.building(KEY):
        raise RuntimeError
    assert cache.entries() == []
    assert "2 unfinished builds, 4.0 KiB" in cache_table(tmp_path)
    build(cache)
    assert not cache.unfinished(KEY).exists()
    assert "0 models, 0 B" in remove_cached(tmp_path, (), 1.0, False)  # younger than a day
    assert cache.unfinished("ac" * 32).exists()
    remove_cached(tmp_path, (), None, True)
    assert not cache.unfinished("ac" * 32).exists()


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"key": 1}', '{"description": {}, "artifact": {}}', "[" * 100_000, None],
)
def test_a_damaged_manifest_breaks_neither_list_nor_remove_and_the_model_is_built_again(
    tmp_path, content
):
    cache = ArtifactCache(tmp_path)
    whole = build(cache, "ac" * 32)
    build(cache)
    manifest = tmp_path / "artifacts" / KEY / "artifact.json"
    if content is None:
        manifest.unlink()
    else:
        manifest.write_text(content)
    assert cache.load(KEY) is None
    assert cache.load("ac" * 32) == whole
    listed = cache_table(tmp_path)
    assert "m · Q" in listed and f"{KEY[:12]}" in listed and "damaged: its artifact.json" in listed
    rebuilt = build(cache)
    assert cache.load(KEY) == rebuilt
    manifest.write_text("{")
    assert "removed 2 models" in remove_cached(tmp_path, (), None, True)
    assert cache.entries() == []


def test_a_damaged_one_can_be_removed_by_its_key(tmp_path):
    cache = ArtifactCache(tmp_path)
    build(cache)
    (tmp_path / "artifacts" / KEY / "artifact.json").write_text("{")
    assert "removed 1 models" in remove_cached(tmp_path, (KEY[:6], KEY[:8]), None, False)
    assert cache.entries() == []


@pytest.mark.parametrize("days", [-1.0, -1e-9, float("nan"), float("inf"), float("-inf")])
def test_a_number_of_days_that_is_none_removes_nothing(tmp_path, days):
    cache = ArtifactCache(tmp_path)
    build(cache)
    with pytest.raises(UsageError, match=r"--older-than .*: give a number of days from 0 on"):
        remove_cached(tmp_path, (), days, False)
    assert len(cache.entries()) == 1


def test_a_link_in_the_cache_is_removed_and_what_it_leads_to_is_not(tmp_path):
    cache = ArtifactCache(tmp_path)
    build(cache)
    (tmp_path / "artifacts" / KEY).rename(tmp_path / "elsewhere")
    (tmp_path / "artifacts" / KEY).symlink_to(tmp_path / "elsewhere")
    assert cache.load(KEY) is not None
    remove_cached(tmp_path, (), None, True)
    assert cache.entries() == []
    assert (tmp_path / "elsewhere" / "artifact.json").is_file()


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_a_cache_has_the_permissions_that_its_owners_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        build(ArtifactCache(tmp_path / "cache"))
    finally:
        os.umask(before)
    for path in [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]:
        full = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == full & ~umask, path


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_files_that_libraries_wrote_for_one_user_are_shared_like_the_others(tmp_path, umask):
    original = tmp_path / "original"
    original.write_text("kept as it is")
    original.chmod(0o400)
    before = os.umask(umask)
    try:
        cache = ArtifactCache(tmp_path / "cache")
        with cache.building(KEY) as out:
            (out / "model").mkdir(mode=0o700)
            for name, mode in (("model.safetensors", 0o600), ("tokenizer.json", 0o444)):
                (out / "model" / name).write_bytes(b"x")
                (out / "model" / name).chmod(mode)
            (out / "model" / "link").symlink_to(original)
            cache.publish(KEY, out, Artifact(out / "model", "hf", True, 1, 1, 4.0, 5.0, (), ()), WHAT)
    finally:
        os.umask(before)
    model = tmp_path / "cache" / "artifacts" / KEY / "model"
    shared = 0o666 & ~umask
    assert model.stat().st_mode & 0o777 == 0o777 & ~umask
    assert (model / "model.safetensors").stat().st_mode & 0o777 == 0o600 | shared
    assert (model / "tokenizer.json").stat().st_mode & 0o777 == 0o444 | shared
    assert original.stat().st_mode & 0o777 == 0o400
