"""Neural Compressor's INT8 of a float graph, as its examples configure it.

python make_neural_compressor.py MODEL.onnx FEEDS.npz OUT
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from neural_compressor import PostTrainingQuantConfig, quantization

sys.path.insert(0, str(Path(__file__).parents[2] / "compressor"))
from neural_compressor_script import Feeds


def main() -> None:
    """Write neural-compressor/static.onnx and neural-compressor/dynamic.onnx."""
    source, out = sys.argv[1], Path(sys.argv[3]) / "neural-compressor"
    out.mkdir(parents=True, exist_ok=True)
    feeds = Feeds(np.load(sys.argv[2]), [i.name for i in onnx.load(source).graph.input])
    for approach, format in (("static", "QDQ"), ("dynamic", "default")):
        config = PostTrainingQuantConfig(approach=approach, quant_format=format, calibration_sampling_size=[feeds.count], quant_level=1)
        model = quantization.fit(source, config, calib_dataloader=feeds)
        if model is not None:
            model.save(str(out / f"{approach}.onnx"))


if __name__ == "__main__":
    main()
