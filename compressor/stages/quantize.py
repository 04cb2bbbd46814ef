"""Quantize the graph to zero-point INT8.

What:     matrix products and embedding tables in 8 bits: u8 activations with a zero point, s8 weights with a scale per channel.
Paper:    Jacob et al. (arXiv:1712.05877); compressor/quantizers.py names those of each backend.
Formula:  x ≈ scale · (q - zero_point); where that loses more than `max_drop`, the fewest products that suffice stay float, the most
          sensitive first (compressor/sensitivity.py); `auto` keeps the fastest backend within 0.3 points of the best score on validation.
Defaults: onnxruntime, dynamic; the others measure activations on 256 training texts of all lengths, at several length configurations.
Limits:   attention's own products stay float where they are one fused operator.
"""

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from compressor import machine
from compressor.backends import NOISE
from compressor.encoded import Encoded, tokenizer_of
from compressor.environments import NEURAL_COMPRESSOR
from compressor.errors import StageError, UnfitError, install, lacked, one_line
from compressor.halves import BACK, FRONT, STATES
from compressor.inputs import Inputs
from compressor.latency import interleaved, requests, sample, tokens_of
from compressor.lengths import LengthConfig
from compressor.products import check_int8, count_products, products
from compressor.progress import Progress
from compressor.quantizers import QUANTIZERS, SINGLE, Feed
from compressor.recipe import Recipe
from compressor.sensitivity import by_sensitivity, fewest
from compressor.session import Graph, check_agreement
from compressor.settings.deploying import LengthAdapt
from compressor.settings.serving import Target
from compressor.splits import MODEL, Splits, task_of

ALONE = ".alone"
"""Suffix of a graph in which one product is INT8."""
FEW = 16
"""Texts under which calibration knows little; of three length configurations each has a third of them."""
LOOKED_AT = 8
"""Training texts that are tokenized for each that calibrates: enough to choose by length."""
REQUESTS = 32
"""Requests of validation texts that `auto` times."""


@dataclass(frozen=True)
class Quantized:
    """What a backend made: its graph, the graph's score on validation, and the products that went back to float."""

    file: Path
    score: float
    kept: Sequence[str]


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write the INT8 model.onnx; return the scores of each backend's graph and of the float graph on the validation split."""
    assert recipe.quantize is not None
    splits, task = Splits.of(inputs["data"]), task_of(recipe)
    validation = splits.encoded("validation", task, inputs["checkpoint"].path / MODEL)
    source, names = inputs["float_graph"].path / "model.onnx", _backends(recipe, log)
    bench = Scorer(source, validation, recipe)
    if bench.isa != machine.level():
        here = machine.level() or "an unknown instruction set"
        log.warn(
            f"quantize.isa is {bench.isa}, this machine has {here}: latencies are not the target's, and gates on them break unless "
            "they state measured_on: other"
        )
        if machine.level() in machine.SATURATING and bench.isa not in machine.SATURATING:
            told = f"8-bit products saturate on this machine ({machine.level()}), so scores are below the target's too"
            log.warn(f"{told}: build there instead", f"{told}.")
    feeds = [] if SINGLE.issuperset(names) else list(_feeds(recipe, inputs, source))
    if 0 < len(feeds) < FEW:
        told = f"{len(feeds)} texts calibrate, few to know what ranges activations take"
        log.warn(f"quantize: {told}; raise quantize.calibration, or give train more")
    made, left_out = _made(names, bench, out, feeds, recipe, log)
    times = _milliseconds({name: one.file for name, one in made.items()}, validation, recipe.target) if len(names) > 1 else {}
    scores = {name: one.score for name, one in made.items()}
    chosen = choose(scores, times, bench.wanted)
    scores["float"] = bench.float_score
    told = ", ".join(f"{name} {score:.4f}{f' in {times[name]:.2f} ms' if name in times else ''}" for name, score in scores.items())
    log.note(f"{recipe.task.metric} on validation: {told}{f'; {chosen} is kept' if len(names) > 1 else ''}")
    for name, one in made.items():
        one.file.rename(out / "model.onnx") if name == chosen else one.file.unlink()
    if recipe.export.halves:
        _quantize_halves(bench, chosen, out, feeds, made[chosen].kept, log)
    if chosen not in SINGLE and len(feeds) < FEW:
        log.caveats.append(f"Only {len(feeds)} texts calibrated the ranges of activations.")
    if made[chosen].score < bench.wanted:
        lost = 100 * (bench.float_score - made[chosen].score)
        log.caveats.append(f"INT8 loses {lost:.1f} points on validation, more than quantize.max_drop, whatever stays in float.")
    counted = count_products(out / "model.onnx")
    if unasked := counted["float"] - len(made[chosen].kept):
        told = f"{unasked} of {sum(counted.values())} matrix products stay float though 8 bits were asked"
        remedy = "'compress explain' shows their time, and another quantize.backend may have one"
        log.warn(f"quantize: {told}: {chosen} has no 8-bit form of them; {remedy}", f"{told}: {chosen} has no 8-bit form of them.")
    facts = {"backend": chosen, "single": chosen in SINGLE, "products": counted, "validation": scores}
    facts |= {"products_in_float": list(made[chosen].kept), "sensitivities": bench.sensitivities, "milliseconds": times, "isa": bench.isa}
    facts |= {"left_out": left_out} if left_out else {}
    return {**facts, "validation_score": made[chosen].score, "megabytes": (out / "model.onnx").stat().st_size / 1e6}


def _made(
    names: Sequence[str], bench: "Scorer", out: Path, feeds: Sequence[Feed], recipe: Recipe, log: Progress
) -> tuple[dict[str, Quantized], dict[str, str]]:
    """Return what each backend made; of several, one that fails, or whose answers the target's backend changes, is left out, and why.

    Raises:
        CompressorError: none is left.
    """
    made, left_out, last = dict[str, Quantized](), dict[str, str](), None
    for name in names:
        file = out / f"{name}.onnx"
        try:
            one = _quantized(name, bench, file, feeds, log)
            if len(names) > 1:
                single, backend = name in SINGLE, recipe.target.settled
                graph = Graph(file, recipe.target.threads, single=single, pad_id=bench.validation.pad_id, backend=backend)
                check_agreement(graph, recipe.data.max_length)
            made[name] = one
        except Exception as error:  # quantizers raise errors of their own
            if len(names) == 1 or isinstance(error, OSError) or lacked(error, out):  # another time, this machine may have what it takes
                raise
            last, left_out[name] = error, one_line(error, 300).removeprefix(f"{file}: ")
            log.warn(f"quantize: auto leaves {name} out: {left_out[name]}")
            for path in (file, file.with_suffix(ALONE)):
                path.unlink(missing_ok=True)
    if not made:
        raise (UnfitError if isinstance(last, UnfitError) else StageError)(
            f"quantize: auto has no backend left; the last was left out because: {left_out[names[-1]]}"
        )
    return made, left_out


def kept_in_back(whole: Sequence[str], back: Sequence[str], kept: Collection[str]) -> list[str]:
    """Return what the back calls those of its products that stay float in the whole graph, which ends with the same ones.

    Counted from the end: the front of all layers has fewer than the whole graph, whose last layer asks one token alone.
    """
    return [own for name, own in zip(whole[len(whole) - len(back) :], back, strict=True) if name in kept]


def _quantize_halves(bench: "Scorer", backend: str, out: Path, feeds: Sequence[Feed], kept: Sequence[str], log: Progress) -> None:
    """Write the INT8 front and back as the whole graph's backend does; the back is calibrated on what the float front makes."""
    floats = bench.source.parent
    inside = products(floats / BACK)
    back = kept_in_back(products(bench.source), inside, kept)
    if len(back) < len(kept):
        log.warn(f"quantize: {FRONT} is INT8 throughout, for all tasks to share it; {len(kept) - len(back)} products lose score there")
    front = Graph(floats / FRONT, single=False)
    read = [{key: feed[key] for key in front.inputs & feed.keys()} for feed in feeds]
    asked = {i.name for i in onnx.load(floats / BACK, load_external_data=False).graph.input}  # a head alone asks for no mask
    made = [{STATES: front.session.run([STATES], feed)[0], "attention_mask": feed["attention_mask"]} for feed in read]
    states = [{key: feed[key] for key in asked & feed.keys()} for feed in made]
    for name, given, stay in ((FRONT, read, []), (BACK, states, back)):
        QUANTIZERS[backend](floats / name, out / name, given, stay, reduce_range=machine.needs_seven_bits(bench.isa))
        if name == FRONT or len(stay) < len(inside):
            check_int8(out / name, f"quantize: {backend}, {name}")


class Scorer:
    """Scores graphs on the validation split, and ranks the products of the float one when that is asked."""

    def __init__(self, source: Path, validation: Encoded, recipe: Recipe) -> None:
        assert recipe.quantize is not None
        self.source, self.validation, self.workers, self.metric = source, validation, recipe.workers, recipe.task.metric
        self.isa = machine.level() if recipe.quantize.isa == "auto" else recipe.quantize.isa
        self.float_score = self.score(source, single=False)
        self.wanted = self.float_score - recipe.quantize.max_drop - 1e-9
        self.sensitivities: dict[str, float] = {}

    def score(self, file: Path, *, single: bool) -> float:
        """Return the score of a graph."""
        graph = Graph(file, single=single, pad_id=self.validation.pad_id, workers=self.workers)
        return self.validation.score(graph.logits(self.validation.tokens), self.metric)

    def ranked(self, scratch: Path) -> Sequence[str]:
        """Return the products, the most sensitive first; they are ranked once."""
        if not self.sensitivities:
            how = {"reduce_range": machine.needs_seven_bits(self.isa)}
            self.sensitivities = by_sensitivity(self.source, scratch, self.validation, self.workers, **how)
        return list(self.sensitivities)


def _quantized(name: str, bench: Scorer, file: Path, feeds: Sequence[Feed], log: Progress) -> Quantized:
    """Quantize with a backend; where the score falls below what is wanted, put back the fewest products that raise it."""

    def score(kept: Collection[str]) -> float:
        QUANTIZERS[name](bench.source, file, feeds, kept, reduce_range=machine.needs_seven_bits(bench.isa))
        return bench.score(file, single=name in SINGLE)

    all_int8 = score([])
    check_int8(file, f"quantize: {name}")
    if all_int8 >= bench.wanted:
        return Quantized(file, all_int8, [])
    log.note(f"{name} scores {all_int8:.4f}, float {bench.float_score:.4f}: looking for the products that lose it")
    ranked = bench.ranked(file.with_suffix(ALONE))
    kept = fewest(ranked, lambda some: score(some) >= bench.wanted)
    if kept is None:
        log.warn(f"quantize: {name} loses more than quantize.max_drop whatever stays in float (8-bit embeddings lose it)")
        return Quantized(file, score([]), [])
    if len(kept) == len(ranked):
        told = "loses more than quantize.max_drop unless every product stays in float, which is no INT8"
        raise StageError(f"quantize: {name} {told}; raise it, choose another backend, or leave quantize out")
    log.note(f"back to float: {', '.join(kept)}")
    return Quantized(file, score(kept), kept)


def choose(scores: dict[str, float], milliseconds: dict[str, float], wanted: float) -> str:
    """Return the fastest backend of those whose score is within noise of the best, and as good as wanted if any is."""
    least = max(scores.values()) - NOISE
    good = [name for name, score in scores.items() if score >= (max(least, wanted) if max(scores.values()) >= wanted else least)]
    return min(good, key=lambda name: milliseconds.get(name, 0.0))


def _backends(recipe: Recipe, log: Progress) -> Sequence[str]:
    assert recipe.quantize is not None
    if recipe.quantize.backend != "auto":
        return [recipe.quantize.backend]
    if recipe.distill and recipe.distill.student.bilstm:
        return ["onnxruntime"]  # the others leave its layers in float
    missing = {}
    if not machine.installed("nncf"):
        missing["nncf"] = f"it is not installed ({install('nncf')})"
    if not NEURAL_COMPRESSOR.is_made():
        made = "its environment is not made; a build with that backend makes it (800 MB)"
        missing["neural-compressor"] = made if NEURAL_COMPRESSOR.suits() else "there is none for this Python"
    for name, why in missing.items():
        log.warn(f"quantize: auto leaves {name} out: {why}")
    return [name for name in QUANTIZERS if name not in missing]


def _feeds(recipe: Recipe, inputs: Inputs, source: Path) -> Iterator[Feed]:
    """Yield training texts that spread evenly over all lengths, each at the next of a few length configurations."""
    assert recipe.quantize is not None
    splits, task, count = Splits.of(inputs["data"]), task_of(recipe), recipe.quantize.calibration
    total = inputs["data"].metrics["examples"]["train"]
    looked_at = set(random.Random(recipe.seed).sample(range(total), min(total, LOOKED_AT * count)))
    texts = [text for row, text in enumerate(splits.examples("train")) if row in looked_at]
    tokens = task.windows(tokenizer_of(inputs["checkpoint"].path / MODEL), texts, splits.max_length, splits.stride).tokens
    graph = onnx.load(source).graph
    wanted = {i.name for i in graph.input}
    full = next((numpy_helper.to_array(i) for i in graph.initializer if i.name == "lengths"), np.zeros(0, np.int64))
    half, smallest = (full / 2).astype(np.int64).clip(1), full
    if len(full):
        asked = recipe.length_adapt
        bounds = (asked.bound, asked.smallest) if asked else (LengthAdapt.model_fields["bound"].default, None)
        smallest = np.array(LengthConfig.smallest(len(full), int(full[0]), *bounds).lengths)
    for number, row in enumerate(sample(tokens.lengths.tolist(), count)):
        feed = {**tokens.of_text(row).padded(0), "lengths": (full, half, smallest)[number % 3]}
        yield {name: array for name, array in feed.items() if name in wanted}


def _milliseconds(files: dict[str, Path], validation: Encoded, target: Target) -> dict[str, float]:
    """Return the median latency of each graph on the target's threads and batch."""
    texts = tokens_of(validation, requests(validation.lengths.tolist(), REQUESTS, target.batch))
    how: dict[str, Any] = {"pad_id": validation.pad_id, "backend": target.settled}
    graphs = {name: Graph(file, target.threads, single=name in SINGLE, **how) for name, file in files.items()}
    runs = {name: lambda number, g=graph: g.logits(texts[number]) for name, graph in graphs.items()}
    return {name: latency.p50_ms for name, latency in interleaved(runs, range(len(texts))).items()}
