"""Compile BERT-class encoders into small, fast, measured INT8 bundles for CPUs."""

import os
import sys

# Runtimes send their use home from the moment they are imported, and nncf by the same package as OpenVINO.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it were not installed

__version__ = "0.1.0"
