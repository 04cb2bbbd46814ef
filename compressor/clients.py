"""What other clients of a bundle read beside its graph: the tokenizer's and the model's settings, as transformers 4 and 5 write them.

What:     optimum reads a bundle with transformers 4, others with 5; each must give the ids that the model learned from.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from compressor.artifact import write_json
from compressor.tasks import Task

INPUTS = ("input_ids", "token_type_ids", "attention_mask")
"""What a tokenizer gives, in the order in which transformers names it."""


def settle_tokenizer(folder: Path, task: Task, inputs: Collection[str], *, fixed: bool = False) -> None:
    """Write a tokenizer's settings so that both versions read texts as this package does, for a graph with these inputs.

    Byte-level words of a text are read with a space before each, which other clients do where the tokenizer says so; not where its file
    is `fixed`, because a store knows its hash.
    """
    path = folder / "tokenizer_config.json"
    before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    config = dict(before)
    if config.get("tokenizer_class") == "TokenizersBackend":  # a name that only transformers 5 knows
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if config.get("tokenizer_class") == "PreTrainedTokenizerFast" and "token_type_ids" in inputs:
        config.setdefault("model_input_names", list(INPUTS))  # of which 5 gives no segments unless it is told
    if isinstance(config.get("extra_special_tokens"), list):  # as 5 writes what was added; 4 wants names for them there
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if task.head == "token-classification" and not fixed and _tell_words_apart(folder / "tokenizer.json"):
        config["add_prefix_space"] = True
    if config != before:
        write_json(path, config)


def _tell_words_apart(path: Path) -> bool:
    """Put a space before each word in a byte-level tokenizer's file; return whether it is one that then reads words as before.

    One that splits words before it looks at bytes would put a space before each part.
    """
    text = path.read_text(encoding="utf-8")
    told = json.loads(text)
    if (told.get("pre_tokenizer") or {}).get("type") != "ByteLevel":
        return False
    told["pre_tokenizer"]["add_prefix_space"] = True
    path.write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")
    return True


def tell_choice(path: Path, task: Task) -> None:
    """Note what a text's logits are, by which transformers' own pipelines choose between softmax, sigmoid and neither."""
    if task.head == "sequence-classification":
        problems = {"labels": "single_label_classification", "each": "multi_label_classification", "number": "regression"}
        write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "problem_type": problems[task.choice]})
