"""Load a bundle as optimum does any ONNX folder, and answer texts: what a client that knows nothing of this project sees.

    python optimum_client.py BUNDLE HEAD TEXTS.json LOGITS.json

TEXTS.json is a list of texts, of pairs, or of lists of words; LOGITS.json becomes a list of {"ids": […], "logits": […]}.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from optimum.onnxruntime import ORTModelForQuestionAnswering, ORTModelForSequenceClassification, ORTModelForTokenClassification
from transformers import AutoTokenizer

HEADS = {
    "sequence-classification": ORTModelForSequenceClassification,
    "token-classification": ORTModelForTokenClassification,
    "question-answering": ORTModelForQuestionAnswering,
}


def main() -> None:
    """Answer each text alone."""
    bundle, head, texts, target = sys.argv[1:]
    model, tokenizer = HEADS[head].from_pretrained(bundle), AutoTokenizer.from_pretrained(bundle)
    found = []
    for text in json.loads(Path(texts).read_text(encoding="utf-8")):
        read = tokenizer(text, is_split_into_words=True) if head == "token-classification" else _read(tokenizer, text)
        answer = model(**{name: torch.tensor([ids]) for name, ids in read.items()})
        logits = torch.stack([answer.start_logits, answer.end_logits], -1) if head == "question-answering" else answer.logits
        found.append({"ids": read["input_ids"], "logits": logits[0].tolist()})
    Path(target).write_text(json.dumps(found), encoding="utf-8")


def _read(tokenizer: Any, text: str | list[str]) -> Any:
    return tokenizer(text) if isinstance(text, str) else tokenizer(*text)


if __name__ == "__main__":
    main()
