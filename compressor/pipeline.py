"""The compiler: a table of stages, run in order, each in a content-addressed folder of its own.

A recipe section that is absent is a stage that does not run; the newest artifact of each kind flows on.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from compressor import __version__, builds, machine
from compressor.artifact import STATE, Artifact, commit, digest_of, drop_state
from compressor.environments import NEURAL_COMPRESSOR
from compressor.errors import CompressorError, StageError, UnfitError, lacked, one_line
from compressor.imports import source_hashes
from compressor.inputs import Inputs, Kind
from compressor.locks import only_writer
from compressor.progress import Progress
from compressor.recipe import Recipe


@dataclass(frozen=True)
class Stage:
    """One pass of the compiler: reads the newest artifact of each kind, writes one artifact.

    The name is at once the module `compressor/stages/<name>.py`, whose `run(recipe, inputs, out, log)` does the work,
    and the prefix of its folders under `artifacts/`.
    """

    name: str
    reads: tuple[Kind, ...]
    writes: tuple[Kind, ...]
    settings: tuple[str, ...]
    """Recipe sections, or single keys of them, that its result depends on."""
    packages: tuple[str, ...] = ()
    """Packages whose versions are part of the cache key."""
    section: str | None = None
    """Recipe section without which the stage does not run."""
    splits: tuple[str, ...] | None = None
    """Splits of the data that its result depends on; all: None."""
    trains: bool = False
    """Whether it takes hours, before which a recipe's encoders and data are looked at."""
    times: bool = False
    """Whether it measures latencies, which another machine must not take from the cache."""
    deploys: bool | None = None
    """Whether only a recipe that ends with a bundle runs it (True), or only one that ends with an encoder (False); None: both."""
    finds: Callable[[Recipe], Any] | None = None
    """What else its result depends on that is neither its settings nor a package of this environment; nothing: None."""


def _tried(recipe: Recipe) -> dict[str, Any] | None:
    """Return what `quantize.backend: auto` chooses by: what runs the graphs, and whether Neural Compressor's environment is made."""
    if recipe.quantize is None or recipe.quantize.backend != "auto":
        return None
    return {"run_in": recipe.target.settled, "neural-compressor": NEURAL_COMPRESSOR.is_made()}


_TORCH = ("torch", "transformers", "tokenizers")
_STORED = (*_TORCH, "lmdb")
_ORT = ("onnx", "onnxruntime", "tokenizers", "numpy")
_RUN = (*_ORT, "openvino")
"""What may run a graph: with a version that was not there before, `auto` may choose otherwise."""
_EXPORT = (*_TORCH, *_ORT, "onnxscript")
_FLOAT: tuple[Kind, ...] = ("data", "checkpoint", "float_graph")
_GRAPHS: tuple[Kind, ...] = (*_FLOAT, "int8_graph")
_TAUGHT: tuple[Kind, ...] = ("data", "activations")
_ADAPTED: tuple[Kind, ...] = ("data", "teacher", "checkpoint")
_WHOLE: tuple[Kind, ...] = ("data", "activations", "teacher", "checkpoint")
_ANSWERING: tuple[Kind, ...] = (*_GRAPHS, "teacher", "exit", "frontier")
_SHIPPED: tuple[Kind, ...] = (*_GRAPHS, "teacher", "frontier", "members", "policy")
_TEACHER = ("teacher", "task", "seed")
_ABOVE = ("recycle.dtype", "task", "seed")
_LENGTHS = ("length_adapt", "task", "seed")
_TARGET = ("target", "task", "seed")
_INT8 = ("quantize", "target.threads", "target.batch", "task", "seed")
_BUNDLE = ("name", "recycle.dtype", "quantize.isa", "cascade.default", "task", "target", "default_point", "gates", "seed")
_READS = ("data.text", "data.text_pair", "data.label", "data.skip_bad", "data.unknown_labels")
_ANSWERS = ("cascade.members", "cascade.confidence", "cascade.calibration", *_READS, "export", "target", "task")
_GOALS = ("cascade.confidence", "cascade.thresholds", "cascade.max_drop", "cascade.speedup", "cascade.latency_ms", "task")

_USED = ("train", "validation")
_LEARNED = ("train", "unlabelled", "validation")

STAGES: tuple[Stage, ...] = (
    Stage("data", (), ("data",), ("data", "task")),
    Stage("recycle", ("data",), ("activations",), ("recycle", *_TEACHER), _STORED, "recycle", splits=_USED),
    Stage("finetune", _TAUGHT, ("teacher", "guide", "checkpoint"), _TEACHER, (*_TORCH, "peft"), trains=True, splits=_USED),
    Stage("assistant", ("data", "guide"), ("guide",), ("assistant", *_ABOVE), _STORED, "assistant", trains=True, splits=_LEARNED),
    Stage("distill", ("data", "guide"), ("checkpoint",), ("distill", *_ABOVE), _STORED, "distill", trains=True, splits=_LEARNED),
    Stage("length_adapt", _ADAPTED, ("checkpoint",), _LENGTHS, _TORCH, "length_adapt", trains=True, splits=_LEARNED),
    Stage("early_exit", ("data", "checkpoint"), ("exit",), ("early_exit", *_ABOVE), _STORED, "early_exit", trains=True, splits=_LEARNED),
    Stage("export", _WHOLE, ("float_graph",), ("export", "task"), _EXPORT, deploys=True, splits=("validation",)),
    Stage("quantize", _FLOAT, ("int8_graph",), _INT8, (*_RUN, "nncf"), "quantize", times=True, finds=_tried, splits=_USED),
    Stage("search", _GRAPHS, ("frontier",), ("search", *_TARGET), ("deap", *_RUN), "search", times=True, splits=("search",)),
    Stage("members", _ANSWERING, ("members",), _ANSWERS, (*_EXPORT, "openvino", "scipy"), "cascade", times=True),
    Stage("cascade", ("members",), ("policy",), _GOALS, ("numpy",), "cascade"),
    Stage("bundle", _SHIPPED, ("bundle",), _BUNDLE, _RUN, times=True, deploys=True),
    Stage("encoder", ("data", "checkpoint"), ("bundle",), ("name",), deploys=False),
)


LAST = ("bundle", "encoder")
"""Stages that end a build: what they write is published."""
CLOCK = "seconds"
"""File of a stage's state: what processes before this one spent on it; written when one begins."""


class Run(Protocol):
    """The work of a stage: fill `out`, return what was measured."""

    def __call__(self, recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Planned:
    """What a run would do with one stage: use the artifact of `folder`, or make it, and why."""

    stage: Stage
    folder: Path | None
    cached: bool
    reason: str
    seconds: float | None = None


@dataclass
class Flow:
    """The artifacts while the table is walked: all of them, and the newest of each kind."""

    all: list[Artifact] = field(default_factory=list)
    newest: dict[Kind, Artifact] = field(default_factory=dict)

    def inputs(self, stage: Stage) -> dict[Kind, Artifact]:
        return {kind: self.newest[kind] for kind in stage.reads if kind in self.newest}

    def add(self, stage: Stage, artifact: Artifact) -> None:
        self.all.append(artifact)
        self.newest |= dict.fromkeys(stage.writes, artifact)


def stages_of(recipe: Recipe) -> list[Stage]:
    """Return the stages that this recipe asks for, in order."""
    asked = [s for s in STAGES if s.section is None or getattr(recipe, s.section) is not None]
    return [s for s in asked if s.deploys in (None, recipe.deployed)]


def cache_key(stage: Stage, recipe: Recipe, inputs: Inputs) -> str:
    """Hash everything that the stage's result depends on: its code, its settings, its inputs, its packages, and the machine if it times.

    A package's build, as torch's +cpu or +cu130, is no part of it: what a GPU has trained need not be trained again.
    """
    versions = {package: version.partition("+")[0] for package, version in machine.versions(*stage.packages).items()}
    return digest_of(
        {
            "stage": stage.name,
            "sources": source_hashes(f"stages.{stage.name}"),
            "settings": recipe.key_settings(stage.settings),
            "inputs": {kind: _digest_read(stage, kind, artifact) for kind, artifact in inputs.items()},
            "versions": versions,
            "machine": machine.fingerprint() if stage.times else "",
            "found": stage.finds(recipe) if stage.finds else None,
        }
    )


def _digest_read(stage: Stage, kind: Kind, artifact: Artifact) -> str:
    """Return the digest of what a stage reads of an artifact: of the data its own splits, so that other test texts train nothing anew."""
    if kind != "data" or stage.splits is None:
        return artifact.digest
    files: Mapping[str, str] = artifact.manifest["files"]
    return digest_of({name: files.get(name) for name in ("meta.json", *(f"{split}.jsonl" for split in stage.splits))})


def plan(recipe: Recipe, artifacts: Path, force: Sequence[str] = ()) -> list[Planned]:
    """Say for each stage whether its artifact is there, or why it would run; `run` then checks every byte of it, which takes longer."""
    flow, rows, stale = Flow(), [], ""
    for stage in stages_of(recipe):
        if stale:
            rows.append(Planned(stage, None, False, f"{stale} runs before it", _last_seconds(stage, recipe, artifacts)))
            continue
        folder = _folder(stage, recipe, flow.inputs(stage), artifacts)
        reason = "forced" if stage.name in force else _why_not_cached(stage, folder, content=False)
        seconds = _last_seconds(stage, recipe, artifacts) if reason else float(Artifact(folder).metrics["seconds"])
        rows.append(Planned(stage, folder, not reason, reason or "cached", seconds))
        if reason:
            stale = stage.name
        else:
            flow.add(stage, Artifact(folder))
    return rows


def run(
    recipe: Recipe,
    artifacts: Path,
    log: Progress,
    *,
    until: str | None = None,
    force: Sequence[str] = (),
    check: Callable[[Artifact], None] = lambda _: None,
) -> Artifact:
    """Run what is out of date and return the last artifact; `check` is given the data as soon as it is there.

    A caller that publishes the result holds `locks.only_build` from before this call until it has published.

    Raises:
        CompressorError: a stage failed (StageError), or the machine did not let it work (UnfitError). Finished stages stay.
    """
    flow, stages = Flow(), stages_of(recipe)
    asked = until_stage(stages, until)
    for stage in asked:
        source_hashes(f"stages.{stage.name}")  # all of them now: what changes on the disk meanwhile is not what this build runs
    for number, stage in enumerate(asked, 1):
        position, inputs = f"{number}/{len(stages)}", flow.inputs(stage)
        folder = _folder(stage, recipe, inputs, artifacts)
        reason = "forced" if stage.name in force else _why_not_cached(stage, folder)
        builds.begin(artifacts, recipe.name, folder.name, made=bool(reason))
        if reason:
            _import(asked[number - 1 :])  # before it waits for another build, however long
            with only_writer(folder, log):
                if reason != "forced":
                    reason = _why_not_cached(stage, folder)  # another recipe's build may have made it while this one waited
                if folder.exists() and reason not in ("", "forced"):
                    log.warn(f"{folder}: {reason}; building it again")
                if reason:
                    with log.stage(stage.name, position):
                        _build(stage, recipe, inputs, folder, log)
        if not reason:
            drop_state(folder)  # of a build that was killed as it ended
            log.cached(stage.name, position, str(folder))
        flow.add(stage, Artifact(folder))
        if stage.name == "data":
            check(Artifact(folder))
    if stage.name in LAST:
        builds.end(artifacts, recipe.name, sorted({artifact.path.name for artifact in flow.all}))
    return Artifact(folder)


def until_stage(stages: Sequence[Stage], until: str | None) -> Sequence[Stage]:
    """Return the stages up to the one of this name; all where there is none."""
    names = [stage.name for stage in stages]
    return stages[: names.index(until) + 1] if until in names else stages


def _import(stages: Sequence[Stage]) -> None:
    """Import the modules of these stages, so that a build ends with the code that it began with."""
    for stage in stages:
        import_module(f"compressor.stages.{stage.name}")


def _build(stage: Stage, recipe: Recipe, inputs: Inputs, folder: Path, log: Progress) -> None:
    """Run the stage in a scratch folder and commit it; a failure leaves only the state that the next run goes on from."""
    scratch = folder.parent / f".{folder.name}"
    _sweep(scratch)
    clock, spent = scratch / STATE / CLOCK, _spent(scratch / STATE)
    clock.parent.mkdir(parents=True, exist_ok=True)
    clock.write_text(str(spent), encoding="utf-8")
    work: Run = import_module(f"compressor.stages.{stage.name}").run
    started, told = time.perf_counter() - spent, len(log.caveats)
    manifest = {  # of what the work begins with: files that it has read may have changed when it ends
        "stage": stage.name,
        "settings": recipe.key_settings(stage.settings),
        "inputs": {kind: {"path": artifact.path.name, "digest": artifact.digest} for kind, artifact in inputs.items()},
        "key": cache_key(stage, recipe, inputs),
        "versions": {"compressor": __version__} | machine.versions(*stage.packages),
    }
    try:
        with _translated(stage, folder.parent):  # before the sweep, which frees the space that was lacking
            metrics = work(recipe, inputs, scratch, log)
            metrics |= {"seconds": round(time.perf_counter() - started, 2)}
            commit(scratch, folder, manifest | {"metrics": metrics | ({"caveats": own} if (own := log.caveats[told:]) else {})})
    except BaseException:
        _sweep(scratch)
        raise


def _spent(state: Path) -> float:
    """Return the seconds that processes before this one spent on a stage, the last one until it last wrote where it was."""
    clock = state / CLOCK
    try:
        return float(clock.read_text(encoding="utf-8")) + max(p.stat().st_mtime for p in state.rglob("*")) - clock.stat().st_mtime
    except (OSError, ValueError):
        return 0.0


def _sweep(scratch: Path) -> None:
    """Remove everything but the state; remove the folder too when there is none."""
    if not any(path.name != CLOCK for path in (scratch / STATE).glob("*")):
        shutil.rmtree(scratch, ignore_errors=True)
        return
    for entry in scratch.iterdir():
        if entry.name != STATE:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _folder(stage: Stage, recipe: Recipe, inputs: Inputs, artifacts: Path) -> Path:
    return artifacts / f"{stage.name}-{cache_key(stage, recipe, inputs)[:12]}"


def _why_not_cached(stage: Stage, folder: Path, *, content: bool = True) -> str:
    if not folder.exists():
        return "its code, settings or inputs are new" if any(folder.parent.glob(f"{stage.name}-*")) else "never run"
    return Artifact(folder).damage(content=content) or ""


def _last_seconds(stage: Stage, recipe: Recipe, artifacts: Path) -> float | None:
    """Return, as an estimate, how long the newest artifact of this stage with these settings took; of any settings, if there is none."""
    folders = sorted(artifacts.glob(f"{stage.name}-*"), key=lambda f: f.stat().st_mtime, reverse=True)
    intact = (a for f in folders if not (a := Artifact(f)).damage(content=False))  # one after the other: there may be hundreds
    newest = next(intact, None)
    if newest is None:
        return None
    try:
        asked = recipe.key_settings(stage.settings) if len(folders) > 1 else None
    except CompressorError:  # a model of the Hub has no key without a network, and this is an estimate
        asked = None
    alike = (a for a in chain([newest], intact) if asked and a.manifest["settings"] == asked)
    return float(next(alike, newest).metrics["seconds"])


@contextmanager
def _translated(stage: Stage, artifacts: Path) -> Iterator[None]:
    """Turn what the operating system refuses into one line with a remedy."""
    try:
        yield
    except CompressorError:
        raise
    except Exception as error:
        if told := lacked(error, artifacts):
            raise UnfitError(f"{stage.name}: {told}") from error
        if isinstance(error, RuntimeError):
            raise StageError(f"{stage.name}: {one_line(error, 300)}; run again with --debug for the whole story") from error
        raise
