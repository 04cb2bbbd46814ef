"""What a stage is given: the newest artifact of each kind, and what several stages read from them."""

import json
from collections.abc import Mapping
from typing import Literal

from compressor.artifact import Artifact

Kind = Literal[
    "data", "activations", "teacher", "guide", "checkpoint", "exit", "float_graph", "int8_graph", "frontier", "members", "policy", "bundle"
]
Inputs = Mapping[Kind, Artifact]


def deployed(inputs: Inputs) -> Artifact:
    """Return the graph that ships: the INT8 one if there is one."""
    return inputs.get("int8_graph") or inputs["float_graph"]


def is_single(inputs: Inputs) -> bool:
    """Say whether the graph that ships must be fed one text a run, because its answers depend on the batch."""
    return bool(deployed(inputs).metrics.get("single"))


def lengths_of(inputs: Inputs) -> dict[str, list[int] | None]:
    """Return the operating points' lengths: the search's points, else full length alone."""
    if "frontier" in inputs:
        found = json.loads((inputs["frontier"].path / "frontier.json").read_text(encoding="utf-8"))["points"]
        return {name: point["lengths"] for name, point in found.items()}
    return {"full": None}
