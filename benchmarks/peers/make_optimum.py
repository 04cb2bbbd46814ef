"""optimum's export of a classifier and its dynamic INT8, and sentence-transformers' INT8 of the same encoder.

python make_optimum.py FOLDER OUT
"""

import sys
from pathlib import Path

from optimum.onnxruntime import ORTModelForSequenceClassification, ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig
from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model


def main() -> None:
    """Write optimum/model.onnx, optimum/model_quantized.onnx and sentence-transformers/onnx/model_qint8_avx512_vnni.onnx."""
    folder, out = sys.argv[1], Path(sys.argv[2])
    ORTModelForSequenceClassification.from_pretrained(folder, export=True).save_pretrained(out / "optimum")
    config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    ORTQuantizer.from_pretrained(out / "optimum").quantize(save_dir=out / "optimum", quantization_config=config)
    sentences = SentenceTransformer(folder, backend="onnx", model_kwargs={"export": True})
    export_dynamic_quantized_onnx_model(sentences, "avx512_vnni", str(out / "sentence-transformers"))


if __name__ == "__main__":
    main()
