"""Read a recipe: YAML 1.2 with places, `--set` changes, and errors in the user's words."""

import copy
import difflib
import os
import types
import typing
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from compressor.errors import RecipeError
from compressor.recipe import Recipe
from compressor.settings.base import SPLITS
from compressor.sources import DATA_SUFFIXES

SHORT = {**dict.fromkeys((*SPLITS, "unlabelled", "calibration"), "path"), "recycled_layers": "layer"}
"""Sections that may be written as one value, and the key that it stands for."""

PATHS = frozenset({"model", "path", "embeddings", "bundle", "unlabelled", "calibration", *SPLITS})
"""Keys whose texts may name a file or a folder."""
Location = Sequence[str | int]
LONGEST_SHOWN = 80
"""Characters of a user's own value that an error repeats."""
WORDS = {
    "string_type": "write a text; in quotes, where YAML reads a number or a date",
    "string_pattern_mismatch": "use letters, digits, dots, dashes and underscores, with a letter or digit first",
    "tuple_type": "write a list, [a, b]",
    "model_type": "write keys and values, {key: value}",
    "model_attributes_type": "write keys and values, {key: value}",
}
"""What to do about errors that pydantic tells in terms of Python."""


def load_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Return the checked recipe of a file, with `a.b=value` changes applied.

    Raises:
        RecipeError: names file, line, column, the key and, where one is near, the key that was meant.
    """
    document = _read(path)
    for change in changes:
        _apply(document, change)
    try:
        recipe = Recipe.model_validate(_plain(document))
    except ValidationError as error:
        raise RecipeError(_first_error(path, document, error)) from None
    except RecursionError:
        raise RecipeError(f"{path}: nested too deeply, or an alias that holds itself; write it out") from None
    recipe._root, recipe._options = path.resolve().parent, tuple(part for change in changes for part in ("--set", change))
    return recipe


def _read(path: Path) -> Any:
    try:
        document = _yaml().load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "write one with 'compress init'"
        raise RecipeError(f"{path}: no such recipe; {hint}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: byte {error.start} is not UTF-8; save the recipe as UTF-8") from None
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}; name a readable YAML file") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise RecipeError(f"{place}: {_shortened(str(error.problem), 200)}; mend the YAML there") from None
    except Exception as error:  # ruamel lets ValueError, KeyError, AssertionError, RecursionError and more through
        raise RecipeError(f"{path}: not YAML ({type(error).__name__}: {_shortened(str(error), 200)}); mend it") from None
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys; start one with 'compress init'")
    return document


def _yaml() -> YAML:
    yaml = YAML()
    yaml.allow_duplicate_keys = False
    return yaml


def _plain(node: Any, known: dict[int, Any] | None = None) -> Any:
    """Return ruamel's marked values as Python's own types; what is named in several places by an alias is one object in all of them."""
    known = {} if known is None else known
    if isinstance(node, dict | list) and id(node) in known:
        return known[id(node)]
    if isinstance(node, dict):
        known[id(node)] = {str(key): _plain(value, known) for key, value in node.items()}
        return known[id(node)]
    if isinstance(node, list):
        known[id(node)] = [_plain(value, known) for value in node]
        return known[id(node)]
    if isinstance(node, ScalarBoolean):
        return bool(node)
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _apply(document: Any, change: str) -> None:
    """Apply `a.b=value`; a path in it is meant from where the user stands, not from where the recipe lies."""
    key, equals, text = change.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(f"--set {change}: write it as section.key=value")
    *parents, last = key.split(".")
    node = document
    for parent in parents:
        if not isinstance(node, dict):
            break
        if parent in SHORT and isinstance(node.get(parent), str | int):
            node[parent] = {SHORT[parent]: node[parent]}
        node[parent] = {} if node.get(parent) is None else copy.deepcopy(node[parent])  # an alias's other places stay as they are
        node = node[parent]
    if not isinstance(node, dict):
        raise RecipeError(f"--set {change}: {'.'.join(parents)} holds no keys")
    try:
        value = _plain(_yaml().load(text))
    except Exception:  # what is no YAML is a text: a path may begin with @
        value = text
    named, old = _from_here(last, value), node.get(last)
    if last in SHORT and isinstance(old, dict) and isinstance(named, str | int):
        named = {**old, SHORT[last]: named}  # another file, of which as much is read
    node[last] = named


def _from_here(key: str, value: Any) -> Any:
    """Return a value of `--set` with the paths in it made absolute: what is there, and a store or what names no model or data of the Hub,
    which are then not looked for beside the recipe."""
    if isinstance(value, dict):
        return {name: _from_here(name, inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_from_here(key, inner) for inner in value]
    if not isinstance(value, str):
        return value
    elsewhere = value.startswith(("~", "package:")) or "://" in value
    of_a_file = value.endswith(DATA_SUFFIXES) or value.startswith(("./", "../"))
    made = not elsewhere and (key == "store" or (key in PATHS and of_a_file))
    return os.path.abspath(value) if made or (key in PATHS and os.path.exists(value)) else value


def _first_error(path: Path, document: Any, error: ValidationError) -> str:
    details = error.errors(include_url=False)
    first = min(details, key=lambda d: (d["type"] != "extra_forbidden", d["type"] == "missing"))
    keys = _real_keys(document, first)
    line, column = _place(document, keys)
    dotted = _shortened(".".join(str(k) for k in keys), LONGEST_SHOWN) or "recipe"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{path}:{line}:{column}: {_words(dotted, keys, first)}{more}"


def _words(dotted: str, keys: list[str | int], detail: Any) -> str:
    if detail["type"] == "extra_forbidden":
        known = _fields_at(Recipe, keys[:-1])
        near = difflib.get_close_matches(str(keys[-1]), known, 1, cutoff=0.5)
        return f"unknown key {dotted}; " + (f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}")
    if detail["type"] == "missing":
        return f"{dotted} is missing; add it ('compress schema' documents every key)"
    context = detail.get("ctx", {})
    if detail["type"] == "union_tag_not_found":
        return f"{dotted} is missing; it says which kind this is ('compress schema' documents every key)"
    if detail["type"] == "union_tag_invalid":
        near = difflib.get_close_matches(str(context["tag"]), context["expected_tags"].replace("'", "").split(", "), 1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {context['expected_tags']}"
        return f"{dotted} is {_shortened(repr(context['tag']), LONGEST_SHOWN)}; {hint}"
    message = WORDS.get(detail["type"], detail["msg"].removeprefix("Value error, "))
    return f"{dotted}{_shown(detail['input'])}: {message[0].lower()}{message[1:]}"


def _shown(value: object) -> str:
    if value is None:
        return " is empty"
    if isinstance(value, dict | list) or (isinstance(value, int) and value.bit_length() > 63):
        return ""
    return f" is {_shortened(str(value) if isinstance(value, date) else repr(value), LONGEST_SHOWN)}"


def _shortened(text: str, longest: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _real_keys(document: Any, detail: Any) -> list[str | int]:
    """Drop what pydantic adds to a location (the tag of a union) and the document does not hold; keep a missing last key."""
    location: Location = detail["loc"]
    if detail["type"].startswith("union_tag"):
        location = (*location, detail["ctx"]["discriminator"].strip("'"))
    keys: list[str | int] = []
    node = document
    for position, key in enumerate(location):
        held: dict[Any, Any] = {}
        if isinstance(node, dict | list):
            held = {str(k): k for k in node} if isinstance(node, dict) else {k: k for k in range(len(node))}
        if key in held:
            keys.append(held[key])
            node = node[held[key]]
        elif position == len(location) - 1 and isinstance(node, dict) and detail["type"] in ("missing", "union_tag_not_found"):
            keys.append(key)
    return keys


def _place(document: Any, keys: list[str | int]) -> tuple[int, int]:
    line, column, node = 0, 0, document
    for key in keys:
        marks = getattr(node, "lc", None)
        try:
            line, column = marks.key(key) if isinstance(node, dict) else marks.item(key)  # type: ignore[union-attr]
        except (AttributeError, KeyError, TypeError):
            break  # a key that is missing, or came with --set: the place of its parent
        node = node[key]
    return line + 1, column + 1


def _fields_at(model: type[BaseModel], keys: Sequence[str | int]) -> list[str]:
    """Return the keys that a recipe may hold at this place (of any member, where it is a union)."""
    models: list[type[BaseModel]] = [model]
    for key in keys:
        if isinstance(key, str):
            models = [m for owner in models if key in owner.model_fields for m in _models_in(owner.model_fields[key].annotation)]
    return sorted({name for m in models for name in m.model_fields})


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in typing.get_args(annotation) for m in _models_in(part)]
