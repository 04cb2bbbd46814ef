"""Would it pay to rank tokens as the last layer does (ToP, arXiv:2306.13812), instead of by each layer's own attention?

    python -m benchmarks.rankings recipes/newsgroups.yaml --set length_adapt.significance=sampled --set data.train=…

ToP distils the last layer's ranking into the layers before it. Here they are given that ranking itself, from a full pass over the text:
no distilled one can follow it more closely, so this is what the method could reach at most. The recipe is built up to its length-adaptive
checkpoint; each ranking is scored in torch on the search split, at full length and at the smallest configurations of several bounds.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import built_here, conclude, recipe_parser
from compressor import checkpoint
from compressor.artifact import Artifact
from compressor.lengths import LengthConfig
from compressor.loader import load_recipe
from compressor.modeling import LengthAdaptiveModel
from compressor.recipe import Recipe
from compressor.scoring import score_of
from compressor.smoke import smoke
from compressor.splits import MODEL, Splits, task_of

ARTIFACTS = Path("artifacts")
BOUNDS = (0.2, 0.3, 0.45)
FIRST = 1e6
"""More than any significance: a ranking that is given goes before it."""


class Told(LengthAdaptiveModel):
    """A length-adaptive model that is told each text's ranking by the last layer: by [CLS]'s row, or by all tokens' rows."""

    def __init__(self, plain: LengthAdaptiveModel, rows: slice) -> None:
        """Take a model's weights and settings; `rows` are the tokens of the last layer whose attention ranks."""
        counts = "absolute" if plain.absolute else "ratio"
        super().__init__(plain.model, plain.max_length, plain.significance, plain.protect, counts, plain.neighbours)
        self.rows, self.told = rows, torch.empty(0)

    def without_layers(self, skipped: Any, input_ids: Tensor, attention_mask: Tensor, *others: Any) -> Tensor:
        """Ask the full model first."""
        self.model.config._attn_implementation = "eager"
        probabilities = self.model.base_model(input_ids, attention_mask, output_attentions=True).attentions[-1]
        votes = probabilities[:, :, self.rows] * attention_mask[:, None, : probabilities[:, :, self.rows].shape[2], None]
        self.told = votes.sum((1, 2)).float()
        return super().without_layers(skipped, input_ids, attention_mask, *others)

    def _ahead(self, token_type_ids: Tensor) -> Tensor:
        return super()._ahead(token_type_ids) + FIRST * self.told


def measure(recipe: Recipe) -> list[dict[str, Any]]:
    """Return the score of each ranking at each configuration."""
    assert recipe.length_adapt is not None
    found = built_here(recipe, ARTIFACTS, until="length_adapt")
    splits, task = Splits.of(Artifact(ARTIFACTS / found.manifest["inputs"]["data"]["path"])), task_of(recipe)
    data, rows = splits.encoded("search", task, found.path / MODEL), list[dict[str, Any]]()
    for ranking, asked in (("each layer's own", None), ("last layer, [CLS]", slice(0, 1)), ("last layer, all tokens", slice(None))):
        model = checkpoint.load_forward(found, splits.labels, task.head)
        assert isinstance(model, LengthAdaptiveModel)
        model = Told(model, asked) if asked else model
        full = LengthConfig.full(model.layers, model.max_length)
        for bound, config in ((0.0, full), *((b, LengthConfig.smallest(model.layers, model.max_length, b)) for b in BOUNDS)):
            score = score_of(model, data, recipe.task.metric, torch.tensor(config.lengths))
            rows.append({"ranking": ranking, "bound": bound, "lengths": config.lengths, "score": score})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Build, score, record."""
    chosen = recipe_parser(__doc__).parse_args()
    recipe = load_recipe(chosen.recipe, chosen.changes)
    recipe = smoke(recipe) if chosen.trial else recipe
    conclude(f"rankings_{recipe.name}", {"recipe": str(chosen.recipe), "rows": measure(recipe)}, chosen.trial)


if __name__ == "__main__":
    main()
