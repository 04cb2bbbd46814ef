"""OpenVINO's form of a float graph, and NNCF's INT8 of it.

python make_openvino.py MODEL.onnx FEEDS.npz OUT
"""

import sys
from pathlib import Path

import nncf
import numpy as np
import openvino as ov


def main() -> None:
    """Write openvino/model.xml and openvino/model_int8.xml."""
    source, feeds, out = sys.argv[1], np.load(sys.argv[2]), Path(sys.argv[3]) / "openvino"
    model = ov.Core().read_model(source)
    ov.save_model(model, out / "model.xml", compress_to_fp16=False)
    count = 1 + max(int(key.split("/")[0]) for key in feeds)
    names = [i.any_name for i in model.inputs]
    texts = [{name: feeds[f"{number}/{name}"] for name in names} for number in range(count)]
    preset = nncf.QuantizationPreset.MIXED
    int8 = nncf.quantize(model, nncf.Dataset(texts), model_type=nncf.ModelType.TRANSFORMER, preset=preset, subset_size=count)
    ov.save_model(int8, out / "model_int8.xml")


if __name__ == "__main__":
    main()
