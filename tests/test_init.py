"""The first recipe is valid YAML, whatever the names, and never replaces a file."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from compressor.errors import RecipeError, UnfitError
from compressor.files import Columns
from compressor.init import SERVED, scalar, spread_layers, write_recipe
from compressor.loader import load_recipe
from compressor.settings.data import USUAL

BERT = "google-bert/bert-base-uncased"


def load(path: Path) -> dict[str, Any]:
    recipe: dict[str, Any] = YAML(typ="safe").load(path)
    return recipe


def test_the_recipe_says_what_was_asked(tmp_path: Path) -> None:
    path = tmp_path / "new" / "recipe.yaml"
    write_recipe(path, name="reviews", model=BERT, train="data/train.csv", text="body", label="stars", student_layers=3, threads=2)
    assert load(path) == {
        "version": 1,
        "name": "reviews",
        "seed": 17,
        "task": {"type": "text-classification", "metric": "accuracy"},
        "data": {"train": "data/train.csv", "text": "body", "label": "stars", "max_length": 128},
        "teacher": {"model": BERT, "finetune": {"epochs": 3, "batch_size": 32, "learning_rate": 5e-5}},
        "distill": {
            "student": {"layers": [0, 5, 11]},
            "epochs": 3,
            "objectives": [
                {"type": "minilmv2", "end": 0.4},
                {"type": "soft_labels", "temperature": 2.0, "weight": 0.9, "start": 0.4},
                {"type": "labels", "weight": 0.1, "start": 0.4},
            ],
        },
        "length_adapt": {"epochs": 2},
        "export": {},
        "quantize": {"backend": "onnxruntime"},
        "search": {"evaluations": 48},
        "target": {"threads": 2, "batch": 1},
        "gates": [
            {"metric": "accuracy", "against": "teacher", "max_drop": "1.0%"},
            {"metric": "speedup", "against": "teacher", "min": 4.0},
            {"metric": "size", "max": "60MB"},
        ],
    }


@pytest.mark.parametrize("task", SERVED)
def test_a_recipe_of_any_task_names_its_usual_columns_and_metric(task: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    write_recipe(path, name="mine", model=BERT, train="train.jsonl", task=task)
    recipe, written = load_recipe(path), load(path)
    assert recipe.columns() == Columns(*USUAL[task][:3])
    assert written["gates"][0]["metric"] == recipe.task.metric == USUAL[task].metrics[0]


def test_an_unknown_task_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no task 'qa'; choose text-classification, multi-label-classification, text-regression, token-"):
        write_recipe(tmp_path / "recipe.yaml", name="mine", model=BERT, train="train.jsonl", task="qa")


ODD = [
    "",
    "no",
    "Null",
    "1e-5",
    "017",
    "a: b",
    "# c",
    "- d",
    "{e}",
    "{0}",
    '"f"',
    "g'h",
    "i\\j",
    "k\nl",
    "~",
    "@m",
    "Ünï",
    "🙂",
    "\x85\x7f\u2028",
    "n\t",
    " o ",
]


@pytest.mark.parametrize("odd", [*ODD, "package:gt_demo/train.csv", r"C:\data\train.csv", "*.csv", "=", ".inf", "0x1F", "2024-01-01"])
def test_odd_names_are_read_back_as_they_were(tmp_path: Path, odd: str) -> None:
    path = tmp_path / "recipe.yaml"
    write_recipe(path, name=odd, model=odd, train=odd, text=odd, label=odd)
    recipe = load(path)
    assert [recipe["name"], recipe["teacher"]["model"], *list(recipe["data"].values())[:3]] == [odd] * 5


def test_an_odd_file_name_stays_in_its_comment(tmp_path: Path) -> None:
    path = tmp_path / "a\nname: evil {x}.yaml"
    write_recipe(path, name="reviews", model=BERT, train="train.csv")
    assert load(path)["name"] == "reviews"


def test_files_are_named_from_the_recipes_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "enc").mkdir()
    (tmp_path / "data/train.csv").touch()
    monkeypatch.chdir(tmp_path)
    for place, train, model in (("recipes/r.yaml", "../data/train.csv", "../enc"), ("r.yaml", "data/train.csv", "./enc")):
        write_recipe(Path(place), name="reviews", model="./enc", train="data/train.csv")
        told = load(Path(place))
        assert (told["data"]["train"], told["teacher"]["model"]) == (train, model)
        assert f"compress validate {place}\n" in Path(place).read_text(encoding="utf-8")
    write_recipe(Path("recipes/hub.yaml"), name="reviews", model=BERT, train="absent.csv")
    assert load(Path("recipes/hub.yaml"))["teacher"]["model"] == BERT


def test_a_simple_name_is_not_quoted() -> None:
    assert scalar("data/train-v1.csv.gz") == "data/train-v1.csv.gz"


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("mine")
    with pytest.raises(RecipeError, match="another file name"):
        write_recipe(path, name="reviews", model=BERT, train="train.csv")
    assert path.read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnfitError, match="cannot be written"):
        write_recipe(tmp_path / "file" / "deep" / "recipe.yaml", name="reviews", model=BERT, train="train.csv")


@pytest.mark.parametrize("numbers", [{"student_layers": 0}, {"student_layers": 13}, {"threads": 0}])
def test_numbers_out_of_range_write_nothing(tmp_path: Path, numbers: dict[str, int]) -> None:
    with pytest.raises(RecipeError):
        write_recipe(tmp_path / "recipe.yaml", name="reviews", model=BERT, train="train.csv", **numbers)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("student", "layers"), [(1, [0]), (2, [0, 11]), (4, [0, 3, 7, 11]), (6, [0, 2, 4, 6, 8, 11]), (12, list(range(12)))]
)
def test_layers_are_spread_evenly(student: int, layers: list[int]) -> None:
    assert spread_layers(student, 12) == layers


def test_a_second_text_has_a_column(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    write_recipe(path, name="pairs", model=BERT, train="train.csv", text="premise", text_pair="hypothesis")
    assert "  text: premise\n  text_pair: hypothesis\n  label: label\n" in path.read_text(encoding="utf-8")
    with pytest.raises(RecipeError, match="reads one text: leave --text-pair out"):
        write_recipe(tmp_path / "other.yaml", name="pairs", model=BERT, train="train.csv", task="token-classification", text_pair="second")
