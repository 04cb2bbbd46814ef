"""Environments of other packages: made once, and what is said when they cannot be."""

import subprocess
import venv
from pathlib import Path

import pytest

from compressor.environments import Environment
from compressor.errors import StageError, UnfitError

NOTHING = Environment("nothing", ())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("said", [b"a line\nNo module named ensurepip\n", None])
def test_a_python_that_makes_no_environments_is_told_in_one_line(said: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, ["python", "-m", "ensurepip"], output=said)

    monkeypatch.setattr(venv, "create", fail)
    told = "No module named ensurepip" if said else "it says nothing"
    with pytest.raises(UnfitError, match=f"the environment of nothing cannot be made: {told}; give pip a package index"):
        NOTHING.make()
    assert not NOTHING.is_made()


def test_a_cache_may_be_named_from_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_CACHE", "cache")
    assert NOTHING.python.is_relative_to(tmp_path)  # its interpreter is started elsewhere


def test_without_a_home_no_environment_is_there_and_none_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("COMPRESS_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert not Environment("some", ("pin==1",)).is_made()
    with pytest.raises(UnfitError, match="name another one in COMPRESS_CACHE"):
        Environment("some", ("pin==1",)).make()


def test_a_script_that_fails_is_told_by_its_last_line(tmp_path: Path) -> None:
    NOTHING.python.parent.mkdir(parents=True)
    NOTHING.python.symlink_to("/bin/sh")
    (NOTHING.folder / "ready").touch()
    (tmp_path / "script").write_text("echo first >&2; echo it broke >&2; exit 3\n")
    with pytest.raises(StageError, match="^nothing: it broke$"):
        NOTHING.run(tmp_path / "script", [], tmp_path)
