"""Compile BERT-class encoders into small, fast, measured INT8 bundles for CPUs."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime sends its use home from the moment it is imported

__version__ = "0.1.0"
