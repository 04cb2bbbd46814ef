"""Where models and data come from: local paths, installed Python packages, the Hugging Face Hub."""

import difflib
import hashlib
import json
import re
from functools import lru_cache
from importlib import util
from pathlib import Path

from compressor.errors import RecipeError, UnfitError

LOCAL_FORMS = "name a local folder or file (./path), or package:NAME/PATH inside an installed Python package"
DATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".json", ".txt", ".gz", ".conll")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?(@[\w.-]+)?(#[\w.-]+)?$")
_MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json")


def resolve(source: str, root: Path) -> Path | None:
    """Return the path that a source names, relative to `root`; None when it is a Hub id.

    Raises:
        RecipeError: nothing is there.
    """
    if source.startswith("package:"):
        return _in_package(source)
    path = root / Path(source).expanduser()
    if path.exists():
        return path
    if (
        _HUB_ID.match(source)
        and not source.endswith(DATA_SUFFIXES)
        and not (source.count("/") == 1 and (root / source.split("/")[0]).is_dir())
    ):
        return None
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], 1) if path.parent.is_dir() else []
    hint = f"did you mean {path.parent / near[0]}?" if near else LOCAL_FORMS
    raise RecipeError(f"{source}: not found (looked for {path}); {hint}")


def _in_package(source: str) -> Path:
    name, _, inner = source.removeprefix("package:").partition("/")
    try:
        spec = util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise RecipeError(f"{source}: no Python package {name!r} is installed here; install it with pip, or name a local path")
    path = Path(places[0], inner)
    if not path.exists():
        raise RecipeError(
            f"{source}: {path} does not exist; the package holds {', '.join(sorted(p.name for p in Path(places[0]).iterdir())[:8])}"
        )
    return path


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
            f"{source}: it brings code of its own (auto_map); trust_remote_code is refused: use an architecture of transformers"
        )
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"))
        found = f"only {pickled[0]}, a pickle, which can run code" if pickled else "none"
        raise RecipeError(
            f"{source}: no *.safetensors weights ({found}); save it with model.save_pretrained(folder, safe_serialization=True)"
        )
    if not (folder / "tokenizer.json").exists():
        raise RecipeError(
            f"{source}: no tokenizer.json; save a fast tokenizer with AutoTokenizer.from_pretrained(…).save_pretrained(folder)"
        )
    _check_vocabulary(source, folder, int(config.get("vocab_size", 0)))
    return folder


def _config(source: str, folder: Path) -> dict[str, object]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError:
        raise RecipeError(f"{source}: no config.json in {folder}; name the folder of a Hugging Face model") from None
    except ValueError as error:
        raise RecipeError(f"{folder / 'config.json'}: {error}; copy the model again") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise RecipeError(f"{folder / 'config.json'}: no model_type; name the folder of a Hugging Face model")
    return config


def _check_vocabulary(source: str, folder: Path, rows: int) -> None:
    from tokenizers import Tokenizer

    try:
        tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size(with_added_tokens=True)
    except Exception as error:  # tokenizers raises bare Exception for any damage
        raise RecipeError(f"{folder / 'tokenizer.json'}: {' '.join(str(error).split())[:150]}; copy the tokenizer again") from None
    if tokens > rows:
        raise RecipeError(
            f"{source}: the tokenizer has {tokens} tokens but the model's vocabulary {rows}; use the tokenizer that it was trained with"
        )


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_MODEL_FILES)))
    except Exception as error:  # the Hub client raises errors of many libraries
        raise UnfitError(
            f"{source}: the Hugging Face Hub did not give it ({type(error).__name__}); without a network {LOCAL_FORMS}"
        ) from error


def fingerprint(source: str, root: Path) -> str:
    """Return a hash of what a source holds, not of how it is called; a Hub id counts with its revision.

    Raises:
        RecipeError: nothing is there.
    """
    path = resolve(source, root)
    if path is None:
        return f"hub:{source}" if "@" in source else f"hub:{source}@{_revision(source)}"
    files = sorted(f for pattern in _MODEL_FILES for f in path.glob(pattern)) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.name if path.is_dir() else ''}:{_file_hash(str(file), stat.st_size, stat.st_mtime_ns)};".encode())
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _file_hash(path: str, size: int, modified_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=16)
def _revision(source: str) -> str:
    """Return the commit that an unpinned Hub id means now, else the one in the local cache."""
    from huggingface_hub import HfApi, scan_cache_dir

    name = re.split("[:#]", source)[0]
    try:
        api = HfApi()
        kind = "model" if api.repo_exists(name, repo_type="model") else "dataset"
        return str(api.repo_info(name, repo_type=kind).sha)
    except Exception as error:  # no network: what is cached is what would be used
        try:
            cached = [r for repo in scan_cache_dir().repos if repo.repo_id == name for r in repo.revisions]
        except Exception:
            cached = []
        if not cached:
            raise UnfitError(
                f"{source}: the Hugging Face Hub cannot be reached and nothing is cached; without a network {LOCAL_FORMS}"
            ) from error
        return str(max(cached, key=lambda r: r.last_modified).commit_hash)
