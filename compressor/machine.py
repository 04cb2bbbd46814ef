"""Facts about the machine and its packages that numbers depend on: they are recorded beside every latency."""

import hashlib
import importlib.util
import math
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.errors import UnfitError, install

# The instruction sets that decide how fast 8-bit and bfloat16 products are, named as Linux does.
ISA = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
LEVELS = {"amx": {"amx_int8"}, "vnni": {"avx512_vnni", "avx_vnni"}, "avx512": {"avx512f"}, "avx2": {"avx2"}}
"""Instruction sets by what they give 8-bit products, the fastest first; a processor has a level where it has one of its sets."""
SATURATING = frozenset({"avx512", "avx2"})
"""Levels whose sum of two 8-bit products does not fit where it goes (onnxruntime#5849): weights need 7 bits there."""

PROCESSOR = ("vendor_id", "cpu family", "model", "stepping", "CPU implementer", "CPU variant", "CPU part", "Features")
"""What Linux tells of a processor beside its name, which guests call alike and ARM has not."""

CPUINFO = Path("/proc/cpuinfo")
CGROUP, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
GIGABYTE = 1e9


def describe() -> dict[str, Any]:
    """Describe this machine: cpu, usable cores, threads_per_core, isa, memory_gb, os.

    `isa` is empty where Linux does not tell (another system, ARM).
    """
    cpuinfo = _cpuinfo()
    flags = set(cpuinfo.get("flags", "").split())
    return {
        "cpu": cpuinfo.get("model name") or _arm(cpuinfo) or platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "threads_per_core": _threads_per_core(cpuinfo),
        "isa": [name for name in ISA if name in flags],
        "memory_gb": round(_memory_bytes() / GIGABYTE, 1),
        "os": platform.platform(),
    }


def fast_bf16(machine: Mapping[str, Any]) -> str | None:
    """Name what makes bfloat16 products outrun those in float32 on a described machine, if anything does.

    AMX does; AVX512-bf16 does on AMD's processors (on a Zen 5 a training step takes 0.3 to 0.6 of its time in float32) and not on
    Intel's, where a step took 1.4 to 1.7 times as long.
    """
    if "amx_bf16" in machine["isa"]:
        return "amx_bf16"
    return "avx512_bf16" if "avx512_bf16" in machine["isa"] and machine["cpu"].startswith("AMD") else None


def level() -> str | None:
    """Return this processor's level; arm64 on ARM, where nothing saturates; None where it is not told."""
    flags = set(_cpuinfo().get("flags", "").split())
    if platform.machine().lower() in ("aarch64", "arm64"):
        return "arm64"
    return next((name for name, sets in LEVELS.items() if sets & flags), None)


def needs_seven_bits(isa: str | None) -> bool:
    """Return whether weights for this level need 7 bits: also on x86 where the system does not tell, as they are right on all."""
    return isa in SATURATING or (isa is None and platform.machine().lower() in ("x86_64", "amd64"))


def versions(*packages: str) -> dict[str, str]:
    """Look up the installed versions of `packages`; those that are absent are left out."""
    from importlib import metadata  # here: it takes longer to import than all else that a bundle needs of this module

    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def numbers_of(version: str) -> tuple[int, ...]:
    """Return '5.0.1rc1' as (5, 0): only the leading parts that are whole numbers, and '0' as (0,)."""
    release = re.match(r"\d+(?:\.\d+)*(?![\w])", version) or re.match(r"\d+", version)
    return tuple(int(part) for part in release[0].split(".")) if release else (0,)


def installed(package: str) -> bool:
    """Return whether a package is there to be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def fingerprint() -> str:
    """Hash what latency depends on (cpu model, usable cores, isa), so that no host is served another's latencies."""
    machine, cpuinfo = describe(), _cpuinfo()
    told = [f"{key} {cpuinfo[key]}" for key in PROCESSOR if key in cpuinfo]
    facts = "\n".join([machine["cpu"], str(machine["cores"]), *machine["isa"], *told])
    return hashlib.sha256(facts.encode()).hexdigest()[:12]


def _cpuinfo() -> dict[str, str]:
    """The first processor's entry; a hybrid CPU's other cores are not looked at."""
    first_entry = _read(CPUINFO).split("\n\n")[0]
    pairs = (line.partition(":") for line in first_entry.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _arm(cpuinfo: Mapping[str, str]) -> str:
    """Return what an ARM processor is called by its maker's and its own number, for which Linux has no names; else nothing."""
    numbers = [cpuinfo[key] for key in ("CPU implementer", "CPU part") if key in cpuinfo]
    return " ".join([platform.machine(), *numbers]) if numbers else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def usable_cores() -> int:
    """Return how many cores this process may use at once: what the scheduler lets it, or a container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # A container's quota (docker --cpus) does not show in the affinity: "200000 100000" is two cores, "max 100000" no limit.
    quotas = [_read(folder / "cpu.max").split() for folder in _cgroups("")]
    quotas += [[_read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()] for folder in _cgroups("cpu")]
    limits = [math.ceil(int(quota[0]) / int(quota[1])) for quota in quotas if len(quota) == 2 and all(map(str.isdigit, quota))]
    return min([allowed, *limits])


def _cgroups(controller: str) -> list[Path]:
    """Return the folders that may limit this process: its control group and those above, of version 2 or a version 1 controller."""
    own = ""
    for line in _read(MEMBERSHIP).splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            own = path.strip("/")
    root, inside = CGROUP / controller, Path(own)
    return [root / part for part in (inside, *inside.parents) if ".." not in part.parts]


def _threads_per_core(cpuinfo: dict[str, str]) -> int:
    threads, cores = int(cpuinfo.get("siblings", 1)), int(cpuinfo.get("cpu cores", 1))
    return max(1, threads // max(1, cores))


def _memory_bytes() -> int:
    limits = [_read(folder / "memory.max").strip() for folder in _cgroups("")]
    limits += [_read(folder / "memory.limit_in_bytes").strip() for folder in _cgroups("memory")]
    return min([_physical_memory_bytes(), *(int(limit) for limit in limits if limit.isdigit())])


def _physical_memory_bytes() -> int:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        import psutil
    except ImportError:
        raise UnfitError(f"reading the memory of this system needs the [train] extra: {install('train')}") from None
    return int(psutil.virtual_memory().total)
