"""The members of a recipe's cascade: operating points of its graph, its early exit, its teacher, and other bundles."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from compressor import checkpoint, machine, sources
from compressor.bundles import verify
from compressor.cascade import GOES_ON, GRAPH, MEMBERS, STOPS, Answer, reader, whole
from compressor.data import Example
from compressor.encoded import pad_id_of, tokenizer_of
from compressor.errors import RecipeError
from compressor.exits import EXIT, Exit
from compressor.graphs import export_graph, layered, parity
from compressor.halves import BACK, FRONT
from compressor.halving import export_exit
from compressor.inputs import Inputs, deployed, is_single, lengths_of
from compressor.modeling import PlainModel
from compressor.plan import check_task
from compressor.products import check_int8
from compressor.progress import Progress
from compressor.quantizers import dynamic
from compressor.recipe import Recipe
from compressor.session import Graph
from compressor.settings.serving import Member as Asked
from compressor.splits import MODEL, Splits, task_of
from compressor.windows import Windows

NAMED = 5
"""Labels of each side that are named where two differ."""


@dataclass(frozen=True)
class Member:
    """A member as a bundle describes it, and how it reads and answers."""

    facts: Mapping[str, Any]
    read: Callable[[Sequence[Example]], Windows]
    answer: Answer
    """As many texts beside each other as the build has workers."""
    timed: Answer
    """As a runtime answers: with the target's threads."""
    continued: "Member | None" = None
    """The same student as it goes on from the early exit before it, where it may."""


def members_of(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> list[Member]:
    """Return the members in their order; the graphs of those that are no operating point are put under `out`.

    Raises:
        BundleError: one is no bundle, or was changed.
        RecipeError: one answers something else.
    """
    assert recipe.cascade is not None
    built = [_member(asked, number, recipe, inputs, out, log) for number, asked in enumerate(recipe.cascade.members)]
    if built[0].continued and recipe.cascade.members[1].point == "full":
        built[1] = dataclasses.replace(built[1], continued=built[0].continued)
    elif built[0].continued:  # no member continues from the exit, so the graph that would is removed
        (out / str(built[0].facts["folder"]) / BACK).unlink()
    return _named_apart([dataclasses.replace(built[0], continued=None), *built[1:]])


def _named_apart(built: Sequence[Member]) -> list[Member]:
    """Return the members, those of one name numbered from the second on."""
    found = list[Member]()
    for one in built:
        alike = sum(other.facts["name"].split("#")[0] == one.facts["name"] for other in found)
        name = f"{one.facts['name']}#{alike + 1}" if alike else one.facts["name"]
        found.append(dataclasses.replace(one, facts={**one.facts, "name": name}))
    return found


def _member(asked: Asked, number: int, recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> Member:
    """Return a member, with its graph copied or quantized where the bundle's own is not it."""
    splits, task, threads = Splits.of(inputs["data"]), task_of(recipe), recipe.target.threads
    if asked.point is not None:
        lengths, model = lengths_of(inputs)[asked.point], inputs["checkpoint"].path / MODEL
        facts: dict[str, Any] = {"name": asked.point, "folder": None, "lengths": lengths}
        facts |= {"max_length": splits.max_length, "stride": splits.stride, "pad_id": pad_id_of(model), "single": is_single(inputs)}
        graph, folder = deployed(inputs).path / "model.onnx", model
    elif asked.early_exit:
        return _from_exit(number, recipe, inputs, out, log)
    else:
        folder = out / MEMBERS / str(number)
        folder.mkdir(parents=True)
        facts = _from_teacher(asked, recipe, inputs, folder, log) if asked.teacher else _from_bundle(asked, recipe, inputs, folder, log)
        facts, graph = {**facts, "folder": f"{MEMBERS}/{number}"}, folder / GRAPH
    backend = recipe.target.settled if asked.point is not None else "onnxruntime"
    opened = partial(Graph, graph, single=facts["single"], pad_id=facts["pad_id"], backend=backend)
    answer, timed = (whole(own.logits, facts["lengths"]) for own in (opened(1, workers=recipe.workers), opened(threads)))
    return Member(facts, reader(folder, task, facts), answer, timed)


def _from_exit(number: int, recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> Member:
    """Put the front, what answers early above it, and what goes on from it into a folder, in 8 bits where the student is."""
    log.note(f"early exit after layer {inputs['exit'].metrics['layer']}, and the student's rest")
    splits, task, folder = Splits.of(inputs["data"]), task_of(recipe), out / MEMBERS / str(number)
    model, quantized = inputs["checkpoint"].path / MODEL, "int8_graph" in inputs
    folder.mkdir(parents=True)
    student, early = (PlainModel(checkpoint.load_plain(inputs[kind], splits.labels, task.head)) for kind in ("checkpoint", "exit"))
    some = task.windows(tokenizer_of(model), list(islice(splits.examples("validation"), 8)), splits.max_length, splits.stride)
    export_exit(student, early, inputs["exit"].metrics["layer"], folder, recipe.export, some.few(), pad_id_of(model))
    for name in (FRONT, EXIT, BACK) if quantized else ():
        (folder / name).rename(folder / "float.onnx")
        _to_int8(folder / "float.onnx", folder / name, inputs)
    facts = {"folder": f"{MEMBERS}/{number}", "lengths": None, "single": quantized, "pad_id": pad_id_of(model)}
    facts |= {"max_length": splits.max_length, "stride": splits.stride, "isa": _isa(inputs) if quantized else None}
    opened, read = Exit(folder, recipe.target.threads, single=quantized, pad_id=pad_id_of(model)), reader(model, task, facts)
    rest = Member({**facts, "name": "full", "part": GOES_ON}, read, opened.go_on, opened.go_on)
    stops = Member({**facts, "name": "exit", "part": STOPS}, read, opened.stop, opened.stop)
    if not _ships_as_dynamic(inputs):
        (folder / BACK).unlink()
        log.note("texts are read again behind the early exit: what ships has products in float, or ranges of its own")
        return stops
    return dataclasses.replace(stops, continued=rest)


def _ships_as_dynamic(inputs: Inputs) -> bool:
    """Return whether the student's rest, in float or dynamically quantized throughout, answers as the graph that ships does."""
    told = deployed(inputs).metrics
    return "int8_graph" not in inputs or (told["backend"] == "onnxruntime" and not told["products_in_float"])


def _from_teacher(asked: Asked, recipe: Recipe, inputs: Inputs, folder: Path, log: Progress) -> dict[str, Any]:
    """Put the teacher's graph, in 8 bits if asked, and its tokenizer into the folder.

    It is exported anew, as fast as a student is; the one beside it in the report's table is what others export.
    """
    quantized = asked.teacher == "int8"
    log.note(f"teacher.onnx, as fast as it goes{', in 8 bits' if quantized else ''}")
    artifact, splits, task = inputs["teacher"], Splits.of(inputs["data"]), task_of(recipe)
    model, source = PlainModel(checkpoint.load_plain(artifact, splits.labels, task.head)), folder / "float.onnx"
    export_graph(layered(model), source, recipe.export)
    folder_of_model = artifact.path / MODEL
    some = task.windows(tokenizer_of(folder_of_model), list(islice(splits.examples("validation"), 8)), splits.max_length, splits.stride)
    parity(model, source, some.few(), [None], pad_id_of(folder_of_model), recipe.export.tolerance)
    if quantized:
        _to_int8(source, folder / GRAPH, inputs)
    else:
        source.rename(folder / GRAPH)
    shutil.copyfile(folder_of_model / "tokenizer.json", folder / "tokenizer.json")
    reading = {"max_length": splits.max_length, "stride": splits.stride, "pad_id": pad_id_of(folder_of_model)}
    return {"name": "teacher", "lengths": None, "single": quantized, "isa": _isa(inputs) if quantized else None, **reading}


def bundle_of(asked: Asked, recipe: Recipe) -> Path:
    """Return the folder of a member that is another bundle."""
    return sources.place_of(str(asked.bundle), recipe.root)


def check_member(bundle: Path, manifest: Mapping[str, Any], recipe: Recipe, labels: Sequence[str]) -> None:
    """Check that another bundle answers what the recipe does.

    Raises:
        RecipeError: it has another task or other labels, or reads pairs where this one reads single texts.
    """
    check_task(bundle, manifest, recipe)
    if tuple(manifest["labels"]) != tuple(labels):
        sides = {"only there": {*manifest["labels"]} - {*labels}, "only here": {*labels} - {*manifest["labels"]}}
        told = "; ".join(f"{where}: {', '.join(sorted(own)[:NAMED])}" for where, own in sides.items() if own) or "in another order"
        raise RecipeError(f"cascade: {bundle} has other labels than this recipe ({told}); members must answer the same")
    pairs = recipe.columns().text_pair is not None
    if manifest.get("pairs", pairs) != pairs:
        told = "single texts there, pairs here" if pairs else "pairs there, single texts here"
        raise RecipeError(f"cascade: {bundle} reads something else ({told}); members must answer the same")


def _isa(inputs: Inputs) -> str | None:
    """Return the instruction set that the bundle is for: this machine's, where its own graph is float."""
    found: str | None = deployed(inputs).metrics.get("isa") or machine.level()
    return found


def _to_int8(source: Path, target: Path, inputs: Inputs) -> None:
    """Put the graph's 8-bit form in its place, with weights of 7 bits where the bundle is for processors that need it."""
    dynamic(source, target, [], reduce_range=machine.needs_seven_bits(_isa(inputs)))
    check_int8(target, f"cascade: {target.name}")
    source.unlink()


def _from_bundle(asked: Asked, recipe: Recipe, inputs: Inputs, folder: Path, log: Progress) -> dict[str, Any]:
    """Put another bundle's graph and tokenizer into the folder.

    Raises:
        BundleError: it is no bundle, or was changed.
        RecipeError: it answers something else.
    """
    source = bundle_of(asked, recipe)
    manifest = verify(source)
    check_member(source, manifest, recipe, Splits.of(inputs["data"]).labels)
    narrow = machine.SATURATING & {_isa(inputs), machine.level()}
    if narrow and (isa := manifest.get("isa")) not in (None, *machine.SATURATING):
        told = f"is for processors with {isa}; with {min(narrow)} its 8-bit products saturate"
        log.warn(f"cascade: {source} {told}", f"{manifest['name']}, a member of the cascade, {told}.")
    if manifest["default_policy"]:
        log.warn(
            f"cascade: {source} answers by a cascade of its own, which is left out: its point {manifest['default_point']} is the member"
        )
    for name, copied in (("model.onnx", GRAPH), ("tokenizer.json", "tokenizer.json")):
        shutil.copyfile(source / name, folder / copied)
    lengths = manifest["points"][manifest["default_point"]]["lengths"]
    reading = {key: manifest[key] for key in ("max_length", "stride", "pad_id", "single")}
    return {"name": manifest["name"], "lengths": lengths, "isa": manifest.get("isa"), **reading}
