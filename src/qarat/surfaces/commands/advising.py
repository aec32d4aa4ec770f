"""The verb that looks at every scheme before one is decided on: advise."""

from __future__ import annotations

import time

from qarat.jobs.advising import KIND, Advisor, advise_in
from qarat.jobs.folder import Run, result_of
from qarat.surfaces.commands import Lines, Screen, common
from qarat.surfaces.commands.common import quoted
from qarat.surfaces.options.advising import AdviseOptions
from qarat.surfaces.page import write_report
from qarat.surfaces.progress import duration
from qarat.surfaces.tables.advice import verb_of, words_of
from qarat.values.records.advice import Advice


def advise(options: AdviseOptions, screen: Screen) -> Lines:
    """Show the landscape of a model, in a folder that survives a kill."""
    began, out = time.perf_counter(), options.folder
    folder = Run(out, KIND, overwrite=options.overwrite)
    model = common.open_float(options.model, options)
    tokens = common.load_tokens(options, model, screen)
    advisor = Advisor(model, tokens, options.advice, seed=options.general.seed, progress=screen.progress)
    if options.general.dry_run:
        states = max(t.windows.numel() for t in tokens[:2])
        return common.show_estimate(screen, model, advisor.work(), states=states)
    with folder.work(**common.facts_of(options.model, model, screen)):
        advice = advise_in(folder, advisor)
    screen.show(advice)
    if options.page:
        write_report([out], out, progress=screen.progress)
    return (
        f"found out in {duration(time.perf_counter() - began)}",
        f"written: {quoted(out)} (all of it in {result_of(KIND)})",
        *([f"the page to look at: {quoted(out / 'report.html')}"] if options.page else []),
        *_next(options, advice),
    )


def _next(options: AdviseOptions, advice: Advice) -> Lines:
    """The command of every recipe that was measured; without any, that of the smallest."""
    chosen = [s for s in advice.schemes if s.name in advice.measured] or advice.meeting[:1]
    if not chosen:
        return ()
    return ("try next:", *(f"  {common.command_line(verb_of(s), options, *words_of(s))}" for s in chosen))
