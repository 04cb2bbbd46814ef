"""Which of an encoder's layers a recipe asks for: by a map, or the first so many of them."""

from collections.abc import Sequence

from compressor.errors import RecipeError


def count_layers(asked: int | str, count: int) -> int:
    """Return how many of an encoder's layers are the first so many, or the first share of them."""
    return asked if isinstance(asked, int) else max(1, count * int(asked[:-1]) // 100)


def layers_of(asked: str | Sequence[int], count: int, key: str) -> list[int]:
    """Return the layers that a recipe asks for, of an encoder that has `count`.

    Raises:
        RecipeError: a layer is out of range.
    """
    if isinstance(asked, str):
        which, _, number = asked.partition(" ")
        if which == "every":
            chosen = list(range(1, count, 2))  # the second of each pair, as TinyBERT maps layers
        else:
            chosen = list(range(count))[: int(number)] if which == "first" else list(range(count))[-int(number) :]
            if int(number) > count:
                raise RecipeError(f"{key}: {asked} is out of range; the teacher has {count} layers")
        if not chosen:
            raise RecipeError(f"{key}: {asked} leaves no layer; the teacher has {count}")
        return chosen
    wrong = [layer for layer in asked if layer >= count]
    if wrong:
        raise RecipeError(f"{key}: {wrong[0]} is out of range; the teacher has layers 0 to {count - 1}")
    return list(asked)
