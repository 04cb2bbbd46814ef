"""The shipped recipes load and say what they are for; the schema documents every key; the cache sees contents, not names."""

import json
import re
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest

from compressor import settings
from compressor.errors import RecipeError
from compressor.loader import load_recipe
from compressor.recipe import Recipe, schema
from compressor.settings.base import Section
from compressor.settings.distilling import Objective
from compressor.settings.training import Training
from compressor.smoke import smoke
from tests.conftest import compress

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
LENDERS = (Section, Objective, Training)
MODULES = [import_module(f"compressor.settings.{found.name}") for found in iter_modules(settings.__path__)]
DECLARED = {kind for module in MODULES for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Section)}
SECTIONS = sorted({*DECLARED, Recipe} - {*LENDERS}, key=lambda kind: kind.__name__)
SMALL = """\
version: 1
name: small
data: {train: data/train.csv, test: data/test.csv}
teacher: {model: encoder}
distill:
  student: {model: little}
  objectives: [{type: soft_labels}]
export: {}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe with the files that it names; what they hold plays no part here but in a hash."""
    for name, content in {"data/train.csv": "train", "data/test.csv": "test", "recipe.yaml": SMALL}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    for name in ("encoder", "little"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(f'{{"model_type": "bert", "name": "{name}"}}')
    return tmp_path


def keys(folder: Path, *changes: str) -> dict[str, Any]:
    """What the cache sees of every section that these recipes have."""
    recipe = load_recipe(folder / "recipe.yaml", changes)
    return recipe.key_settings(["name", "data", "teacher", "distill", "export", "quantize", "seed"])


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {name for name in one if one[name] != other[name]}


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_a_shipped_recipe_loads_under_the_name_of_its_file(path: Path) -> None:
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_a_shipped_recipe_opens_with_purpose_needs_command_and_time(path: Path) -> None:
    header = path.read_text(encoding="utf-8").split("version:")[0]
    told = re.findall(r"^# (\w+): +(\S.*)$", header, re.MULTILINE)
    assert [name for name, _ in told] == ["Purpose", "Needs", "Command", "Time"]
    assert dict(told)["Command"] == f"compress recipes/{path.name}"
    assert all(line.startswith("#") for line in header.splitlines())


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_a_shipped_recipe_that_is_deployed_has_gates_and_each_a_smoke_profile_without_them(path: Path) -> None:
    recipe = load_recipe(path)
    sliver = smoke(recipe)
    assert bool(recipe.gates) == recipe.deployed
    assert sliver.gates == ()
    assert sliver.name != recipe.name  # so that it never takes the place of the real bundle
    assert [s for s in type(recipe).model_fields if getattr(recipe, s) is None] == [
        s for s in type(sliver).model_fields if getattr(sliver, s) is None
    ]
    assert sliver.data.train.limit is not None


def test_a_smoke_profile_never_reads_more_than_the_recipe_does(folder: Path) -> None:
    splits = smoke(load_recipe(folder / "recipe.yaml", ["data.train.limit=10", "teacher.finetune={}"])).data
    assert splits.train.limit == 10
    assert splits.test is not None
    assert splits.test.limit == 48
    assert (splits.train.within, splits.test.within, splits.unknown_labels) == (10, None, "skip")
    assert (splits.train.draw, splits.test.draw) == ("spread", "spread")


def test_a_smoke_profile_shows_all_labels_to_those_who_know_them(folder: Path) -> None:
    assert smoke(load_recipe(folder / "recipe.yaml", ["teacher.finetune={}"])).data.train.limit == 192
    assert smoke(load_recipe(folder / "recipe.yaml", [])).data.train.limit == 2000  # a teacher that is taken as it is


def test_what_is_drawn_belongs_to_a_limit(folder: Path) -> None:
    with pytest.raises(RecipeError, match="draw says which examples limit takes: set limit too"):
        load_recipe(folder / "recipe.yaml", ["data.train={path: data/train.csv, draw: spread}"])
    with pytest.raises(RecipeError, match="within says what draw: spread spreads over: set draw too, or leave it out"):
        load_recipe(folder / "recipe.yaml", ["data.train={path: data/train.csv, limit: 5, within: 9}"])


def definitions() -> Iterator[tuple[str, dict[str, Any]]]:
    whole = schema()
    yield "Recipe", dict(whole)
    yield from whole["$defs"].items()


def test_the_schema_is_json_and_knows_every_section() -> None:
    assert json.loads(json.dumps(schema())) == schema()
    # Objective and Training only lend their keys: nothing has them as its own type.
    assert {c.__name__ for c in SECTIONS} == {name for name, _ in definitions()}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.__name__)
def test_the_schema_documents_every_key_and_refuses_others(section: type[Section]) -> None:
    definition = dict(definitions())[section.__name__]
    assert definition["title"] == section.__name__
    assert definition["additionalProperties"] is False
    assert set(definition["properties"]) == set(section.model_fields)
    undocumented = [key for key, value in definition["properties"].items() if not value.get("description", "").endswith((".", ")"))]
    assert undocumented == []


def test_the_schema_names_required_keys_kinds_and_bounds() -> None:
    found = dict(definitions())
    assert found["Recipe"]["required"] == ["version", "name", "data", "teacher"]
    kinds = found["Distill"]["properties"]["objectives"]["items"]["discriminator"]["mapping"]
    assert set(kinds) == {"minilm", "minilmv2", "tinybert", "hidden_cosine", "logits", "soft_labels", "labels"}
    assert set(found["Recipe"]["properties"]["gates"]["items"]["discriminator"]["mapping"]) >= {"speedup", "latency", "size"}
    assert found["Data"]["properties"]["max_length"] | {"minimum": 8, "maximum": 8192} == found["Data"]["properties"]["max_length"]


def test_the_schema_wants_quantities_as_text_with_a_unit() -> None:
    found = dict(definitions())
    assert found["SizeGate"]["properties"]["max"]["type"] == "string"
    assert found["DropGate"]["properties"]["max_drop"]["type"] == "string"
    assert found["Data"]["properties"]["holdout"]["default"] == "10%"
    assert found["Recycle"]["properties"]["max_size"]["default"] == found["Distill"]["properties"]["teacher_store"]["default"] == "20GB"
    for _, section in definitions():
        for field in section.get("properties", {}).values():
            assert not (field.get("type") == "string" and isinstance(field.get("default"), int | float))


@pytest.mark.parametrize(("old", "new", "key"), [("data/train.csv", "data/other.csv", "data.train"), ("encoder", "bert", "teacher.model")])
def test_a_renamed_file_or_folder_changes_no_key(folder: Path, old: str, new: str, key: str) -> None:
    before = keys(folder)
    (folder / old).rename(folder / new)
    text = (folder / "recipe.yaml").read_text().replace(old, new)
    (folder / "recipe.yaml").write_text(text)
    assert keys(folder) == before


def test_a_recipe_that_is_moved_with_its_files_changes_no_key(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved, ignore=shutil.ignore_patterns("moved"))
    assert keys(moved) == keys(folder)


@pytest.mark.parametrize(
    ("file", "section"),
    [("data/train.csv", "data"), ("data/test.csv", "data"), ("encoder/config.json", "teacher"), ("little/config.json", "distill")],
)
def test_changed_content_changes_the_key_of_its_section_only(folder: Path, file: str, section: str) -> None:
    before = keys(folder)
    (folder / file).write_text("changed")
    assert differing(before, keys(folder)) == {section}


@pytest.mark.parametrize(
    ("change", "section"),
    [
        ("data.max_length=64", "data"),
        ("data.train.limit=5", "data"),
        ("teacher.finetune={}", "teacher"),
        ("distill.epochs=1", "distill"),
        ("distill.objectives=[{type: soft_labels, temperature: 3}]", "distill"),
        ("export.opset=18", "export"),
        ("quantize={}", "quantize"),
        ("seed=1", "seed"),
        ("name=other", "name"),
    ],
)
def test_a_changed_value_changes_the_key_of_its_section_only(folder: Path, change: str, section: str) -> None:
    assert differing(keys(folder), keys(folder, change)) == {section}


@pytest.mark.parametrize("change", ["export.opset=17", "distill.epochs=3", "distill.epochs=3.0", "data.text=text", "data.holdout=10%"])
def test_a_default_that_is_written_out_changes_no_key(folder: Path, change: str) -> None:
    assert keys(folder, change) == keys(folder)


def test_a_key_holds_hashes_instead_of_the_names_of_files(folder: Path) -> None:
    text = json.dumps(keys(folder))
    assert not any(name in text for name in ("train.csv", "test.csv", "encoder", "little"))


SHARED = Path(__file__).parents[2] / "shared/data"
"""Real data beside the repository, where there are any."""


@pytest.mark.parametrize(("recipe", "folder", "form"), [("ner-ncbi", "ncbi-disease", "{}.conll.gz"), ("intent", "clinc150", "{}.jsonl.gz")])
def test_a_shipped_recipe_runs_in_its_smoke_profile(recipe: str, folder: str, form: str, tiny_model: Path, tmp_path: Path) -> None:
    if not (SHARED / folder).exists():
        pytest.skip(f"no {SHARED / folder}")
    files = {"train": "train", "validation": "dev", "search": "dev", "test": "test"}
    changes = {f"data.{split}": SHARED / folder / form.format(name) for split, name in files.items()}
    changes |= {"teacher.model": tiny_model, "distill.student.model": tiny_model, "data.max_length": 32}
    changes |= {"distill.objectives": "[{type: minilmv2, relation_heads: 4, end: 0.5}, {type: soft_labels, start: 0.5}]"}
    changes |= {"early_exit.layer": 1} if recipe == "intent" else {}  # the tiny student has three layers
    told = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    path = Path(__file__).parents[1] / "recipes" / f"{recipe}.yaml"
    done = compress(str(path), "--profile", "smoke", "--artifacts", str(tmp_path), *told, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "dist" / f"{recipe}-smoke/model.onnx").exists()
