"""The sections of a recipe: the docstring under a key is its documentation; `compress schema` and editors show it."""
