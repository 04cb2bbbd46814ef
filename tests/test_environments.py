"""Environments of other packages: made once, and what is said when they cannot be."""

import subprocess
import venv
from pathlib import Path

import pytest

from compressor.environments import Environment, clean_variables
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

    def another_s(_: Path) -> bool:
        raise PermissionError

    with monkeypatch.context() as sudo:  # a home that was kept, of another user
        sudo.setattr(Path, "home", lambda: Path("/root"))
        sudo.setattr(Path, "exists", another_s)
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


def test_what_cannot_be_imported_does_not_count_as_made(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = list[list[str]]()

    def run(command: list[str], *_: object) -> None:
        ran.append(command)
        if command[-1] == "import gone":
            raise subprocess.CalledProcessError(1, command, stderr="ModuleNotFoundError: No module named 'gone'")

    monkeypatch.setattr(venv, "create", lambda *_, **__: None)
    monkeypatch.setattr("compressor.environments._run", run)
    lacking = Environment("some", ("pin==1",), "gone")
    with pytest.raises(UnfitError, match="No module named 'gone'"):
        lacking.make()
    assert not lacking.is_made()
    assert ran[0][-1] == "pin==1"


def test_settings_of_the_user_s_own_pip_stay_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_CONSTRAINT", "PIP_TARGET", "PYTHONPATH", "PIP_INDEX_URL"):
        monkeypatch.setenv(name, "some")
    assert {"PIP_CONSTRAINT", "PIP_TARGET", "PYTHONPATH"}.isdisjoint(clean_variables())
    assert clean_variables()["PIP_INDEX_URL"] == "some"


def test_packages_for_older_pythons_are_not_tried() -> None:
    old = Environment("some", ("pin==1",), newest=(3, 10))
    assert not old.suits()
    with pytest.raises(UnfitError, match=r"some needs Python 3\.10 or older: build with that, or do without"):
        old.make()
