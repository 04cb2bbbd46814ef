"""The machine and the artifacts folder: doctor, cache ls, cache gc."""

from typing import Annotated

import typer

from compressor.options import (
    ARTIFACTS,
    Artifacts,
    OutputFormat,
)
from compressor.output import show


def doctor(artifacts: Artifacts = ARTIFACTS, format: OutputFormat = "text") -> None:
    """Say what this machine and environment are fit for; exit 6 when something is broken."""
    from compressor.doctor import examine

    checks = examine(artifacts)
    show(format, {"checks": [{"name": c.name, "status": c.status, "detail": c.detail, "remedy": c.remedy} for c in checks]})
    if any(c.status == "fail" for c in checks):
        raise typer.Exit(6)


def cache_ls(artifacts: Artifacts = ARTIFACTS, format: OutputFormat = "text") -> None:
    """List the artifacts: stage, size, and whether they are in use."""
    from compressor.housekeeping import entries

    show(format, {"artifacts": [e.row() for e in entries(artifacts)]})


def cache_gc(
    artifacts: Artifacts = ARTIFACTS,
    dry_run: Annotated[bool, typer.Option("--dry-run", envvar="COMPRESS_DRY_RUN", help="Only say what would go.")] = False,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", envvar="COMPRESS_UNFINISHED", help="Also what builds that have not ended would go on from.")
    ] = False,
    format: OutputFormat = "text",
) -> None:
    """Remove artifacts that neither a recipe's last build needs nor one that has not ended."""
    from compressor.housekeeping import collect

    gone = collect(artifacts, dry_run=dry_run, unfinished=unfinished)
    show(format, {"removed": [str(e.path) for e in gone], "megabytes": round(sum(e.megabytes for e in gone), 1), "dry_run": dry_run})
