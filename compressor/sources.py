"""Where models and data come from: local paths, installed Python packages, the Hugging Face Hub."""

import difflib
import hashlib
import json
import re
from functools import lru_cache
from importlib import util
from pathlib import Path
from typing import Literal

from compressor.errors import BundleError, RecipeError, UnfitError, install, one_line

Kind = Literal["model", "dataset"]
"""What an id of the Hub is of: both kinds may have the same ids."""
LOCAL_FORMS = "name a local folder or file (./folder), or package:NAME/FOLDER inside an installed Python package"
DATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".json", ".txt", ".gz", ".zip", ".xlsx", ".arrow", ".conll")
# A single name has no dot: `train.cvs` is a misspelt file, not a Hub id. A revision may be a ref such as refs/pr/1.
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+|[A-Za-z0-9][\w-]*)(:[\w.-]+)?(@[\w./-]+)?(#[\w.-]+)?")
_MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def place_of(named: str | Path, root: Path = Path(), remedy: str = "name another path") -> Path:
    """Return the path that is named, relative to `root`.

    Raises:
        RecipeError: it begins with a user's home, and there is no such user.
    """
    try:
        return root / Path(named).expanduser()
    except RuntimeError:
        raise RecipeError(f"{named}: there is no such user; {remedy}") from None


def resolve(source: str, root: Path) -> Path | None:
    """Return the path that a source names, relative to `root`; None when it is a Hub id.

    Raises:
        RecipeError: nothing is there.
    """
    if source.startswith("package:"):
        return _in_package(source)
    try:
        path = place_of(source, root, LOCAL_FORMS)
        if path.exists():
            return path
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else []
    except OSError as error:  # no permission, a name too long
        raise RecipeError(f"{source}: {error}; {LOCAL_FORMS}") from None
    if _is_hub_id(source, root):
        return None
    hint = f"did you mean {' or '.join(near)}?" if near else LOCAL_FORMS
    raise RecipeError(f"{source}: not found (looked for {path}); {hint}")


def nearest(name: str, names: list[str]) -> list[str]:
    """Return at most three of `names` that are spelt like `name`, the nearest first."""
    return difflib.get_close_matches(name, names, 3)


def _is_hub_id(source: str, root: Path) -> bool:
    """Tell a Hub id from a misspelt path: `data/train` is a path when there is a folder `data`."""
    owner, slash, _ = source.partition("/")
    return bool(_HUB_ID.fullmatch(source)) and not source.endswith(DATA_SUFFIXES) and not (slash and (root / owner).is_dir())


def _in_package(source: str) -> Path:
    dotted, _, inner = source.removeprefix("package:").partition("/")
    name, *folders = dotted.split(".")  # find_spec imports the parents of a dotted name, so it only sees the first part
    try:
        spec = util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    if not places:
        missing = "is a single module, without files of its own" if spec else "is not installed here: install it with pip"
        raise RecipeError(f"{source}: the Python package {name!r} {missing}, or name a local path")
    parts = [*folders, *inner.split("/")]
    if ".." in parts or inner.startswith("/"):
        raise RecipeError(f"{source}: leads out of the package; write package:NAME/FOLDER, with no '..'")
    for place in places:
        if (path := place.joinpath(*parts)).exists():
            return path
    held = sorted(p.name for p in places[0].iterdir() if p.name != "__pycache__") if places[0].is_dir() else []
    raise RecipeError(f"{source}: {places[0].joinpath(*parts)} does not exist; the package holds {', '.join(held[:8]) or 'nothing'}")


def model_folder(source: str, root: Path) -> Path:
    """Return the checked folder of a Hugging Face model: safetensors weights, a fast tokenizer, no code of its own.

    Raises:
        RecipeError: the folder cannot be used as it is.
        UnfitError: the Hub cannot be reached.
    """
    folder = resolve(source, root) or _download(source)
    config = _config(source, folder)
    if "auto_map" in config:
        raise RecipeError(
            f"{source}: config.json has auto_map, code of its own; trust_remote_code is refused: use an architecture of transformers"
        )
    if config.get("quantization_config"):
        raise RecipeError(f"{source}: its weights are quantized; load it in transformers and save model.dequantize().save_pretrained(...)")
    _check_weights(source, folder)
    if not (folder / "tokenizer.json").is_file():
        raise RecipeError(
            f"{source}: no tokenizer.json; save a fast tokenizer: AutoTokenizer.from_pretrained(...).save_pretrained({str(folder)!r})"
        )
    _check_vocabulary(source, folder, config.get("vocab_size"))
    return folder


def _config(source: str, folder: Path) -> dict[str, object]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise RecipeError(f"{source}: no readable config.json in {folder}; name the folder of a Hugging Face model") from None
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: not valid JSON ({error}); copy the model again") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise RecipeError(f"{path}: no model_type; name the folder of a Hugging Face model")
    return config


def _check_weights(source: str, folder: Path) -> None:
    if (folder / "model.safetensors").is_file():
        _check_whole(folder / "model.safetensors")
        return
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        _check_shards(index)
        return
    if pickles := sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES):
        raise RecipeError(
            f"{source}: only {pickles[0]}: pickle weights are refused, they can run code; "
            "convert them to model.safetensors: model.save_pretrained(folder)"
        )
    raise RecipeError(f"{source}: no model.safetensors in {folder}; save the model there: model.save_pretrained(folder)")


def _check_shards(index: Path) -> None:
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(f"{index}: not an index of shards ({type(error).__name__}: {error}); copy the model again") from None
    if missing or not shards:
        raise RecipeError(f"{index}: names {missing[0] if missing else 'no shard'}, which is not there; copy the model again")
    for shard in shards:
        _check_whole(index.parent / shard)


def _check_whole(weights: Path) -> None:
    """Refuse what is called safetensors and is none (a Git LFS pointer), or ends before its last tensor (a broken download)."""
    try:
        with weights.open("rb") as file:
            start = file.read(8)
            if start == b"version ":
                raise RecipeError(f"{weights}: a Git LFS pointer, not the weights; run 'git lfs pull' where it was cloned")
            size = int.from_bytes(start, "little")
            header = json.loads(file.read(size)) if size < 2**27 else None
            tensors = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"] if header else []
    except OSError as error:
        raise RecipeError(f"{weights}: {error.strerror or error}; mend its permissions") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise RecipeError(f"{weights}: not a safetensors file; copy the model again") from None
    if not tensors or weights.stat().st_size < 8 + size + max(tensors):
        raise RecipeError(f"{weights}: cut short or without tensors; copy the model again")


def _check_vocabulary(source: str, folder: Path, rows: object) -> None:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UnfitError(f"{source}: reading its tokenizer needs tokenizers; pip install encoder-compressor") from None
    try:
        tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size(with_added_tokens=True)
    except Exception as error:  # tokenizers raises bare Exception for any damage
        raise RecipeError(f"{folder / 'tokenizer.json'}: {one_line(error, 150)}; copy the tokenizer again") from None
    if not isinstance(rows, int):
        raise RecipeError(f"{folder / 'config.json'}: no vocab_size; name a text encoder, such as a BERT")
    if tokens > rows:
        raise RecipeError(
            f"{source}: the tokenizer has {tokens} tokens but config.json says vocab_size {rows}; "
            "use the tokenizer that the model was trained with"
        )


def _download(source: str) -> Path:
    try:
        from huggingface_hub import snapshot_download

        name, _, revision = source.partition("@")
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_MODEL_FILES)))
    except Exception as error:  # the Hub client raises errors of many libraries
        raise hub_error(source, error) from error


def hub_error(source: str, error: Exception) -> UnfitError:
    """Return the one line that says why the Hub did not give `source`, and what works without it."""
    if isinstance(error, ImportError):
        return UnfitError(f"{source}: the Hugging Face Hub needs {error.name}; {install('train')}, or {LOCAL_FORMS}")
    return UnfitError(
        f"{source}: not a local path, and the Hugging Face Hub did not give it ({type(error).__name__}: {one_line(error, 150)}); "
        f"check name and network, or {LOCAL_FORMS}"
    )


def fingerprint(source: str, root: Path, kind: Kind = "model") -> str:
    """Return a hash of what a source holds, not of how it is called; a Hub id, of this kind, counts with its revision.

    Raises:
        RecipeError: nothing is there, or it cannot be read.
        UnfitError: an unpinned Hub id, with neither a network nor a cached snapshot.
    """
    path = resolve(source, root)
    if path is None:
        return f"hub:{source}" if "@" in source else f"hub:{source}@{_revision(source, kind)}"
    folder = path.is_dir()
    digest = hashlib.sha256()
    try:
        for file in sorted(f for p in _MODEL_FILES for f in path.glob(p) if f.is_file()) if folder else [path]:
            stat = file.stat()
            digest.update(f"{file.name if folder else ''}:{_file_hash(str(file), stat.st_size, stat.st_mtime_ns)};".encode())
    except OSError as error:
        raise RecipeError(f"{source}: {error.filename or path} is not readable ({error.strerror or error}); mend its permissions") from None
    return digest.hexdigest()


def bundle_fingerprint(source: str, root: Path) -> str:
    """Return a hash of what a bundle holds: its manifest has the hash of every file.

    Raises:
        BundleError: there is none.
    """
    path = place_of(source, root) / "manifest.json"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        raise BundleError(f"{path.parent}: no bundle here (manifest.json is missing); name a folder that 'compress' built") from None


@lru_cache(maxsize=256)
def _file_hash(path: str, size: int, modified_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=16)
def _revision(source: str, kind: Kind) -> str:
    """Return the commit that an unpinned Hub id means now, else the one in the local cache."""
    name = re.split("[:#]", source)[0]
    try:
        from huggingface_hub import HfApi

        return str(HfApi().repo_info(name, repo_type=kind).sha)
    except Exception as error:  # no network: what is cached is what would be used
        cached = None if isinstance(error, ImportError) else _cached_revision(name, kind)
        if cached is None:
            raise hub_error(source, error) from error
        return cached


def _cached_revision(name: str, kind: Kind) -> str | None:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        revisions = [r for repo in scan_cache_dir().repos if (repo.repo_id, repo.repo_type) == (name, kind) for r in repo.revisions]
    except CacheNotFound:
        return None
    # `main` first: it is what the client loads offline, though a pinned revision may have been fetched later.
    revisions.sort(key=lambda r: ("main" in r.refs, r.last_modified))
    return revisions[-1].commit_hash if revisions else None
