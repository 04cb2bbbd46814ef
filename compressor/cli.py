"""The command line: a table of verbs, one function each. stdout carries the result, stderr everything else."""

import os
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from compressor import __version__, interrupts, machine
from compressor.commands import building, serving, upkeep
from compressor.exit_codes import USAGE, exits

VERBS: Mapping[str, Callable[..., None]] = {
    "run": building.run,
    "validate": building.validate,
    "plan": building.plan,
    "init": building.init,
    "predict": serving.predict,
    "eval": serving.evaluate,
    "bench": serving.bench,
    "explain": serving.explain,
    "schema": building.schema,
    "doctor": upkeep.doctor,
}
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Compile BERT-class encoders into small, fast, measured INT8 bundles for CPUs. `compress recipe.yaml` builds.",
)
cache = typer.Typer(no_args_is_help=True, help="What lies in the artifacts folder, and what may go.")
app.add_typer(cache, name="cache")
for name, verb in VERBS.items():
    app.command(name=name)(verb)
cache.command(name="ls")(upkeep.cache_ls)
cache.command(name="gc")(upkeep.cache_gc)


def main() -> None:
    """Run the command line; `compress recipe.yaml` means `compress run recipe.yaml`."""
    debug = "--debug" in sys.argv[1:]
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    verbs = {*VERBS, "cache"}
    meant = list[str]()
    if arguments and arguments[0] not in verbs and not arguments[0].startswith("-"):
        meant = [] if Path(arguments[0]).suffix or Path(arguments[0]).exists() else get_close_matches(arguments[0], verbs, 1)
        arguments.insert(0, "run")
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    interrupts.install()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks Linux for large pages: a tenth of the page faults
    if (cores := machine.usable_cores()) < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))  # torch sees no container's quota
    with exits(debug):
        if meant:
            raise USAGE(f"there is no command {arguments[1]!r}, but {meant[0]!r}; a recipe is a .yaml file")
        sys.exit(app(args=arguments, prog_name="compress", standalone_mode=False))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error; may stand anywhere.")] = False,
) -> None:
    with suppress(AttributeError):
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
