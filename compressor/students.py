"""What a student starts as: another encoder, some layers of the teacher, narrower if asked, or a BiLSTM on an encoder's embeddings."""

import copy
from collections.abc import Sequence
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from compressor import adapters, sources
from compressor.bilstm import bilstm_over
from compressor.errors import RecipeError
from compressor.families import encoder_layers, family
from compressor.layer_maps import layers_of
from compressor.narrowing import narrow
from compressor.pretrained import load_model
from compressor.settings.distilling import Student


def student_of(
    settings: Student, section: str, root: Path, teacher: PreTrainedModel, teacher_folder: Path, labels: Sequence[str], head: str
) -> tuple[PreTrainedModel, Path]:
    """Return the untrained student, and the folder of its tokenizer.

    Raises:
        RecipeError: the recipe asks for what the encoder cannot be made into.
    """
    if settings.model is not None:
        folder = sources.model_folder(settings.model, root)
        return load_model(folder, labels, head), folder
    if settings.bilstm is not None:
        folder = teacher_folder if settings.bilstm.embeddings is None else sources.model_folder(settings.bilstm.embeddings, root)
        source = teacher if settings.bilstm.embeddings is None else load_model(folder, labels, head)
        return bilstm_over(source, settings.bilstm), folder
    assert settings.layers is not None
    chosen = layers_of(settings.layers, len(encoder_layers(teacher)), f"{section}.student.layers")
    student = select_layers(teacher, chosen, f"{section}.student.layers")
    if settings.hidden_size is not None:
        student = narrow(student, settings.hidden_size, f"{section}.student.hidden_size")
    return student, teacher_folder


def select_layers(teacher: PreTrainedModel, layers: Sequence[int], key: str = "layers") -> PreTrainedModel:
    """Return a copy of the teacher's classifier with these of its layers only.

    Raises:
        RecipeError: the family's layers cannot stand in this order.
    """
    student = copy.deepcopy(teacher)
    chosen = nn.ModuleList(copy.deepcopy(encoder_layers(student)[layer]) for layer in layers)
    student.set_submodule(family(student).layers, chosen)
    student.config.num_hidden_layers = len(layers)
    if kinds := getattr(student.config, "layer_types", None):
        student.config.layer_types = [kinds[layer] for layer in layers]
    if hasattr(student.config, adapters.FIRST):
        setattr(student.config, adapters.FIRST, sum(layer < getattr(student.config, adapters.FIRST) for layer in layers))
    if adapters.built(student.__class__, student.config).state_dict().keys() != student.state_dict().keys():
        # ModernBERT's first layer has no norm, all others have one.
        raise RecipeError(f"{key}: {student.config.model_type} layers cannot stand in this order; let layer 0 come first, and only first")
    return student.requires_grad_(True)
