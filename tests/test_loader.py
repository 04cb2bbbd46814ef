"""Whatever a recipe file holds, it loads or gives one line that says where, what, and what to do."""

import copy
import io
import math
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLWarning

from compressor.errors import RecipeError
from compressor.loader import load_recipe
from compressor.recipe import Recipe
from compressor.settings.serving import DropGate, SizeGate

WHOLE = """\
version: 1
name: tiny
data:
  train: train.csv
  test: {path: test.csv, limit: 5}
teacher:
  model: ./model
  finetune: {epochs: 1}
distill:
  student: {layers: [0, 2]}
  objectives:
    - {type: minilmv2, end: 0.5}
    - {type: soft_labels, start: 0.5}
length_adapt: {}
quantize: {}
search: {population: 12}
gates:
  - {metric: accuracy, max_drop: 1.0%}
  - {metric: size, max: 40MB}
"""


ASSISTANT = "assistant: {student: {bilstm: {}}, objectives: [{type: soft_labels}], "
"""An assistant that is a BiLSTM, with its last key and the bracket left open."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def changed(*changes: str) -> str:
    """The whole recipe with parts of its text replaced: old, new, old, new, …"""
    text = WHOLE
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def refusal(path: Path, text: str | bytes, *changes: str) -> str:
    """What the loader says of a text, without the path that every message starts with."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, changes)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}:").strip()


def loaded(path: Path, text: str, *changes: str) -> Recipe:
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, changes)


def test_a_whole_recipe_is_read_with_its_units_and_short_forms(path: Path) -> None:
    recipe = loaded(path, WHOLE)
    assert (recipe.data.train.path, recipe.data.train.limit) == ("train.csv", None)
    assert recipe.data.test is not None
    assert recipe.data.test.limit == 5
    assert recipe.gates == (DropGate(metric="accuracy", max_drop="1.0%"), SizeGate(metric="size", max="40MB"))  # type: ignore[arg-type]
    assert isinstance(recipe.gates[0], DropGate)
    assert math.isclose(recipe.gates[0].max_drop, 0.01)
    assert recipe.root == path.parent


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("search:", "serach:"), "16:1: unknown key serach; did you mean search?"),
        (("quantize: {}", "quantify: {}"), "15:1: unknown key quantify; did you mean quantize?"),
        (("epochs: 1", "epoch: 1"), "8:14: unknown key teacher.finetune.epoch; did you mean epochs?"),
        (("end: 0.5", "ends: 0.5"), "12:24: unknown key distill.objectives.0.ends; did you mean end?"),
        (("start: 0.5", "temprature: 2"), "13:27: unknown key distill.objectives.1.temprature; did you mean temperature?"),
        (("max_drop: 1.0%", "max_dorp: 1.0%"), "18:24: unknown key gates.0.max_dorp; did you mean max_drop? (and 1 more)"),
        (("quantize: {}", "quantize: {zzz: 1}"), "15:12: unknown key quantize.zzz; known here: backend"),
        (("quantize: {}", "5: 6"), "15:1: unknown key 5; known here: assistant, cascade, data, "),
        (("quantize: {}", "quantize: {5: 6}"), "15:12: unknown key quantize.5; known here: backend"),
        (("quantize: {}", "? [a, b]\n: 1"), "15:3: unknown key ('a', 'b'); known here: "),
        (("quantize: {}", '"a\\nb": 1'), "15:1: unknown key a b; known here: "),
        (("quantize: {}", '"\\e[31m": 1'), "15:1: unknown key \\x1b[31m; known here: "),
        (("quantize: {}", "_root: /"), "15:1: unknown key _root; known here: "),
    ],
)
def test_an_unknown_key_is_told_with_its_place_and_the_nearest_key(path: Path, changes: tuple[str, ...], message: str) -> None:
    assert refusal(path, changed(*changes)).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("epochs: 1", "epochs: many"), "8:14: teacher.finetune.epochs is 'many': input should be a valid number"),
        (("epochs: 1", "epochs: true"), "8:14: teacher.finetune.epochs is True: input should be a valid number"),
        (("epochs: 1", "epochs: '1'"), "8:14: teacher.finetune.epochs is '1': input should be a valid number"),
        (("epochs: 1", "epochs: .nan"), "8:14: teacher.finetune.epochs is nan: input should be a finite number"),
        (("epochs: 1", "epochs: .inf"), "8:14: teacher.finetune.epochs is inf: input should be a finite number"),
        (("epochs: 1", "epochs: ~"), "8:14: teacher.finetune.epochs is empty: input should be a valid number"),
        (("epochs: 1", "epochs: 0"), "8:14: teacher.finetune.epochs is 0: input should be greater than 0"),
        (("epochs: 1", "warmup: 1.5"), "8:14: teacher.finetune.warmup is 1.5: input should be less than or equal to 1"),
        (("epochs: 1", "precision: float16"), "8:14: teacher.finetune.precision is 'float16': input should be 'auto', 'float32' or"),
        (("limit: 5", "limit: true"), "5:26: data.test.limit is True: input should be a valid integer"),
        (("limit: 5", "limit: 5.5"), "5:26: data.test.limit is 5.5: input should be a valid integer"),
        (("limit: 5", f"limit: {2**63}"), "5:26: data.test.limit: input should be less than or equal to 9223372036854775807"),
        (("population: 12", "population: 10"), "16:10: search.population is 10: input should be a multiple of 4"),
        (("train.csv", "[train.csv]"), "4:3: data.train: write keys and values"),
        (("train.csv", "''"), "4:3: data.train is '': string should have at least 1 character"),
        (
            ("layers: [0, 2]", "layers: '02'"),
            "10:13: distill.student.layers is '02': write layers as [0, 5, 11], every second, first 4 or last 4",
        ),
        (("layers: [0, 2]", "layers: []"), "10:13: distill.student.layers: write layers as [0, 5, 11]"),
        (("layers: [0, 2]", "layers: [0, -2]"), "10:25: distill.student.layers.1 is -2: input should be greater than or equal to 0"),
        (("layers: [0, 2]", "layers: [0, true]"), "10:25: distill.student.layers.1 is True: input should be a valid integer"),
        (("quantize: {}", "quantize: [onnxruntime]"), "15:1: quantize: write keys and values"),
        (("name: tiny", "name: 5"), "2:1: name is 5: write a text; in quotes"),
        (("name: tiny", "name: true"), "2:1: name is True: write a text; in quotes"),
        (("name: tiny", "name: 2024-01-01"), "2:1: name is 2024-01-01: write a text; in quotes"),
        (("name: tiny", "name: ../up"), "2:1: name is '../up': use letters, digits"),
        (("name: tiny", f"name: {'a' * 500}"), f"2:1: name is '{'a' * 78}…: string should have at most 100 characters"),
        (("version: 1", "version: 2"), "1:1: version is 2: input should be 1"),
    ],
)
def test_a_wrong_value_is_told_with_its_place_its_key_and_what_fits(path: Path, changes: tuple[str, ...], message: str) -> None:
    assert refusal(path, changed(*changes)).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("max_drop: 1.0%", "max_drop: 1.0"), "18:24: gates.0.max_drop is 1.0: needs a positive number and a unit, one of %; write"),
        (
            ("max: 40MB", "max: 40"),
            "19:20: gates.1.max is 40: needs a positive number and a unit, one of MB, kB, GB; write for example 40MB",
        ),
        (("max: 40MB", "max: 40ms"), "19:20: gates.1.max is '40ms': needs a positive number and a unit, one of MB, kB, GB; write"),
        (("max: 40MB", "max: 4.0.0MB"), "19:20: gates.1.max is '4.0.0MB': needs a positive number and a unit"),
        (("max: 40MB", "max: -40MB"), "19:20: gates.1.max is '-40MB': needs a positive number and a unit"),
        (("max: 40MB", "max: [40MB]"), "19:20: gates.1.max: needs a positive number and a unit"),
        (("max_drop: 1.0%", "max_drop: 101%"), "18:24: gates.0.max_drop is '101%': lies not between 0% and 100%; write for example"),
        (
            ("size, max: 40MB", "latency, max: 8 sec"),
            "19:23: gates.1.max is '8 sec': needs a positive number and a unit, one of ms, us, s;",
        ),
    ],
)
def test_a_quantity_without_its_unit_is_told_with_an_example(path: Path, changes: tuple[str, ...], message: str) -> None:
    assert refusal(path, changed(*changes)).startswith(message)


@pytest.mark.parametrize(
    ("text", "value"), [("40MB", 40.0), ("40 MB", 40.0), ("0.5GB", 500.0), ("'500kB'", 0.5), (".5MB", 0.5)]
)  # fmt: skip
def test_units_are_converted(path: Path, text: str, value: float) -> None:
    gate = loaded(path, changed("40MB", text)).gates[1]
    assert isinstance(gate, SizeGate)
    assert math.isclose(gate.max, value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("metric: size, ", ""), "19:5: gates.1.metric is missing; it says which kind this is"),
        (("metric: size", "metric: sise"), "19:6: gates.1.metric is 'sise'; did you mean size?"),
        (("metric: size", "metric: weight"), "19:6: gates.1.metric is 'weight'; choose one of 'accuracy', 'macro_f1', 'micro_f1', 'spea"),
        (("metric: size", 'metric: "a\\nb"'), "19:6: gates.1.metric is 'a\\nb'; choose one of "),
        (("type: minilmv2", "type: minilmv3"), "12:8: distill.objectives.0.type is 'minilmv3'; did you mean minilmv2?"),
        ((", max: 40MB", ""), "19:5: gates.1.max is missing; add it"),
        (("{metric: size, max: 40MB}", "size"), "19:5: gates.1 is 'size': write keys and values"),
        (("  train: train.csv\n", ""), "3:1: data.train is missing; add it ('compress schema' documents every key)"),
        (("name: tiny\n", ""), "1:1: name is missing; add it ('compress schema' documents every key)"),
    ],
)
def test_a_missing_key_or_an_unknown_kind_is_told_with_its_remedy(path: Path, changes: tuple[str, ...], message: str) -> None:
    assert refusal(path, changed(*changes)).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("length_adapt: {}\n", ""), "1:1: recipe: `search` chooses lengths of a length-adaptive student: add a `length_adapt` section"),
        (("length_adapt: {}", "length_adapt: {significance: question}"), "14:1: length_adapt: significance question asks the question's"),
        (("length_adapt: {}", "length_adapt: {protect: question}"), "1:1: recipe: length_adapt.protect question keeps the first text of a"),
        (("metric: accuracy", "metric: macro_f1"), "1:1: recipe: a gate asks for macro_f1, but task.metric is accuracy"),
        (
            ("search: {population: 12}", "search: {truncate: true}", "  train: train.csv", "  train: train.csv\n  text_pair: other"),
            "1:1: recipe: search.truncate reads the beginning of a text, and of a pair the second text would go first: leave it out",
        ),
        (
            ("search: {population: 12}", "search: {truncate: true}", "name: tiny", "name: tiny\ntask: {type: token-classification}"),
            "1:1: recipe: search.truncate reads the beginning of a text, and token-classification asks of every word: leave it out",
        ),
        (("search: {population: 12}", "default_point: fast"), "1:1: recipe: default_point fast comes from a search: add a `search`"),
        (("end: 0.5", "start: 0.5, end: 0.5"), "12:7: distill.objectives.0: start 0.5 is not before end 0.5"),
        (("end: 0.5", "start: 0.6, end: 0.5"), "12:7: distill.objectives.0: start 0.6 is not before end 0.5"),
        (("end: 0.5", "start: 0.2"), "9:1: distill: no objective is active at 0% of the training"),
        (("end: 0.5", "end: 0.4"), "9:1: distill: no objective is active at 40% of the training"),
        (("start: 0.5", "start: 0.5, end: 0.9"), "9:1: distill: no objective is active at 90% of the training"),
        (
            ("layers: [0, 2]", "layers: [0, 2], model: ./small"),
            "10:3: distill.student: name one of `model`, `layers` of the teacher, and `bilstm`",
        ),
        (("layers: [0, 2]", ""), "10:3: distill.student: name one of `model`, `layers` of the teacher, and `bilstm`"),
        (("layers: [0, 2]", "model: ./small, hidden_size: 16"), "10:3: distill.student: hidden_size cuts `layers` of the teacher"),
        (("length_adapt: {}", "length_adapt: {layer_drop: 0.2, sandwiches: 0}"), "14:1: length_adapt: layer_drop skips layers of random"),
        (
            (
                "distill:\n  student: {layers: [0, 2]}",
                "assistant: {student: {layers: [0], vocabulary: corpus}, objectives: [{type: labels}]}\n"
                "distill:\n  augment: {}\n  student: {model: ./small}",
            ),
            "1:1: recipe: distill.augment puts in words that an assistant with the vocabulary of the corpus does not know",
        ),
        (
            (
                "layers: [0, 2]",
                "bilstm: {}",
                "length_adapt: {}\nquantize: {}\nsearch: {population: 12}",
                "target: {backend: openvino}",
                "{type: minilmv2, end: 0.5}",
                "{type: logits, end: 0.5}",
            ),
            "1:1: recipe: a bilstm's padding is read by OpenVINO where its layers are in float: set target.backend onnxruntime, or add",
        ),
        (("layers: [0, 2]", "bilstm: {}"), "1:1: recipe: a bilstm student has no lengths to adapt: leave `length_adapt` and `search` out"),
        (
            ("layers: [0, 2]", "model: ./small", "{type: soft_labels, start: 0.5}", "{type: hidden_cosine, start: 0.5}"),
            "1:1: recipe: distill.objectives: none of them reaches the logits: the head of a student by `model` or `bilstm` is new",
        ),
        (
            ("layers: [0, 2]", "bilstm: {}", "length_adapt: {}\n", "", "search: {population: 12}\n", ""),
            "1:1: recipe: distill.objectives: minilmv2 looks inside self-attention, which a bilstm has not; use soft_labels, logits and",
        ),
        (
            ("layers: [0, 2]", "bilstm: {}", "length_adapt: {}\n", "", "search: {population: 12}", "export: {exporter: dynamo, opset: 18}"),
            "1:1: recipe: the dynamo exporter cannot write a bilstm: set export.exporter torchscript",
        ),
        (
            ("layers: [0, 2]", "bilstm: {}", "length_adapt: {}\n", "", "search: {population: 12}", "export: {portable: true}"),
            "1:1: recipe: a bilstm in INT8 is an operator of onnxruntime's own: leave `quantize`, or export.portable, out",
        ),
        (
            (
                "layers: [0, 2]",
                "bilstm: {}",
                "length_adapt: {}\n",
                "",
                "search: {population: 12}\n",
                "",
                "quantize: {}",
                "quantize: {backend: nncf}",
            ),
            "1:1: recipe: nncf leaves a bilstm's layers in float: set quantize.backend onnxruntime, which makes them INT8",
        ),
        (
            ("distill:", f"{ASSISTANT}recycled_layers: 1}}\ndistill:"),
            "1:1: recipe: a bilstm student has no layers to recycle: leave assistant.recycled_layers out",
        ),
        (
            (
                "distill:",
                f"{ASSISTANT}epochs: 1}}\ndistill:",
                "version: 1",
                "version: 1\ntask: {type: token-classification, metric: entity_f1}",
            ),
            "1:1: recipe: a bilstm student answers for whole texts, not for token-classification",
        ),
        (
            ("distill:", f"{ASSISTANT}epochs: 1}}\ndistill:"),
            "1:1: recipe: distill.objectives: minilmv2 looks inside self-attention, which a bilstm",
        ),
        (
            ("distill:", f"{ASSISTANT}epochs: 1}}\ndistill:", "{type: minilmv2, end: 0.5}", "{type: logits}"),
            "1:1: recipe: a bilstm assistant has no layers to take: name the student of `distill` by `model` or `bilstm`",
        ),
        (
            (
                "{type: minilmv2, end: 0.5}",
                "{type: labels}",
                "{type: soft_labels, start: 0.5}",
                "{type: labels}",
                "train: train.csv",
                "train: train.csv\n  unlabelled: more.txt",
            ),
            "1:1: recipe: data.unlabelled holds texts that only the teacher answers, and distill.objectives are labels alone: add",
        ),
        (
            (
                "{type: minilmv2, end: 0.5}",
                "{type: soft_labels, end: 0.7}",
                "{type: soft_labels, start: 0.5}",
                "{type: labels, start: 0.4}",
                "train: train.csv",
                "train: train.csv\n  unlabelled: more.txt",
            ),
            "1:1: recipe: data.unlabelled holds texts that only the teacher answers, and distill.objectives are labels alone at 70% of the",
        ),
        (
            ("  student:", "  augment: {mask: 0, swap: 0, ngrams: 0}\n  student:"),
            "10:3: distill.augment: mask and swap add up to at most 1",
        ),
        (
            (
                "{type: minilmv2, end: 0.5}",
                "{type: labels}",
                "{type: soft_labels, start: 0.5}",
                "{type: labels}",
                "  student:",
                "  augment: {}\n  student:",
            ),
            "1:1: recipe: distill.augment makes texts that only the teacher answers: add",
        ),
        (
            (
                "{type: minilmv2, end: 0.5}",
                "{type: soft_labels, end: 0.7}",
                "{type: soft_labels, start: 0.5}",
                "{type: labels, start: 0.4}",
                "  student:",
                "  augment: {}\n  student:",
            ),
            "1:1: recipe: distill.augment makes texts that only the teacher answers, which teach nothing at 70% of the training: add",
        ),
        (
            ("finetune: {epochs: 1}", "finetune: {adapter_size: 8}"),
            "8:3: teacher.finetune: adapter_size belongs to method adapters, but method is full",
        ),
        (
            ("version: 1", "version: 1\ntask: {type: masked-lm}"),
            "1:1: recipe: a masked-lm recipe ends with an encoder that answers no task yet: leave `length_adapt` out",
        ),
        (
            ("version: 1", "version: 1\ntask: {type: token-classification}", "data:", "data:\n  text_pair: other"),
            "1:1: recipe: token-classification tags the words of one text: leave data.text_pair out",
        ),
        (
            ("version: 1", "version: 1\ntask: {type: masked-lm, metric: macro_f1}"),
            "2:1: task: masked-lm has no metric macro_f1: set metric: accuracy",
        ),
    ],
)
def test_parts_that_contradict_each_other_are_told(path: Path, changes: tuple[str, ...], message: str) -> None:
    assert refusal(path, changed(*changes)).startswith(message)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("data.label=stars", "reads plain text: leave data.label out"),
        ("data.search=a.txt", "answers nothing that is searched or reported: leave data.search out"),
        ("data.test=a.txt", "answers nothing that is searched or reported: leave data.test out"),
        ("export.opset=18", "ends with an encoder in torch: leave `export` out"),
        ("target.threads=4", "ends with an encoder in torch: leave `target` out"),
        ("teacher.finetune.method=lora", "which learn with all else: leave teacher.finetune.method out"),
        ("teacher.finetune.method=freeze", "which learn with all else: leave teacher.finetune.method out"),
    ],
)
def test_what_an_encoder_on_its_own_has_no_use_for_is_told(path: Path, change: str, told: str) -> None:
    text = "version: 1\nname: x\ntask: {type: masked-lm}\ndata: {train: a.txt}\nteacher: {model: ./m, finetune: {}}\n"
    assert loaded(path, text).name == "x"
    assert told in refusal(path, text, change)


@pytest.mark.parametrize("layers", ["every third", "first 0", "last", "[-1]", "[a]", "[]", "5"])
def test_a_layer_map_that_is_none_is_told_with_what_fits(path: Path, layers: str) -> None:
    told = refusal(path, changed("[0, 2]", layers))
    assert told.startswith("10:")
    assert "distill.student.layers" in told


@pytest.mark.parametrize(("text", "layers"), [("every second", "every second"), ("last 4", "last 4"), ("[0, 2]", (0, 2))])
def test_layer_maps_are_read(path: Path, text: str, layers: object) -> None:
    recipe = loaded(path, changed("[0, 2]", text))
    assert recipe.distill is not None
    assert recipe.distill.student.layers == layers


@pytest.mark.parametrize("share", ["1e-5", "1E-5", "0.00001"])
def test_a_number_in_scientific_notation_is_a_number(path: Path, share: str) -> None:
    teacher = loaded(path, changed("epochs: 1", f"learning_rate: {share}")).teacher
    assert teacher.finetune is not None
    assert teacher.finetune.learning_rate == 1e-5


@pytest.mark.parametrize("word", ["off", "on", "yes", "no", "y", "n", "Off", "NO"])
def test_what_yaml_1_1_took_for_a_boolean_is_a_text(path: Path, word: str) -> None:
    assert loaded(path, changed("name: tiny", f"name: {word}")).name == word


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("name: tiny", "name: tiny\nname: other"), '3:1: found duplicate key "name"'),
        (("limit: 5", "limit: 5, limit: 6"), '5:36: found duplicate key "limit"'),
        (("layers: [0, 2]", "layers: [0, 2"), "10:26: expected ',' or ']', but got '}'; mend the YAML there"),
        (("quantize: {}", "\tquantize: {}"), "15:1: found character '\\t' that cannot start any token; mend the YAML there"),
        (("quantize: {}", "quantize: *nowhere"), "15:11: found undefined alias 'nowhere'; mend the YAML there"),
        (("quantize: {}", "---\nquantize: {}"), "15:1: but found another document; mend the YAML there"),
    ],
)
def test_broken_yaml_is_told_with_its_place(path: Path, changes: tuple[str, ...], message: str) -> None:
    assert refusal(path, changed(*changes)).startswith(message)


@pytest.mark.parametrize(
    "odd",
    [
        "!!bool maybe",
        "!!int many",
        "!!float many",
        "2024-13-45",
        "9" * 5000,
        "[" * 500,
        '"\\ud800"',
        "!tagged text",
        "!!python/object/apply:os.system ['true']",
        "|\n  two\n  lines",
        "&self [*self]",
        "{<<: 5}",
        "a\0b",
        "a\x07b",
    ],
)
def test_what_the_yaml_reader_stumbles_over_is_told_in_one_line(path: Path, odd: str) -> None:
    message = refusal(path, changed("name: tiny", f"name: {odd}"))
    assert len(message) < 400
    assert re.search("mend|write|use|should", message)


def test_a_recipe_that_is_not_utf8_is_told_with_the_byte(path: Path) -> None:
    assert refusal(path, b"version: 1\nname: caf\xe9\n") == "byte 20 is not UTF-8; save the recipe as UTF-8"


def test_a_recipe_may_begin_with_a_byte_order_mark(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + WHOLE.encode())
    assert load_recipe(path).name == "tiny"


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "---\n", "- version: 1\n- name: list\n", "version", "5"])
def test_what_is_no_mapping_is_told_how_to_start_one(path: Path, text: str) -> None:
    assert refusal(path, text) == "a recipe is a mapping of keys; start one with 'compress init'"


def test_a_missing_recipe_names_the_nearest_file(path: Path) -> None:
    path.write_text(WHOLE)
    with pytest.raises(RecipeError, match=re.escape(f"recipes.yaml: no such recipe; did you mean {path}?")):
        load_recipe(path.with_name("recipes.yaml"))


def test_a_missing_recipe_with_nothing_near_points_to_init(path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe; write one with 'compress init'"):
        load_recipe(path)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Is a directory; name a readable YAML file"):
        load_recipe(tmp_path)


def test_a_name_with_a_newline_stays_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "two\nlines.yaml")
    assert "two\\nlines.yaml: no such recipe" in str(caught.value)


def test_set_changes_a_key_and_keeps_the_others(path: Path) -> None:
    before, after = loaded(path, WHOLE), loaded(path, WHOLE, "distill.epochs=1", "distill.learning_rate=1e-5")
    assert before.distill is not None
    assert after.distill is not None
    assert (after.distill.epochs, after.distill.learning_rate) == (1, 1e-5)
    assert after.distill.objectives == before.distill.objectives


def test_set_reaches_into_the_short_form_of_a_split(path: Path) -> None:
    train = loaded(path, WHOLE, "data.train.limit=8").data.train
    assert (train.path, train.limit) == ("train.csv", 8)


def test_set_changes_one_place_of_what_an_alias_shares(path: Path) -> None:
    text = changed("finetune: {epochs: 1}", "finetune: &how {epochs: 3}", "length_adapt: {}", "length_adapt: *how")
    recipe = loaded(path, text, "length_adapt.epochs=1")
    assert recipe.length_adapt is not None
    assert recipe.teacher.finetune is not None
    assert (recipe.length_adapt.epochs, recipe.teacher.finetune.epochs) == (1, 3)


def test_set_of_another_file_keeps_how_much_of_it_is_read(path: Path) -> None:
    test = loaded(path, WHOLE, "data.test=other.csv").data.test
    assert test is not None
    assert (test.path, test.limit) == (os.path.abspath("other.csv"), 5)
    assert loaded(path, WHOLE, "data.test=null").data.test is None


def test_set_makes_a_section_that_is_not_there_and_removes_one(path: Path) -> None:
    recipe = loaded(path, WHOLE, "target.threads=2", "search=null", "gates=[{metric: latency, max: 8ms}]")
    assert (recipe.target.threads, recipe.search) == (2, None)
    assert [gate.metric for gate in recipe.gates] == ["latency"]


@pytest.mark.parametrize(
    "key", ["data.train", "data.train.path", "teacher.model", "distill.student.model", "recycle.store", "cascade.calibration"]
)
def test_set_takes_a_path_from_where_the_user_stands(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    here = tmp_path / "elsewhere"
    here.mkdir()
    (here / "mine").touch()
    monkeypatch.chdir(here)
    before = {
        "distill.student.model": "distill.student={model: x}",
        "recycle.store": "recycle={layer: 1}",
        "cascade.calibration": "cascade={members: [{point: full}, {teacher: int8}], max_drop: 1%}",
    }
    changes = [before[key], f"{key}=mine"] if key in before else [f"{key}=mine"]
    node: Any = loaded(path, WHOLE, *changes)
    for part in key.split("."):
        node = getattr(node, part)
    assert getattr(node, "path", node) == str(here / "mine")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("data.train={path: mine, limit: 3}", "data.train.path"),
        ("data={train: mine, text: review, label: stars}", "data.train.path"),
        ("teacher={model: mine}", "teacher.model"),
        ("cascade={members: [{point: full}, {bundle: mine}], max_drop: 1%}", "cascade.members.1.bundle"),
        ("recycle={layer: 1, store: not-yet/there}", "recycle.store"),
    ],
)
def test_set_takes_paths_inside_what_it_sets_from_where_the_user_stands(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, key: str
) -> None:
    here = tmp_path / "elsewhere"
    here.mkdir()
    (here / "mine").touch()
    monkeypatch.chdir(here)
    node: Any = loaded(path, WHOLE, change)
    for part in key.split("."):
        node = node[int(part)] if part.isdigit() else getattr(node, part)
    assert node == str(here / ("not-yet/there" if "store" in change else "mine"))


def test_set_takes_a_store_that_is_not_there_yet_from_where_the_user_stands(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for store, meant in (("mine", str(tmp_path / "mine")), ("~/mine", "~/mine")):
        recycle = loaded(path, WHOLE, "recycle={layer: 1}", f"recycle.store={store}").recycle
        assert recycle is not None
        assert recycle.store == meant


def test_set_leaves_what_is_no_path_alone_even_when_a_file_is_called_so(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "review").touch()
    data = loaded(path, WHOLE, "data.text=review", "data.train=org/reviews").data
    assert (data.text, data.train.path) == ("review", "org/reviews")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("distill.epochs", "--set distill.epochs: write it as section.key=value"),
        ("=1", "--set =1: write it as section.key=value"),
        ("data..limit=1", "--set data..limit=1: write it as section.key=value"),
        ("gates.0.max=1MB", "--set gates.0.max=1MB: gates.0 holds no keys"),
        ("distil.epochs=1", "1:1: unknown key distil; did you mean distill?"),
        ("distill.epoch=1", "9:1: unknown key distill.epoch; did you mean epochs?"),
        ("name=", "2:1: name is empty: write a text"),
        ("seed=2024-13-45", "1:1: seed is '2024-13-45': input should be a valid integer"),
        ("seed=" + "9" * 5000, f"1:1: seed is '{'9' * 78}…: "),
        ("seed=" + "[" * 500, f"1:1: seed is '{'[' * 78}…: "),
        ("seed=!!bool maybe", "1:1: seed is '!!bool maybe': input should be a valid integer"),
        ("gates=&self [*self]", "17:1: gates"),
        ("target=&self {deep: {er: *self}}", "1:1: "),
        ("a\nb=1", "1:1: unknown key a b; known here: "),
        ("name=\udcff", "2:1: name is '\\udcff': "),
    ],
)
def test_a_bad_set_is_refused(path: Path, change: str, message: str) -> None:
    assert refusal(path, WHOLE, change).startswith(message)


def test_set_of_a_very_long_text_is_no_path(path: Path) -> None:
    assert loaded(path, WHOLE, f"data.train={'a' * 5000}").data.train.path == "a" * 5000


# What no one thinks of: text and values at random. Either a recipe, or one printable line.

TOKENS = [
    *"{}[],:#&*!|>'\"%@`-? \n\t",
    "version: 1\n",
    "name: a\n",
    "data: ",
    "train: ",
    "- ",
    "---\n",
    "<<: ",
    "&a ",
    "*a",
    "!!bool ",
    "\x85",
    "\ud800",
    "é",
]
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates() | st.datetimes() | st.binary(max_size=8)
)
KEYS = st.text(max_size=12) | st.sampled_from([*Recipe.model_fields, "type", "metric", "max", "path"]) | st.integers() | st.none()
VALUES = st.recursive(
    SCALARS | st.just("1.0%") | st.integers(10**20, 10**30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


def check(text: bytes, *changes: str) -> None:
    """Load the text from a file: a recipe, or one printable line; anything else fails the test."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", YAMLWarning)  # ruamel's own, about anchors that are used twice
        path = Path(folder, "recipe.yaml")
        path.write_bytes(text)
        try:
            message = load_recipe(path, changes).name
        except RecipeError as error:
            message = str(error)
    assert message.isprintable()
    assert len(message) < 800


@settings(max_examples=300)
@given(st.text() | st.lists(st.sampled_from(TOKENS)).map("".join))
@example("%YAML 1.9\n---\na: 1")
@example("a: &x [*x]")
def test_any_text_loads_or_is_refused_in_one_line(text: str) -> None:
    check(text.encode("utf-8", "surrogatepass"))


@settings(max_examples=100)
@given(st.binary())
def test_any_bytes_load_or_are_refused_in_one_line(content: bytes) -> None:
    check(content)


@settings(max_examples=300)
@given(st.integers(0, len(WHOLE)), st.integers(0, 12), st.sampled_from(TOKENS) | st.text(max_size=5))
def test_any_slip_of_the_pen_loads_or_is_refused_in_one_line(position: int, removed: int, inserted: str) -> None:
    check((WHOLE[:position] + inserted + WHOLE[position + removed :]).encode("utf-8", "surrogatepass"))


def places(node: Any) -> Iterator[dict[Any, Any]]:
    """Every mapping of a document, the outermost first."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from places(child)


DOCUMENT = YAML(typ="safe").load(WHOLE)


@settings(max_examples=300)
@given(st.data())
def test_any_value_at_any_place_loads_or_is_refused_in_one_line(data: st.DataObject) -> None:
    document = copy.deepcopy(DOCUMENT)
    place = data.draw(st.sampled_from(list(places(document))))
    place[data.draw(st.sampled_from([*place, *DOCUMENT]) | KEYS)] = data.draw(VALUES)
    text = io.StringIO()
    YAML().dump(document, text)
    check(text.getvalue().encode("utf-8", "surrogatepass"))


@settings(max_examples=200)
@given(st.sampled_from(["name", "seed", "data.train", "data.train.limit", "gates", "distill.student.layers", "x.y"]), st.text())
def test_any_set_loads_or_is_refused_in_one_line(key: str, text: str) -> None:
    check(WHOLE.encode(), f"{key}={text}")


def test_the_document_that_values_are_put_into_loads(path: Path) -> None:
    text = io.StringIO()
    YAML().dump(DOCUMENT, text)
    assert loaded(path, text.getvalue()) == loaded(path, WHOLE)


def test_a_file_of_set_that_is_missing_is_no_other_one(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stand").mkdir()
    monkeypatch.chdir(tmp_path / "stand")
    for named, meant in (("more.csv", tmp_path / "stand/more.csv"), ("../texts", tmp_path / "texts"), ("owner/data", "owner/data")):
        test = loaded(path, WHOLE, f"data.test={named}").data.test
        assert test is not None
        assert test.path == str(meant)
    for kept in ("package:some/more.csv", "~/more.csv"):
        test = loaded(path, WHOLE, f"data.test={kept}").data.test
        assert test is not None
        assert test.path == kept


def test_aliases_within_aliases_take_no_longer_than_they_are(path: Path) -> None:
    """Nine levels of ten aliases each are a thousand million values."""
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 10))
    assert "unknown key l0" in refusal(path, f"l0: &l0 [x]\n{levels}".encode() + WHOLE.encode())
