"""What a person sees: bars in a terminal, sparse lines elsewhere, nothing but warnings when quiet."""

import io
import subprocess
import sys

import pytest
from rich.console import Console

from compressor.progress import Progress, seconds


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def plain(out: io.StringIO, clock: Clock) -> Progress:
    return Progress(Console(file=out, force_terminal=False, width=40), clock=clock)


@pytest.fixture
def terminal(out: io.StringIO) -> Progress:
    return Progress(Console(file=out, force_terminal=True, force_interactive=True, width=120))


def test_a_stage_says_when_it_is_done_and_how_long_it_took(plain: Progress, out: io.StringIO, clock: Clock) -> None:
    with plain.stage("distill", "3/8"):
        clock.now = 12.3
    assert out.getvalue().splitlines() == ["3/8 distill", "3/8 distill  done in 12.3 s"]


def test_plain_lines_come_every_ten_seconds_and_for_the_last_step(plain: Progress, out: io.StringIO, clock: Clock) -> None:
    with plain.stage("distill", "3/8"):
        for step in range(1, 26):
            clock.now += 1
            plain.steps(step, 25, rate="112 texts/s", loss=0.3121)
    assert out.getvalue().splitlines()[1:-1] == [
        "distill 10/25 loss 0.3121 112 texts/s 0:15 left",
        "distill 20/25 loss 0.3121 112 texts/s 0:05 left",
        "distill 25/25 loss 0.3121 112 texts/s",
    ]


def test_a_second_phase_is_timed_by_itself(plain: Progress, out: io.StringIO, clock: Clock) -> None:
    with plain.stage("distill", "3/8"):
        plain.steps(0, 2)
        clock.now = 9
        plain.steps(2, 2)
        plain.steps(0, 100)
        clock.now = 20
        plain.steps(50, 100)
    assert out.getvalue().splitlines()[1:-1] == ["distill 2/2", "distill 50/100 0:11 left"]


def test_a_resumed_stage_does_not_count_the_steps_of_the_run_before(plain: Progress, out: io.StringIO, clock: Clock) -> None:
    with plain.stage("distill", "3/8"):
        plain.steps(90, 110)
        clock.now = 10
        plain.steps(100, 110)
    assert "distill 100/110 0:10 left" in out.getvalue()


@pytest.mark.parametrize(("error", "word"), [(ValueError, "failed"), (KeyboardInterrupt, "interrupted"), (SystemExit, "interrupted")])
@pytest.mark.parametrize("kind", ["plain", "terminal"])
def test_an_exception_passes_and_is_told(
    request: pytest.FixtureRequest, out: io.StringIO, kind: str, error: type[BaseException], word: str
) -> None:
    progress: Progress = request.getfixturevalue(kind)

    @progress.stage("distill", "3/8")
    def work() -> None:
        progress.steps(1, 2)
        raise error

    with pytest.raises(error):
        work()
    assert f"3/8 distill  {word} after" in out.getvalue()
    progress.steps(2, 2)
    with progress.stage("export", "4/8"):  # a live display that was left open would refuse a second one
        pass


def test_cached_is_one_line_however_narrow_the_console(plain: Progress, out: io.StringIO) -> None:
    plain.cached("finetune", "2/8", "artifacts/finetune-1a2b3c4d5e6f7a8b9c0d1e2f3a4b5c6d")
    assert out.getvalue() == "2/8 finetune  cached  artifacts/finetune-1a2b3c4d5e6f7a8b9c0d1e2f3a4b5c6d\n"


def test_brackets_are_text_not_markup(plain: Progress, out: io.StringIO) -> None:
    plain.note("pip install 'encoder-compressor[train]'")
    plain.warn("[/red] is odd")
    assert out.getvalue() == "pip install 'encoder-compressor[train]'\nwarning: [/red] is odd\n"


def test_quiet_prints_only_warnings(out: io.StringIO) -> None:
    progress = Progress(Console(file=out), quiet=True)
    progress.note("hello")
    progress.cached("finetune", "2/8", "artifacts")
    with progress.stage("distill", "3/8"):
        progress.steps(1, 1, loss=0.5)
        progress.warn("disk is nearly full")
    assert out.getvalue() == "warning: disk is nearly full\n"


def test_a_terminal_shows_stage_position_and_facts(terminal: Progress, out: io.StringIO) -> None:
    with terminal.stage("distill", "3/8"):
        terminal.steps(120, 400, loss=0.31, rate="112 texts/s")
        terminal.steps(1, 7, loss=100.0)
        terminal._display._bars.refresh()  # type: ignore[attr-defined]
        terminal.note("a checkpoint was written")
    text = out.getvalue()
    assert all(part in text for part in ["3/8 distill", "1/7", "loss 100.0", "a checkpoint was written", "done in"])


def test_all_goes_to_stderr() -> None:
    code = (
        "from compressor.progress import Progress; p = Progress()\n"
        "with p.stage('distill', '3/8'): p.steps(1, 1); p.warn('w'); print('result')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "result\n"
    assert "distill 1/1" in done.stderr


def test_stdout_is_left_alone_while_a_bar_is_live(terminal: Progress, out: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.stage("distill", "3/8"):
        print("result")
    assert capsys.readouterr().out == "result\n"
    assert "result" not in out.getvalue()


@pytest.mark.parametrize(("duration", "text"), [(0.04, "0.0 s"), (12.34, "12.3 s"), (245, "4:05"), (7389, "2:03:09")])
def test_durations_are_written_as_a_person_says_them(duration: float, text: str) -> None:
    assert seconds(duration) == text
