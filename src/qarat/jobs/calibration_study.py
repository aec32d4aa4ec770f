"""The job of a calibration study: one scheme, calibrated on every text, measured on every text.

What published tables of quantized models hide is which text the scales and roundings came from (MI-optimize,
arXiv 2406.12928; the LLaMA-3 study, arXiv 2404.14047; the replication on code models, arXiv 2503.07103). All tests
stand one behind the other in one token set, so that a calibration costs one walk; every calibration is on disk before
the next, and what the model wrote itself is kept too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from qarat.ground.disk import write_whole
from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress
from qarat.jobs.estimates import ROUNDING, price_forwards
from qarat.jobs.folder import Run, Step, result_of
from qarat.jobs.open_any import plan_low
from qarat.model.drawing import stand_in_windows
from qarat.model.mixtures import LANGUAGES, MIX, SELF, Share, parse_mixture, spell
from qarat.model.model import Model
from qarat.model.texts import Document, Slice, bundled_documents, read_documents
from qarat.model.token_sets import Cutter, Part, Parts, check_disjoint, join_token_sets, split_parts
from qarat.model.tokens import Bos, TokenSet
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.rounding import ROUNDINGS, check_roundings, needs_calibration
from qarat.values.parsing import parse_scheme
from qarat.values.plans import assign
from qarat.values.records.calibration_study import CalibrationArm, CalibrationStudy, TestText
from qarat.values.records.files import content_hash, encode_record
from qarat.values.records.scores import Evaluation
from qarat.values.requests.calibration_study import CalibrationRequest
from qarat.values.schemes import LinearScheme, is_static

KIND = "calibration-study"
RESULT = result_of(KIND)
FLOAT = Step[Evaluation]("float", ("float.json",))


class Limits(NamedTuple):
    """How many windows there are at most: of each calibration, and of each test."""

    calibration: int
    test: int


class CalibrationJob:
    """One study: a model, how its text is cut, and which texts.

    Attributes:
        model: In float.
    """

    def __init__(
        self,
        request: CalibrationRequest,
        cutter: Cutter,
        windows: Limits,
        *,
        name: str,
        column: str | None = None,
    ) -> None:
        """Check the request against model and texts; nothing long is done.

        Args:
            request: Checked already.
            cutter: Of the float model.
            windows: At most so many.
            name: That the model was opened by.
            column: As `qarat.model.texts.read_text`.

        Raises:
            UserError: A scheme that does not look at the calibration, or does not fit the model; texts as
                `qarat.model.token_sets.load_token_sets`.
        """
        self.model, self.request, self.name = cutter.model, request, name
        self.model.require_float("study")
        low = parse_scheme(request.low)
        assert isinstance(low, LinearScheme)  # the request was checked
        self._low, self._static, self._rounds = low, is_static(low), needs_calibration([low])
        if not (self._static or self._rounds):
            raise UserError(
                f"`low` {request.low} does not depend on calibration; give static inputs, or a rounding that looks at "
                f"what a projection reads: {', '.join(_looking())}"
            )
        assign(self.model.fingerprint, self.model.source_bits, self.model.sites(), request.low)
        self._cutter, self._windows = cutter, windows
        _check_apart(request)
        texts = _Texts(request, cutter, column)
        tests = [cutter.cut("report", texts.test(name), windows.test) for name in request.tests]
        self.tokens = join_token_sets(tests)
        self.tests = tuple(
            TestText(_home(name), tokens.fingerprint, len(tokens))
            for name, tokens in zip(request.tests, tests, strict=True)
        )
        self._parts = {name: texts.calibration(name) for name in request.calibrations}
        for parts in self._parts.values():
            alike = cutter._replace(draw=stand_in_windows).cut("calibration", parts, windows.calibration)
            check_disjoint(alike, self.tokens)
            check_roundings([(s, low) for s in self.model.sites() if s.shape], alike.windows.numel())

    def work(self) -> dict[str, float]:
        """Tokens that each step sends through the whole model, for an estimate; those drawn aside."""
        tested, number = self.tokens.windows.numel(), len(self._parts)
        calibration = self._windows.calibration * self.tokens.length
        looking = self._static + (price_forwards(0) if self._rounds else 0)
        drawn = sum(share.text == SELF for name in self._parts for share in parse_mixture(name))
        return {
            "float": tested,
            **({"draw calibration, one token after the other": drawn * calibration} if drawn else {}),
            f"{number} calibrations": number * (looking * calibration + tested + ROUNDING),
        }

    def execute(self, run: Run) -> CalibrationStudy:
        """Do every step that is not done yet, and put the folder into place."""
        progress = self._cutter.progress
        key = msgspec.to_builtins(self.model.provenance(self.tokens.fingerprint, self.tokens.convention))

        def measure() -> Evaluation:
            return measure_perplexity(self.model, self.tokens, label="float", progress=progress)

        base = FLOAT.make(run, key, measure)
        names = [_home(name) for name in self.request.calibrations]
        study = CalibrationStudy(base.provenance, self.name, str(self._low), base, self.tests, missing=tuple(names))
        for arm in self._arms(run, key):
            arms = (*study.arms, arm)
            study = msgspec.structs.replace(study, arms=arms, missing=tuple(names[len(arms) :]))
            write_whole(run.path(RESULT), encode_record(study))
        run.step("study", content_hash(study), [RESULT], lambda: write_whole(run.path(RESULT), encode_record(study)))
        run.finish()
        return study

    def _arms(self, run: Run, key: object) -> Iterator[CalibrationArm]:
        """Every calibration in turn, measured unless an earlier call did."""
        for name, parts in self._parts.items():
            place = _home(name)
            progress = functools.partial(_tell, self._cutter.progress, place)
            cutter = self._cutter._replace(draw=_Drawing(run, self._cutter), progress=progress)
            tokens = cutter.cut("calibration", parts, self._windows.calibration)
            # The name says of which tokens, so that a study asked otherwise finds what it shares with this one.
            word = f"calibration-{tokens.fingerprint[:12]}"
            step = Step[CalibrationArm](word, (f"{word}.json",), CalibrationArm)
            arm = CalibrationArm(place, tokens.fingerprint, tokens.convention, len(tokens))
            work = functools.partial(self._measured, arm, tokens, progress)
            measured = step.make(run, [key, str(self._low), tokens.fingerprint], work)
            yield msgspec.structs.replace(measured, name=place)

    def _measured(self, arm: CalibrationArm, tokens: TokenSet, progress: Progress) -> CalibrationArm:
        low = plan_low(self.model, self.request.low, tokens, progress=progress)(self.model).unkept()
        try:
            losses = measure_perplexity(low, self.tokens, label=self.request.low, progress=progress)
        except UserError as error:
            return msgspec.structs.replace(arm, failure=str(error))
        return msgspec.structs.replace(arm, nats=losses.nats)


class _Drawing:
    """What a model writes, kept in a run's folder."""

    def __init__(self, run: Run, cutter: Cutter) -> None:
        self._run, self._draw = run, cutter.draw

    def __call__(self, model: Model, count: int, length: int, bos: Bos, seed: int, progress: Progress) -> Tensor:
        origin = msgspec.to_builtins(model.provenance("", f"{count} × {length} {bos}", seed))
        step = Step[list[list[int]]](f"draw {count}", (f"{SELF}-{count}.json",), list[list[int]])
        drawn = step.make(self._run, origin, lambda: self._draw(model, count, length, bos, seed, progress).tolist())
        return torch.tensor(drawn)


class _Texts:
    """The texts of a study by name, read once; those of both kinds split by documents."""

    def __init__(self, request: CalibrationRequest, cutter: Cutter, column: str | None) -> None:
        self._cutter, self._column = cutter, column
        self._tested = set(request.tests)
        self._calibrated = {share.text for name in request.calibrations for share in parse_mixture(name)}
        self._read: dict[str, tuple[Parts, Parts]] = {}

    def test(self, name: str) -> Parts:
        if name == SELF or name.startswith(MIX):
            raise UserError(f"`tests` {name}: give texts that somebody wrote, one a name")
        return self._both(name)[1]

    def calibration(self, name: str) -> Parts:
        return tuple(
            Part(share, None if share.text == SELF else self._both(share.text)[0][0].documents)
            for share in parse_mixture(name)
        )

    def _both(self, text: str) -> tuple[Parts, Parts]:
        """Of a text what is calibrated on and what is measured on."""
        if text not in self._read:
            self._read[text] = self._split(text)
        return self._read[text]

    def _split(self, text: str) -> tuple[Parts, Parts]:
        def of(documents: tuple[Document, ...]) -> Parts:
            return (Part(Share(1.0, text), documents),)

        if text in LANGUAGES:
            slices: tuple[Slice, Slice] = ("calibration", "report")
            mine, theirs = (of(bundled_documents(which, text)) for which in slices)
            return mine, theirs
        whole = of(read_documents(text, self._column, self._cutter.model.tokenizer))
        if not (text in self._tested and text in self._calibrated):
            return whole, whole
        mine, theirs = split_parts(whole, self._cutter.seed, (1, 2))
        return mine, theirs


def _looking() -> Iterator[str]:
    return (f"round-{name}" for name in ROUNDINGS.names() if ROUNDINGS.load(name).NEEDS)


def _home(name: str) -> str:
    """A text's name without the places of one machine."""
    return spell(parse_mixture(name))


def _check_apart(request: CalibrationRequest) -> None:
    """Refuse texts that would go by one name."""
    for field, names in (("calibrations", request.calibrations), ("tests", request.tests)):
        homes = [_home(name) for name in names]
        if twice := sorted({home for home in homes if homes.count(home) > 1}):
            raise UserError(f"`{field}`: several texts are called {', '.join(twice)}; call their files otherwise")


def _tell(progress: Progress, place: str, stage: str, done: int, total: int) -> None:
    progress(f"{place}: {stage}", done, total)
