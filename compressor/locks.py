"""Who may write where: one build of a recipe at a time, one writer of an artifact, and none of either while the cache is cleared."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from compressor.errors import UnfitError
from compressor.progress import Progress


@contextmanager
def only_build(name: str, artifacts: Path) -> Iterator[None]:
    """Hold the recipe's lock; a second build of it at the same time is refused, not queued."""

    def refuse() -> None:
        raise UnfitError(f"another build of {name} is running in {artifacts}; wait for it, or give --artifacts another folder")

    with _locked(artifacts, name, refuse):
        yield


@contextmanager
def only_writer(folder: Path, log: Progress) -> Iterator[None]:
    """Hold an artifact's lock: recipes share stages, and whose build comes second waits for what the first one makes."""
    with _locked(folder.parent, folder.name, lambda: log.note(f"{folder.name}: another build is making it; waiting")):
        yield


@contextmanager
def _locked(artifacts: Path, name: str, taken: Callable[[], None]) -> Iterator[None]:
    """Hold a lock; where another process has it, call `taken` and, if that returns, wait."""
    from filelock import FileLock, Timeout

    lock = FileLock(artifacts / f".{name}.lock")
    try:
        artifacts.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            taken()
            lock.acquire()
    except OSError as error:
        raise UnfitError(f"{artifacts}: {error.strerror}; make the folder writable, or give --artifacts another one") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def no_build(locks: Iterable[Path]) -> Iterator[None]:
    """Hold the locks of all recipes that were built here: what a running build has not finished is no leftover.

    Raises:
        UnfitError: a build is running, or a lock cannot be opened.
    """
    with ExitStack() as held:
        for path in locks:
            from filelock import FileLock, Timeout  # where builds run it is installed; a deployed bundle does without

            try:
                held.enter_context(FileLock(path, timeout=0))
            except Timeout:
                raise UnfitError(f"a build of {path.name[1:-5]} is running in {path.parent}; wait for it, then run again") from None
            except OSError as error:
                raise UnfitError(f"{path}: {error.strerror}; mend its permissions and run again") from None
        yield
