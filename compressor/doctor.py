"""Look for what would make a build fail, or its numbers wrong, before hours are spent on it."""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from compressor import machine
from compressor.errors import UnfitError, install
from compressor.plan import OLDEST

DISTRIBUTION = "encoder-compressor"
INSTALL = f"pip install {DISTRIBUTION}"
INSTALL_TRAIN = install("train")

LEAST_PYTHON = (3, 11)
LEAST_MEMORY_GB = 4.0
GPUS = ("nvidia[0-9]*", "kfd", "dxg")
"""What Linux calls GPUs under /dev: NVIDIA's, AMD's, and those of Windows below it."""
LEAST_DISK_GB = 2.0

INT8_SETS = {"avx512_vnni", "avx_vnni", "amx_int8"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `remedy` is empty when there is nothing to do."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


def examine(artifacts: Path = Path("artifacts")) -> list[Check]:
    """Check Python, packages, processor, memory, disk and the artifacts folder; torch is imported only where there may be a GPU."""
    found = machine.versions(*OLDEST, "optimum-onnx", "neural-compressor")
    return [
        check_python(sys.version_info[:3]),
        *check_packages(),
        *check_combinations(found),
        *_check_machine(),
        *check_providers(),
        *check_load(machine_load()),
        check_disk(artifacts),
        check_artifacts(artifacts),
    ]


def check_python(version: tuple[int, ...]) -> Check:
    """Check that Python is new enough."""
    text = ".".join(map(str, version))
    if version >= LEAST_PYTHON:
        return Check("python", "ok", text)
    return Check("python", "fail", f"{text} is older than 3.11", "install Python 3.11 or newer and make a new environment with it")


def check_packages() -> Iterator[Check]:
    """Check what the package itself declares: a missing runtime package fails, a missing one of [train] warns."""
    try:
        declared = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield Check(DISTRIBUTION, "fail", "not installed, so what it needs is unknown", f"{INSTALL}, or in a checkout: pip install -e .")
        return
    for requirement in declared:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        extra = re.search(r"extra\s*==\s*['\"](\w+)['\"]", requirement)
        if extra is None:
            yield check_package(name, "fail", INSTALL)
        elif extra[1] == "train":
            yield check_package(name, "warn", INSTALL_TRAIN)


def check_package(name: str, when_missing: Literal["warn", "fail"], remedy: str) -> Check:
    """Check that package `name` is installed, under this name or another (onnxruntime-gpu brings the module onnxruntime)."""
    version = machine.versions(name).get(name)
    if version:
        return Check(name, "ok", version)
    if name.isidentifier() and machine.installed(name):
        return Check(name, "ok", "its module is there, from a package of another name")
    needed = "needed to run bundles" if when_missing == "fail" else "needed to build bundles"
    return Check(name, when_missing, f"missing; {needed}", remedy)


def check_combinations(found: Mapping[str, str]) -> Iterator[Check]:
    """Check installed versions (`found`: package to version) for those known not to work."""
    transformers = machine.numbers_of(found.get("transformers", "0"))
    for package, least in OLDEST.items():
        if (0,) < machine.numbers_of(found.get(package, "0")) < least:
            detail = f"{found[package]} is older than {'.'.join(map(str, least))}"
            yield Check(f"{package} version", "fail", detail, INSTALL_TRAIN + " --upgrade")
    if transformers >= (5,) and "optimum-onnx" in found:
        detail = f"optimum-onnx {found['optimum-onnx']} does not work with transformers {found['transformers']} (optimum-onnx#114)"
        yield Check("optimum-onnx", "warn", detail, "pip uninstall optimum-onnx, or keep it in another environment; nothing here needs it")
    if machine.numbers_of(found.get("neural-compressor", "0")) >= (3, 8):
        detail = f"{found['neural-compressor']} has no ONNX code"
        yield Check("neural-compressor", "warn", detail, "pip install 'neural-compressor<3.8' if you use it on ONNX; nothing here needs it")


def check_machine(facts: Mapping[str, Any]) -> Iterator[Check]:
    """Check the processor and memory as `machine.describe` tells them."""
    yield Check("cpu", "ok", f"{facts['cpu']}, {facts['cores']} usable cores")
    yield from check_isa(set(facts["isa"]), machine.fast_bf16(facts))
    yield check_threads(facts["cores"], os.environ.get("OMP_NUM_THREADS"))
    if facts["threads_per_core"] > 1:
        detail = f"{facts['threads_per_core']} threads share a core; they slow matrix products down and make latencies noisy"
        yield Check("hyper-threads", "warn", detail, "use physical cores: set the recipe's target.threads to their number at most")
    yield check_memory(facts["memory_gb"])


def check_isa(isa: set[str], bf16: str | None) -> Iterator[Check]:
    """Check for instructions that multiply 8-bit integers and bfloat16."""
    if not isa:
        yield Check("instruction set", "warn", "not told by this system", "compare the rows of a bundle's report that was built here")
        return
    if isa & INT8_SETS:
        yield Check("int8", "ok", ", ".join(sorted(isa & INT8_SETS)))
    else:
        detail = "no VNNI or AMX: weights take 7 bits, as 8 would saturate (onnxruntime#5849), and INT8 is slower than on newer processors"
        yield Check("int8", "warn", detail, "build and measure on a processor like the one that will serve the bundle")
    if bf16 is not None:
        yield Check("bf16", "ok", bf16)
    elif gpu_trains():
        yield Check("bf16", "ok", "of the GPU, which trains")
    else:
        detail = "no AMX, nor AMD's AVX512-bf16: training runs in float32, several times slower than bfloat16 with them"
        yield Check("bf16", "warn", detail, "train on a processor with one of them or on a GPU if time matters")


def gpu_trains(devices: Path = Path("/dev")) -> bool:
    """Return whether torch finds a GPU that multiplies bfloat16; only where there may be one, because torch takes long to import."""
    if not any(any(devices.glob(name)) for name in GPUS) or "+cpu" in machine.versions("torch").get("torch", "+cpu"):
        return False
    try:
        import torch

        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    except Exception:  # a torch that does not load is no torch that trains
        return False


def check_threads(cores: int, omp_num_threads: str | None) -> Check:
    """Check the environment variable OMP_NUM_THREADS against the usable cores."""
    name = "OMP_NUM_THREADS"
    if not omp_num_threads:
        return Check(name, "ok", f"not set; {cores} cores are usable")
    threads = omp_num_threads.split(",")[0].strip()  # a list gives the nested levels
    if not threads.isdecimal() or int(threads) < 1:
        return Check(name, "warn", f"'{omp_num_threads}' is not a number of threads", f"unset {name}")
    if int(threads) > cores:
        return Check(name, "warn", f"{threads} threads on {cores} usable cores get in each other's way", f"export {name}={cores}")
    return Check(name, "ok", f"{threads} of {cores} usable cores")


def check_memory(memory_gb: float) -> Check:
    """Check that training fits."""
    if memory_gb >= LEAST_MEMORY_GB:
        return Check("memory", "ok", f"{memory_gb:.1f} GB")
    return Check("memory", "warn", f"{memory_gb:.1f} GB; training may not fit", "lower the batch sizes, or use a machine with 4 GB or more")


def check_providers() -> Iterator[Check]:
    """Check that onnxruntime loads and can run on the CPU; a missing onnxruntime is `check_packages`' to tell."""
    if not machine.installed("onnxruntime"):
        return
    reinstall = "pip install --force-reinstall onnxruntime"
    try:
        import onnxruntime

        providers = onnxruntime.get_available_providers()
    except (ImportError, AttributeError) as error:  # two wheels over each other leave a module without functions
        yield Check("onnxruntime providers", "fail", f"onnxruntime does not load: {error}", reinstall)
        return
    if "CPUExecutionProvider" in providers:
        yield Check("onnxruntime providers", "ok", ", ".join(providers))
    else:
        yield Check("onnxruntime providers", "fail", f"no CPUExecutionProvider among {', '.join(providers)}", reinstall)


def machine_load() -> float | None:
    """Read the load average of the last minute; None where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def check_load(load: float | None, cores: int | None = None) -> Iterator[Check]:
    """Check that the machine is idle enough to measure; the load is the whole host's, so `cores` are the host's too."""
    cores = cores or os.cpu_count() or 1
    if load is None:
        return
    if load > cores:
        detail = f"{load:.1f} on {cores} cores: latencies measured now are noisy"
        yield Check("load", "warn", detail, "stop other work, or wait, before you measure")
    else:
        yield Check("load", "ok", f"{load:.1f} on {cores} cores")


def check_disk(artifacts: Path) -> Check:
    """Check the free space where artifacts will lie."""
    folder = _nearest(artifacts)
    free_gb = shutil.disk_usage(folder).free / machine.GIGABYTE
    if free_gb >= LEAST_DISK_GB:
        return Check("disk", "ok", f"{free_gb:.1f} GB free")
    return Check(
        "disk",
        "warn",
        f"{free_gb:.1f} GB free at {folder}",
        "free 2 GB or more ('compress cache gc' drops old artifacts, 'compress cache ls' lists all)",
    )


def check_artifacts(artifacts: Path) -> Check:
    """Check that the artifacts folder, or where it will be made, can be written; nothing is left behind."""
    folder = _nearest(artifacts)
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Check("artifacts", "ok", f"{artifacts} is writable")
    except OSError as error:
        detail = f"{folder} cannot be written: {error.strerror}"
        return Check("artifacts", "fail", detail, f"make {folder} a folder that you may write, or work in another one")


def _check_machine() -> Iterator[Check]:
    try:
        facts = machine.describe()
    except UnfitError as error:
        yield Check("machine", "warn", str(error), INSTALL_TRAIN)
        return
    yield from check_machine(facts)


def _nearest(path: Path) -> Path:
    """`path`, or its nearest parent that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())
