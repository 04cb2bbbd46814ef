"""Each thing that spoils a build is found, with a remedy."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from compressor import doctor
from compressor.doctor import Check

FACTS = {"cpu": "Xeon", "cores": 4, "threads_per_core": 1, "isa": ["avx2", "avx512_vnni", "amx_bf16"], "memory_gb": 16.0, "os": "Linux"}


def statuses(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.status for check in checks}


def test_every_trouble_has_a_remedy_and_every_check_a_name_of_its_own(tmp_path: Path) -> None:
    checks = doctor.examine(tmp_path)
    assert all(check.remedy for check in checks if check.status != "ok")
    assert len(statuses(checks)) == len(checks)
    assert {"python", "numpy", "onnxruntime", "tokenizers", "torch", "transformers", "memory", "disk", "artifacts"} <= set(statuses(checks))


def test_this_environment_has_no_failure(tmp_path: Path) -> None:
    assert [check for check in doctor.examine(tmp_path) if check.status == "fail"] == []


def test_torch_and_transformers_are_not_imported() -> None:
    """Where there may be a GPU torch is, which is asked of it."""
    code = "import sys; from compressor import doctor; doctor.GPUS = (); doctor.examine(); "
    code += "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_old_python_fails() -> None:
    assert doctor.check_python((3, 10, 4)).status == "fail"
    assert doctor.check_python((3, 11, 0)).status == "ok"


def test_a_missing_runtime_package_fails_and_a_missing_train_package_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["no-such-runtime>=2", 'no_such_trainer>=5; extra == "train"', 'no-such-linter; extra == "dev"']
    monkeypatch.setattr(metadata, "requires", lambda _: declared)
    assert list(doctor.check_packages()) == [
        Check("no-such-runtime", "fail", "missing; needed to run bundles", doctor.INSTALL),
        Check("no_such_trainer", "warn", "missing; needed to build bundles", doctor.INSTALL_TRAIN),
    ]


def test_a_module_from_a_package_of_another_name_counts() -> None:
    assert doctor.check_package("sklearn", "fail", doctor.INSTALL).status == "ok"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, {}),
        ({"transformers": "5.0.0rc1"}, {}),
        ({"transformers": "4.57.1"}, {"transformers version": "fail"}),
        ({"transformers": "4.57.1", "optimum-onnx": "0.1.0"}, {"transformers version": "fail"}),
        ({"transformers": "5.0.0", "optimum-onnx": "0.1.0"}, {"optimum-onnx": "warn"}),
        ({"neural-compressor": "3.7.1"}, {}),
        ({"neural-compressor": "3.10"}, {"neural-compressor": "warn"}),
    ],
)
def test_known_bad_combinations(found: dict[str, str], expected: dict[str, str]) -> None:
    assert statuses(list(doctor.check_combinations(found))) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {}),
        ({"isa": ["avx2"]}, {"int8": "warn", "bf16": "warn"}),
        ({"isa": ["avx2", "avx_vnni", "avx512_bf16"]}, {"bf16": "warn"}),
        ({"cpu": "AMD EPYC", "isa": ["avx2", "avx_vnni", "avx512_bf16"]}, {}),
        ({"isa": []}, {"instruction set": "warn"}),
        ({"threads_per_core": 2}, {"hyper-threads": "warn"}),
        ({"memory_gb": 3.9}, {"memory": "warn"}),
        ({"cores": 2}, {"OMP_NUM_THREADS": "warn"}),
    ],
)
def test_what_is_weak_in_a_machine_is_told(change: dict[str, object], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    checks = doctor.check_machine({**FACTS, **change})
    assert statuses([check for check in checks if check.status != "ok"]) == expected


@pytest.mark.parametrize(
    ("setting", "status"), [(None, "ok"), ("", "ok"), ("2", "ok"), ("4,2", "ok"), ("8", "warn"), ("0", "warn"), ("many", "warn")]
)
def test_omp_num_threads_is_held_against_the_cores(setting: str | None, status: str) -> None:
    assert doctor.check_threads(4, setting).status == status


def test_a_gpu_that_trains_makes_up_for_a_processor_without_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = tmp_path / "nvidia3"  # a container may have been given that one alone
    for version, fast, found in (("2.13.0+cu130", True, True), ("2.13.0", False, False), ("2.13.0+cpu", True, False)):
        monkeypatch.setattr("compressor.machine.versions", lambda *_, version=version: {"torch": version})
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *, including_emulation, fast=fast: fast and not including_emulation)
        gpu.touch()
        assert doctor.gpu_trains(tmp_path) == found
        gpu.unlink()
        assert not doctor.gpu_trains(tmp_path)
    for found in (True, False):
        monkeypatch.setattr(doctor, "gpu_trains", lambda found=found: found)
        assert statuses(list(doctor.check_isa({"avx2"}, None)))["bf16"] == ("ok" if found else "warn")


def test_a_busy_machine_is_no_place_to_measure() -> None:
    assert [check.status for check in doctor.check_load(9.5, cores=8)] == ["warn"]
    assert [check.status for check in doctor.check_load(0.5, cores=8)] == ["ok"]
    assert list(doctor.check_load(None)) == []


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_DISK_GB", 1e9)
    assert doctor.check_disk(tmp_path / "not" / "yet").status == "warn"


def test_the_artifacts_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    assert doctor.check_artifacts(tmp_path / "artifacts").status == "ok"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "artifacts").write_text("a file in its place")
    assert doctor.check_artifacts(tmp_path / "artifacts").status == "fail"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert doctor.check_artifacts(tmp_path / "artifacts").status == "fail"
