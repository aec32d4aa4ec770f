"""What the verbs share: options to values, and the last lines that are said."""

from __future__ import annotations

import functools
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor

from qarat.ground.disk import write_whole
from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, Runtime, held_bytes
from qarat.jobs.estimates import Work, estimate, pricing
from qarat.jobs.folder import Run
from qarat.jobs.protecting import describe_matches
from qarat.jobs.replicas import Remake, Replica
from qarat.jobs.runners import open_runner
from qarat.jobs.spreading import Spread
from qarat.jobs.transforming import apply_again, options_for, read_made_from, stats_behind
from qarat.model.capture import block_work
from qarat.model.drawing import draw_windows, stand_in_windows
from qarat.model.mixtures import SELF
from qarat.model.model import Model
from qarat.model.native import is_native
from qarat.model.opening import open_model
from qarat.model.token_sets import Draw, bundled_language, load_report_set, load_token_sets
from qarat.model.tokenizing import count_controls
from qarat.model.tokens import Bos, TokenSet
from qarat.stages.prices import DEFAULT, METRICS
from qarat.surfaces.commands import Lines, Screen
from qarat.surfaces.options import VERBS
from qarat.surfaces.options.arguments import leaves
from qarat.surfaces.options.groups import Machine, OnText, Text
from qarat.values.budgets import parse_size
from qarat.values.fingerprints import brief, source_of
from qarat.values.parsing import parse_scheme
from qarat.values.records.files import Record, decode_record, encode_record
from qarat.values.records.streams import ActivationStats
from qarat.values.requests.protect import ProtectRequest
from qarat.values.schemes import LinearScheme, Scheme


def runtime_of(machine: Machine) -> Runtime:
    """Where to compute, as a value of the library.

    Raises:
        UserError: No CUDA device, or a bound on memory below what the process holds already.
    """
    runtime = Runtime(machine.device, machine.dtype, machine.threads or 0, kernels=machine.kernels)
    if not machine.memory:
        return runtime
    memory, held = parse_size("memory", machine.memory), held_bytes(runtime.device)
    if memory <= held:
        raise UserError(
            f"`memory` {machine.memory}: the process alone, with its libraries, holds {_mb(held)} before any "
            "work; give more than that"
        )
    return msgspec.structs.replace(runtime, memory=memory - held)


def open_float(name: str, options: OnText) -> Model:
    """Open a float model.

    Raises:
        UserError: If the folder holds a run or a quantized model, or as `open_model`.
    """
    given = Path(name)
    if is_native(given) or (given / Run.MANIFEST).is_file():
        raise UserError(f"{given} is quantized already, by qarat; give the float model it was made from")
    general = options.general
    model = open_model(
        name, runtime_of(options.machine), revision=general.revision, outline=getattr(general, "dry_run", False)
    )
    check_bound(model, options.machine)
    return model


def check_bound(model: Model, machine: Machine) -> None:
    """Refuse a bound on memory in which no walk goes through a model.

    Raises:
        UserError: Saying how much it takes.
    """
    least = block_work(model, 0)
    if machine.memory and least > model.memory:
        held = parse_size("memory", machine.memory) - model.memory
        raise UserError(
            f"`memory` {machine.memory}: a block of {model.path} takes {_mb(least)} while it is gone through, and "
            f"the process itself {_mb(held)}; give at least {_mb(least + held)}"
        )


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def open_transformed(options: Any) -> Model:
    """Open the float model of a verb with `Transforms` among its options, and do to it what they say.

    Raises:
        UserError: As `qarat.jobs.transforming.stats_behind`, `open_float`, or `qarat.jobs.transforming.apply_again`.
    """
    remake = transforming(options)
    model = open_float(options.model, options)
    return model if remake is None else remake(model)


def transforming(options: Any) -> Remake | None:
    """What is done to the float model; None where nothing is."""
    transforms = options.transforms.transforms
    files = stats_behind(transforms, options.transforms.transform_stats)
    made_from = [None if file is None else read_made_from(file) for file in files]
    return functools.partial(apply_again, transforms=transforms, made_from=made_from) if transforms else None


@contextmanager
def spreading(options: Any, model: Model, remake: Remake | None = None) -> Iterator[Spread | None]:
    """Passes over a model by workers; None where this process does them alone.

    Args:
        options: Of the verb.
        model: That its name stands for.
        remake: What was done to it since; `transforming` of the options after `open_transformed`.

    Raises:
        UserError: As `open_runner`.
    """
    with open_runner(options.runners.workers, options.runners.ray) as runner:
        how: dict[str, Any] = {"revision": options.general.revision, "share": runner.share}
        yield Spread.by(runner, Replica(model, options.model, remake=remake, **how))


def check_transforms(path: Path, made_of: str, model: Model) -> None:
    """Refuse a record of the same checkpoint under other transforms.

    Args:
        path: Of the record.
        made_of: Fingerprint of the model that it is of.
        model: That it is to be used for.

    Raises:
        UserError: Saying what to give.
    """
    if made_of != model.fingerprint and source_of(made_of) == source_of(model.fingerprint):
        theirs, ours = brief(made_of), brief(model.fingerprint)
        raise UserError(f"{path} is of the model {theirs}, this is {ours}; give {options_for(made_of, path.parent)}")


_MOST_CONTROLS = 5


def load_tokens(options: OnText, model: Model, screen: Screen) -> tuple[TokenSet, TokenSet, TokenSet]:
    """Calibration, selection and report sets; says so where they are not of the model's kind."""
    _note_text(options.text, model, screen)
    sets = token_sets_of(options, model, screen)
    note_controls(sets, model, screen)
    return sets


def load_report(options: OnText, model: Model, screen: Screen) -> TokenSet:
    """The report set where nothing else is needed: of all three sets, so that they are kept apart, if more is given."""
    _note_text(options.text, model, screen)
    report = load_report_set(model, **msgspec.structs.asdict(options.text), seed=options.general.seed)
    note_controls([report], model, screen)
    return report


def _note_text(text: Text, model: Model, screen: Screen) -> None:
    if model.checkpoint.source:
        screen.note(f"source: {model.checkpoint.source}")
    for line in model.checkpoint.notes:
        screen.note(line)
    given = text.calibration not in (None, SELF) or (text.selection, text.report) != (None, None)
    if not given and bundled_language(model) == "english":
        how = "--selection YOUR_TEXT beside it" if text.calibration else "--calibration YOUR_TEXT"
        screen.note(
            "no text was given, so Python's documentation is used, as technical English. "
            f"For what your model is used for, give {how}"
        )


def note_controls(sets: Sequence[TokenSet], model: Model, screen: Screen) -> None:
    """Say which control tokens stand in the windows: they are read as such, not as the letters they are written in."""
    controls = sum((count_controls(tokens, model.tokenizer) for tokens in sets), Counter[str]())
    if controls:
        named = ", ".join(f"{word} × {count:,}" for word, count in controls.most_common(_MOST_CONTROLS))
        screen.note(f"control tokens stand in the text, and are read as such: {named}")


def token_sets_of(
    options: OnText, model: Model, screen: Screen, text: Text | None = None
) -> tuple[TokenSet, TokenSet, TokenSet]:
    """Calibration, selection and report sets as the options of the text say.

    Args:
        options: Of the verb; an estimate draws nothing.
        model: Whose tokens they are.
        screen: Told of what is drawn.
        text: Other options of the text than the verb's.
    """
    how: dict[str, Any] = msgspec.structs.asdict(text or options.text)
    drawn: dict[str, Any] = {"draw": drawing_of(options, screen), "progress": screen.progress}
    return load_token_sets(model, **how, **drawn, seed=options.general.seed)


def drawing_of(options: OnText, screen: Screen) -> Draw:
    """What writes a model's own text; for an estimate, windows that stand for it, with a word on what is left out."""
    if not options.general.dry_run:
        return draw_windows

    def stand_in(model: Model, count: int, length: int, bos: Bos, seed: int, progress: Progress) -> Tensor:
        screen.note(f"{count} windows of {length} tokens would be drawn first, one by one; no time below has that")
        return stand_in_windows(model, count, length, bos, seed, progress)

    return stand_in


def load_stats(path: Path, model: Model, needed: bool) -> ActivationStats | None:
    """Stats of this model; None where no scheme is static and there are none."""
    if not needed and not path.is_file():
        return None
    stats = decode_record(path, ActivationStats)
    check_transforms(path, stats.provenance.model, model)
    if stats.provenance.model != model.fingerprint:
        theirs, ours = brief(stats.provenance.model), brief(model.fingerprint)
        raise UserError(f"{path} is of the model {theirs}, this is {ours}; run `qarat profile` on it")
    return stats


def note_request(request: ProtectRequest, model: Model, screen: Screen) -> None:
    """Say which sites the patterns of a request name, and what to think of its scheme for such a source."""
    low, stored = parse_scheme(request.low), model.checkpoint.stored
    if stored and isinstance(low, LinearScheme) and low.weight is not None:
        (kind, held), bits = stored, low.weight.number_format.bits
        screen.note(
            f"the source holds its weights in {kind}, {held:g} bits each: {bits} bits hardly round them again, and are "
            "larger; what inputs lose is as on any model"
            if bits >= held
            else f"the source's weights were rounded to {kind}, {held:g} bits, before: what {bits} bits cost them here "
            "is not what they would cost the original checkpoint"
        )
    for line in describe_matches(request, model.sites()):
        screen.note(line)


def check_weights(model: Model) -> None:
    """Read every block once, so that a weight that cannot be used is found now."""
    if model.checkpoint.has_weights:
        for _ in model.unkept().walk():
            pass


def show_estimate(
    screen: Screen, model: Model, work: Mapping[str, float | Work], *, states: int = 0, disk: int = 0, held: int = 0
) -> Lines:
    """Show what a command would take, after all checks."""
    estimated = estimate(model, work, states=states, disk=disk, held=held)  # first: reading is no part of its beginning
    check_weights(model)
    screen.show(estimated)
    return ()


def pricing_work(metric: str, model: Model, tokens: TokenSet, schemes: Sequence[Scheme]) -> Work:
    """What pricing takes: its passes, and a product for every scheme.

    Args:
        metric: Of `qarat.stages.prices`.
        model: In float.
        tokens: That prices come from.
        schemes: To be priced.
    """
    count, every = tokens.windows.numel(), len(schemes)
    if metric == DEFAULT:
        return pricing(count, every)
    forwards = METRICS.load(metric).block_forwards(model, tokens, schemes) / model.blocks
    return Work((forwards + every) * count if forwards else 0, passes=max(1, forwards), rounded=2 * every)


def facts_of(name: str, model: Model, screen: Screen) -> dict[str, object]:
    """What the log of a job's folder says of it, for its page: the command, and the model as it was called."""
    return {"command": screen.command, "model": name, "float_bytes": model.source_bytes}


def ending(out: Path, next_command: str, *, also: str = "", why: str = "") -> Lines:
    """The last lines: what was written, and what to try next."""
    return f"written: {quoted(out)}{also}", f"try next{f' ({why})' if why else ''}: {next_command}"


def save(record: Record, out: Path | None) -> Lines:
    """Write a record where it is wanted, and say so."""
    if out is None:
        return ()
    write_whole(out, encode_record(record))
    return (f"written: {quoted(out)}",)


_NOT_CARRIED = ("json", "quiet", "verbose", "config", "dry_run")  # they are about one answer


def command_line(verb: str, options: Any, *given: object) -> str:
    """A command line on the same model, with what the verb takes of the same groups of options.

    Args:
        verb: To try next.
        options: Of the verb that was done.
        given: What stands behind the model; wins over what is carried on.
    """
    carried: list[str] = []
    mine = {(leaf.group, leaf.path[-1]): leaf.path for leaf in leaves(type(options)) if len(leaf.path) > 1}
    for leaf in leaves(VERBS[verb]):
        path, flag = mine.get((leaf.group, leaf.path[-1])), f"--{leaf.flag}"
        if path is None or leaf.path[-1] in _NOT_CARRIED or flag in given:
            continue
        value = functools.reduce(getattr, path, options)
        if value == leaf.default:
            continue
        if leaf.path[-1] == "rules":  # given once for every rule
            carried += [word for rule in value for word in (flag, rule)]
        elif isinstance(value, bool):
            carried.append(leaf.typed)
        else:
            carried += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(["qarat", verb, options.model, *map(str, given), *carried])


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))
