"""The verb `study spikes`: the first paper's comparison on a model of one's own."""

from __future__ import annotations

import msgspec

from qarat.ground.errors import ArgumentError
from qarat.jobs.folder import Run
from qarat.jobs.spike_study.job import KIND, RESULT, SpikeJob
from qarat.jobs.spike_study.published import PUBLISHED
from qarat.jobs.spike_study.worlds import SpikeTokens
from qarat.model.model import Model
from qarat.model.texts import read_documents
from qarat.model.tokens import Bos, TokenSet, check_disjoint, make_token_set
from qarat.surfaces.commands.common import (
    check_weights,
    command_line,
    load_tokens,
    open_float,
    quoted,
    show_estimate,
    token_sets_of,
)
from qarat.surfaces.options.spike_study import StudySpikesOptions
from qarat.surfaces.page import write_report
from qarat.surfaces.screens import Lines, Screen
from qarat.values.records.spike_study import Left
from qarat.values.requests.spike_study import SpikeRequest

RULES: dict[str, Bos] = {"bos": "each", "once": "once", "nobos": "never"}
"""How the end of a convention spells its BOS rule."""


def study_spikes(options: StudySpikesOptions, screen: Screen) -> Lines:
    """Measure every arm, in a folder that survives a kill."""
    if options.published:
        screen.show(PUBLISHED)
        return ()
    request = _request(options)
    out = options.folder
    folder = Run(out, KIND, overwrite=options.overwrite)
    model = open_float(options.model, options.machine, options.general)
    tokens = _tokens(options, model, screen)
    job = SpikeJob(model, tokens, request, name=options.model, seed=options.general.seed, progress=screen.progress)
    if options.general.dry_run:
        check_weights(model)
        return show_estimate(screen, model, job.work(), states=tokens.report.windows.numel() * model.blocks)
    with folder.work(command=screen.command):
        study = job.execute(folder)
    screen.show(study)
    page = write_report([out], out, progress=screen.progress)
    return (
        f"written: {quoted(out)} (every arm with the loss of every window in {RESULT})",
        f"the page to look at: {quoted(page)}",
        "try next:",
        f"  qarat show {quoted(out / RESULT)}",
        f"  {command_line('run', options)}",
    )


def _request(options: StudySpikesOptions) -> SpikeRequest:
    if options.quick and options.full:
        raise ArgumentError("`quick` and `full`: give one of them")
    extent = "quick" if options.quick else "full" if options.full else "usual"
    request = msgspec.structs.replace(options.study, extent=extent)
    request.check()
    return request


def _tokens(options: StudySpikesOptions, model: Model, screen: Screen) -> SpikeTokens:
    """The three sets, the same under the other BOS rules, and another calibration set, as far as they can be had."""
    calibration, selection, report = load_tokens(options.text, model, options.general.seed, screen)
    left: list[Left] = []
    bos: dict[str, tuple[TokenSet, TokenSet]] = {}
    mine = RULES[report.convention.rpartition("-")[2]]
    if model.tokenizer.bos_token_id is None:
        left.append(Left("windows with BOS", "the tokenizer has none"))
    else:
        for rule in RULES.values():
            if rule != mine:
                sets = token_sets_of(msgspec.structs.replace(options.text, bos=rule), model, options.general.seed)
                bos[rule] = sets[0], sets[2]
    elsewhere = _other_calibration(options, model, mine, calibration, report)
    if elsewhere is None:
        left.append(
            Left(
                "calibration on another kind of text", "none was given; prose for a model of code: `other_calibration`"
            )
        )
    return SpikeTokens(calibration, selection, report, bos, elsewhere, tuple(left))


def _other_calibration(
    options: StudySpikesOptions, model: Model, bos: Bos, calibration: TokenSet, report: TokenSet
) -> TokenSet | None:
    if options.other_calibration is None:
        return None
    found = make_token_set(
        "other calibration",
        read_documents(options.other_calibration),
        model.tokenizer,
        length=calibration.length,
        bos=bos,
        limit=options.text.samples,
        seed=options.general.seed,
        model_length=model.length,
    )
    check_disjoint(found, report)
    return found
