"""Trained models as one file: safetensors to load here, ONNX and torch.export for elsewhere."""

from lowres_vision.export._certificate import Certificate
from lowres_vision.export._onnx import export_onnx
from lowres_vision.export._predictor import Predictor, TrainedModel
from lowres_vision.export._program import export_program

__all__ = ["Certificate", "Predictor", "TrainedModel", "export_onnx", "export_program"]
