"""Which methods suit a recipe, from its sections and from what can be seen of its data and models (compressor/facts.py)."""

from collections.abc import Iterator
from itertools import pairwise

from compressor.facts import Facts, Size, facts_of
from compressor.layer_maps import count_layers
from compressor.recipe import Recipe
from compressor.settings.data import WINDOWED
from compressor.settings.serving import SizeGate, SpeedGate
from compressor.words import EDGES, Told

FEW, MANY_WORDS, FEW_WORDS = 2000, 90, 45
NAMED = 3
"""Other recipes that are named."""
SKEWED = 10
"""How many times as often as the rarest label the commonest one comes where labels are skewed."""
STEPS = 1e-4
"""Learning rate below which what lies above recycled layers hardly learns entities (benchmarks/results/recycling_bc5cdr_*.json)."""
LARGE_STEPS = 1e-3
"""Learning rate for methods that leave most weights as they are (compressor/tuning.py)."""
INT8 = 5
"""How many times as fast as float 8 bits are at most, on processors that multiply them best."""

ABOVE = 3
"""Layers above recycled ones that are too few for entities (benchmarks/results/recycling_bc5cdr_minilm-l6-h384.json)."""
KNOWN = {"bert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta"}
"""Families whose parts are known, those of compressor/families.py."""
ADAPTIVE = {"bert", "roberta", "electra", "mpnet", "distilbert", "modernbert"}
"""Families that can be length-adaptive students, those of compressor/backbones.py."""


def advise(recipe: Recipe) -> list[str]:
    """Return one line for each method that suits or does not, with its reason."""
    return list(_lines(recipe, facts_of(recipe)))


def _lines(recipe: Recipe, facts: Facts) -> Iterator[str]:
    shipped = facts.student if recipe.distill else facts.teacher
    yield from _of_finetuning(recipe, facts)
    yield from _of_recycling(recipe, facts)
    yield from _of_students(recipe, facts)
    yield from _of_lengths(recipe, facts, shipped)
    yield from _of_size(shipped, recipe)
    yield from _of_speed(facts.teacher, shipped, recipe)
    if facts.by_words is not None and recipe.deployed:
        yield _of_words(facts.by_words, recipe)
    only_float = recipe.export.portable and recipe.distill and recipe.distill.student.bilstm
    if recipe.quantize is None and recipe.deployed and not only_float:
        yield "no quantize section: INT8 is the cheapest gain on a processor with VNNI or AMX"


def _of_finetuning(recipe: Recipe, facts: Facts) -> Iterator[str]:
    tuned = recipe.teacher.finetune
    if tuned is None:
        return
    if facts.examples is not None and facts.examples < FEW and tuned.method == "full" and recipe.deployed:
        methods, rate = _either(_few_weights(recipe, facts.teacher)), f" with learning_rate {LARGE_STEPS:g}" * (tuned.learning_rate < STEPS)
        yield f"{facts.examples:,} labelled texts are few: teacher.finetune.method {methods}{rate} overfits less"
    if facts.skew > SKEWED and tuned.class_weights == "none" and recipe.task.metric == "macro_f1":
        yield f"the commonest label comes {facts.skew:.0f} times as often as the rarest: teacher.finetune.class_weights balanced may help"


def _of_recycling(recipe: Recipe, facts: Facts) -> Iterator[str]:
    tuned, entities = recipe.teacher.finetune, recipe.task.type == "token-classification"
    if facts.sharing and tuned and tuned.method != "freeze" and recipe.recycle is None and recipe.deployed and _is_known(facts.teacher):
        others = ", ".join(facts.sharing[:NAMED]) + ", …" * (len(facts.sharing) > NAMED)
        yield f"this encoder is that of {others} too: where they read the same texts, recycle runs its first layers once for all of them"
    if recipe.recycle is None or not entities:
        return
    if tuned and tuned.method == "full" and tuned.learning_rate < STEPS:
        yield f"entities need larger steps above recycled layers: teacher.finetune.learning_rate {2 * STEPS:g} loses far less than 5e-05"
    if recipe.recycle.layer != "auto" and facts.teacher:
        above = facts.teacher.layers - count_layers(recipe.recycle.layer, facts.teacher.layers)
        if 0 < above <= ABOVE:
            told = f"{above} layers above recycled ones learn entities badly (3 of MiniLM's 6 lost 2.9 points on BC5CDR)"
            yield f"{told}: recycle.layer auto measures how many may stay"


def _of_students(recipe: Recipe, facts: Facts) -> Iterator[str]:
    large, small = facts.teacher, facts.student
    if large is None:
        return
    exits_late = recipe.early_exit and recipe.early_exit.layer >= large.layers // 2 - 1  # so few layers would have no place for it
    if recipe.distill is None and large.layers >= 6 and not recipe.export.halves and not exits_late:
        half = f"{large.layers // 2} of the {large.layers} layers" if _is_known(large) else "half as many layers"
        yield f"no distill section: a student of {half} halves the time, before all else"
    if small and recipe.assistant is None and 2 * small.layers <= large.layers and 2 * small.width <= large.width:
        named = f"the student ({small.layers}x{small.width}) has at most half of the teacher's layers and width"
        yield f"{named} ({large.layers}x{large.width}): an assistant section may help"


def _of_lengths(recipe: Recipe, facts: Facts, shipped: Size | None) -> Iterator[str]:
    adapts, words = recipe.length_adapt, facts.words
    long = words is not None and words > MANY_WORDS
    if words is not None and words < FEW_WORDS and adapts:
        yield f"texts are short (median {words:.0f} words read): length_adapt gains little on them; fewer layers and INT8 gain more"
    if long and not adapts and _has_lengths(recipe, shipped):
        yield f"texts are long (median {words:.0f} words read): length_adapt and search pay on them"
    if adapts and recipe.task.type == "question-answering" and adapts.significance != "learned":
        told = "where tokenizers mark a second text, length_adapt with significance learned, protect question and neighbours 8"
        yield f"{told} loses far fewer answers"
    elif long and adapts and adapts.significance != "learned":
        named = f"texts are so long (median {words:.0f} words read) that length_adapt.significance"
        if recipe.task.type == "text-classification":
            yield f"{named} learned loses less at equal lengths, and is faster"
        elif adapts.significance == "attention":
            yield f"{named} sampled is faster"
    if long and recipe.search and not recipe.search.truncate and recipe.reads_single_texts:
        yield f"texts are so long (median {words:.0f} words read) that search.truncate may find points that read only their beginning"


def _has_lengths(recipe: Recipe, shipped: Size | None) -> bool:
    """Return whether what ships can be a length-adaptive student."""
    if not recipe.deployed or recipe.export.halves or (recipe.distill and recipe.distill.student.bilstm):
        return False
    windowed = recipe.task.type in WINDOWED  # elsewhere the last layer computes [CLS] alone
    return shipped is None or (shipped.family in ADAPTIVE and (windowed or (shipped.pooling == "cls" and shipped.layers > 1)))


def _few_weights(recipe: Recipe, teacher: Size | None) -> list[str]:
    """Return the fine-tuning methods that change few weights and that neither the family nor another part of the recipe refuses."""
    if not _is_known(teacher):
        return ["bitfit"]
    biased = teacher is None or teacher.family != "modernbert"
    narrowed = any(section.student.hidden_size for section in (recipe.assistant, recipe.distill) if section)
    return ["bitfit"] * biased + ["adapters"] * (not narrowed) + ["lora"]


def _is_known(size: Size | None) -> bool:
    """Return whether layers of this encoder can be taken, narrowed, recycled or adapted; one that cannot be seen may be."""
    return size is None or size.family in KNOWN


def _of_size(shipped: Size | None, recipe: Recipe) -> Iterator[str]:
    """Say what would make the graph fit a size gate that it will break."""
    allowed = min((gate.max for gate in recipe.gates if isinstance(gate, SizeGate)), default=None)
    if shipped is None or allowed is None or not recipe.quantize or shipped.megabytes <= allowed:
        return
    if recipe.distill and recipe.distill.student.vocabulary == "corpus":  # nobody knows yet how much of it goes
        return
    told = f"{shipped.layers} layers of {shipped.width} take some {shipped.megabytes:.0f} MB in 8 bits, the size gate allows {allowed:g}"
    if recipe.export.halves:
        yield f"{told}: raise it, or leave export.halves out and distill a student"
        return
    pruned = f"distill.student.vocabulary: corpus (the table of {shipped.vocabulary:,} tokens takes {shipped.table / 1e6:.0f} MB)"
    yield f"{told}: {_either([pruned] * shipped.prunable + _smaller(shipped, recipe))}"


def _of_speed(teacher: Size | None, shipped: Size | None, recipe: Recipe) -> Iterator[str]:
    """Say what would meet a gate on speed that a student of this size cannot; how much lengths or a cascade give is not known before."""
    if recipe.search or (recipe.cascade and recipe.cascade.default):
        return
    asked = [gate.min for gate in recipe.gates if isinstance(gate, SpeedGate) and gate.against == "teacher"]
    if not asked or teacher is None or shipped is None:
        return
    fewer = teacher.weights / shipped.weights
    told = f"the student multiplies {fewer:.1f} times less than its teacher, and INT8 is at most {INT8} times as fast"
    if max(asked) > fewer * INT8 and recipe.export.halves:
        yield f"INT8 is at most {INT8} times as fast: for a speed-up of {max(asked):g} leave export.halves out and distill a student"
    elif max(asked) > fewer * INT8:
        others = ["a bilstm student"] * recipe.may_be_bilstm
        others += ["a cascade"] * (recipe.task.type != "text-regression")
        yield f"{told}: for a speed-up of {max(asked):g} take {_either(_smaller(shipped, recipe) + others)}"
    elif max(asked) > fewer and not recipe.quantize:
        yield f"{told}: for a speed-up of {max(asked):g} add a quantize section"


def _smaller(shipped: Size, recipe: Recipe) -> list[str]:
    """Return how a student can be made smaller: one that is named is as it is, and not all layers can be cut."""
    if recipe.distill is not None and recipe.distill.student.model is not None:
        return ["a smaller student.model"]
    if not _is_known(shipped):
        return ["a smaller teacher.model" if recipe.distill is None else "a smaller student.model"]
    adapted = recipe.teacher.finetune is not None and recipe.teacher.finetune.method == "adapters"
    least = 2 if recipe.length_adapt and recipe.task.type not in WINDOWED else 1
    return ["fewer layers"] * (shipped.layers > least) + ["a narrower hidden_size"] * (shipped.family != "modernbert" and not adapted)


def _either(ways: list[str]) -> str:
    return " or ".join(part for part in (", ".join(ways[:-1]), ways[-1]) if part)


def _of_words(told: Told, recipe: Recipe) -> str:
    """Return what words alone tell, and whether it speaks for a cascade."""
    fifths = ", ".join(f"{part:.0%}" for part in told.fifths)
    which = "sets of labels" if recipe.task.type == "multi-label-classification" else "held-out texts"
    facts = f"words alone answer {told.accuracy:.0%} of {which} ({told.guessed:.0%} by guessing; {fifths} from the surest fifth on; "
    bins = zip(pairwise(EDGES), told.shares, strict=True)
    facts += "confidence " + ", ".join(f"{100 * low:.0f}-{high:.0%}: {share:.0%}" for (low, high), share in bins)
    lost = round(100 * (told.accuracy - told.shuffled))
    apart = f"{abs(lost)} points {'less' if lost > 0 else 'more'}" if lost else "as many"
    facts += f" of texts), shuffled ones {apart}: "
    if told.easy:
        return facts + ("easy texts are there for the cascade" if recipe.cascade else "easy texts are there, a cascade section may pay")
    return facts + "no easy texts stand out, a cascade will gain little"
