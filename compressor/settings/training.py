"""How a training runs: fine-tuning of the teacher, by which method, and above which recycled layers."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from compressor.settings.base import LARGEST, UNKEYED, Section, Share, Source
from compressor.units import Megabytes, Percent


class Training(Section):
    epochs: Annotated[float, Field(gt=0)] = 3
    """Passes over the training split."""
    max_steps: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    """Stop after so many optimizer steps."""
    batch_size: Annotated[int, Field(ge=1, le=LARGEST)] = 32
    """Examples of one optimizer step; of tasks that read windows, those."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    """Peak of a linear schedule."""
    warmup: Share = 0.1
    """Share of the steps over which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decay of AdamW; biases and LayerNorms have none."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast where the processor has AMX or is AMD's with AVX512-bf16, or on a GPU that has it,
    else float32, faster there."""
    checkpoint_every: Annotated[int, Field(ge=1, le=LARGEST), UNKEYED] = 100
    """Steps between two checkpoints that an interrupted build goes on from."""
    keep: Literal["last", "best"] = "last"
    """best: end with the weights of the epoch that scored highest on the validation split; of a student, since an objective
    reaches the logits; of length_adapt by the sum of full length's and the smallest sub-model's score."""
    patience: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    """Stop early after so many epochs without a better score on the validation split; needs keep: best."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Train so many times, with the recipe's seed and others; report mean and spread, and go on with what scored best on the validation
    split, by the same score as `keep`."""

    @model_validator(mode="after")
    def _patience_for_the_best(self) -> "Training":
        if self.patience is not None and self.keep != "best":
            raise ValueError("patience waits for a better score: set keep: best, or leave patience out")
        return self


class Finetune(Training):
    method: Literal["full", "freeze", "bitfit", "adapters", "lora"] = "full"
    """What learns beside the head: all, the upper layers, biases (arXiv:2106.10199), bottlenecks in each layer (arXiv:1902.00751), or
    low-rank updates (arXiv:2106.09685)."""
    frozen_layers: Annotated[int, Field(ge=0, le=LARGEST)] | None = None
    """freeze: layers that stay as they are, from the first, with the embeddings; absent: all, so that only the head learns."""
    rank: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    """lora: rank of the updates; absent: 8."""
    adapter_size: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    """adapters: units of each bottleneck; absent: 64."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a rare label counts for more, in inverse proportion to its share."""

    @model_validator(mode="after")
    def _keys_of_the_method(self) -> "Finetune":
        for key, method in (("frozen_layers", "freeze"), ("rank", "lora"), ("adapter_size", "adapters")):
            if getattr(self, key) is not None and self.method != method:
                raise ValueError(f"{key} belongs to method {method}, but method is {self.method}: leave it out")
        return self


def _first_layers(value: Any) -> Any:
    share = re.fullmatch(r"([1-9][0-9]?|100)%", value) if isinstance(value, str) else None
    if not share and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError("write a number of layers from the first on, as 6, or a share of them, as 50%")
    return value


def _first_layers_or_auto(value: Any) -> Any:
    try:
        return value if value == "auto" else _first_layers(value)
    except ValueError as error:
        raise ValueError(f"{error}, or auto") from None


FirstLayers = Annotated[int | str, BeforeValidator(_first_layers)]


DType = Literal["float32", "float16", "int8"]
Folder = Annotated[str, Field(min_length=1)]


class Recycle(Section):
    layer: Annotated[int | str, BeforeValidator(_first_layers_or_auto)]
    """Layers that stay as they are and run once per text: so many from the first on, a share of them, as 50%, or auto: short trainings on a
    part of the data tell how many may."""
    max_drop: Percent = 0.01
    """auto: what the score on validation may lose against layers that all learn; where even the fewest lose more, they are taken, with a
    warning."""
    dtype: DType = "float16"
    """How their outputs are kept; int8 has a scale a token."""
    store: Folder | None = None
    """Folder that keeps them, for other recipes too; absent: one in the artifacts folder."""
    max_size: Megabytes = 20e3
    """Largest store; what was not read for longest goes when it is full."""

    @model_validator(mode="after")
    def _drop_of_auto(self) -> "Recycle":
        if "max_drop" in self.model_fields_set and self.layer != "auto":
            raise ValueError(f"max_drop is what layer: auto may lose, but layer is {self.layer}: leave it out")
        return self


class RecycledLayers(Section):
    layer: FirstLayers
    """Layers of the student that stay as they are: so many from the first on, or a share of them, as 50%."""
    dtype: DType | None = None
    """How their outputs are kept; absent: as `recycle` says, or float16."""
    store: Annotated[Folder | None, UNKEYED] = None
    """Folder in which a folder of these layers' own keeps them, and those of other teachers' stay until you remove them; absent: the
    artifacts folder."""
    max_size: Annotated[Megabytes | None, UNKEYED] = None
    """Largest store; absent: as `recycle` says, or 20GB."""


class Teacher(Section):
    model: Source
    """Encoder to start from: a local folder, package:NAME/FOLDER, or a Hub model id."""
    finetune: Finetune | None = None
    """How it is fine-tuned on the task; absent: the model is a classifier of this task already."""
