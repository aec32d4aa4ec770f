"""Progress of a stage on stderr: a bar while it runs, one line once it is done; in a file a line a minute meanwhile.

Stages follow one another. A stage is over when the next one begins or the context ends, not when it has done all it
announced: a sweep does not know beforehand how many measurements it will need. Its time ends with its last report.
stdout is left alone, so reports may be piped while a person watches the bars.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.text import Text

from qarat.surfaces.tables.wording import visible

if TYPE_CHECKING:
    from rich.progress import Progress, Task, TaskID


EVERY = 60.0
"""Seconds after which a stage that goes on says where it is, if there is no terminal to draw a bar on."""


def duration(seconds: float) -> str:
    """A time as a person says it: ``1.2 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class StageProgress:
    """The progress callback of `qarat.ground.runtime.Progress`, drawn; a context manager.

    Where stderr is no terminal it prints the line of each finished stage, and of one that takes long another every
    `EVERY` seconds. Print reports after the context has ended, or the bar and they meet on one line.

    Args:
        console: Where to draw; stderr unless given.
        clock: Seconds that only go forward.

    Attributes:
        console: Where it is drawn.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.console = console or Console(stderr=True)
        self._clock = clock
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._name = self._stage = ""
        self._done = self._total = 0
        self._begun = self._seen = self._said = 0.0

    def __enter__(self) -> Self:
        return self

    @contextmanager
    def aside(self) -> Iterator[None]:
        """End the stage and take the bars off the screen, so that something else can be printed."""
        self.__exit__(None, None, None)
        yield

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report ``done`` of ``total`` units of a stage; another name, or fewer units than before, begins a new one.

        What stands behind a colon is no part of the name: what is best so far, for example.
        """
        now = self._clock()
        name = stage.partition(":")[0]
        if name != self._name or done < self._done:
            self._finish()
            self._name, self._begun, self._said = name, now, now
            if self._bars is None and self.console.is_terminal and not self.console.is_dumb_terminal:
                self._bars = _start_bars(self.console)
            if self._bars is not None:
                self._task = self._bars.add_task(visible(stage), total=total)
        self._stage, self._done, self._total, self._seen = stage, done, total, now
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, description=visible(stage), completed=done, total=total)
        elif 0 < done < total and now - self._said >= EVERY:
            self._said = now
            self._say(now - self._begun, left(now - self._begun, done, total))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was, also after Ctrl-C; a stage that was cut short says so."""
        try:
            self._finish("" if kind is None else "interrupted" if kind is KeyboardInterrupt else "failed")
        finally:
            if self._bars is not None:
                self._bars.stop()
                self._bars = None

    def _finish(self, how: str = "") -> None:
        """Replace the bar by the stage's line."""
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        if self._stage:
            cut = how if self._done < self._total else ""
            seconds = (self._clock() if cut else self._seen) - self._begun
            self._say(seconds, cut)
        self._name, self._stage, self._done = "", "", 0

    def _say(self, seconds: float, more: str) -> None:
        parts = [f"{visible(self._stage):<20}", f"{self._done}/{self._total}", duration(seconds), more]
        self.console.print(Text("  ".join(filter(None, parts))), soft_wrap=True)


def left(elapsed: float, done: float, total: float) -> str:
    """What a stage still takes at its pace so far, in words."""
    return f"{duration(elapsed / done * (total - done))} left"


def _start_bars(console: Console) -> Progress:
    """Bars on a terminal; imported and begun with the first stage, as most verbs that only read have none."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn

    class Times(ProgressColumn):
        """Elapsed, and what is left at the pace so far."""

        def render(self, task: Task) -> Text:
            elapsed = (task.finished_time if task.finished else task.elapsed) or 0.0
            text = duration(elapsed)
            if task.total and 0 < task.completed < task.total:
                text += f", {left(elapsed, task.completed, task.total)}"
            return Text(text)

    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        Times(),
        console=console,
        transient=True,
        redirect_stdout=False,  # it would send stdout's bytes to stderr
    )
    bars.start()
    return bars
