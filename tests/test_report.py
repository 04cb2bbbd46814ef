"""The contract of the report and the model card: self-contained, escaped, and sensible when a recipe has few stages."""

import re
from itertools import pairwise
from typing import Any

import pytest
from ruamel.yaml import YAML

from compressor import report
from compressor.summary import told
from tests.test_plot import candidate, lengths_of

MINIMAL: dict[str, Any] = {
    "name": "tiny",
    "task": "text-classification",
    "metric": "accuracy",
    "labels": ["negative", "positive"],
    "variants": [
        {"name": "teacher fp32", "score": 0.871, "p50_ms": 9.1, "speedup": 1.0, "size_mb": 90.1, "lengths": None},
        {"name": "INT8 full", "score": 0.865, "p50_ms": 1.44, "speedup": 6.32, "size_mb": 17.2},
    ],
}


def variant(name: str, score: float, p50_ms: float, size_mb: float, budget: float | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "score": score,
        "score_interval": [score - 0.021, score + 0.02],
        "p50_ms": p50_ms,
        "p90_ms": 1.6 * p50_ms,
        "speedup": 9.1 / p50_ms,
        "size_mb": size_mb,
        "lengths": lengths_of(budget) if budget else None,
        **({"macs": budget} if budget else {}),
    }


def full_metrics() -> dict[str, Any]:
    """Made-up metrics with every part present and 100 evaluated candidates."""
    budgets = {"full": 1.0, "accurate": 0.7, "balanced": 0.45, "fast": 0.25, "min": 0.2}
    scores = {"full": 0.867, "accurate": 0.866, "balanced": 0.865, "fast": 0.852, "min": 0.848}
    splits = {"train": 8451, "validation": 1012, "search": 500, "test": 1030}
    return {
        **MINIMAL,
        "name": "quickstart",
        "seed": 17,
        "default_policy": None,
        "default_point": "balanced",
        "max_length": 128,
        "data": {split: {"examples": n, "median_tokens": 24, "p90_tokens": 40} for split, n in splits.items()},
        "target": {"threads": 1, "batch": 1},
        "machine": {"cpu": "Intel Xeon Platinum 8481C", "cores": 2, "isa": ["avx2", "avx512_vnni", "amx_int8"], "memory_gb": 23.4},
        "versions": {"torch": "2.13.0", "onnxruntime": "1.31.1"},
        "variants": [
            variant("teacher fp32", 0.871, 9.1, 90.1),
            variant("student fp32", 0.869, 4.7, 59.3),
            *(variant(f"INT8 {name}", scores[name], 0.6 + 1.1 * budget, 17.2, budget) for name, budget in budgets.items()),
        ],
        "front": [candidate(i / 20) for i in range(3, 21)],
        "evaluated": [candidate(0.15 + (i * 37 % 86) / 100, 0.002 + (i * 53 % 100) ** 2 / 4e5) for i in range(100)],
        "points": {name: candidate(budget) for name, budget in budgets.items()},
        "stages": [
            {"name": "finetune", "seconds": 180.2, "summary": "accuracy 0.871 on validation", "cached": True, "metrics": {}},
            {"name": "distill", "seconds": 200.0, "summary": "12 to 6 layers, accuracy 0.869 on validation", "cached": False},
            {"name": "quantize", "seconds": 12.3, "summary": "59.3 MB to 17.2 MB", "cached": False},
            {"name": "search", "seconds": 95.0, "summary": "100 candidates, 18 on the front", "cached": False},
        ],
        "gates": [
            {"gate": "accuracy drop against teacher", "value": "0.60%", "limit": "≤ 2.00%", "passed": True},
            {"gate": "size of model.onnx", "value": "17.2 MB", "limit": "≤ 15 MB", "passed": False},
        ],
        "findings": ["Length adaptation pays little here: median 24 tokens; fast is 1.08× INT8 at full length."],
        "stage_gains": [
            {"stage": "distill", "speedup_factor": 1.9, "score_change": -0.002, "seconds": 200.0},
            {"stage": "quantize", "speedup_factor": 2.76, "score_change": -0.002, "seconds": 12.3},
            {"stage": "search: fast", "speedup_factor": 0.95, "score_change": -0.015, "seconds": 95.0},
            {"stage": "search: accurate", "speedup_factor": 1.24, "score_change": 0.001, "seconds": 95.0},
        ],
    }


def front_matter(card: str) -> dict[str, Any]:
    _, text, _ = card.split("---\n", 2)
    loaded: dict[str, Any] = YAML(typ="safe").load(text)
    return loaded


def test_report_shows_every_part() -> None:
    page = report.render_report(full_metrics())
    assert "8.3× faster than its teacher at −0.6 points of accuracy, 17.2 MB" in page
    assert "✗ failed: size of model.onnx ≤ 15 MB (got 17.2 MB)" in page
    assert page.count('class="front"') == 18
    assert all(f">{name}</text>" in page for name in ("full", "accurate", "balanced", "fast", "min"))
    assert "Length adaptation pays little here" in page
    assert page.count("of the multiply-accumulates</figcaption>") == len(full_metrics()["points"])
    assert "3 min 20 s" in page


def test_the_report_tells_what_is_read_of_a_text_from_what_layers_keep() -> None:
    page = report.render_report({**full_metrics(), "truncates": True})
    assert page.count(">read</text>") == len(full_metrics()["points"])
    assert "read</em> is the most tokens that are read of a text" in page
    assert "Tokens read, then kept per layer" in report.render_card({**full_metrics(), "truncates": True})
    whole, half = (report.length_chart("full", [read, 512, 256], 512, True).kept for read in (512, 256))
    assert (whole, half) == (0.75, 0.375)  # of half a text, layers keep their share of that half
    assert ">read</text>" not in report.render_report(full_metrics())


def test_shares_of_token_positions_are_over_full_length_whose_last_layer_may_keep_one() -> None:
    full, half = [64, 64, 1], [32, 32, 1]
    assert report.length_chart("full", full, 64, False, full=full).kept == 1
    assert report.length_chart("fast", half, 64, False, full=full).kept == 65 / 129
    metrics = {**full_metrics(), "truncates": False}
    for point in metrics["points"].values():
        point["lengths"][-1] = 1
    (whole,) = (chart for chart in report._length_charts(metrics) if chart.name == "full")
    assert whole.kept == 1


def test_report_is_small_and_reproducible() -> None:
    page = report.render_report(full_metrics())
    assert len(page.encode()) < 60_000
    assert page == report.render_report(full_metrics())


def test_report_fetches_nothing() -> None:
    page = report.render_report(full_metrics())
    assert not re.search(r"https?://|@import|url\(|<script|<img|<iframe", page)


PARTS = ("front", "evaluated", "points", "stages", "gates", "findings", "stage_gains", "data", "machine", "target", "versions", "labels")


@pytest.mark.parametrize("absent", PARTS)
def test_each_part_may_be_absent_or_empty(absent: str) -> None:
    metrics = full_metrics()
    empty = {**metrics, absent: type(metrics[absent])()}
    del metrics[absent]
    assert report.render_report(metrics) == report.render_report(empty)
    assert report.render_card(metrics) == report.render_card(empty)


def test_minimal_metrics_render() -> None:
    page = report.render_report(MINIMAL)
    assert "6.3× faster than its teacher at −0.6 points of accuracy, 17.2 MB" in page
    assert "This recipe has no search" in page
    assert "this recipe sets no gates" in page
    assert "nan" not in page
    assert "None" not in page
    assert "None" not in report.render_card(MINIMAL)


def test_bundle_without_measurements_renders() -> None:
    assert "Nothing was measured" in report.render_report({**MINIMAL, "variants": []})
    assert "Nothing was measured" in report.render_card({**MINIMAL, "variants": []})


def test_html_in_user_text_is_escaped() -> None:
    bad = "<script>alert('x')</script>"
    metrics = {**full_metrics(), "name": bad, "labels": [bad, "a|b"], "findings": [bad], "points": {bad: candidate(0.5)}}
    page, card = report.render_report(metrics), report.render_card(metrics)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<script" not in card.split("---\n", 2)[2]
    assert r"a\|b" in card
    assert front_matter(card)["model-index"][0]["name"] == bad


def test_card_front_matter_is_what_the_hub_reads() -> None:
    matter = front_matter(report.render_card(full_metrics()))
    assert matter["pipeline_tag"] == "text-classification"
    assert matter["tags"] == ["compressed", "int8", "onnx", "length-adaptive"]
    assert "language" not in matter
    (result,) = matter["model-index"][0]["results"]
    assert [metric["value"] for metric in result["metrics"]] == [0.867, 0.866, 0.865, 0.852, 0.848]


def test_card_explains_use_with_the_default_point() -> None:
    assert 'runtime.predict(["A text to classify."], point="balanced")' in report.render_card(full_metrics())
    assert 'runtime.predict(["A text to classify."])' in report.render_card({**full_metrics(), "default_point": "full"})
    assert 'runtime.predict(["A text to classify."])' in report.render_card(MINIMAL)


def test_a_card_says_what_holds_for_its_task_and_its_points() -> None:
    pair = report.render_card({**full_metrics(), "pairs": True})
    assert 'runtime.predict([("A text.", "Another that belongs to it.")]' in pair  # a single text would be refused
    assert "longer than 128 tokens is cut" in pair
    assert "longer than 128 tokens is read in windows of so many" in report.render_card({**full_metrics(), "task": "token-classification"})
    assert "length-adaptive" in pair
    assert "operating points lie close together" in pair
    bare = {**full_metrics(), "variants": [{**row, "lengths": None} for row in full_metrics()["variants"]]}
    card = report.render_card(bare)
    assert "length-adaptive" not in card
    assert "operating point below is the same model file" not in card
    assert "Length adaptation" not in card.split("## Limits")[1]


def test_card_tables_are_whole() -> None:
    lines = report.render_card(full_metrics()).splitlines()
    for above, below in pairwise(lines):
        if above.startswith("|") and below.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", above)) == len(re.findall(r"(?<!\\)\|", below))


def test_the_headline_speaks_of_the_default_operating_point() -> None:
    metrics = full_metrics()
    for point, speedup in (("fast", 9.1 / (0.6 + 1.1 * 0.25)), ("full", 9.1 / 1.7)):
        found = report.headline({**metrics, "default_point": point})
        assert found.row["name"] == f"INT8 {point}"
        assert found.verdict.startswith(f"{speedup:.1f}× faster than its teacher")


def test_the_headline_without_a_default_point_is_balanced_then_full_then_the_last_row() -> None:
    metrics = {key: value for key, value in full_metrics().items() if key != "default_point"}
    rows = metrics["variants"]
    unbalanced = [row for row in rows if row["name"] != "INT8 balanced"]
    for variants, expected in ((rows, "INT8 balanced"), (unbalanced, "INT8 full"), (rows[-2:], "INT8 min"), (rows[:2], "student fp32")):
        page = report.render_report({**metrics, "variants": variants})
        assert f'<tr class="pick"><th scope="row" class="nb">{expected}</th>' in page


def test_a_bundle_without_int8_is_reported_and_indexed_too() -> None:
    metrics = {**MINIMAL, "default_point": "full", "variants": [MINIMAL["variants"][0], {**MINIMAL["variants"][1], "name": "fp32 full"}]}
    card = report.render_card(metrics)
    (result,) = front_matter(card)["model-index"][0]["results"]
    assert [metric["name"] for metric in result["metrics"]] == ["accuracy (fp32 full)"]
    assert "int8" not in card.lower()
    assert "6.3× faster than its teacher" in report.render_report(metrics)


def test_the_report_shows_what_short_trainings_said_of_each_depth() -> None:
    probes = [{"layers": k, "score": 0.9 - k / 100, "texts_per_second": 50.0 + 20 * k} for k in (0, 2, 4)]
    stage = {"name": "recycle", "seconds": 9.0, "summary": "", "metrics": {"probes": probes, "layer": 2}}
    assert 'id="probe-plot-title"' not in report.render_report(full_metrics())
    page = report.render_report({**full_metrics(), "stages": [*full_metrics()["stages"], stage]})
    drawn = page.split('id="probe-plot-desc"')[1].split("</svg>")[0]
    for at in ("0 layers at 90.0%, 20.00 ms", "2 layers at 88.0%, 11.11 ms", "4 layers at 86.0%, 7.69 ms"):
        assert at in drawn
    assert told({"layer": 2, "probes": probes}) == (
        "2 layers recycled, by short trainings above so many: 0: 0.9000 at 50 texts/s, 2: 0.8800 at 90 texts/s, 4: 0.8600 at 130 texts/s"
    )


def test_a_stage_tells_seeds_weights_that_learned_and_vocabulary() -> None:
    seeds = {"scores": [0.9, 0.92], "mean": 0.91, "standard_deviation": 0.014}
    metrics = {"seeds": seeds, "validation_score": 0.92, "parameters": 1000, "learning_parameters": 10}
    metrics["vocabulary"] = {"before": 30522, "after": 13487, "covered": 0.625}
    assert told(metrics) == (
        "2 seeds: 0.9100 ± 0.0140; the best went on; score 0.9200 on validation; 10 of 1,000 weights learned; "
        "13,487 of 30,522 tokens, which cover 62.5% of the validation texts"
    )
    assert told({"validation_score": 0.5, "parameters": 10, "learning_parameters": 10}) == "score 0.5000 on validation"
    assert told({"entries": 8236, "layer": 6, "megabytes": 641.2}) == "layer 6 of 8,236 distinct texts takes 641 MB"


def test_a_smoke_build_says_that_it_is_one_and_options_are_repeated() -> None:
    metrics = {**full_metrics(), "gates": [], "smoke": True, "options": ["--set", "data.test={limit: 5}", "--profile", "smoke"]}
    page, card = report.render_report(metrics), report.render_card(metrics)
    assert "a smoke build: no gate is judged" in page
    assert "A smoke build: no gate is judged." in card
    assert "compress recipe.yaml --set &#39;data.test={limit: 5}&#39; --profile smoke" in page


def test_lengths_that_are_counts_have_no_share_of_a_text() -> None:
    metrics = {**full_metrics(), "truncates": False, "counts": "absolute"}
    assert {chart.kept for chart in report._length_charts(metrics)} == {None}
    page = report.render_report(metrics)
    assert "of token positions" not in page
    assert "the most tokens that the layer passes on, of a shorter text all" in page
