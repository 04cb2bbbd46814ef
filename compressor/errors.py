"""The errors a user can meet: one line that says where, what, and what to do; each carries its exit code."""


class CompressorError(Exception):
    """Say what is wrong and how to mend it; the command line prints it as one line and leaves with `exit_code`."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        # Names of files and keys come from outside: a newline, an escape code or half a surrogate in one stays visible and harmless.
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


class RecipeError(CompressorError):
    """The recipe, or an input that it names, cannot be used."""

    exit_code = 3


class StageError(CompressorError):
    """A stage could not finish its work."""

    exit_code = 4


class GateError(CompressorError):
    """The bundle was built and measured, and a gate of the recipe does not hold."""

    exit_code = 5


class UnfitError(CompressorError):
    """This machine or environment lacks something: disk, permission, a package, a network."""

    exit_code = 6


class BundleError(CompressorError):
    """A bundle is damaged, unknown or was changed after it was built."""

    exit_code = 7
