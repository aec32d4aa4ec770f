"""The verb `study spikes`: the first paper's comparison on a model of one's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from qarat.ground.errors import ArgumentError
from qarat.jobs.folder import Run
from qarat.jobs.spike_study.job import KIND, RESULT, SpikeJob
from qarat.jobs.spike_study.published import PUBLISHED
from qarat.jobs.spike_study.worlds import SpikeTokens
from qarat.model.model import Model
from qarat.model.texts import read_documents
from qarat.model.tokens import Bos, TokenSet, check_disjoint, make_token_set
from qarat.surfaces import options
from qarat.surfaces.commands.common import (
    check_weights,
    command_line,
    load_tokens,
    open_float,
    quoted,
    show_estimate,
    token_sets_of,
)
from qarat.surfaces.page import write_report
from qarat.surfaces.screens import Lines, Screen
from qarat.values.records.spike_study import Left
from qarat.values.requests.spike_study import SpikeRequest

RULES: dict[str, Bos] = {"bos": "each", "once": "once", "nobos": "never"}
"""How the end of a convention spells its BOS rule."""


def study_spikes(asked: options.StudySpikes, screen: Screen) -> Lines:
    """Measure every arm, in a folder that survives a kill."""
    if asked.published:
        screen.show(PUBLISHED)
        return ()
    request = _request(asked)
    out = asked.out or Path(f"{Path(asked.model).resolve().name}-spikes")
    folder = Run(out, KIND, overwrite=asked.overwrite)
    model = open_float(asked)
    tokens = _tokens(asked, model, screen)
    job = SpikeJob(model, tokens, request, name=asked.model, seed=asked.general.seed, progress=screen.progress)
    if asked.general.dry_run:
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
        f"  {command_line('run', asked)}",
    )


def _request(asked: options.StudySpikes) -> SpikeRequest:
    if asked.quick and asked.full:
        raise ArgumentError("--quick and --full: give one of them")
    extent = "quick" if asked.quick else "full" if asked.full else "usual"
    request = SpikeRequest(extent, asked.methods, asked.rules, asked.sites, asked.budget, asked.most)
    request.check()
    return request


def _tokens(asked: options.StudySpikes, model: Model, screen: Screen) -> SpikeTokens:
    """The three sets, the same under the other BOS rules, and another calibration set, as far as they can be had."""
    calibration, selection, report = load_tokens(asked, model, screen)
    left: list[Left] = []
    bos: dict[str, tuple[TokenSet, TokenSet]] = {}
    mine = RULES[report.convention.rpartition("-")[2]]
    if model.tokenizer.bos_token_id is None:
        left.append(Left("windows with BOS", "the tokenizer has none"))
    else:
        for rule in RULES.values():
            if rule != mine:
                sets = token_sets_of(dataclasses.replace(asked.text, bos=rule), model, asked.general.seed)
                bos[rule] = sets[0], sets[2]
    elsewhere = _other_calibration(asked, model, mine, calibration, report)
    if elsewhere is None:
        left.append(
            Left(
                "calibration on another kind of text", "none was given; prose for a model of code: --other-calibration"
            )
        )
    return SpikeTokens(calibration, selection, report, bos, elsewhere, tuple(left))


def _other_calibration(
    asked: options.StudySpikes, model: Model, bos: Bos, calibration: TokenSet, report: TokenSet
) -> TokenSet | None:
    if asked.other_calibration is None:
        return None
    found = make_token_set(
        "other calibration",
        read_documents(asked.other_calibration),
        model.tokenizer,
        length=calibration.length,
        bos=bos,
        limit=asked.text.samples,
        seed=asked.general.seed,
        model_length=model.length,
    )
    check_disjoint(found, report)
    return found
