"""Static INT8 by Intel Neural Compressor: a script for an environment of its own, which knows nothing of this package.

    python neural_compressor_script.py source.onnx target.onnx feeds.npz products-that-stay-float.json 0|1

feeds.npz holds arrays called NUMBER/INPUT; the last argument says whether weights take 7 bits.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

QUANTIZED = ("MatMul", "Gemm", "Gather")
FLOAT = {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}}


class Feeds:
    """Calibration texts as the library reads them: inputs in the graph's order, and a label that nobody reads."""

    batch_size = 1

    def __init__(self, arrays: Any, names: list[str]) -> None:
        self.arrays, self.names = arrays, names
        self.count = 1 + max(int(key.split("/")[0]) for key in arrays)

    def __iter__(self) -> Iterator[tuple[dict[str, Any], int]]:
        for number in range(self.count):
            yield {name: self.arrays[f"{number}/{name}"] for name in self.names}, 0


def main() -> None:
    """Quantize."""
    import numpy as np
    import onnx
    from neural_compressor import PostTrainingQuantConfig, quantization
    from neural_compressor.adaptor.ox_utils import calibration

    span = calibration._get_qrange_for_qType  # which would take a bit from activations too, where weights take 7
    calibration._get_qrange_for_qType = lambda kind, reduce_range=False: span(kind, reduce_range and kind != onnx.TensorProto.UINT8)
    source, target, feeds, kept, reduce_range = sys.argv[1:]
    graph = onnx.load(source).graph
    loader = Feeds(np.load(feeds), [i.name for i in graph.input])
    with open(kept, encoding="utf-8") as file:
        stay = dict.fromkeys(json.load(file), FLOAT)
    config = PostTrainingQuantConfig(
        quant_format="QDQ",
        calibration_sampling_size=[loader.count],
        quant_level=1,  # as configured: nothing is tuned
        op_name_dict=stay,
        op_type_dict=dict.fromkeys(sorted({node.op_type for node in graph.node} - {*QUANTIZED}), FLOAT),
        reduce_range=reduce_range == "1",
        recipes={
            "graph_optimization_level": "DISABLE_ALL",  # fused operators would not be quantized
            "optypes_to_exclude_output_quant": [*QUANTIZED],  # outputs in 8 bits lose more and save nothing
        },
    )
    model = quantization.fit(source, config, calib_dataloader=loader)
    if model is None:
        sys.exit("neural-compressor could not quantize this graph")
    model.save(target)


if __name__ == "__main__":
    main()
