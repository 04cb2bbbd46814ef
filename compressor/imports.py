"""Which of this package's modules compute a stage's result: those that its module imports, one way or the other."""

import ast
from functools import cache
from pathlib import Path

from compressor.artifact import digest_of, files_of, sha256

ROOT = Path(__file__).parent
CARRIERS = frozenset({"artifact", "errors", "imports", "interrupts", "locks", "pipeline", "progress", "recipe", "sources", "units"})
"""Modules that carry values about and compute none of a stage's results; `settings`, whose values are part of the key, do so too."""


@cache
def imported(module: str) -> frozenset[str]:
    """Return the modules that a module imports, directly or not, without the carriers; the report's templates count as one."""
    tree = ast.parse(_file(module).read_text(encoding="utf-8"))
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module and n.module.startswith("compressor")]
    names = {name for n in nodes for name in _named(n)}
    direct = frozenset(name for name in names - CARRIERS if _file(name).exists() and not name.startswith("settings."))
    templates = {"templates"} if "PackageLoader('compressor')" in ast.unparse(tree) else set()
    return (direct | templates).union(*map(imported, direct))


def _named(node: ast.ImportFrom) -> list[str]:
    return [a.name for a in node.names] if node.module == "compressor" else [str(node.module).removeprefix("compressor.")]


def source_hashes(module: str) -> dict[str, str]:
    """Return the hash of a module's text, and of all that it imports here."""
    return {name: source_hash(name) for name in sorted({module, *imported(module)})}


@cache
def source_hash(module: str) -> str:
    """Return the hash of a module's text when it was first asked for, or of all files of a folder that is none (the report's templates)."""
    return sha256(_file(module)) if _file(module).exists() else digest_of(files_of(ROOT / module))


def _file(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")
