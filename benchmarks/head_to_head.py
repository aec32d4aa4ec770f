"""Methods head to head: every rounding, the best that a search over them finds, and llm-compressor's GPTQ and AWQ.

    python benchmarks/head_to_head.py py-128 -o py-128.jsonl
    python benchmarks/head_to_head.py py-128 --also "KV8 = w=int4/g32/round-fisher; *.av: l=int8/token r=int8/token"
    .venv-engines/bin/python benchmarks/head_to_head.py py-128 --settings "W4 g32" --beside gptq awq -o beside.jsonl

A setting says how weights and inputs are kept, a method how the weights are rounded; every projection is low. W8A8 is
measured behind the rewrites that `qarat run` would make. ``best`` is a plan of exactly the setting's bits, which
`qarat search` finds over all its roundings on the selection windows. Losses are of the same report windows: nats per
token over float, ± one standard error of the mean over windows, and the same of the paired difference to GPTQ. A line
is written as soon as it is known; with the same file a killed call goes on.

With ``--beside``, both tools write a compressed-tensors folder, each in a process of its own, from the same calibration
windows: time and memory of that, and losses of the folders, by one reader.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from oneshot import run_side
from safetensors.torch import save_file
from smoothquant import evaluated, write_float

from qarat.ground.runtime import Runtime
from qarat.jobs.bench import Bench, Member, plan_meter
from qarat.jobs.estimates import quantized_bytes
from qarat.jobs.folder import Run
from qarat.jobs.protecting import profile
from qarat.jobs.rewriting import fit_rewrites, reaching
from qarat.jobs.runners import open_runner
from qarat.jobs.search.budgets import plan_file
from qarat.jobs.search.job import SearchJob
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.stages.choose.trials import TrialLog
from qarat.stages.rounding import ROUNDINGS, Merged
from qarat.stages.transforms import parse_transform
from qarat.stages.transforms.rewrite import columns_for
from qarat.values.parsing import parse_scheme
from qarat.values.plans import Plan, assign
from qarat.values.records.files import content_hash, decode_record
from qarat.values.records.scores import Evaluation, paired_difference
from qarat.values.records.streams import ActivationStats
from qarat.values.requests.search import SearchRequest
from qarat.values.schemes import is_static

AGAINST, BEST = "gptq", "best"
METHODS = ("nearest", "gptq", "gptq-ordered", "clip", "fisher", BEST)


class Setting(NamedTuple):
    """How weights and inputs are kept.

    Attributes:
        weights: Spelling without a rounding.
        inputs: Empty for float.
        rewritten: Whether the model is rewritten for it first.
    """

    weights: str
    inputs: str = ""
    rewritten: bool = False

    def spelled(self, rounding: str) -> str:
        """The scheme with a rounding."""
        inputs = f" a={self.inputs}" if self.inputs else ""
        scheme = f"w={self.weights}/round-{rounding}{inputs}"
        return reaching(scheme) if self.rewritten else str(parse_scheme(scheme))


SETTINGS = {
    "W4 g128": Setting("int4/g128"),
    "W4 g32": Setting("int4/g32"),
    "W3 g128": Setting("int3/g128"),
    "W4A8 g32": Setting("int4/g32", "int8/token"),
    "W8A8 static": Setting("int8/channel", "int8/tensor/static", rewritten=True),
}


class Field(NamedTuple):
    """What methods of a setting are measured in.

    Attributes:
        member: Model and tokens; what is rounded is rounded once for all.
        stats: Behind static scales; None where there are none.
        float_loss: On the report windows.
    """

    member: Member
    stats: ActivationStats | None
    float_loss: Evaluation

    def plan(self, low: str, rules: Sequence[tuple[str, str]] = ()) -> Plan:
        """Everything under a scheme, but what rules say."""
        model, stats = self.member.model, content_hash(self.stats) if self.stats else ""
        return assign(model.fingerprint, model.source_bits, model.sites(), low, rules, stats)

    def measure(self, plan: Plan) -> Evaluation:
        """Its loss on the report windows."""
        member = self.member
        meter = plan_meter(
            member.model, member.tokens[2], self.stats, TrialLog(None, {}), calibration=member.calibration
        )
        return meter.loss(plan)


class Log:
    """Lines of a file, by setting and method; losses by window are in them, so that later ones can be paired."""

    def __init__(self, path: Path | None) -> None:
        """Read what is there."""
        self._path, self._lines = path, dict[tuple[str, str], dict[str, Any]]()
        for line in path.read_text().splitlines() if path is not None and path.exists() else ():
            self._keep(json.loads(line))

    def _keep(self, line: dict[str, Any]) -> None:
        self._lines[line["setting"], line["method"]] = line

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._lines

    def add(self, setting: str, method: str, loss: Evaluation, base: Evaluation, **more: object) -> None:
        """Keep and print a line."""
        lost = paired_difference(msgspec.structs.replace(loss, provenance=base.provenance), base)
        line = {"setting": setting, "method": method, "nats": lost.nats, "error": lost.standard_error, **more}
        line["windows"] = loss.nats
        self._keep(line)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        print(self._spelled(line, base), flush=True)

    def _spelled(self, line: dict[str, Any], base: Evaluation) -> str:
        known = {"setting", "method", "nats", "error", "windows"}
        rest = "  ".join(f"{key} {value}" for key, value in line.items() if key not in known)
        against = self._lines.get((line["setting"], AGAINST))
        paired = ""
        if against is not None and against is not line:
            ours, theirs = (msgspec.structs.replace(base, nats=tuple(x["windows"])) for x in (line, against))
            more = paired_difference(ours, theirs)
            paired = f"  − {AGAINST} {more.nats:+.4f} ± {more.standard_error:.4f}"
        head = f"{line['setting']:12s} {line['method']:22s} {line['nats']:+.4f} ± {line['error']:.4f}"
        return f"{head}{paired}  {rest}"


def open_field(model: Model, asked: argparse.Namespace) -> Member:
    """A model with its tokens; choices are made on the first selection windows alone."""
    calibration, selection, report = load_token_sets(
        model,
        calibration=asked.calibration,
        selection=asked.selection,
        report=asked.report_text,
        length=asked.length,
        samples=asked.samples,
        report_samples=asked.report_samples,
        seed=asked.seed,
    )
    return Member(asked.model, model, (calibration, selection.subset(min(asked.chosen_on, len(selection))), report))


def rewritten(member: Member, low: str) -> Member:
    """The model as `qarat run` would rewrite it for a scheme, with all the inner columns that it may have."""
    model, (calibration, selection, _) = member.model, member.tokens
    columns = columns_for(model)
    stats = profile(model, calibration, attention=False)
    rewrites = fit_rewrites(model, selection, stats, low, columns=columns)
    return Member(member.name, parse_transform(f"rewrite/{columns}").apply(model, rewrites), member.tokens)


def round_all(member: Member, schemes: Sequence[str]) -> float:
    """Round every weight under every scheme, block by block, so that what is read is gathered once; CPU seconds."""
    began, model = time.process_time(), member.model
    for index, block in model.walk():
        inside = f"{model.family.blocks}.{index}."
        for site, scheme in product((s for s in model.sites() if s.block == index), map(parse_scheme, schemes)):
            if site.kind == "projection" and scheme.weight is not None:
                whole = Merged.of(block, inside, site, model.sites())
                member.calibration.round_weight(site, whole, scheme.weight)
    return time.process_time() - began


def search(field: Field, schemes: Sequence[str], asked: argparse.Namespace) -> tuple[Plan, Evaluation]:
    """The best plan of no more bits than the schemes have, of those that a search measures, and its report losses."""
    bits = max(field.plan(low).bits_per_weight() for low in schemes) + 1e-6
    budget, low = f"bits={bits:.6f}", schemes[0]
    request = SearchRequest(
        low, menu=tuple(schemes[1:]), budgets=(budget,), points=(bits,), rewrites=False, price_windows=asked.chosen_on
    )
    with tempfile.TemporaryDirectory() as folder, open_runner() as runner:
        run = Run(Path(folder) / "run", "search")
        with run.work():
            result = SearchJob(field.member, request, Bench(runner, asked.seed)).execute(run)
        return decode_record(run.out / plan_file(budget), Plan), result.report_loss(result.budget(budget))


def measure_setting(name: str, setting: Setting, member: Member, log: Log, asked: argparse.Namespace) -> None:
    """Every method of a setting."""
    methods = [method for method in asked.methods if (name, method) not in log]
    if not methods:
        return
    if setting.rewritten:
        member = rewritten(member, setting.spelled("nearest"))
    schemes = {method: setting.spelled(method) for method in asked.methods if method != BEST}
    static = any(is_static(parse_scheme(low)) for low in schemes.values())
    stats = profile(member.model, member.tokens[0], attention=False) if static else None
    field = Field(member, stats, asked.float_loss)
    seconds = round_all(member, list(schemes.values()))
    print(f"{name}: {len(schemes)} roundings of every weight, {seconds:.1f} s of CPU", flush=True)
    for method in methods:
        began = time.process_time()
        if method == BEST:
            plan, loss = search(field, list(schemes.values()), asked)
            used = [str(scheme) for scheme in plan.projections.values()]
            more: dict[str, object] = {"sites": {m: used.count(low) for m, low in schemes.items() if low in used}}
        else:
            plan, more = field.plan(schemes[method]), {}
            loss = field.measure(plan)
        size = {"bits": round(plan.bits_per_weight(), 4), "bytes": quantized_bytes(member.model, plan)}
        log.add(name, method, loss, asked.float_loss, **size, seconds=round(time.process_time() - began, 1), **more)


def measure_also(text: str, member: Member, log: Log, asked: argparse.Namespace) -> None:
    """A plan that is spelled: ``NAME = SCHEME; PATTERN: SCHEME; …``."""
    name, _, spelled = text.partition(" = ")
    low, *rules = (part.strip() for part in spelled.split(";"))
    pairs = [(pattern.strip(), scheme.strip()) for pattern, _, scheme in (rule.partition(":") for rule in rules)]
    field = Field(member, None, asked.float_loss)
    plan = field.plan(low, pairs)
    if any(is_static(scheme) for scheme in plan.schemes.values()):
        field = field._replace(stats=profile(member.model, member.tokens[0]))
        plan = field.plan(low, pairs)
    if (name, spelled) not in log:
        size = {"bits": round(plan.bits_per_weight(), 4), "bytes": quantized_bytes(member.model, plan)}
        log.add(name, spelled, field.measure(plan), asked.float_loss, **size)


# ---------------------------------------------------------------- beside llm-compressor


def recipe(method: str, setting: Setting) -> str:
    """What llm-compressor is told: its modifiers as they are by default, the format ours."""
    weight = parse_scheme(f"w={setting.weights}").weight
    assert weight is not None
    weights = {"num_bits": weight.number_format.bits, "type": "int", "strategy": "group", "symmetric": True}
    weights["group_size"] = weight.granularity.cols
    quantized = {"ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    modifiers: dict[str, Any] = {"GPTQModifier": quantized}
    if method == "awq":
        modifiers = {"AWQModifier": {}, "QuantizationModifier": quantized}
    return json.dumps({"quant_stage": {"quant_modifiers": modifiers}})


def measure_beside(name: str, setting: Setting, member: Member, log: Log, asked: argparse.Namespace) -> None:
    """Both tools from the float model to a folder, and what the folders lose."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_float(member.model, home / "float")
        save_file({"ids": member.tokens[0].windows}, home / "tokens.safetensors")
        sides = [("llmcompressor", method, recipe(method, setting)) for method in asked.beside]
        sides += [("qarat", method, "") for method in asked.methods if method != BEST]
        for side, method, told in sides:
            key = f"{side} {method}"
            if (name, key) in log:
                continue
            (home / "recipe.json").write_text(told)
            out, low = home / key.replace(" ", "-"), setting.spelled(method) if side == "qarat" else ""
            how = {"recipe": told or "-", "low": low, "rules": "[]", "dtype": asked.dtype, "memory": asked.memory}
            ran = run_side(side, home, home / "float", out, threads=1, **how)
            loss = evaluated(out, member.tokens[2], key, member.model.runtime)
            spent = {"wall": round(ran["wall"], 1), "cpu": round(ran["cpu"], 1), "MB": ran["anonymous"] >> 20}
            log.add(name, key, loss, asked.float_loss, **spent)


def main() -> None:
    """Every setting by every method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or the name of a reference model")
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--methods", nargs="*", default=METHODS, help="roundings, and best: a search over the others")
    parser.add_argument("--also", nargs="*", default=[], help="'NAME = SCHEME; PATTERN: SCHEME; …'")
    parser.add_argument("--beside", nargs="*", default=[], choices=["gptq", "awq"], help="of llm-compressor")
    parser.add_argument("--calibration")
    parser.add_argument("--selection")
    parser.add_argument("--report-text")
    parser.add_argument("--length", type=int, help="tokens of a window")
    parser.add_argument("--samples", type=int, default=64, help="calibration windows")
    parser.add_argument("--chosen-on", type=int, default=16, help="selection windows")
    parser.add_argument("--report-samples", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of windows")
    parser.add_argument("--dtype", default="float32", help="that both tools compute in")
    parser.add_argument("--memory", type=int, default=256, help="MiB that qarat may keep weights in, beside")
    parser.add_argument("-o", "--output", type=Path, help="lines of JSON")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for method in asked.methods:
        if method != BEST:
            ROUNDINGS.check(method)
    member, log = open_field(open_model(asked.model, Runtime(threads=1)), asked), Log(asked.output)
    field = Field(member, None, None)  # type: ignore[arg-type]
    asked.float_loss = field.measure(field.plan("float"))
    if ("", "float") not in log:
        log.add("", "float", asked.float_loss, asked.float_loss)
    for name in asked.settings:
        if asked.beside:
            measure_beside(name, SETTINGS[name], member, log, asked)
        else:
            measure_setting(name, SETTINGS[name], member, log, asked)
    for text in asked.also:
        measure_also(text, member, log, asked)


if __name__ == "__main__":
    main()
