"""The front page says what the benchmarks' results say, and its recipe and its commands are real."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from compressor.cli import app
from compressor.formats import megabytes, milliseconds, percent, percent_interval, times
from compressor.loader import load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))["result"]
    return found


BUILDS = ["pipeline_times", *(path.stem for path in sorted((ROOT / "benchmarks/results").glob("build_*.json")))]
ROWS = [pytest.param(row, id=f"{name} {row['name']}") for name in BUILDS for row in result(name).get("variants", ())]


@pytest.mark.parametrize("row", ROWS)
def test_the_result_tables_are_what_was_measured(row: dict[str, Any]) -> None:
    cells = (
        percent(row["score"]),
        percent_interval(row["score_interval"]),
        milliseconds(row["p50_ms"]),
        times(row["speedup"]),
        megabytes(row["size_mb"]),
    )
    assert f"| {row['name']} | {' | '.join(cells)} |" in README


def test_the_other_figures_are_what_was_measured() -> None:
    built, trained, memory = (result(name) for name in ("pipeline_times", "training_throughput", "memory_flat"))
    minutes, seconds = divmod(round(built["seconds"]), 60)
    floor = {row["tokens"]: row["over_floor"] for row in result("floor_squad")["rows"]}
    peaks = [row["peak_mb_until_finetune"] / 1000 for row in memory["sizes"]]
    for figure in (
        f"{minutes} min {seconds:02d} s",
        f"{built['peak_memory_mb'] / 1000:.1f} GB",
        f"cached {built['seconds_cached']:.1f} s",
        f"`validate` {built['seconds_validate']:.1f} s, `plan` {built['seconds_plan']:.1f} s",
        f"imports in {built['seconds_import_runtime']:.2f} s",
        f"{trained['ours_over']['trainer']['median']:.1f}×",
        f"{trained['ours_over']['trainer, bfloat16, length grouping']['median']:.1f}×",
        f"{peaks[0]:.2f} GB",
        f"{peaks[-1]:.2f} GB",
        *(f"{row['times_as_fast']:.2f}×" for row in result("attending")["rows"]),
        "takes {:.1f} times that at 128 tokens, {:.1f} times at 16".format(*(floor[tokens] for tokens in (128, 16))),
    ):
        assert figure in README, figure


def test_what_dropping_costs_in_answers_is_what_was_measured() -> None:
    rows, variants = result("lengths_squad")["rows"], ("attention", "sampled", "question", "question, neighbours")
    losses = list[dict[int, float]]()
    for name in variants:
        own = {round(100 * row["macs"]): row["score"] for row in rows if row["variant"] == f"plain dropping, {name}"}
        losses.append({share: 100 * (own[100] - score) for share, score in own.items()})
    told = "loses {:.1f} points of F1 at 85 % of the MACs by all tokens' attention, {:.1f} by every eighth's, {:.1f} by the question's and"
    words = " ".join(README.split())
    assert f"{told} {{:.1f}} by".format(*(loss[85] for loss in losses)) in words
    assert f"at 53 % they all lose {min(loss[53] for loss in losses):.0f} or more" in words


def test_what_is_left_of_answers_at_half_of_the_work_is_what_was_measured() -> None:
    built, words = result("build_squad"), " ".join(README.split())
    rows = {row["name"]: row for row in built["variants"]}
    full, knee, fast = (rows[f"INT8 {name}"] for name in ("full", "knee", "fast"))
    front = {round(100 * row["macs"]): row["score"] for row in built["front"]}
    of = next(row["score"] for row in built["front"] if row["lengths"] == built["points"]["accurate"]["lengths"])
    assert f"scores {100 * front[51]:.1f} of {100 * of:.1f} at 51 %" in words
    macs = next(row["macs"] for row in built["front"] if row["lengths"] == knee["lengths"])
    lost = [100 * (full["score"] - row["score"]) for row in (knee, fast)]
    gained = [full["mean_ms"] / row["mean_ms"] for row in (knee, fast)]
    told = f"at {100 * macs:.0f} % of the multiply-accumulates `knee` loses {lost[0]:.1f} points against INT8 full"
    assert told in words
    assert f"at {gained[0]:.2f} times its speed, `fast` {lost[1]:.1f} at {gained[1]:.2f} times" in words


def test_the_table_of_int8_backends_is_what_was_measured() -> None:
    rows = result("quantizers_sst2")["rows"]
    usual = next(row for row in rows if row["graph"] == "onnxruntime")
    for row in rows:
        cells = [row["graph"], percent(row["score_full"]), f"{row['divergence_full']:.4f}", milliseconds(row["p50_ms"])]
        cells += [times(row[key] / usual[key]) for key in ("texts_per_second_1_threads", "texts_per_second_2_threads")]
        assert f"| {' | '.join(cells)} |" in README


@pytest.mark.parametrize(("name", "ours"), [("peers_sst2", "this project, "), ("peers_sst2-static", "this project, for streams, ")])
def test_the_table_of_peers_is_what_was_measured(name: str, ours: str) -> None:
    found = result(name)
    scores = {row["model"]: percent(row["score"]) for row in found["scores"]}
    rows = {(row["model"], row["workload"], row["threads"]): row for row in found["times"]}
    names = [model for model, workload, threads in rows if (workload, threads) == ("one by one", 1)]
    for name in names if ours == "this project, " else [name for name in names if name.startswith("this project, ")]:
        one, stream = rows[name, "one by one", 1], rows[name, "stream of 512", 2]
        cells = [name.replace("this project, ", ours), scores.get(name, "–"), milliseconds(one["p50_ms"]), times(one["over_first"])]
        cells += [f"{stream['texts_per_second']:,.0f}", times(stream["over_first"])]
        assert f"| {' | '.join(cells)} |" in README


def test_the_table_of_shapes_is_what_was_measured() -> None:
    rows = {(row["model"], row["workload"], row["threads"]): row for row in result("peers_newsgroups")["times"]}
    for name in ("DistilBERT fp32, onnxruntime", *(f"this project, {point}" for point in ("full", "accurate", "balanced", "fast"))):
        cells = [times(rows[name, shape, 1]["over_first"]) for shape in ("1x32", "1x128", "1x384", "8x128", "32x384")]
        assert f"| {name} | {' | '.join(cells)} |" in README


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "benchmarks/results").glob("methods_*.json"))])
def test_the_tables_of_methods_are_what_was_measured(name: str) -> None:
    for row in result(name)["rows"]:
        spread = "" if row["spread"] is None else f" ± {100 * row['spread']:.1f}"
        cells = [row["name"], f"{100 * row['score']:.1f}{spread}", f"{row['learning'] / 1e6:.2f} M", f"{row['seconds']:,} s"]
        assert f"| {' | '.join(cells)} |" in README


def test_the_recipe_on_the_front_page_loads(tmp_path: Path) -> None:
    whole, *sections = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(whole + "".join(sections), encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml", [])
    assert (recipe.name, len(sections)) == ("reviews", 1)
    assert recipe.cascade is not None


def test_the_python_on_the_front_page_compiles() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "README.md", "exec")


def test_every_command_on_the_front_page_exists() -> None:
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    named = set(re.findall(r"^compress (\w+)(?= )", README, re.MULTILINE))
    assert named
    assert named <= verbs


def test_every_link_into_the_repository_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_what_routing_takes_is_what_was_measured() -> None:
    rows = [row for name in ("sst2", "newsgroups", "squad") for row in result(f"routing_{name}")["rows"]]
    alone, together = ([r["routing_over_members"] for r in rows if r["texts"] == asked] for asked in ("one by one", "all at once"))
    assert max(together) < 0.01
    assert f"takes {100 * min(alone):.1f} to {100 * max(alone):.1f} % of the members' own time" in " ".join(README.split())


def test_what_a_cascade_takes_by_the_shares_of_all_texts_is_what_was_measured() -> None:
    built = result("build_sst2")
    fast, teacher = (member["mean_ms"] for member in built["cascade"]["members"])
    mean = fast + built["cascade"]["test_shares"][1]["share"] * teacher  # who goes on was read by both
    ratio = built["variants"][0]["mean_ms"] / mean
    assert f"its members' own times, at the dev set's shares, make {ratio:.1f}×" in " ".join(README.split())


def test_what_runs_of_many_tokens_cost_is_what_was_measured() -> None:
    rows = result("batches_newsgroups")["rows"]
    times = {(row["threads"], row["point"], row["most_tokens"]): row["ms"] for row in rows}
    ratios = [times[threads, "full", 8192] / times[threads, "full", 512] for threads in (1, 2)]
    assert "of 8,192, long posts take {:.1f} to {:.1f} times as long".format(*ratios) in " ".join(README.split())


DATA = {
    "sci-cite": "SciCite, macro F1",
    "bc5cdr": "BC5CDR, entity F1",
    "chemprot": "ChemProt, accuracy",
    "sciie-relation-extraction": "SciERC, macro F1",
}
MODELS = {"mpnet-base": "MPNet-base", "minilm-l6-h384": "MiniLM 6×384"}
RECYCLED = [
    path.stem.removeprefix("recycling_")
    for path in (ROOT / "benchmarks/results").glob("recycling_*.json")
    if path.stem.count("_") == 2 and "squad" not in path.stem
]


@pytest.mark.parametrize("name", RECYCLED)
def test_what_recycling_gives_a_training_is_what_was_measured(name: str) -> None:
    found, (data, model) = result(f"recycling_{name}"), name.split("_")
    rows = {row["name"]: row for row in found["rows"]}
    metric = DATA[data].partition(", ")[2].lower().replace(" ", "_")
    assert found.get("metric", metric) == metric  # the first results do not name it
    both = rows["full"], rows["recycled, 50%, float16"]
    (whole, above), (slow, fast) = ([row[key] for row in both] for key in ("score", "texts_per_second"))
    scores = f"{100 * whole:.1f} | {100 * above:.1f} | {100 * (above - whole):+.1f}".replace("-", "−")
    cells = f"| {DATA[data]} | {MODELS[model]} | {scores} | {slow:.0f} | {fast:.0f} | {fast / slow:.1f}× |"
    assert f"{cells} [result](benchmarks/results/recycling_{name}.json) |" in README


DEPTHS = {
    "whole": "full",
    **{f"above {q} %": f"recycled, {q}%, float16" for q in (25, 50, 75)},
    "the head alone": "recycled, 100%, float16",
}


@pytest.mark.parametrize(("title", "name"), DEPTHS.items())
def test_what_more_recycled_layers_and_fewer_texts_cost_is_what_was_measured(title: str, name: str) -> None:
    rows = {row["name"]: row for row in result("recycling_sciie-relation-extraction_minilm-l6-h384")["rows"]}
    amounts = ("", ", half of the data", ", a tenth of the data")
    texts = " | ".join(f"{rows['full' + amount]['texts']:,} texts" for amount in amounts)
    assert f"| fine-tuned | {texts} | speed on all texts |" in README
    parts = [rows.get(name + amount) for amount in amounts]
    cells = " | ".join(f"{100 * row['score']:.1f} ± {100 * row['spread']:.1f}" if row else "" for row in parts)
    assert f"| {title} | {cells} | {rows[name]['texts_per_second'] / rows['full']['texts_per_second']:.1f}× |" in README


def test_what_recycling_gives_questions_is_what_was_measured() -> None:
    full, above = result("recycling_squad_minilm-l6-h384")["rows"]
    slow, fast, lost = full["texts_per_second"], above["texts_per_second"], 100 * (full["score"] - above["score"])
    told = (
        f"read {fast:.0f} windows a second where it had read {slow:.0f}, {fast / slow:.1f} times as fast, and ended {lost:.1f} points of F1"
    )
    assert f"{told} below ({100 * above['score']:.1f} and {100 * full['score']:.1f})" in " ".join(README.split())


def test_what_smaller_types_cost_the_score_is_what_was_measured() -> None:
    scores = {row["name"].split()[-1]: 100 * row["score"] for row in result("recycling_bc5cdr_minilm-l6-h384")["rows"][1:]}
    told = "{float16:.2f} and {int8:.2f} where float32 gives {float32:.2f}".format(**scores)
    assert told in " ".join(README.split())
    assert scores["float32"] - scores["float16"] < 0.1
    assert scores["float32"] - scores["int8"] < 0.3


def test_what_one_learning_rate_for_all_costs_recycled_layers_is_what_was_measured() -> None:
    full, half = result("recycling_bc5cdr_mpnet-base_same-rate")["rows"]
    assert f"At one rate for both, MPNet-base ended {100 * (full['score'] - half['score']):.1f} points below on BC5CDR" in " ".join(
        README.split()
    )


def test_what_a_store_takes_and_knows_is_what_was_measured() -> None:
    words, stored, known = " ".join(README.split()), result("store"), {row["read_as"]: row["known"] for row in result("overlap")["rows"]}
    plain, half, eighth = stored["types"]
    times = [one["milliseconds_a_text"] for one in stored["types"]]
    assert "read in {:.2f} ms (float32), {:.2f} (float16) or {:.2f} (int8)".format(*times) in words
    shares = [100 * one["megabytes"] / plain["megabytes"] for one in (half, eighth)]
    assert "which takes {:.0f} % and {:.0f} % of float32's disk".format(*shares) in words
    first, *_, last = (row["own_megabytes"] for row in stored["growth"])
    assert f"a process holds {last:.0f} MB for itself where it held {first:.0f}" in words
    small, *_, large = stored["growth"]
    slower = [one[key] for key in ("microseconds_a_first_read", "microseconds_a_read") for one in (large, small)]
    told = "a first read of a small entry takes {:.1f} µs where it took {:.1f}, a later one {:.1f} where it took {:.1f}"
    assert told.format(*slower) in words
    read_as = ("paragraphs", "windows of 128 tokens", "one text")
    sentence, paragraph = (
        [100 * known[name][edit]["tokens"] for name in read_as]
        for edit in ("a sentence is added to a paragraph", "a paragraph is added at the beginning")
    )
    assert f"knew {sentence[0]:.0f} % of the tokens" in words
    assert f"{sentence[1]:.0f} % where windows of 128 tokens are" in words
    assert f"a new paragraph {paragraph[0]:.0f} %, {paragraph[1]:.0f} % and none" in words
    assert sentence[2] == paragraph[2] == 0


def test_what_a_text_that_a_store_knows_takes_is_what_was_measured() -> None:
    words = " ".join(README.split())
    for name, kind, told in (("", "INT8", "1 / {:.2f} of the whole"), ("-float", "fp32", "these are 1 / {:.2f} and")):
        rows = {row["name"]: row["p50_ms"] for row in result(f"build_scientific-sci-cite{name}")["variants"]}
        assert told.format(rows[f"{kind} full"] / rows[f"{kind} known text"]) in words
        assert f"{rows[f'{kind} new text'] / rows[f'{kind} full']:.2f}" in words


def test_what_a_search_costs_is_what_was_measured() -> None:
    *_, last = result("search_cost")["ours"]
    assert result("search_cost")["same_front_for_1_and_4_workers"]
    assert last["hypervolume_over_reference"]["test"]["at most 5 points lost"] >= 1
    told = f"in {100 * last['share_of_reference']:.1f} % of the time a front as good on the test split, where at most 5 points are lost"
    assert (
        f"takes {last['evaluations']} evaluations instead of the published {result('search_cost')['reference']['evaluations']:,}?" in README
    )
    assert told in README
