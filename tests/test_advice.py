import dataclasses
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.advice import ADAPTIVE, KNOWN, _of_words, advise
from compressor.facts import _size, facts_of
from compressor.loader import load_recipe
from compressor.words import told_by_words

LONG = " ".join(["word"] * 120)


@pytest.fixture(autouse=True)
def beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand where the recipe lies, which is where paths of changes begin."""
    monkeypatch.chdir(tmp_path)


def advice(recipe: Path, *changes: str) -> str:
    return "\n".join(advise(load_recipe(recipe, ("data.max_length=200", *changes))))


def write(recipe: Path, count: int, text: str) -> None:
    (recipe.parent / "train.csv").write_text("text,label\n" + "".join(f"{text} {i},{'ab'[i % 2]}\n" for i in range(count)))


def test_few_labels_call_for_efficient_finetuning(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe()
    few = "400 labelled texts are few: teacher.finetune.method"
    small = "teacher.finetune.learning_rate=5e-5"
    assert f"{few} bitfit, adapters or lora overfits less" in advice(recipe)
    assert f"{few} bitfit, adapters or lora with learning_rate 0.001 overfits less" in advice(recipe, small)
    narrow = "distill={student: {layers: last 1, hidden_size: 16}, objectives: [{type: logits}]}"
    assert f"{few} bitfit or lora overfits" in advice(recipe, narrow)
    assert "are few" not in advice(recipe, "teacher.finetune.method=bitfit")
    (recipe.parent / "modern").mkdir()
    (recipe.parent / "modern/config.json").write_text('{"num_hidden_layers": 3, "hidden_size": 32, "model_type": "modernbert"}')
    assert f"{few} adapters or lora overfits" in advice(recipe, "teacher.model=./modern")
    write(recipe, 2500, "short")
    assert "are few" not in advice(recipe)


def test_length_adaptation_is_for_long_texts(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe()
    assert "texts are short" in advice(recipe)
    write(recipe, 50, LONG)
    assert "texts are short" not in advice(recipe)
    assert "texts are long" not in advice(recipe)
    text = recipe.read_text()
    bare = "".join(line for line in text.splitlines(keepends=True) if not line.startswith(("length_adapt", "search", "default_point")))
    recipe.write_text(bare)
    assert "texts are long (median 121 words read): length_adapt and search pay" in advice(recipe)
    assert "texts are long" not in advice(recipe, "data.max_length=32")
    recipe.write_text(text)
    assert "texts are short (median 32 words read)" in advice(recipe, "data.max_length=32")


def test_what_cannot_adapt_its_length_is_not_told_to(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    from compressor.backbones import BACKBONES
    from compressor.families import FAMILIES

    assert set(BACKBONES) == ADAPTIVE
    assert set(FAMILIES) == KNOWN
    recipe, bare = make_recipe(), ("search=null", "default_point=null", "length_adapt=null", "distill=null", "teacher.model=./large")
    write(recipe, 50, LONG)
    (tmp_path / "large").mkdir()
    for family, told in (("bert", True), ("deberta-v2", False), ("xlm-roberta", False)):
        config = {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536, "vocab_size": 30522, "model_type": family}
        (tmp_path / "large/config.json").write_text(json.dumps(config))
        assert ("length_adapt and search pay" in advice(recipe, *bare)) is told
    config |= {"model_type": "modernbert", "classifier_pooling": "mean"}
    (tmp_path / "large/config.json").write_text(json.dumps(config))
    assert "length_adapt and search pay" not in advice(recipe, *bare)
    (tmp_path / "large/config.json").write_text(json.dumps(config | {"classifier_pooling": "cls"}))
    assert "length_adapt and search pay" in advice(recipe, *bare)


def test_a_size_gate_that_a_student_breaks_calls_for_a_smaller_one(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = make_recipe(**{"student: {layers: [0, 2]}": "student: {model: ./small}"})
    (tmp_path / "small").mkdir()
    for names in (("num_hidden_layers", "hidden_size", "intermediate_size"), ("n_layers", "dim", "hidden_dim")):
        config = dict(zip(names, (6, 384, 1536), strict=True)) | {"vocab_size": 30522}
        (tmp_path / "small/config.json").write_text(json.dumps(config))
        told = advice(recipe, "gates=[{metric: size, max: 20MB}]")
        assert "6 layers of 384 take some 22 MB in 8 bits, the size gate allows 20: distill.student.vocabulary: corpus" in told
        assert "the table of 30,522 tokens takes 12 MB" in told
        assert "the size gate" not in advice(recipe)
        assert "the size gate" not in advice(recipe, "gates=[{metric: size, max: 20MB}]", "distill.student.vocabulary=corpus")


@pytest.mark.parametrize(
    ("config", "megabytes"),
    [
        (  # a third product of the feed-forward
            {"model_type": "modernbert", "num_hidden_layers": 22, "hidden_size": 768, "intermediate_size": 1152, "vocab_size": 50368},
            149.0,
        ),
        (  # embeddings of half the layers' size
            {"model_type": "electra", "num_hidden_layers": 12, "hidden_size": 256, "intermediate_size": 1024, "vocab_size": 30522}
            | {"embedding_size": 128},
            13.3,
        ),
        ({"model_type": "bert", "num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "vocab_size": 30522}, 108.4),
    ],
    ids=["modernbert", "electra", "bert"],
)
def test_sizes_are_those_of_the_family(config: dict[str, object], megabytes: float, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    size = _size(str(tmp_path), tmp_path)
    assert size is not None
    assert size.megabytes == pytest.approx(megabytes, abs=0.1)


def test_a_speed_gate_beyond_what_a_student_can_calls_for_a_smaller_one(make_recipe: Callable[..., Path]) -> None:
    recipe, bare = make_recipe(), ("search=null", "default_point=null", "length_adapt=null")
    told = "the student multiplies 1.5 times less than its teacher, and INT8 is at most 5 times as fast: for a speed-up of"
    assert f"{told} 20 take fewer layers" in advice(recipe, *bare, "gates=[{metric: speedup, min: 20}]")
    assert "multiplies" not in advice(recipe, *bare, "gates=[{metric: speedup, min: 5}]")
    assert f"{told} 5 add a quantize section" in advice(recipe, *bare, "gates=[{metric: speedup, min: 5}]", "quantize=null")
    assert "multiplies" not in advice(recipe, *bare, "gates=[{metric: speedup, against: student, min: 20}]")
    assert "multiplies" not in advice(recipe, "gates=[{metric: speedup, min: 20}]")  # nobody knows yet what lengths will give


def test_a_student_of_layers_has_those_of_the_assistant(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = make_recipe()
    for name, layers, width in (("large", 12, 768), ("middle", 6, 384)):
        (tmp_path / name).mkdir()
        config = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 4 * width, "model_type": "bert"}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    changes = ("teacher.model=./large", "distill={student: {layers: every second}, objectives: [{type: logits}]}")
    for more, shape in (((), (6, 768)), (("assistant={student: {model: ./middle}, objectives: [{type: logits}]}",), (3, 384))):
        student = facts_of(load_recipe(recipe, (*changes, *more))).student
        assert student is not None
        assert (student.layers, student.width) == shape


def test_what_a_recipe_would_be_refused_for_is_not_advised(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = make_recipe()
    write(recipe, 50, LONG)
    (tmp_path / "large").mkdir()
    (tmp_path / "large/config.json").write_text(
        json.dumps({"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "vocab_size": 30522, "model_type": "bert"})
    )
    bare = ("search=null", "default_point=null", "length_adapt=null")
    plain = advice(recipe, *bare, "distill=null", "teacher.model=./large")
    assert "texts are long" in plain
    assert "no distill section" in plain
    halves = advice(recipe, *bare, "distill=null", "teacher.model=./large", "recycle={layer: 6}", "export={halves: true}")
    assert "texts are long" not in halves
    assert "no distill section" not in halves
    bilstm = "distill={student: {bilstm: {embeddings: teacher, hidden_size: 16}}, objectives: [{type: logits}]}"
    assert "texts are long" not in advice(recipe, *bare, bilstm)
    size, speed = "gates=[{metric: size, max: 20MB}]", "gates=[{metric: speedup, against: teacher, min: 50}]"
    large = (*bare, "distill=null", "teacher.model=./large")
    halved = (*large, "recycle={layer: 6}", "export={halves: true}")
    assert "raise it, or leave export.halves out and distill a student" in advice(recipe, *halved, size)
    assert "for a speed-up of 50 leave export.halves out and distill a student" in advice(recipe, *halved, speed)
    assert "takes 23 MB), fewer layers or a narrower hidden_size" in advice(recipe, *large, size)
    (tmp_path / "large/tokenizer.json").write_text('{"model": {"type": "WordLevel"}}')
    assert "the size gate allows 20: fewer layers or a narrower hidden_size" in advice(recipe, *large, size)
    ways = "for a speed-up of 50 take fewer layers, a narrower hidden_size"
    assert f"{ways}, a bilstm student or a cascade" in advice(recipe, *large, speed)
    assert "a bilstm" not in advice(recipe, *large, speed, "quantize={backend: nncf}")
    assert "a bilstm" not in advice(recipe, *large, speed, "quantize=null", "target.backend=openvino")
    adapters = "for a speed-up of 50 take fewer layers, a bilstm student or a cascade"
    assert adapters in advice(recipe, *large, speed, "teacher.finetune={method: adapters}")
    (tmp_path / "train.csv").write_text("tokens,tags\n" + '"[""good""]","[""B-X""]"\n' * 30)
    tags = ("task={type: token-classification}", "data={train: train.csv, test: test.csv}")
    assert f"{ways} or a cascade" in advice(recipe, *large, *tags, speed)
    regression = ("task={type: text-regression}", "data={train: train.csv, test: test.csv}")
    assert f"{ways} or a bilstm student" in advice(recipe, *large, *regression, speed)
    named = (*bare, "teacher.model=./large", "distill={student: {model: ./large}, objectives: [{type: logits}]}")
    assert "for a speed-up of 50 take a smaller student.model, a bilstm student or a cascade" in advice(recipe, *named, speed)


def test_skewed_labels_call_for_weights(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe()
    rows = "".join(f"text {i},{'b' if i % 50 == 0 else 'a'}\n" for i in range(200))
    (recipe.parent / "train.csv").write_text(f"text,label\n{rows}")
    told = "the commonest label comes 49 times as often as the rarest: teacher.finetune.class_weights balanced may help"
    assert told in advice(recipe, "task.metric=macro_f1", "gates=[]")
    assert told not in advice(recipe)
    assert told not in advice(recipe, "task.metric=macro_f1", "gates=[]", "teacher.finetune.class_weights=balanced")


def test_few_sentences_of_any_format_are_told(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "train.conll").write_text("good O\nfilm B-X\n\n" * 300, encoding="utf-8")
    recipe = tmp_path / "tags.yaml"
    head = "version: 1\nname: tags\ntask: {type: token-classification, metric: entity_f1}\ndata: {train: train.conll}\n"
    recipe.write_text(f"{head}teacher: {{model: {tiny_model}, finetune: {{epochs: 1}}}}\n", encoding="utf-8")
    assert "300 labelled texts are few" in advice(recipe)


def test_of_long_texts_layers_learn_what_counts(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe()
    told = "texts are so long (median 121 words read) that length_adapt.significance learned loses less"
    assert "learned" not in advice(recipe)
    write(recipe, 50, LONG)
    assert told in advice(recipe)
    assert told in advice(recipe, "length_adapt.significance=sampled")
    assert "learned" not in advice(recipe, "length_adapt.significance=learned")


def test_of_long_texts_with_entities_a_sample_of_the_tokens_ranks(make_recipe: Callable[..., Path], tiny_model: Path) -> None:
    (make_recipe().parent / "train.conll").write_text(f"{'word O' + chr(10)}" * 121 + "good B-X\n\n", encoding="utf-8")
    recipe = make_recipe().parent / "tags.yaml"
    head = "version: 1\nname: tags\ntask: {type: token-classification, metric: entity_f1}\ndata: {train: train.conll}\n"
    rest = f"teacher: {{model: {tiny_model}, finetune: {{epochs: 1}}}}\nlength_adapt: {{epochs: 1}}\n"
    recipe.write_text(head + rest, encoding="utf-8")
    told = "words read) that length_adapt.significance sampled is faster"
    assert told in advice(recipe)
    assert told not in advice(recipe, "length_adapt.significance=sampled")


def test_layers_learn_where_answers_will_be(make_recipe: Callable[..., Path], tiny_model: Path) -> None:
    recipe = make_recipe()
    told = "significance learned, protect question and neighbours 8"
    assert told not in advice(recipe)
    asked = "version: 1\nname: asked\ntask: {type: question-answering, metric: f1}\ndata: {train: train.csv}\nlength_adapt: {epochs: 1}\n"
    recipe.write_text(f"{asked}teacher: {{model: {tiny_model}, finetune: {{epochs: 1}}}}\n", encoding="utf-8")
    assert told in advice(recipe)
    assert told in advice(recipe, "length_adapt.significance=question", "length_adapt.protect=question")
    assert told not in advice(recipe, "length_adapt.significance=learned", "length_adapt.protect=question")


def test_long_texts_may_be_read_in_part(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe()
    assert "search.truncate" not in advice(recipe)
    write(recipe, 50, LONG)
    assert "texts are so long (median 121 words read) that search.truncate may find points that read only their beginning" in advice(recipe)
    assert "search.truncate" not in advice(recipe, "search.truncate=true")


def test_recipes_that_start_from_one_encoder_may_recycle_its_layers(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe()
    assert "recycle" not in advice(recipe)
    text = recipe.read_text()
    (recipe.parent / "other.yaml").write_text(text.replace("name: tiny", "name: other"))
    (recipe.parent / "odd.yaml").write_text("- [")
    assert "this encoder is that of other too: where they read the same texts, recycle runs its first layers once" in advice(recipe)


def test_entities_above_recycled_layers_call_for_larger_steps(make_recipe: Callable[..., Path], tiny_model: Path) -> None:
    recipe = make_recipe()
    text = "version: 1\nname: x\ntask: {type: token-classification, metric: entity_f1}\ndata: {train: a.conll}\n"
    recipe.write_text(f"{text}teacher: {{model: {tiny_model}, finetune: {{learning_rate: 5e-5}}}}\nrecycle: {{layer: 50%}}\n")
    (recipe.parent / "a.conll").write_text("good B-x\nfilm O\n\n" * 20)
    told = "entities need larger steps above recycled layers: teacher.finetune.learning_rate 0.0002 loses"
    assert told in advice(recipe)
    assert told not in advice(recipe, "teacher.finetune.learning_rate=2e-4")
    assert told not in advice(recipe, "recycle=null")
    result = Path(__file__).parents[1] / "benchmarks/results/recycling_bc5cdr_minilm-l6-h384.json"
    full, half, *_ = json.loads(result.read_text(encoding="utf-8"))["result"]["rows"]
    lost = 100 * (full["score"] - half["score"])
    few = f"2 layers above recycled ones learn entities badly (3 of MiniLM's 6 lost {lost:.1f} points on BC5CDR): recycle.layer auto"
    assert few in advice(recipe)
    assert few not in advice(recipe, "recycle={layer: auto}")


def test_a_much_smaller_student_calls_for_an_assistant(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = make_recipe(**{"student: {layers: [0, 2]}": "student: {model: ./small}"})
    (tmp_path / "small").mkdir()
    for layers, width, called in ((1, 16, True), (2, 16, False), (1, 32, False)):
        (tmp_path / "small/config.json").write_text(json.dumps({"num_hidden_layers": layers, "hidden_size": width}))
        assert ("an assistant section may help" in advice(recipe)) == called


@pytest.mark.parametrize(
    ("student", "called"),
    [
        ("{layers: [0], hidden_size: 16}", True),
        ("{layers: every second, hidden_size: 16}", True),
        ("{layers: first 2, hidden_size: 16}", False),
    ],
)
def test_layers_of_the_teacher_have_a_size_too(student: str, called: bool, make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe(**{"student: {layers: [0, 2]}": f"student: {student}"})
    assert ("an assistant section may help" in advice(recipe)) == called


def test_missing_sections_that_would_pay_are_named(make_recipe: Callable[..., Path]) -> None:
    assert "no quantize section" in advice(make_recipe(**{"quantize: {}\n": ""}))


@pytest.mark.parametrize("content", ["text,lable\na,b\n", "text,label\ncaf\udce9,b\n"])
def test_data_that_cannot_be_read_gives_no_advice_and_no_error(content: str, make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe()
    (recipe.parent / "train.csv").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert facts_of(load_recipe(recipe, [])).words is None


def test_compressed_files_are_counted(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe(**{"train: train.csv": "train: train.csv.gz"})
    (recipe.parent / "train.csv.gz").write_bytes(gzip.compress((recipe.parent / "train.csv").read_bytes()))
    assert facts_of(load_recipe(recipe, [])).examples == 400


def test_a_damaged_archive_gives_no_advice_and_no_error(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe(**{"train: train.csv": "train: train.csv.gz"})
    whole = gzip.compress((recipe.parent / "train.csv").read_bytes())
    for damaged in (whole[:-20], whole[:30] + b"x" * 30 + whole[60:], b"no gzip"):
        (recipe.parent / "train.csv.gz").write_bytes(damaged)
        facts = facts_of(load_recipe(recipe, []))
        assert (facts.examples, facts.words) == (None, None)


def test_plain_text_for_an_encoder_is_counted_and_gets_no_advice_on_bundles(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text(f"{LONG}\n" * 30, encoding="utf-8")
    recipe = tmp_path / "general.yaml"
    student = "distill: {student: {layers: [0, 2]}, objectives: [{type: minilmv2, relation_heads: 4}]}"
    head = "version: 1\nname: general\ntask: {type: masked-lm}\ndata: {train: plain.txt}\n"
    recipe.write_text(f"{head}teacher: {{model: {tiny_model}}}\n{student}\n", encoding="utf-8")
    facts = facts_of(load_recipe(recipe, []))
    assert (facts.examples, facts.words) == (30, 120)
    assert advice(recipe) == ""


def test_words_alone_tell_whether_easy_texts_are_there(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe()
    told = advice(recipe)
    assert "words alone answer 8" in told  # a single word gives each label away; of 300 texts not all words are learned
    assert "easy texts are there, a cascade section may pay" in told
    by_words = facts_of(load_recipe(recipe, [])).by_words
    assert by_words is not None
    assert sum(by_words.shares) == pytest.approx(1)
    assert by_words.shares[-1] > 0.5  # sure where the word was learned
    assert f"90-100%: {by_words.shares[-1]:.0%} of texts" in told
    cascade = "cascade={members: [{point: min}, {point: full}]}"
    assert "easy texts are there for the cascade" in advice(recipe, cascade)
    write(recipe, 600, "nothing to tell by")
    told = advice(recipe)
    assert "no easy texts stand out, a cascade will gain little" in told
    write(recipe, 100, "few")
    assert "words alone" not in advice(recipe)


@pytest.mark.parametrize(("shuffled", "told"), [(0.80, "as many"), (0.77, "3 points less"), (0.84, "4 points more"), (0.803, "as many")])
def test_shuffled_texts_may_be_answered_better(shuffled: float, told: str, make_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(make_recipe(), [])
    by_words = facts_of(recipe).by_words
    assert by_words is not None
    line = _of_words(dataclasses.replace(by_words, accuracy=0.80, shuffled=shuffled), recipe)
    assert f"shuffled ones {told}: " in line


def test_of_sets_of_labels_words_alone_tell_the_whole_set(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe()
    rng = random.Random(0)
    named = [sorted(rng.sample(["bad", "dull", "good"], rng.choice([1, 1, 1, 2]))) for _ in range(400)]
    rows = [{"text": " ".join(["the film was", *names]), "labels": names} for names in named]
    (recipe.parent / "sets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    bare = ("length_adapt=null", "search=null", "default_point=null", "gates=[]", "data={train: sets.jsonl}")
    changes = (*bare, "task={type: multi-label-classification}")
    by_words = facts_of(load_recipe(recipe, list(changes))).by_words
    assert by_words is not None
    assert by_words.accuracy > 2 * by_words.guessed  # six sets
    assert by_words.fifths[0] == 1
    told = advice(recipe, *changes)
    assert f"words alone answer {by_words.accuracy:.0%} of sets of labels" in told
    assert "easy texts are there" in told


def test_what_a_shuffle_costs_is_what_the_order_of_words_says() -> None:
    """A label that follows from a pair of neighbours alone is lost when they are shuffled."""
    rng = random.Random(0)
    texts, labels = list[str](), list[str]()
    for number in range(1200):
        words = rng.sample(["red", "blue", "green", "small", "large", "old"], 6)
        at, first = rng.randrange(5), number % 2 == 0
        words[at : at + 2] = ["not", "good"] if first else ["good", "not"]
        texts.append(" ".join(words))
        labels.append("bad" if first else "fine")
    told = told_by_words(texts, labels)
    assert told is not None
    assert told.accuracy > 0.95
    assert told.shuffled < 0.7
    assert told.guessed < 0.6
    assert told_by_words(texts, ["one"] * 1200) is None
    assert told_by_words(texts, [str(number) for number in range(1200)]) is None  # a column that names each text


def test_texts_that_words_alone_all_answer_are_easy() -> None:
    texts, labels = (
        list(some) for some in zip(*[(f"{word} it is {n}", word) for n in range(200) for word in ("good", "bad")], strict=True)
    )
    told = told_by_words(texts, labels)
    assert told is not None
    assert told.accuracy == 1
    assert told.easy
