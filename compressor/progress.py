"""What a person sees while a build runs; all of it goes to stderr, because stdout carries results."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any, Protocol

from rich import progress as bars
from rich.console import Console
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0

Facts = Mapping[str, float | str]
Clock = Callable[[], float]


def is_terminal(stream: IO[str] | None) -> bool:
    """Return whether a person looks at a stream; one that was closed before Python began is None."""
    return stream is not None and not stream.closed and stream.isatty()


class Stderr(Console):
    """What goes to stderr: where nobody reads it any more, or its disk is full, a command goes on unseen and keeps its exit code."""

    def __init__(self, **settings: Any) -> None:
        # FORCE_COLOR, which many CI services set, asks for colours, and not for a bar in a log.
        super().__init__(stderr=True, force_interactive=None if is_terminal(sys.stderr) else False, **settings)

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Be silent from now on, and let all else that writes there be so too; rich would end the process."""
        self.quiet = True
        del self._buffer[:]
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self.file.fileno())  # what is left in its buffer would fail again when Python ends


class Progress:
    """Show stages, their steps and what was cached: a live bar in a terminal, sparse plain lines elsewhere.

    One stage runs at a time. `quiet` leaves only warnings; `clock` counts seconds.
    """

    def __init__(self, console: Console | None = None, quiet: bool = False, clock: Clock = time.monotonic) -> None:
        self._console = console or Stderr()
        self._quiet = quiet
        self._clock = clock
        self._display: _Display = _Silence()
        self._said = set[str]()
        self.caveats = list[str]()
        """Those of all warnings so far."""

    def note(self, text: str) -> None:
        """Print a line that a person should read; it goes above the live display."""
        if not self._quiet:
            self._line(Text(text))

    def warn(self, text: str, caveat: str = "") -> None:
        """Print a warning; `quiet` does not silence it. A `caveat` is a sentence that belongs beside the figures which it qualifies."""
        if caveat:
            self.caveats.append(caveat)
        self._line(Text.assemble(("warning: ", "yellow"), text))

    def warn_once(self, text: str) -> None:
        """Print a warning that several stages may have, the first time."""
        if text not in self._said:
            self._said.add(text)
            self.warn(text)

    def cached(self, name: str, position: str, detail: str) -> None:
        """Print that stage `name` did not run, and where its artifact lies."""
        self.note(f"{position} {name}  cached  {detail}")

    def steps(self, done: int, total: int, **facts: float | str) -> None:
        """Show the position inside the stage and facts such as `loss=0.31`; a smaller `done` or another `total` opens a new phase."""
        self._display.steps(done, total, facts)

    @contextmanager
    def stage(self, name: str, position: str) -> Iterator[None]:
        """Show stage `name` (`position` such as "3/8") until the block ends, then print how it ended and after how long."""
        started, outcome = self._clock(), "done in"
        self._display = self._open(name, position)
        try:
            yield
        except Exception:
            outcome = "failed after"
            raise
        except BaseException:
            outcome = "interrupted after"
            raise
        finally:
            self._display.close()
            self._display = _Silence()
            self.note(f"{position} {name}  {outcome} {seconds(self._clock() - started)}")

    def _open(self, name: str, position: str) -> "_Display":
        if self._quiet:
            return _Silence()
        if self._console.is_interactive:
            return _Bar(self._console, f"{position} {name}")
        self.note(f"{position} {name}")
        return _Lines(self._line, name, self._clock)

    def _line(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)


def seconds(duration_s: float) -> str:
    """Write a duration as a person says it: `12.3 s`, `4:05`, `2:03:09`."""
    return f"{duration_s:.1f} s" if duration_s < 60 else _clock_face(duration_s)


def _clock_face(duration_s: float) -> str:
    minutes, rest = divmod(round(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _fact(key: str, value: float | str) -> str:
    if isinstance(value, float):
        value = format(value, "#.4g").rstrip(".")  # '#' keeps trailing zeros, so the live line does not jitter
    return str(value) if key == "rate" else f"{key} {value}"


def _sentence(facts: Facts) -> str:
    # The rate stands last, beside the time left.
    return " ".join(_fact(key, facts[key]) for key in sorted(facts, key=lambda key: key == "rate"))


class _Display(Protocol):
    """How the steps of one stage are shown."""

    def steps(self, done: int, total: int, facts: Facts) -> None: ...

    def close(self) -> None: ...


class _Silence:
    """Show nothing: outside a stage, or when quiet."""

    def steps(self, done: int, total: int, facts: Facts) -> None:
        pass

    def close(self) -> None:
        pass


class _Bar:
    """Show one live line, which vanishes when the stage ends."""

    def __init__(self, console: Console, title: str) -> None:
        self._bars = bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(bar_width=30),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[facts]}", markup=False),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,  # otherwise rich sends what is printed to stdout, our results, to this console
        )
        self._task = self._bars.add_task(title, total=None, facts="")
        self._phase = (0, 0)  # (done, total)
        self._bars.start()

    def steps(self, done: int, total: int, facts: Facts) -> None:
        known_done, known_total = self._phase
        if done < known_done or total != known_total:
            self._bars.reset(self._task, total=total, completed=done)  # forgets the speed of the phase before
        self._phase = (done, total)
        self._bars.update(self._task, completed=done, facts=_sentence(facts))

    def close(self) -> None:
        self._bars.stop()


class _Lines:
    """Print a line every ten seconds, and one for the last step of each phase."""

    def __init__(self, line: Callable[[Text], None], name: str, clock: Clock) -> None:
        self._line = line
        self._name = name
        self._clock = clock
        self._printed_at = clock()
        self._phase = (0, 0)  # (done, total)
        self._phase_from = (0, clock())  # (done, seconds) when the phase was first seen

    def steps(self, done: int, total: int, facts: Facts) -> None:
        now = self._clock()
        known_done, known_total = self._phase
        if done < known_done or total != known_total:
            self._phase_from = (done, now)
        self._phase = (done, total)
        if done == total or now - self._printed_at >= SECONDS_BETWEEN_LINES:
            self._printed_at = now
            words = (self._name, f"{done}/{total}", _sentence(facts), self._left(done, total, now))
            self._line(Text(" ".join(word for word in words if word)))

    def _left(self, done: int, total: int, now: float) -> str:
        first_done, first_at = self._phase_from
        if done in (total, first_done):  # finished, or too early to know a speed
            return ""
        return f"{_clock_face((total - done) * (now - first_at) / (done - first_done))} left"

    def close(self) -> None:
        pass
