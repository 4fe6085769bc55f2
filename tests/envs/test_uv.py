"""Environments made by uv are those that pip makes, from where pip is told to take them."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from qeval.core.errors import EnvError
from qeval.envs import build as envs
from qeval.envs.uv import Uv, _told, found

uv = pytest.importorskip("uv", reason="needs uv (the extra dev)")
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
LIST = """
import importlib.metadata as m, json
print(json.dumps(sorted(f"{d.name} {d.version}" for d in m.distributions())))
"""


def wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    info = f"{name}-{version}.dist-info"
    asked = "".join(f"Requires-Dist: {need}\n" for need in needs)
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{asked}"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", f"here = {version!r}\n")
        archive.writestr(f"{info}/METADATA", about)
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tag)
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An environment ``tiny``: a library without its dependencies, one with a newer version than the
    tested one, in a folder that only pip's settings name."""
    links = tmp_path / "links"
    links.mkdir()
    wheel(links, "tinylib", "1.0", "absent")
    wheel(links, "tinydep", "1.0", "tinyleaf")
    for version in ("1.0", "2.0"):
        wheel(links, "tinyleaf", version)
    lines = [f'python = ["{HERE}"]', 'about = "for a test"', 'module = "tinylib"']
    lines += ['library = ["tinylib==1.0"]', 'requirements = ["tinydep"]']
    (tmp_path / "tiny.toml").write_text("\n".join([*lines, 'constraints = ["tinyleaf==1.0"]']))
    monkeypatch.setattr(envs, "FOLDER", tmp_path)
    settings = tmp_path / "pip.conf"
    settings.write_text(f"[global]\nno-index = true\nfind-links = {links}\n")
    for name in [n for n in os.environ if n.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("PATH", str(Path(uv.find_uv_bin()).parent), prepend=os.pathsep)
    return tmp_path


def made(place: Path, **how: bool) -> tuple[list[str], dict[str, object], list[str]]:
    """What is installed, but for pip itself; the record of it; what was said."""
    steps: list[str] = []
    cache = place / "-".join(["cache", *how])
    assert envs.create("tiny", cache, say=steps.append, **how).state == "ready"
    python = envs.python_of("tiny", cache)
    listed = json.loads(subprocess.run([python, "-c", LIST], capture_output=True).stdout)
    record = json.loads((python.parents[1] / envs.MARKER).read_text())
    record.pop("made")
    return [d for d in listed if d.split()[0] not in ("pip", "setuptools")], record, steps


def test_uv_makes_what_pip_makes(place):
    by_uv, by_pip = made(place), made(place, pip=True)
    assert by_uv[0] == by_pip[0] == ["tinydep 1.0", "tinyleaf 1.0", "tinylib 1.0"]
    installers = by_uv[1].pop("installer"), by_pip[1].pop("installer")
    assert installers[0].startswith("uv ") and installers[1] == "pip"
    assert by_uv[1] == by_pip[1]
    assert "(uv " in by_uv[2][0] and by_uv[2][1:] == by_pip[2][1:]


def test_where_uv_fails_pip_does_it_and_says_so(place, monkeypatch):
    """In pip's place: the real uv, which takes a tenth of its time; then one that fails, too."""
    broken = place / "bin" / "uv"
    broken.parent.mkdir()
    broken.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo uv 9.9 && exit\necho went wrong\nexit 2\n'
    )
    broken.chmod(0o755)
    real, asked = uv.find_uv_bin(), []

    def in_place_of_pip(base, system):
        asked.append(system)
        return envs._ByUv(Uv(real, "pip", ("--no-index", "--find-links", str(place / "links"))), base)

    monkeypatch.setattr(envs, "_Pip", in_place_of_pip)
    monkeypatch.setenv("PATH", str(broken.parent), prepend=os.pathsep)
    installed, record, steps = made(place)
    assert installed == ["tinydep 1.0", "tinyleaf 1.0", "tinylib 1.0"]
    assert record["installer"] == "uv pip" and asked == [False]
    (said,) = [step for step in steps if step.startswith("again with pip")]
    assert "uv 9.9" in said and "went wrong" in said and len(said.splitlines()) == 1
    real = str(broken)
    with pytest.raises(EnvError, match="went wrong"):
        envs.create("tiny", place / "c")
    assert [p.name for p in (place / "c" / "envs").iterdir() if p.name[0] != "."] == ["tiny.log"]


def test_torch_is_taken_from_a_folder_where_its_index_is_out_of_reach(place, monkeypatch):
    wheel(place / "links", "torch", "1.0+cpu")
    lines = (place / "tiny.toml").read_text()
    (place / "tiny.toml").write_text(f'torch = "1.0"\n{lines}')
    (place / "pip.conf").write_text(f"[global]\nfind-links = {place / 'links'}\n")
    monkeypatch.setattr(envs, "TORCH_CPU_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setattr(envs, "_wants_cuda", lambda: False)
    monkeypatch.setenv(
        "UV_DEFAULT_INDEX", (place / "links").as_uri()
    )  # no page of the outside is asked
    monkeypatch.setenv("UV_OFFLINE", "1")
    steps: list[str] = []
    assert envs.create("tiny", place / "c", say=steps.append).versions["torch"] == "1.0+cpu"
    assert [s for s in steps if "torch" in s] == [
        "installing torch==1.0+cpu of find-links",
        "looking for torch",
    ]
    assert not [s for s in steps if "pip" in s]


def test_pips_settings_are_handed_over_and_uvs_own_win():
    plain = Uv("uv", "1")
    told = {"index-url": "https://mirror/simple", "extra-index-url": "https://a https://b"}
    chosen, _ = _told(plain, {**told, "cert": "/ca.pem", "timeout": "5"}, {})
    assert chosen is not None and chosen.variables == {"SSL_CERT_FILE": "/ca.pem"}
    line = " ".join(chosen.install(Path("p")))
    assert "--default-index https://mirror/simple" in line
    assert "--extra-index-url https://a --extra-index-url https://b" in line
    cpu = chosen.install(Path("p"), "https://cpu")  # of torch's CPU builds
    assert cpu[cpu.index("--default-index") + 1] == "https://cpu" and cpu.count("--default-index") == 1
    own, _ = _told(plain, told, {"UV_DEFAULT_INDEX": "https://mine", "UV_INDEX": "https://more"})
    assert own is not None and not {"--default-index", "--extra-index-url"} & {*own.install(Path("p"))}
    assert _told(plain, {"no-index": "0"}, {}) == (plain, "")
    assert _told(plain, {"require-hashes": "1"}, {}) == (
        None,
        "pip is told require-hashes, which uv has no word for",
    )


def test_without_uv_nothing_is_said(tmp_path):
    assert found(Path(sys.executable), {"PATH": str(tmp_path)}) == (None, "")
