"""What a user should know before trusting or repeating a build: what did not pay, what was not certain, what qualifies its figures."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from compressor import machine
from compressor.formats import duration, percent, points_change, times
from compressor.gates import Variant
from compressor.inputs import Inputs
from compressor.measure import RECYCLED, STUDENT, row_name
from compressor.plan import crowded
from compressor.recipe import Recipe


def findings(
    recipe: Recipe,
    inputs: Inputs,
    manifest: Mapping[str, Any],
    rows: Mapping[str, Variant],
    stages: list[dict[str, Any]],
    frontier: Mapping[str, Any],
    policy: Mapping[str, Any],
) -> list[str]:
    """Return all findings, a sentence or two each."""
    cascade, read_anew = rows.get(row_name("cascade", inputs)), {row_name(name, inputs) for name in RECYCLED}
    fresh = [row for row in rows.values() if row.name not in read_anew]  # a cascade reads no store
    return [
        *_of_the_build(recipe),
        *_of_the_rows(inputs, rows, stages, frontier.get("losses", {}), manifest["backend"]),
        *(_truncated(manifest, recipe.data.max_length) if frontier.get("truncates") else []),
        *_backends(manifest),
        *_elsewhere(manifest),
        *([] if cascade is None else [_paying(cascade, fresh, policy), *_going_on(policy), *_calibrated(recipe)]),
    ]


def _of_the_build(recipe: Recipe) -> Iterator[str]:
    """Say what makes all figures doubtful."""
    if recipe.smoke:
        yield "A smoke build: a sliver of the data was read, no gate was judged, and these figures mean nothing."
    if crowded(recipe):
        yield f"Times were measured with {recipe.target.threads} threads on {machine.usable_cores()} cores, which they share."


def _of_the_rows(
    inputs: Inputs, rows: Mapping[str, Variant], stages: list[dict[str, Any]], losses: Mapping[str, float], backend: str
) -> list[str]:
    """Say what a user should know before trusting or repeating this build: what did not pay, what was not certain."""
    found, full, student = [], rows[row_name("full", inputs)], rows[STUDENT]
    if "frontier" in inputs:
        for point in ("balanced", "fast"):
            row = rows[row_name(point, inputs)]
            ratio = full.mean_ms / row.mean_ms  # as the search counts: a median tells nothing of what long texts gain
            verdict = "pays little here" if ratio < 1.15 else "pays"
            gained = f"Length adaptation {verdict}: {point} is {times(ratio)} full length by mean times"
            promised = _more_than_promised(row, full, losses[point])
            found.append(f"{gained}, at {_change(row, full)} on the test split{promised}.")
    if "int8_graph" in inputs:
        ratio = student.p50_ms / full.p50_ms
        here, there = ("", "") if backend == "onnxruntime" else (f" in {backend}", " in onnxruntime")
        found.append(
            f"INT8{here} is {times(ratio)} fp32{there} at {_change(full, student)}{'' if ratio > 1 else ': it does not pay here'}."
        )
    new, known = (rows.get(row_name(name, inputs)) for name in RECYCLED)
    if new and known:
        ratio = full.p50_ms / known.p50_ms
        verdict = "pays" if ratio > 1.05 else "does not pay here"
        told = f"a text that the store knows is {times(ratio)} the speed of the whole graph, at {_change(known, full)}"
        found.append(f"Recycling {verdict}: {told}; one that it does not know takes {times(new.p50_ms / full.p50_ms)} as long.")
    for stage in stages:
        found += _of_stage(stage)
    around = max(full.score_interval[1] - full.score, full.score - full.score_interval[0])
    found.append(
        f"A score on this test split is uncertain by about ±{100 * around:.1f} points; "
        "differences of rows, which answer the same texts, by less: what is said of them here has its own interval."
    )
    return found


def _of_stage(stage: Mapping[str, Any]) -> Iterator[str]:
    """Say what a stage found out about itself."""
    metrics: Mapping[str, Any] = stage["metrics"]
    yield from metrics.get("caveats", ())
    yield from metrics.get("against_baselines", ())
    if halves := metrics.get("across_halves"):
        here, there = (points_change(halves[name]) for name in ("chosen", "other"))
        yield (
            f"Chosen on half of the calibration texts, thresholds score {here} points against the last member there, "
            f"{there} on the other half (means of {halves['choices']} choices): expect the second on new texts."
        )
    if "before" in metrics:
        whole, smallest = (points_change(metrics["after"][k] - metrics["before"][k]) for k in ("full", "smallest"))
        gained = f"full length by {whole} points and the smallest sub-model by {smallest}"
        yield f"LengthDrop training moved {gained} (validation split), for {duration(stage['seconds'])}."


def _change(row: Variant, other: Variant) -> str:
    """Return the change of a score in points, with its paired interval."""
    low, high = row.changes[other.name]
    return f"{points_change(row.score - other.score)} points ({points_change(low)} to {points_change(high)})"


def _more_than_promised(row: Variant, full: Variant, allowed: float) -> str:
    """Say whether a point certainly loses more on the test split than what it was chosen by."""
    told = f": more than the {100 * allowed:g} that it was chosen for, on the search split"
    return told if row.changes[full.name][1] < -allowed else ""


def _truncated(manifest: Mapping[str, Any], max_length: int) -> list[str]:
    """Say which operating points read only the beginning of a long text."""
    read = {name: point["lengths"][0] for name, point in manifest["points"].items() if point["lengths"][0] < max_length}
    told = ", ".join(f"{name} reads the first {tokens} tokens" for name, tokens in read.items())
    return [f"Of longer texts {told}: what they say after that counts for nothing."] if read else []


def _backends(manifest: Mapping[str, Any]) -> list[str]:
    """Say which backend runs the graph and what the others were, where there was a choice."""
    told, chosen = manifest["backends"], manifest["backend"]
    refused = [facts["refused"] for facts in told.values() if "refused" in facts]
    others = [name for name, facts in told.items() if name != chosen and "p50_ms" in facts]
    slower = [f"{name} takes {times(told[name]['p50_ms'] / told[chosen]['p50_ms'])} the time" for name in others]
    return [f"The bundle runs in {chosen}: {'; '.join([*slower, *refused])}."] if slower or refused else []


def _elsewhere(manifest: Mapping[str, Any]) -> list[str]:
    """Say where a bundle is for other processors than those that times were measured on."""
    isa, here = manifest["isa"], machine.level()
    return (
        []
        if isa in (None, here)
        else [f"Times are those of this machine ({here or 'an unknown instruction set'}); the bundle is for processors with {isa}."]
    )


def _paying(cascade: Variant, rows: Iterable[Variant], policy: Mapping[str, Any]) -> str:
    """Say what the cascade gives beside the fastest row of one model that is as good, and beside its last member, which may be no row."""
    good = [v for v in rows if v is not cascade and v.score >= cascade.score - 1e-9]
    answered = ", ".join(f"{own['member']} answers {percent(own['share'])}" for own in policy["test_shares"])
    last = policy["members"][-1]
    faster, of_last = times(last["mean_ms"] / policy["chosen"]["mean_ms"]), f"of {last['name']}, its last member, on the calibration texts"
    if not good:
        told = f"more than any other row, at {faster} the speed {of_last}"
        return f"The cascade scores {percent(cascade.score)}, {told} ({answered}; mean times)."
    rival = min(good, key=lambda v: v.mean_ms)
    ratio = rival.mean_ms / cascade.mean_ms
    verdict = f"{'pays' if ratio > 1.05 else 'does not pay here'}: {times(ratio)} the speed of {rival.name}"
    return f"The cascade {verdict}, the fastest row that is as good, and {faster} that {of_last} ({answered}; mean times)."


def _going_on(policy: Mapping[str, Any]) -> list[str]:
    """Say whether it pays to go on from an early exit, if there is one, instead of reading a text again."""
    told = [one for one in policy.get("members", ()) if "continued_ms" in one]
    return [
        f"Going on from the early exit {'pays' if one['continued_ms'] < one['restarted_ms'] else 'does not pay here'}: "
        f"{one['continued_ms']:.2f} ms a text, where {one['name']} from the start takes {one['restarted_ms']:.2f} ms."
        for one in told
    ]


def _calibrated(recipe: Recipe) -> list[str]:
    """Say where a cascade was calibrated on the texts by which its points were chosen."""
    assert recipe.cascade is not None
    points = [m.point for m in recipe.cascade.members if m.point not in (None, "full")]
    if recipe.search is None or recipe.cascade.calibration is not None or not points:
        return []
    return [
        f"The cascade was calibrated on the search split, by which {', '.join(map(str, points))} {'were' if len(points) > 1 else 'was'} "
        "chosen too: scores there are a little high. cascade.calibration names texts of its own."
    ]
