"""The facts that latencies are recorded with."""

import json
import os
from pathlib import Path

import pytest
import torch

from compressor import machine, scoring

XEON = """\
processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8480+
siblings\t: 112
cpu cores\t: 56
flags\t\t: fpu sse4_2 avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8

processor\t: 1
model name\t: another
"""
GRAVITON = "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd asimddp bf16 i8mm\n"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for /proc and /sys/fs/cgroup; empty, as on a system that has neither."""
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "MEMBERSHIP", tmp_path / "membership")
    return tmp_path


def test_this_machine_is_described_in_json() -> None:
    described = json.loads(json.dumps(machine.describe()))
    assert list(described) == ["cpu", "cores", "threads_per_core", "isa", "memory_gb", "os"]
    assert described["cpu"]
    assert 1 <= described["cores"] <= (os.cpu_count() or 1)
    assert described["threads_per_core"] >= 1
    assert described["memory_gb"] > 0


def test_a_xeon_is_read_from_its_first_processor(host: Path) -> None:
    (host / "cpuinfo").write_text(XEON)
    described = machine.describe()
    assert described["cpu"] == "Intel(R) Xeon(R) Platinum 8480+"
    assert described["threads_per_core"] == 2
    assert described["isa"] == ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"]


@pytest.mark.parametrize("cpuinfo", ["", GRAVITON])
def test_a_machine_without_x86_flags_has_an_empty_isa(host: Path, cpuinfo: str) -> None:
    (host / "cpuinfo").write_text(cpuinfo)
    described = machine.describe()
    assert described["isa"] == []
    assert described["cpu"]
    assert described["threads_per_core"] == 1
    assert machine.fingerprint()


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("avx2 avx512f avx512_vnni amx_int8", "amx"),
        ("avx2 avx512f avx512_vnni", "vnni"),
        ("avx2 avx_vnni", "vnni"),
        ("avx2 avx512f", "avx512"),
        ("sse4_2 avx2", "avx2"),
        ("sse4_2", None),
    ],
)
def test_a_processor_s_level_is_that_of_its_fastest_8_bit_products(
    host: Path, flags: str, level: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (host / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert machine.level() == level


@pytest.mark.parametrize(
    ("kind", "level", "narrow"), [("aarch64", "arm64", False), ("AMD64", None, True), ("x86_64", None, True), ("riscv64", None, False)]
)
def test_where_no_sets_are_told_the_kind_of_processor_says_what_is_safe(
    host: Path, kind: str, level: str | None, narrow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: kind)
    assert machine.level() == level
    assert machine.needs_seven_bits(machine.level()) == narrow
    assert machine.needs_seven_bits("avx2")
    assert not machine.needs_seven_bits("vnni")


def test_a_container_quota_limits_cores_and_memory(host: Path) -> None:
    (host / "cpu.max").write_text("50000 100000\n")
    (host / "memory.max").write_text("500000000\n")
    described = machine.describe()
    assert described["cores"] == 1
    assert described["memory_gb"] == 0.5


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/jobs/mine\n", {"jobs/cpu.max": "50000 100000\n", "jobs/mine/memory.max": "500000000\n", "memory.max": "900000000\n"}),
        (
            "4:memory:/jobs/mine\n3:cpu,cpuacct:/jobs\n",
            {
                "cpu/jobs/cpu.cfs_quota_us": "50000\n",
                "cpu/jobs/cpu.cfs_period_us": "100000\n",
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "memory/jobs/memory.limit_in_bytes": "500000000\n",
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
        ),
        ("4:memory:/docker/of-the-host\n", {"cpu.max": "50000 100000\n", "memory/memory.limit_in_bytes": "500000000\n"}),
    ],
)
def test_limits_of_any_control_group_above_this_process_hold(host: Path, membership: str, files: dict[str, str]) -> None:
    (host / "membership").write_text(membership)
    for name, content in files.items():
        (host / name).parent.mkdir(parents=True, exist_ok=True)
        (host / name).write_text(content)
    described = machine.describe()
    assert (described["cores"], described["memory_gb"]) == (1, 0.5)


def test_a_quota_of_max_is_no_limit(host: Path) -> None:
    free = machine.describe()
    (host / "cpu.max").write_text("max 100000\n")
    (host / "memory.max").write_text("max\n")
    assert machine.describe() == free


def test_fingerprint_is_stable_and_changes_with_the_processor(host: Path) -> None:
    (host / "cpuinfo").write_text(XEON)
    first = machine.fingerprint()
    assert first == machine.fingerprint()
    (host / "cpuinfo").write_text(XEON.replace("avx512_vnni ", ""))
    assert machine.fingerprint() != first


@pytest.mark.parametrize("model", ["model name\t: AMD EPYC\nmodel\t: {}\n", GRAVITON + "CPU implementer\t: 0x41\nCPU part\t: {}\n"])
def test_processors_of_one_name_are_told_apart(host: Path, model: str) -> None:
    found = set()
    for number in ("1", "49"):
        (host / "cpuinfo").write_text(model.format(number))
        found.add(machine.fingerprint())
    assert len(found) == 2


def test_versions_leave_out_what_is_absent() -> None:
    found = machine.versions("numpy", "no-such-package-here")
    assert list(found) == ["numpy"]
    assert found["numpy"][0].isdigit()


def test_a_gpu_that_emulates_bfloat16_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[bool]()

    def supported(*, including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return including_emulation  # as a T4 has it

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert not scoring.gpu_multiplies_bf16()
    assert asked == [False]
