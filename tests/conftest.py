"""Tiny real models and data: a BERT of three layers with its own tokenizer, and a task that can be learned from words."""

import csv
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # how long an example takes depends on what else the machine does
settings.load_profile("untimed")
# Tiny models gain nothing from threads, and threads that spin for each other are slow on a busy machine; processes inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")

WORDS = ["film", "story", "actor", "scene", "plot", "music", "ending", "the", "a", "is", "was", "very", "quite", "it", "and"]
GOOD = ["good", "great", "lovely", "witty"]
BAD = ["bad", "dull", "awful", "weak"]


def sentences(count: int, seed: int, longest: int = 20) -> list[tuple[str, str]]:
    """Return distinct (text, label) pairs; the label follows from one word."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        label = rng.choice(["negative", "positive"])
        words = rng.choices(WORDS, k=rng.randint(3, longest))
        words.insert(rng.randrange(len(words)), rng.choice(GOOD if label == "positive" else BAD))
        found[" ".join(words)] = label
    return list(found.items())


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: BERT with 3 layers of 32, random weights, WordPiece tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: i for i, token in enumerate([*special, *WORDS, *GOOD, *BAD, "unseen"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[SEP]", 3), ("[CLS]", 2)]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **sizes)
    BertModel(config).save_pretrained(folder)
    return folder


RECIPE = """\
version: 1
name: tiny
data: {{train: train.csv, test: test.csv, max_length: 32}}
teacher:
  model: {model}
  finetune: {{epochs: 8, batch_size: 16, learning_rate: 3e-3, precision: float32, checkpoint_every: 5}}
distill:
  student: {{layers: [0, 2]}}
  epochs: 3
  batch_size: 16
  learning_rate: 1e-3
  precision: float32
  checkpoint_every: 5
  objectives:
    - {{type: minilmv2, relation_heads: 4, end: 0.5}}
    - {{type: soft_labels, start: 0.5}}
    - {{type: labels, weight: 0.5, start: 0.5}}
length_adapt: {{epochs: 1, batch_size: 16, learning_rate: 5e-4, precision: float32, checkpoint_every: 5, layer_drop: 0.1}}
quantize: {{}}
search: {{evaluations: 8, population: 4, texts: 8, latency: macs}}
default_point: fast
gates:
  - {{metric: accuracy, max_drop: 100%}}
  - {{metric: size, max: 40MB}}
"""


def write_project(folder: Path, model: Path) -> None:
    """Write a whole recipe, tiny.yaml, with its data."""
    for name, count, seed in (("train", 400, 1), ("test", 40, 2)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *sentences(count, seed)])
    (folder / "tiny.yaml").write_text(RECIPE.format(model=model), encoding="utf-8")


@pytest.fixture
def make_recipe(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """Write a whole recipe with its data; `replace` changes parts of its text."""

    def make(**replace: str) -> Path:
        write_project(tmp_path, tiny_model)
        path = tmp_path / "tiny.yaml"
        text = path.read_text(encoding="utf-8")
        for old, new in replace.items():
            assert old in text, old
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
        return path

    return make


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """One whole build, made once: the folder that holds recipe, data and artifacts."""
    folder = tmp_path_factory.mktemp("built")
    write_project(folder, tiny_model)
    done = compress("run", "tiny.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def compress(*arguments: str, cwd: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would, in a process of its own."""
    return subprocess.run(command(*arguments), cwd=cwd, capture_output=True, text=True, timeout=timeout)


def command(*arguments: str) -> list[str]:
    """Return the command line that runs `compress` with this interpreter."""
    return [sys.executable, "-c", "from compressor.cli import main; main()", *arguments]
