"""What a command answers on stdout: tables and lines for people, JSON for programs."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from compressor.progress import is_terminal

Format = Literal["text", "json"]
WIDEST = 10_000
"""Columns of a line where no terminal tells: a file or a pipe takes whole tables."""


class _Output(Console):
    def on_broken_pipe(self) -> None:
        raise  # rich would leave with exit code 1; the command line knows a better one


def show(format: Format, result: Mapping[str, Any]) -> None:
    """Print a result: lists of rows as tables, single values as lines."""
    if format == "json":
        print(json.dumps(result, indent=2, ensure_ascii=False), flush=True)  # here, where a reader that has gone is handled
        return
    # rich keeps bold under NO_COLOR; without a colour system it writes no escape codes at all.
    colors: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    console = _Output(highlight=False, markup=False, emoji=False, soft_wrap=True, color_system=colors)
    if not is_terminal(sys.stdout) and "COLUMNS" not in os.environ:
        console.width = WIDEST
    for key, value in result.items():
        if key == "variants":
            console.print(variants_table(value))
        elif key == "gates":
            for gate in value:
                console.print(f"{'passed' if gate['passed'] else 'BROKEN'}  {gate['gate']}: {gate['value']} ({gate['limit']})")
        elif key in ("findings", "advice"):
            for line in value:
                console.print(f"{key.removesuffix('s')}: {line}")
        elif isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(row, Mapping) for row in value):
            console.print(rows_table(value) if value else f"{key}: none")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            console.print(f"{key}: {', '.join(map(str, value)) or 'none'}")
        elif not isinstance(value, Mapping):
            console.print(f"{key}: {value:.4f}" if isinstance(value, float) else f"{key}: {value}")
        else:
            console.print(f"{key}: {json.dumps(value, ensure_ascii=False)}")


def variants_table(variants: Sequence[Mapping[str, Any]]) -> Table:
    """Return the result table: every row measured on the test split, latencies in one interleaved run."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("variant")
    for column in ("score", "95 % interval", "p50 ms", "p90 ms", "speed-up", "MB"):
        table.add_column(column, justify="right")
    for v in variants:
        low, high = v["score_interval"]
        table.add_row(
            v["name"],
            f"{v['score']:.2%}",
            f"{low:.1%} – {high:.1%}",
            f"{v['p50_ms']:.2f}",
            f"{v['p90_ms']:.2f}",
            f"{v['speedup']:.2f}x",
            f"{v['size_mb']:.1f}",
        )
    return table


def rows_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return any list of equal mappings as a table."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*("–" if v is None or v == "" else _number(v) if isinstance(v, float) else str(v) for v in row.values()))
    return table


def _number(value: float) -> str:
    """Return a number with as many decimals as tell something."""
    if 0 < abs(value) < 0.1:
        return f"{value:.2g}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
