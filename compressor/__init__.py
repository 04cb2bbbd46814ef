"""Compile BERT-class encoders into small, fast, measured INT8 bundles for CPUs."""

__version__ = "0.1.0"
