"""A bundle's folder: its manifest, and the proof that every byte of it is as it was built."""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compressor import machine
from compressor.errors import BundleError, CompressorError, UnfitError, one_line
from compressor.tasks import TASKS

FOLDER = "bundle"
"""Folder, of the artifact that ends a build, of what is published."""
FORMAT = 2
"""Of bundles: those of another are refused."""
OPENED = {"model.onnx", "tokenizer.json"}
"""What every bundle holds, and a runtime opens."""


def verify(folder: Path) -> Mapping[str, Any]:
    """Return the manifest of a bundle of which every byte is as it was built.

    Raises:
        BundleError: what is wrong, in one line.
        UnfitError: a file cannot be read.
    """
    if not str(folder).isascii() and any("\ud800" <= letter <= "\udfff" for letter in str(folder)):
        raise BundleError(f"{str(folder)!r}: the name of this folder is not UTF-8, which onnxruntime needs; give it another")
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{folder}: no bundle here (manifest.json is missing); name a folder that 'compress' built") from None
    except OSError as error:
        raise _unreadable(folder / "manifest.json", error) from None
    except (ValueError, RecursionError):
        raise BundleError(f"{folder}/manifest.json is damaged; copy the bundle again or rebuild it with 'compress recipe.yaml'") from None
    if manifest.get("format") != FORMAT or str(manifest.get("task")) not in TASKS:
        found = f"format {manifest.get('format')}, task {manifest.get('task')}"
        raise BundleError(
            f"{folder}: {found} is unknown to this version (format {FORMAT}); update encoder-compressor or rebuild the bundle"
        )
    _check_content(folder, manifest)
    return manifest


def check_isa(manifest: Mapping[str, Any]) -> None:
    """Warn where this processor's 8-bit products cannot hold what the bundle's weights make."""
    here, members = machine.level(), (manifest.get("cascade") or {}).get("members", ())
    wide = [isa for isa in (manifest.get("isa"), *(one.get("isa") for one in members)) if isa not in (None, *machine.SATURATING)]
    if wide and here in machine.SATURATING:
        isa = wide[0]
        told = f"this bundle is for processors with {isa}; on this one ({here}) its 8-bit products saturate and answers may be wrong"
        warnings.warn(f"{told}: rebuild it with quantize.isa: {here}", RuntimeWarning, stacklevel=3)


def _check_content(folder: Path, manifest: Mapping[str, Any]) -> None:
    remedy = "copy the bundle again or rebuild it with 'compress recipe.yaml'"
    if manifest.get("self") != seal(manifest):
        raise BundleError(f"{folder}: manifest.json was changed after the build; {remedy}")
    files, members = manifest["files"], (manifest.get("cascade") or {}).get("members", ())
    inside = [*files, *(str(one["folder"]) for one in members if one.get("folder"))]
    if outside := [name for name in inside if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise BundleError(
            f"{folder}: manifest.json names {outside[0]!r:.60}, which lies outside of the bundle; open no bundle of strangers"
        )
    if unproven := OPENED - files.keys():
        raise BundleError(f"{folder}: manifest.json says nothing of {min(unproven)}; {remedy}")
    for name, expected in files.items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except (FileNotFoundError, NotADirectoryError):
            raise BundleError(f"{folder}: {name} is missing; {remedy}") from None
        except OSError as error:
            raise _unreadable(folder / name, error) from None
        if found != expected:
            raise BundleError(f"{folder}: {name} does not match manifest.json (sha256 {found[:8]}… ≠ {expected[:8]}…); {remedy}")


def _unreadable(path: Path, error: OSError) -> UnfitError:
    return UnfitError(f"{path} cannot be read ({error.strerror}); mend its permissions or the disk, or close other files")


@contextmanager
def readable(manifest: Mapping[str, Any]) -> Iterator[None]:
    """Say in one line what of a verified bundle this environment's packages cannot read.

    Raises:
        UnfitError: which versions are here, and which the bundle was built with.
    """
    try:
        yield
    except (CompressorError, OSError, MemoryError):
        raise
    except Exception as error:
        built = manifest.get("versions", {})
        named = "; ".join(f"{name} {version} here, {built[name]} where it was built" for name, version in machine.versions(*built).items())
        raise UnfitError(f"the bundle cannot be opened ({one_line(error)}): {named}") from error


def seal(manifest: Mapping[str, Any]) -> str:
    """Return the hash of a manifest without its seal: a slip or an edit shows; it is no signature."""
    body = {k: v for k, v in manifest.items() if k != "self"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
