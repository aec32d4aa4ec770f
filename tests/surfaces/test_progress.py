"""Progress on stderr: one line a finished stage, a bar where there is a terminal, and the terminal left as it was."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from qarat.surfaces.progress import StageProgress, duration


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(*, terminal: bool) -> tuple[StageProgress, StringIO, Clock]:
    out, clock = StringIO(), Clock()
    console = Console(file=out, width=100, force_terminal=terminal, _environ={"TERM": "xterm"})
    return StageProgress(console, clock), out, clock


def run_stage(bars: StageProgress, clock: Clock, stage: str, total: int, seconds: float) -> None:
    for done in range(total + 1):
        clock.now += seconds / total if done else 0
        bars(stage, done, total)


def test_without_a_terminal_one_line_a_stage():
    bars, out, clock = make(terminal=False)
    with bars:
        run_stage(bars, clock, "observe", 8, 1.2)
        clock.now += 30  # what happens between stages is no stage's time
        run_stage(bars, clock, "evaluate float", 4, 75)
    lines = out.getvalue().splitlines()
    assert [line.split() for line in lines] == [
        ["observe", "8/8", "1.2", "s"],
        ["evaluate", "float", "4/4", "1", "min", "15", "s"],
    ]
    assert "\x1b" not in out.getvalue()


def test_without_a_terminal_a_long_stage_says_every_minute_where_it_is():
    bars, out, clock = make(terminal=False)
    with bars:
        run_stage(bars, clock, "measure sites", 10, 250)
    assert [" ".join(line.split()) for line in out.getvalue().splitlines()] == [
        "measure sites 3/10 1 min 15 s 2 min 55 s left",
        "measure sites 6/10 2 min 30 s 1 min 40 s left",
        "measure sites 9/10 3 min 45 s 25.0 s left",
        "measure sites 10/10 4 min 10 s",
    ]


def test_a_stage_that_grows_is_one_stage():
    bars, out, _ = make(terminal=False)
    with bars:
        for done in range(1, 6):
            bars("sweep", done, max(3, done))
    assert out.getvalue().split() == ["sweep", "5/5", "0.0", "s"]


def test_what_stands_behind_a_colon_changes_within_a_stage():
    bars, out, _ = make(terminal=False)
    with bars:
        bars("search", 1, 3)
        bars("search: 0.9 low", 2, 3)
        bars("search: 0.93 low", 3, 3)
    assert out.getvalue().split() == ["search:", "0.93", "low", "3/3", "0.0", "s"]


def test_a_stage_that_begins_anew_is_another():
    bars, out, clock = make(terminal=False)
    with bars:
        run_stage(bars, clock, "observe", 2, 1)
        run_stage(bars, clock, "observe", 2, 2)
    assert [line.split()[2] for line in out.getvalue().splitlines()] == ["1.0", "2.0"]


def test_a_terminal_gets_a_bar_and_the_cursor_back():
    bars, out, clock = make(terminal=True)
    with bars:
        run_stage(bars, clock, "observe", 8, 1.2)
    text = out.getvalue()
    assert "\x1b[?25l" in text  # cursor hidden
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "observe" in text
    assert "8/8  1.2 s" in text


def test_ctrl_c_restores_the_terminal_and_says_how_far_it_came():
    bars, out, clock = make(terminal=True)

    def work() -> None:
        with bars:
            bars("observe", 0, 8)
            bars("observe", 3, 8)
            clock.now += 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    text = out.getvalue()
    assert "3/8  2.0 s  interrupted" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_failed_stage_says_so_and_a_finished_one_does_not():
    for done, expected in ((1, "1/2  0.0 s  failed"), (2, "2/2  0.0 s\n")):
        bars, out, _ = make(terminal=False)

        def work(bars: StageProgress = bars, done: int = done) -> None:
            with bars:
                bars("write", done, 2)
                raise ValueError

        with pytest.raises(ValueError):  # noqa: PT011 (any)
            work()
        assert expected in out.getvalue()


def test_a_stage_name_is_not_markup():
    for terminal in (False, True):
        bars, out, _ = make(terminal=terminal)
        with bars:
            bars("evaluate [red]x[/red]", 1, 1)
        assert "evaluate [red]x[/red]" in out.getvalue()


def test_nothing_reported_prints_nothing():
    bars, out, _ = make(terminal=False)
    with bars:
        pass
    assert out.getvalue() == ""


def test_durations():
    assert duration(1.234) == "1.2 s"
    assert duration(59.96) == "1 min 00 s"
    assert duration(185) == "3 min 05 s"
    assert duration(7620) == "2 h 07 min"
