import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from compressor import imports
from compressor.pipeline import STAGES


def test_a_stages_key_covers_every_module_that_computes_its_result() -> None:
    covered = {stage.name: imports.source_hashes(f"stages.{stage.name}").keys() for stage in STAGES}
    assert {"stages.distill", "distillation", "objectives", "families", "training", "dropout", "tokens", "data"} <= covered["distill"]
    assert {"stages.bundle", "runtime", "report", "templates", "latency"} <= covered["bundle"]
    assert covered["data"] & {"objectives", "training", "pipeline", "recipe"} == set()


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package that may be changed."""
    folder = Path(shutil.copytree(imports.ROOT, tmp_path / "compressor"))
    monkeypatch.setattr(imports, "ROOT", folder)
    imports.imported.cache_clear()
    imports.source_hash.cache_clear()
    yield folder
    imports.imported.cache_clear()
    imports.source_hash.cache_clear()


@pytest.mark.parametrize("changed", ["objectives.py", "dropout.py", "stages/distill.py"])
def test_a_change_to_what_a_stage_computes_with_changes_its_key(copy: Path, changed: str) -> None:
    before = imports.source_hashes("stages.distill")
    (copy / changed).write_text((copy / changed).read_text(encoding="utf-8") + "\n# other\n", encoding="utf-8")
    assert imports.source_hashes("stages.distill") == before, "a build goes by the code that it began with"
    imports.source_hash.cache_clear()  # as another process has it
    assert imports.source_hashes("stages.distill") != before
    assert "report" not in before


def test_the_reports_templates_are_part_of_the_bundles_key(copy: Path) -> None:
    before = imports.source_hashes("stages.bundle")
    next((copy / "templates").iterdir()).write_text("other", encoding="utf-8")
    imports.source_hash.cache_clear()
    assert imports.source_hashes("stages.bundle") != before
