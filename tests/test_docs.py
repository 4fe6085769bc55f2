"""The pages agree with the code: names, options, commands, links, and the walk-through's own code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

from qeval.core.artifact import ModelRef
from qeval.core.execution import KEYS
from qeval.core.registry import Registry
from qeval.engines.base import ENGINES
from qeval.plan.keys import ModelEntry, Spec
from qeval.plan.spec import load_spec
from qeval.quant.base import METHODS, BuildContext
from qeval.tasks.base import TASKS

REPO = Path(__file__).parents[1]
PAGES = sorted([*REPO.glob("*.md"), *REPO.glob("docs/**/*.md"), *REPO.glob("data/*.md")])
CONFIGS = sorted(REPO.glob("configs/*.yaml"))


def text(name: str) -> str:
    return (REPO / name).read_text(encoding="utf-8")


def section(page: str, title: str) -> str:
    """The part of a page under the heading that starts with ``title``."""
    return next(s for s in re.split(r"^## ", page, flags=re.MULTILINE) if s.startswith(title))


@pytest.mark.parametrize("registry", [METHODS, ENGINES, TASKS], ids=lambda registry: registry.kind)
def test_reference_has_a_row_for_each_registered_name_and_no_other(registry: Registry[Any]):
    rows = re.findall(
        r"^\| `([\w-]+)` \|", section(text("docs/reference.md"), f"{registry.kind.capitalize()}s"), re.M
    )
    assert sorted(rows) == sorted(registry.built_in)


@pytest.mark.parametrize("registry", [METHODS, TASKS], ids=lambda registry: registry.kind)
def test_reference_names_every_option(registry: Registry[Any]):
    rows = section(text("docs/reference.md"), f"{registry.kind.capitalize()}s")
    for name in registry.built_in:
        row = next(line for line in rows.splitlines() if line.startswith(f"| `{name}` |"))
        for option in registry[name].Options.model_fields:
            assert re.search(rf"\b{option}\b", row), f"docs/reference.md: {name} lacks {option}"


@pytest.mark.parametrize("key", KEYS)
def test_reference_has_a_row_for_what_stands_beside_methods(key: str):
    row = next(x for x in text("docs/reference.md").splitlines() if x.startswith(f"| `{key}` |"))
    for option in KEYS[key].model_fields:
        assert re.search(rf"\b{option}\b", row), f"docs/reference.md: {key} lacks {option}"


def test_options_yaml_shows_every_key():
    shown = set(re.findall(r"[\w-]+(?=:)", text("configs/options.yaml")))
    wanted = {*Spec.model_fields, *ModelEntry.model_fields, *METHODS.built_in}
    wanted |= {*KEYS, *(option for made in KEYS.values() for option in made.model_fields)}
    for registry in (METHODS, TASKS):
        wanted |= {
            option for name in registry.built_in for option in registry[name].Options.model_fields
        }
    assert wanted - shown - {"none"} == set()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_loads(path: Path):
    experiment = load_spec(path)
    assert experiment.name == path.stem
    assert experiment.models and experiment.quantizations and experiment.tasks


def test_every_command_has_a_row_and_every_row_is_a_command():
    from qeval.cli.main import cli

    rows = section(text("docs/reference.md"), "Commands")
    shown = re.findall(r"^\| `qeval (\w+)", rows, re.MULTILINE)
    assert sorted(shown) == sorted(cli.commands)
    for group, names in re.findall(r"`qeval (\w+) ([a-z]+(?:\\\|[a-z]+)+)`", rows):
        found = cli.commands[group]
        if isinstance(found, click.Group):
            assert sorted(names.split("\\|")) == sorted(found.commands)


def test_every_extra_has_a_row_and_every_row_is_an_extra():
    rows = section(text("docs/reference.md"), "Extras")
    shown = [name for row in re.findall(r"^\| (`.+?) \|", rows, re.M) for name in row.split(", ")]
    extras = tomllib.loads(text("pyproject.toml"))["project"]["optional-dependencies"]
    assert {name.strip("`") for name in shown} == set(extras) - {"dev"}
    assert len(shown) == len(set(shown))


def test_the_readme_is_short():
    before, more = text("README.md").split("\n## More\n")
    assert len(before.split()) <= 700 and more


def test_the_readme_shows_a_spec_that_loads(tmp_path: Path):
    (spec,) = re.findall(r"```yaml\n(.*?)```", text("README.md"), re.DOTALL)
    path = tmp_path / "mine.yaml"
    path.write_text(spec, encoding="utf-8")
    experiment = load_spec(path)
    assert experiment.name == "mine"
    assert experiment.models and experiment.quantizations and experiment.tasks


def test_the_commands_of_a_fresh_machine_are_those_of_ci_and_contributors():
    for command in ("scripts/demo", "scripts/check"):
        assert re.search(rf"^{command} +#", text("README.md"), re.M) and (REPO / command).exists()
    assert re.search(r"^exec scripts/check$", text(".ci/run"), re.M)
    assert re.search(r"^scripts/check +#", text("CONTRIBUTING.md"), re.M)


def test_options_of_shown_command_lines_exist():
    from qeval.cli.main import cli

    shown = 0
    for page in PAGES:
        blocks = re.findall(r"^```\w*\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.DOTALL)
        for line in re.findall(r"^(?:\w+=\S* )*qeval (\w+ .*)$", "\n".join(blocks), re.MULTILINE):
            name, *words = line.split("#")[0].split()
            command = cli.commands[name]
            if isinstance(command, click.Group):
                command = command.commands[words.pop(0)]
            known = {o for p in command.params for o in p.opts}
            assert {w for w in words if w.startswith("--")} <= known, f"{page.name}: qeval {line}"
            shown += 1
    assert shown > 10


@pytest.mark.parametrize("command", ["table", "compare", "recommend"])
def test_every_option_is_explained(command: str):
    from qeval.cli.main import cli

    rows = section(text("docs/reference.md"), f"`qeval {command}`")
    explained = {o for row in re.findall(r"^\| (`--.+?`) \|", rows, re.M) for o in row.split(", ")}
    for parameter in cli.commands[command].params:
        for option in parameter.opts if parameter.opts[0].startswith("--") else ():
            assert f"`{option}`" in explained or option == "--debug", option


def anchors(page: str) -> set[str]:
    """Of a page's headings, by GitHub's rule: lower case, no punctuation, spaces as hyphens."""
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_lead_somewhere(page: Path):
    for target, anchor in re.findall(
        r"\]\((?!https?://)([^)#]*)(?:#([^)]+))?\)", page.read_text(encoding="utf-8")
    ):
        found = page.parent / target if target else page
        assert found.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(found.read_text(encoding="utf-8")), (
                f"{page.name}: {target}#{anchor}"
            )


def test_every_page_is_linked_from_another():
    linked = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:]+\.md)", page.read_text(encoding="utf-8"))
    }
    assert {p.resolve() for p in PAGES} - linked == {REPO / "README.md"}


def test_architecture_shows_the_layers_that_are_checked():
    shown = section(text("docs/architecture.md"), "The folders").split("Beside the package")[0]
    rows = [re.findall(r"`(\w+)(?:/|\.py)`", row) for row in re.findall(r"^\| (`.+?) \|", shown, re.M)]
    contracts = tomllib.loads(text("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    assert rows == [layer.split(" | ") for layer in layers]
    for inner in (REPO / "qeval").glob("*/*/__init__.py"):
        assert f"`{inner.parent.name}/`" in shown, f"docs/architecture.md does not show {inner.parent}"


def test_architecture_names_files_that_exist():
    page = text("docs/architecture.md")
    for name in re.findall(r"`(\w+/[\w/]+\.py)`", page):
        assert (REPO / "qeval" / name).is_file() or "NAME" in name, f"docs/architecture.md names {name}"
    for file in re.findall(r"`(\w+\.(?:py|cmake|yaml))`", page):
        assert list(REPO.glob(f"*/**/{file}")), f"docs/architecture.md names {file}"


def test_data_page_names_every_dataset():
    from qeval.data.datasets import manifest

    for name in manifest():
        assert f"`{name}`" in text("data/README.md")


def test_the_walk_through_builds_a_model(tiny_llama: Path, tmp_path: Path):
    code = re.search(
        r"`qeval/quant/clip.py`:\n\n```python\n(.*?)```", text("CONTRIBUTING.md"), re.DOTALL
    )
    assert code
    namespace: dict[str, Any] = {"__name__": "clip"}
    exec(compile(code[1], "CONTRIBUTING.md", "exec"), namespace)
    method = namespace["Clip"]()
    ref = ModelRef("tiny", tiny_llama, "sha256:0", "float32")
    ticks: list[int] = []
    context = BuildContext(
        ref, tmp_path, None, list, lambda done, total, unit: ticks.append(done), tmp_path
    )
    artifact = method.build(method.Options(num_bits=4), context)
    assert artifact.simulated and artifact.engine == "hf" and artifact.path.is_dir()
    assert len(artifact.layers) == 14 and ticks == list(range(1, 15))
    assert artifact.bpw is not None and 4 < artifact.bpw < 5
    whole = method.build(method.Options(ratio=1.0), replaced(context, tmp_path / "whole"))
    assert sum(r.mse for r in whole.layers) < sum(r.mse for r in artifact.layers)  # here clipping costs


def replaced(context: BuildContext, out: Path) -> BuildContext:
    from dataclasses import replace

    out.mkdir()
    return replace(context, out=out)


def test_settings_names_every_variable_that_is_read():
    code = "".join(p.read_text(encoding="utf-8") for p in REPO.glob("qeval/**/*.py"))
    code += text("tests/conftest.py")
    read = set(re.findall(r"\b_?QEVAL_[A-Z_]+", code))
    assert set(re.findall(r"^\| `(_?QEVAL_[A-Z_]+)` \|", text("docs/settings.md"), re.M)) == read
