"""One model in one process: reads lists of token ids, answers them, and says how long that took.

    python worker.py onnxruntime MODEL.onnx THREADS
    python worker.py openvino MODEL.xml THREADS
    python worker.py pytorch FOLDER THREADS
    python worker.py bundle FOLDER@POINT@BACKEND THREADS

Each line of stdin is {"texts": [[id, …], …], "batch": 32, "warm_ms": 100}; texts are sorted by length, cut into batches and padded to the
longest of each; before they are timed, they are answered again and again for so long.
Each line of stdout is {"ms": …, "answers": [[…], …]}. A bundle makes its own batches. Only the model's own packages are imported.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Model = Callable[[Mapping[str, Any]], Any]
"""Answers a padded batch: arrays by the name of the input."""


def onnxruntime(path: str, threads: int) -> Model:
    """Return an ONNX file in onnxruntime, as a user would open it."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = {i.name for i in session.get_inputs()}
    return lambda feed: session.run(None, {name: array for name, array in feed.items() if name in names})[0]


def openvino(path: str, threads: int) -> Model:
    """Return a model in OpenVINO, tuned for latency."""
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(path, "CPU", settings).create_infer_request()
    names = {i.any_name for i in request.model_inputs}
    return lambda feed: next(iter(request.infer({name: array for name, array in feed.items() if name in names}).values()))


def pytorch(path: str, threads: int) -> Model:
    """Return a Hugging Face model in PyTorch."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(threads)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()

    @torch.inference_mode()
    def answer(feed: Mapping[str, Any]) -> Any:
        return model(**{name: torch.from_numpy(array) for name, array in feed.items()}).logits.numpy()

    return answer


def batched(model: Model) -> Callable[[list[list[int]], int], Any]:
    """Return what answers any number of texts with a model of padded batches."""

    def answer(texts: list[list[int]], size: int) -> Any:
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        found: list[Any] = [None] * len(texts)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            longest = max(len(texts[row]) for row in rows)
            ids, mask = (np.zeros((len(rows), longest), np.int64) for _ in range(2))
            for place, row in enumerate(rows):
                ids[place, : len(texts[row])], mask[place, : len(texts[row])] = texts[row], 1
            for row, own in zip(rows, model({"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}), strict=True):
                found[row] = own
        return found

    return answer


def bundle(path: str, threads: int) -> Callable[[list[list[int]], int], Any]:
    """Return a bundle at an operating point, which makes its own batches."""
    from compressor.bench import QUESTION
    from compressor.runtime import Runtime
    from compressor.session import Graph
    from compressor.tokens import Tokens

    folder, point, backend = path.rsplit("@", 2)
    runtime = Runtime(folder, threads, backend=backend)
    single, pad_id, pairs = (runtime.manifest[key] for key in ("single", "pad_id", "pairs"))
    graph = Graph(f"{folder}/model.onnx", threads, single=single, pad_id=pad_id, backend=backend)
    lengths = runtime.point(point).lengths

    def answer(texts: list[list[int]], size: int) -> Any:
        starts = np.cumsum([0, *map(len, texts)])
        ids = np.fromiter((i for text in texts for i in text), np.int32, int(starts[-1]))
        first = [min(QUESTION, max(1, len(text) // 4)) if pairs else len(text) for text in texts]
        segments = np.concatenate([np.arange(len(text)) >= own for text, own in zip(texts, first, strict=True)])
        return graph.logits(Tokens(ids, segments.astype(np.int8), starts), lengths)

    return answer


def main() -> None:
    """Answer until stdin ends."""
    kind, path, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    makers: Mapping[str, Callable[[str, int], Any]] = {"onnxruntime": onnxruntime, "openvino": openvino, "pytorch": pytorch}
    answer = bundle(path, threads) if kind == "bundle" else batched(makers[kind](path, threads))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        warm = time.perf_counter() + asked.get("warm_ms", 0) / 1000
        while time.perf_counter() < warm:  # what slept while others worked is slow at first: a small model more than a large one
            answer(asked["texts"], asked["batch"])
        started = time.perf_counter_ns()
        found = answer(asked["texts"], asked["batch"])
        ms = (time.perf_counter_ns() - started) / 1e6
        answers = [np.asarray(own, np.float32).ravel().tolist() for own in found] if asked.get("answers") else None
        print(json.dumps({"ms": ms, "answers": answers}), flush=True)


if __name__ == "__main__":
    main()
