"""Layers that stay as they are run once per text, and what is learned above them is the same."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from compressor import probes
from compressor.classification import TextClassification
from compressor.data import Example
from compressor.encoded import Encoded, tokenizer_of
from compressor.errors import RecipeError
from compressor.families import FAMILIES, Place, family
from compressor.layer_maps import count_layers
from compressor.loader import load_recipe
from compressor.losses import label_loss
from compressor.modeling import PlainModel
from compressor.pretrained import load_model
from compressor.probes import Probe, chosen, learned_nothing
from compressor.progress import Progress
from compressor.recycling import Lower, Recycled, above, captured_in, learning
from compressor.reuse import Reuse
from compressor.scoring import inputs_of
from compressor.settings.training import Finetune, Recycle
from compressor.store import Identity, Store
from compressor.training import fit
from compressor.tuning import _keep_in_evaluation, merged, prepare
from tests.conftest import compress, sentences, write_project
from tests.test_families import model_of

CPU = torch.device("cpu")
FLOAT = torch.autocast("cpu", enabled=False)
LABELS = ("negative", "positive")


def split(tiny_model: Path, count: int = 120, max_length: int = 32) -> Encoded:
    examples = [Example(text, label=label) for text, label in sentences(count, 3)]
    task = TextClassification()
    windows = task.windows(tokenizer_of(tiny_model), examples, max_length, 0)
    return Encoded(task, windows, task.targets(windows, examples, LABELS), LABELS, examples, 0)


def store_in(folder: Path, **identity: str) -> Store:
    return Store(
        folder,
        Identity(**{"model": "m", "layer": 2, "tokenizer": "t", "precision": "float32", "dtype": "float32"} | identity),
        2**26,
        print,
    )


@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_frozen_layers_and_those_above_answer_what_the_whole_model_does(kind: str, tiny_model: Path) -> None:
    model, data = model_of(kind).eval(), split(tiny_model, 4, 16)
    texts = [data.tokens.of_text(row) for row in range(4)]
    batch = {name: torch.from_numpy(array) for name, array in data.tokens.padded(0).items()}
    whole = PlainModel(model)(**batch)
    layers = len(list(model.get_submodule(family(model).layers))) - (kind == "deberta-v2")
    for place in range(1, layers + 1):
        lower = Lower(model, place, CPU, FLOAT)
        states = [lower.states(text, 0)[0] for text in texts]  # each alone: padding changes nothing
        padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(own.copy()) for own in states], batch_first=True)
        with above(model, place) as upper:
            torch.testing.assert_close(upper(*batch.values(), padded), whole, atol=2e-5, rtol=0)
    torch.testing.assert_close(PlainModel(model)(**batch), whole, atol=0, rtol=0)  # the model is whole again
    with pytest.raises(RecipeError, match=f"this encoder can recycle 1 to {layers} layers"):
        Lower(model, layers + 1, CPU, FLOAT)


def test_an_encoder_that_convolves_between_its_layers_is_refused() -> None:
    """As DeBERTa-v2's largest do, after whichever layer is the first that is left."""
    model = model_of("deberta-v2")
    model.config.conv_kernel_size = 3
    with pytest.raises(RecipeError, match=r"recycle.layer: this deberta-v2 encoder convolves after its first layer"):
        Lower(model, 1, CPU, FLOAT)
    del model.config.conv_kernel_size


def learned(tiny_model: Path, method: str, folder: Path | None, state: Path, epochs: int) -> dict[str, torch.Tensor]:
    """Fine-tune above two frozen layers, from a store if there is a folder for one, and return the weights."""
    torch.manual_seed(0)
    chosen = {"method": method, "epochs": epochs, "batch_size": 16, "learning_rate": 1e-3, "precision": "float32"}
    settings = Finetune.model_validate(chosen)
    data, model = split(tiny_model), load_model(tiny_model, LABELS)
    tuned = prepare(model, settings, recycled=2)

    def train(forward: torch.nn.Module, encoded: Encoded) -> None:
        fit(
            forward,
            lambda b, _: [label_loss(forward(*inputs_of(b)), b["labels"], b["attention_mask"].bool(), "labels")],
            encoded,
            settings,
            1,
            state,
            Progress(),
        )

    if folder is None:
        for module in (model.get_submodule(family(model).embeddings), *list(model.get_submodule(family(model).layers))[:2]):  # type: ignore[arg-type]
            _keep_in_evaluation(module)
        train(PlainModel(tuned), data)
    else:
        store = store_in(folder)
        with above(model, 2) as upper:
            train(upper, Recycled.of(data, Lower(load_model(tiny_model, LABELS), 2, CPU, FLOAT), store))
        store.close()
    merged(tuned)
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("method", ["full", "bitfit", "adapters", "lora"])
def test_training_from_a_store_is_training_with_frozen_layers_bit_for_bit(method: str, tiny_model: Path, tmp_path: Path) -> None:
    folders = enumerate((None, tmp_path / "s", tmp_path / "s"))
    without, fresh, again = (learned(tiny_model, method, folder, tmp_path / str(n), epochs=1) for n, folder in folders)
    start = load_model(tiny_model, LABELS).state_dict()
    assert {name for name in without if "layer.1" in name or "embeddings" in name} < start.keys()  # no adapters there
    assert without.keys() == fresh.keys() == again.keys()
    for name, value in without.items():
        assert torch.equal(value, fresh[name]), name
        assert torch.equal(value, again[name]), name
    assert any(name not in start or not torch.equal(value, start[name]) for name, value in without.items() if "layer.2" in name)
    assert all(torch.equal(value, start[name]) for name, value in without.items() if "layer.1" in name or "embeddings" in name)


def test_epochs_after_the_first_read_what_it_stored(tiny_model: Path, tmp_path: Path) -> None:
    folders = enumerate((None, tmp_path / "s", tmp_path / "s"))
    without, fresh, again = (learned(tiny_model, "full", folder, tmp_path / str(n), epochs=3) for n, folder in folders)
    torch.testing.assert_close(fresh, again, atol=0, rtol=0)
    torch.testing.assert_close(fresh, without, atol=1e-6, rtol=0)  # some processors round a text's states by the texts beside it


def test_each_distinct_text_is_computed_once(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = split(tiny_model, 30)
    twice = Encoded(data.task, type(data.windows).joined([data.windows] * 2, [30, 30]), data.targets.repeat(2), LABELS, [], 0)
    store, asked = store_in(tmp_path / "store"), list[int]()
    lower = Lower(load_model(tiny_model, LABELS), 2, CPU, FLOAT)
    real = lower.states
    monkeypatch.setattr(lower, "states", lambda tokens, pad_id: asked.append(len(tokens)) or real(tokens, pad_id))
    recycled = Recycled.of(twice, lower, store)
    assert list(recycled.fill())[-1] == 60
    assert sum(asked) == len(store) == 30
    list(recycled.fill())
    assert sum(asked) == 30
    store.file.filling = False  # what is not kept is computed with the batch that needs it
    assert list(recycled.fill()) == []
    store.close()


@pytest.mark.parametrize(("layer", "count", "expected"), [(3, 12, 3), ("50%", 12, 6), ("50%", 5, 2), ("1%", 12, 1), ("100%", 6, 6)])
def test_a_share_of_the_layers_is_rounded_down_to_at_least_one(layer: int | str, count: int, expected: int) -> None:
    assert count_layers(Recycle(layer=layer).layer, count) == expected


NO_LENGTHS = ("length_adapt=null", "search=null", "default_point=full")
RECYCLE = "recycle={layer: 50%, dtype: float32}"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A teacher that was fine-tuned above a recycled layer."""
    folder = tmp_path_factory.mktemp("recycled")
    write_project(folder, tiny_model)
    done = compress("run", "tiny.yaml", "--set", RECYCLE, "--until", "finetune", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def metrics(project: Path, stage: str) -> dict[str, object]:
    (folder,) = project.glob(f"artifacts/{stage}-*")
    found: dict[str, object] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    return found


def test_a_recipe_fine_tunes_above_recycled_layers(project: Path) -> None:
    found, told = metrics(project, "recycle"), metrics(project, "finetune")
    assert found["layer"] == 1
    assert found["entries"] == found["train"]["distinct"] + found["validation"]["distinct"]  # type: ignore[index]
    assert told["learning_parameters"] < told["parameters"]  # type: ignore[operator]
    assert told["validation_score"] > 0.9  # type: ignore[operator]
    listed = compress("cache", "ls", "--format", "json", cwd=project)
    assert str(found["store"]) in {row["artifact"] for row in json.loads(listed.stdout)["artifacts"]}


def test_another_layer_or_type_is_learned_above_again(project: Path) -> None:
    for change, stale in (("recycle.layer=2", True), ("recycle.dtype=int8", True), ("recycle.layer=50%", False)):
        done = compress("plan", "tiny.yaml", "--set", RECYCLE, "--set", change, "--format", "json", cwd=project)
        assert done.returncode == 0, done.stderr
        rows = {row["stage"]: row["cached"] for row in json.loads(done.stdout)["stages"]}
        assert rows["finetune"] != stale
    assert len(list(project.glob("artifacts/recycle-*/identity.json"))) == 1


def test_a_store_that_was_removed_changes_no_result(project: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(project, tmp_path / "project"))
    shutil.rmtree(folder / "artifacts" / str(metrics(project, "recycle")["store"]))
    done = compress("run", "tiny.yaml", "--set", RECYCLE, "--until", "finetune", "--force", "finetune", cwd=folder)
    assert done.returncode == 0, done.stderr
    first, second = (load_file(next(p.glob("artifacts/finetune-*/model/model.safetensors"))) for p in (project, folder))
    for name, value in first.items():  # computed in other batches: other last digits, of which Adam makes steps where there is no gradient
        if not name.endswith("key.bias"):
            torch.testing.assert_close(value, second[name], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("recycle={layer: 4}", "recycle.layer 4: this encoder can recycle 1 to 3 layers; choose one of these"),
        ("recycle={layer: 0}", "write a number of layers from the first on, as 6, or a share of them, as 50%, or auto"),
        ("recycle={layer: 120%}", "as 50%, or auto"),
        ("recycle={layer: 2, max_drop: 1%}", "max_drop is what layer: auto may lose, but layer is 2: leave it out"),
        ("teacher.finetune.method=freeze", "say by which method those above learn, as full or adapters"),
    ],
)
def test_a_recycled_layer_that_cannot_be_is_refused(project: Path, change: str, message: str) -> None:
    done = compress("run", "tiny.yaml", "--set", RECYCLE, "--set", change, "--until", "recycle", cwd=project)
    assert done.returncode == 3, done.stderr
    assert message in " ".join(done.stderr.split())


def test_where_no_store_can_be_made_training_goes_on_and_says_so_once(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe(**{"data:": "recycle: {layer: 1, dtype: float32, store: train.csv/store}\ndata:", "epochs: 8": "epochs: 1"})
    done = compress("tiny.yaml", "--until", "finetune", cwd=recipe.parent)
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stderr.split())
    assert told.count("it cannot be written") == 1
    assert "going on, what is not in it is computed each time" in told
    kept = compress("tiny.yaml", "--set", "recycle.store=null", "--until", "finetune", "--artifacts", "kept", cwd=recipe.parent)
    assert kept.returncode == 0, kept.stderr
    made = [json.loads((f / "manifest.json").read_text(encoding="utf-8")) for f in recipe.parent.glob("*/finetune-*")]
    without, with_one = (one["metrics"]["validation_score"] for one in made)
    assert without == pytest.approx(with_one, abs=0.02)


def test_a_store_of_another_layer_is_named_and_refused(project: Path) -> None:
    place = metrics(project, "recycle")["store"]
    change = f"recycle={{layer: 2, dtype: float32, store: artifacts/{place}}}"
    done = compress("run", "tiny.yaml", "--set", change, "--until", "recycle", cwd=project)
    assert done.returncode == 3, done.stderr
    assert "made for layer 1, not 2; name another folder, or remove this one" in " ".join(done.stderr.split())


def test_gc_keeps_the_store_that_the_last_build_was_made_with(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe(**{"data:": "recycle: {layer: 1}\ndata:", "epochs: 8": "epochs: 1"})
    done = compress("tiny.yaml", cwd=recipe.parent)
    assert done.returncode == 0, done.stderr
    other = compress("tiny.yaml", "--set", "recycle.layer=2", "--until", "recycle", cwd=recipe.parent)
    assert other.returncode == 0, other.stderr
    stores = sorted(recipe.parent.glob("artifacts/store-*"))
    assert len(stores) == 2
    assert compress("cache", "gc", cwd=recipe.parent).returncode == 0
    assert sorted(recipe.parent.glob("artifacts/store-*")) == stores, "the other build may go on"
    assert compress("tiny.yaml", cwd=recipe.parent).returncode == 0
    assert compress("cache", "gc", cwd=recipe.parent).returncode == 0
    (left,) = recipe.parent.glob("artifacts/store-*")
    (used,) = recipe.parent.glob("artifacts/recycle-*")
    assert json.loads((used / "manifest.json").read_text(encoding="utf-8"))["metrics"]["store"] == left.name


def test_a_store_that_a_recipe_names_is_listed_and_never_removed(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe(**{"data:": "recycle: {layer: 1, store: artifacts/store-shared}\ndata:", "epochs: 8": "epochs: 1"})
    done = compress("tiny.yaml", "--until", "recycle", cwd=recipe.parent)
    assert done.returncode == 0, done.stderr
    place = recipe.parent / "artifacts/store-shared"
    listed = json.loads(compress("cache", "ls", "--format", "json", cwd=recipe.parent).stdout)["artifacts"]
    assert [(row["artifact"], row["status"]) for row in listed if row["stage"] == "store"] == [(str(place.resolve()), "named by a recipe")]
    assert compress("cache", "gc", cwd=recipe.parent).returncode == 0
    assert place.exists()
    (begun,) = recipe.parent.glob("artifacts/recycle-*")  # which a bundle may still be made from
    shutil.rmtree(begun)
    assert compress("cache", "gc", cwd=recipe.parent).returncode == 0  # now that nothing says who named it
    assert place.exists()


def test_short_trainings_tell_how_many_layers_may_stay(project: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(project, tmp_path / "project"))
    before = set(folder.glob("artifacts/*"))
    ask = ("run", "project/tiny.yaml", "--artifacts", "project/artifacts", "--set", "recycle={layer: auto, max_drop: 100%}")
    ask += ("--set", "teacher.finetune.batch_size=4")  # so many steps that short trainings learn something
    done = compress(*ask, "--until", "finetune", cwd=tmp_path)  # from elsewhere: the recipe's folder is not where it runs
    assert done.returncode == 0, done.stderr
    made = {path.name.partition("-")[0]: path for path in set(folder.glob("artifacts/*")) - before if path.is_dir()}
    assert set(made) == {"recycle", "finetune", "store"}  # what was probed is gone
    found = json.loads((made["recycle"] / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    assert [p["layers"] for p in found["probes"]] == [0, 1, 2, 3]
    assert found["layer"] == 3  # whatever is lost is allowed
    assert all(p["texts_per_second"] > 0 and 0 <= p["score"] <= 1 for p in found["probes"])
    told = json.loads((made["finetune"] / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    assert told["learning_parameters"] < metrics(project, "finetune")["learning_parameters"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("scores", "max_drop", "expected"),
    [((0.9, 0.9, 0.895, 0.88), 0.01, 2), ((0.9, 0.95, 0.8, 0.91), 0.0, 3), ((0.9, 0.8, 0.8, 0.8), 0.05, None)],
)
def test_the_most_layers_that_lose_no_more_than_is_allowed(scores: tuple[float, ...], max_drop: float, expected: int | None) -> None:
    assert chosen([Probe(layers, score, 1.0) for layers, score in enumerate(scores)], max_drop) == expected


def test_one_pass_stores_what_every_depth_would(tiny_model: Path) -> None:
    data, model = split(tiny_model, 8), load_model(tiny_model, LABELS)
    together = Lower(model, 3, CPU, FLOAT).states_at([1, 2, 3], data.tokens, 0)
    for layers in (1, 2, 3):
        for own, alone in zip(together[layers], Lower(model, layers, CPU, FLOAT).states(data.tokens, 0), strict=True):
            torch.testing.assert_close(own, alone, atol=0, rtol=0)


def test_several_threads_ask_one_model_for_the_states_of_their_own_texts(tiny_model: Path) -> None:
    data, lower = split(tiny_model, 24), Lower(load_model(tiny_model, LABELS), 3, CPU, FLOAT)
    parts = [data.tokens.rows(np.arange(24)[n::4]) for n in range(4)]
    asked = [(lower.at(1 + n % 3), parts[n]) for n in range(4)] * 8
    expected = [part.states(texts, 0) for part, texts in asked]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda own: own[0].states(own[1], 0), asked))
    for states, wanted in zip(found, expected, strict=True):
        for one, other in zip(states, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_what_a_store_of_probes_lost_is_computed_anew_at_its_own_depth(
    make_recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, lower = split(tiny_model, 40), Lower(load_model(tiny_model, LABELS), 3, CPU, FLOAT)
    expected, seen = lower.states_at([1, 2, 3], data.tokens, 0), list[int]()

    def trained(*given: object) -> Probe:
        layers, parts = given[3], given[4]
        assert isinstance(layers, int)
        assert isinstance(parts, dict)
        if layers:
            recycled = parts["train"]
            with recycled.store.file.env.begin(write=True, db=recycled.store.file.entries) as txn:
                for lost in recycled.keys[::2]:
                    txn.delete(lost)
            for _ in range(2):  # computed anew, then as it was kept
                for own, wanted in zip(recycled.known(np.arange(40)), expected[layers], strict=True):
                    torch.testing.assert_close(own, wanted, atol=1e-5, rtol=0)
            seen.append(recycled.store.computed)
        return Probe(layers, 1.0, 1.0)

    monkeypatch.setattr(probes, "_part", lambda *_: data)
    monkeypatch.setattr(probes, "_trained", trained)
    store = store_in(tmp_path / "artifacts" / "store")
    deepest = Reuse(None, data.task, tiny_model, store.folder, lower, store)  # type: ignore[arg-type]
    found = probes.probe(load_recipe(make_recipe(), []), deepest, Progress())
    store.close()
    assert [probe.layers for probe in found] == [0, 1, 2, 3]
    assert seen == [20, 20, 20]


def test_short_trainings_that_learn_nothing_tell_no_depth_apart() -> None:
    assert learned_nothing(Probe(0, 0.5, 1.0, before=0.5))
    assert learned_nothing(Probe(0, 0.49, 1.0, before=0.5))
    assert not learned_nothing(Probe(0, 0.7, 1.0, before=0.5))


def test_auto_that_learns_nothing_keeps_the_fewest_layers_and_says_so(project: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(project, tmp_path / "project"))
    changes = ("--set", "recycle={layer: auto}", "--set", "teacher.finetune.learning_rate=1e-12", "--until", "recycle")
    done = compress("run", "tiny.yaml", *changes, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "tells no depth apart: 1 stay as they are; name recycle.layer" in " ".join(done.stderr.split())


def test_auto_that_loses_too_much_says_so(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(project, tmp_path / "project"))
    changes = ("--set", "recycle={layer: auto, max_drop: 0%}", "--set", "teacher.finetune.learning_rate=1e-2")
    done = compress("run", "tiny.yaml", *changes, "--until", "recycle", cwd=folder)
    assert done.returncode == 0, done.stderr
    (made,) = set(folder.glob("artifacts/recycle-*")) - {folder / "artifacts" / p.name for p in project.glob("artifacts/recycle-*")}
    found = json.loads((made / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    scores = [p["score"] for p in found["probes"]]
    warned = "layers that stay as they are lose" in done.stderr
    assert warned == (max(scores[1:]) < scores[0])


@pytest.fixture(scope="module")
def taught(project: Path) -> Path:
    """A student that was taught above one recycled layer, by relations and soft labels."""
    done = compress("run", "tiny.yaml", "--set", RECYCLE, "--set", "distill.recycled_layers=1", "--until", "distill", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "the upper 1 of 2 layers learn" in " ".join(done.stderr.split())
    return project


def test_a_student_learns_above_recycled_layers(taught: Path) -> None:
    teacher, student = (load_file(next(taught.glob(f"artifacts/{stage}-*/model/model.safetensors"))) for stage in ("finetune", "distill"))
    for name, value in student.items():
        if "layer.0" in name or "embeddings" in name:  # as they were cut from the teacher
            assert torch.equal(value, teacher[name]), name
    changed = [name for name, value in student.items() if "layer.1" in name and not torch.equal(value, teacher[name.replace(".1.", ".2.")])]
    assert changed
    found = metrics(taught, "distill")
    assert found["recycled_layers"] == 1
    assert found["validation_score"] > 0.8  # type: ignore[operator]
    assert (taught / "artifacts" / str(found["store"])).is_dir()


def test_a_students_store_may_be_of_another_type_and_lie_where_a_recipe_says(taught: Path) -> None:
    changes = [RECYCLE, "distill.recycled_layers=50%", "distill.recycled_layers.dtype=int8", "distill.recycled_layers.store=kept-here"]
    call = ("run", "tiny.yaml", *(part for change in changes for part in ("--set", change)), "--artifacts", "other")
    done = compress(*call, "--until", "distill", cwd=taught)
    assert done.returncode == 0, done.stderr
    (made,) = taught.glob("other/distill-*")
    place = Path(json.loads((made / "manifest.json").read_text(encoding="utf-8"))["metrics"]["store"])
    assert place.parent == (taught / "kept-here").resolve()
    with lmdb.open(str(place), readonly=True, lock=False) as env, env.begin() as txn:
        assert json.loads(txn.get(b"about") or b"{}")["dtype"] == "int8"
    assert "named by a recipe" in compress("cache", "ls", "--artifacts", "other", cwd=taught).stdout


def test_objectives_see_the_same_places_above_recycled_layers(tiny_model: Path, tmp_path: Path) -> None:
    model, data = load_model(tiny_model, LABELS).eval(), split(tiny_model, 8, 16)
    places: list[Place] = [("hidden", 2), ("hidden", 3), ("queries", 2), ("values", -1)]
    batch = inputs_of({name: torch.from_numpy(array) for name, array in data.batch(np.arange(8)).items()})
    with torch.no_grad(), captured_in(PlainModel(model), places) as whole:
        PlainModel(model)(*batch)
    store = store_in(tmp_path)
    recycled = Recycled.of(data, Lower(model, 2, CPU, FLOAT), store)
    again = inputs_of({name: torch.from_numpy(array) for name, array in recycled.batch(np.arange(8)).items()})
    mask = batch[1].bool()
    with torch.no_grad(), learning(model, 2) as upper, captured_in(upper, places) as seen:
        upper.eval()(*again)
        assert set(seen) == set(places)
        for place in places:
            torch.testing.assert_close(seen[place][mask], whole[place][mask], atol=2e-5, rtol=0)
    store.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("distill.recycled_layers=2",), "minilmv2 compares layers that are recycled and never learn"),
        (("distill.recycled_layers=3",), "distill.recycled_layers 3: this encoder can recycle 1 to 2 layers"),
        (("distill.recycled_layers=auto",), "write a number of layers from the first on, as 6, or a share of them, as 50%"),
        (("distill.recycled_layers=0.5",), "write a number of layers from the first on, as 6, or a share of them, as 50%"),
        (("distill.recycled_layers={layer: 1, dtype: int8, store: train.csv}",), "train.csv: this is a file; name a folder"),
        (("distill.recycled_layers={layer: 1, kept: int8}",), "distill.recycled_layers.kept"),
        (
            ("recycle.store=mine", "distill.recycled_layers={layer: 1, store: mine}"),
            "mine keeps what the teacher's layers make: name another folder",
        ),
        (
            ("distill.student={bilstm: {}}", "distill.recycled_layers=1", "length_adapt=null", "search=null", "default_point=full"),
            "a bilstm student has no layers to recycle",
        ),
    ],
)
def test_a_student_that_cannot_recycle_is_refused(project: Path, changes: tuple[str, ...], message: str) -> None:
    done = compress(
        "run", "tiny.yaml", "--set", RECYCLE, *(part for c in changes for part in ("--set", c)), "--until", "distill", cwd=project
    )
    assert done.returncode == 3, done.stderr
    assert message in " ".join(done.stderr.split())


def test_a_store_is_known_by_the_weights_of_its_layers_alone(tiny_model: Path) -> None:
    torch.manual_seed(1)
    model, other_head = load_model(tiny_model, LABELS), load_model(tiny_model, ("a", "b", "c"))
    same = Lower(model, 2, CPU, FLOAT).digest()
    assert Lower(other_head, 2, CPU, FLOAT).digest() == same
    with torch.no_grad():
        model.get_submodule(family(model).layers)[2].output.dense.bias.add_(1)  # type: ignore[index,union-attr]
    assert Lower(model, 2, CPU, FLOAT).digest() == same
    with torch.no_grad():
        model.get_submodule(family(model).layers)[1].output.dense.bias.add_(1)  # type: ignore[index,union-attr]
    assert Lower(model, 2, CPU, FLOAT).digest() != same
    assert Lower(model, 1, CPU, FLOAT).digest() != same
