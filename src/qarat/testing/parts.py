"""Checks of the larger parts that somebody adds in one file: a family of models, a form of a law, a format on disk.

A family: every part is there, every projection is read once, and the walk is the model. A form: it says all of itself,
and its gradient and inverse are its own. An exporter: it checks before it writes, leaves the plan alone, and writes the
same bytes again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from qarat.ground.errors import UserError
from qarat.model.attention import transformers_attention
from qarat.model.families import Family
from qarat.model.folders import MARK
from qarat.model.model import Model
from qarat.stages.export.base import Exporter
from qarat.stages.laws.equations import Vector, gradient, log_response, solve
from qarat.stages.laws.forms import VARIABLES, Form
from qarat.values.plan_files import encode_plan
from qarat.values.plans import Plan
from qarat.values.roles import INPUTS

POINTS = {
    "size": np.array([1e8, 7e9, 3e10]),
    "tokens": np.array([1e11, 2e12, 5e12]),
    "ratio": np.array([0.5, 0.9, 0.99]),
    "block": np.array([16.0, 64.0, 512.0]),
    "bits": np.array([2.0, 4.25, 8.0]),
}
"""Three models, by variable."""


def check_family(family: Family, model: Model) -> None:
    """Check the wiring of a family on one of its models.

    Args:
        family: To be checked.
        model: In float and float32, of this family; small, as it is computed in whole.

    Raises:
        AssertionError: A part that is not there, a role without a stream or with two, a projection that reads none or
            two, readers of unequal width, or logits that are not those of transformers to the last bit.
    """
    assert model.family == family, f"the model is of the family of {', '.join(model.family.architectures)}"
    whole = model.module()
    for path in filter(None, (family.blocks, family.embedding, family.rotary, family.norm, family.head)):
        whole.get_submodule(path)
    roles = Counter(stream.role for stream in family.streams)
    assert roles == Counter(INPUTS), f"each of {', '.join(INPUTS)} is the role of one stream; got {dict(roles)}"
    for block in whole.get_submodule(family.blocks).children():
        _check_block(family, block)
    _check_walk(model, whole)


def _check_block(family: Family, block: nn.Module) -> None:
    block.get_submodule(family.attention)
    linears = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    assert sorted(family.projections) == sorted(linears), "each projection reads one stream, and none is left out"
    for stream in family.streams:
        widths = {linears[reader].in_features for reader in stream.readers}
        assert len(widths) == 1, f"{stream.name}: its readers are {widths} wide, so they read no one tensor"
        if stream.source:
            block.get_submodule(stream.source)


@torch.no_grad()
def _check_walk(model: Model, whole: nn.Module) -> None:
    """The walk, block by block, against the whole module and against the model as transformers loads it."""
    length = min(model.length, 16)
    tokens = torch.arange(2 * length).reshape(2, length) % model.config.vocab_size
    hidden = model.embed(tokens)
    for index, block in model.walk():
        hidden = model.run_block(index, block, hidden)
    logits = model.logits(hidden)
    ordinary = AutoModelForCausalLM.from_pretrained(
        model.folder, dtype=model.runtime.torch_dtype, attn_implementation=transformers_attention(model.config)
    )
    assert torch.equal(logits, ordinary(tokens).logits), "the walk's logits are not those of transformers"
    assert torch.equal(logits, whole(tokens).logits), "the walk's logits are not those of the module put together"


def check_law_form(form: Form) -> None:
    """Check a form by itself.

    Raises:
        AssertionError: A name used twice, a variable that nothing measures, too few points to fit it, no source,
            printed coefficients of other names, or a gradient or inverse that is not that of the value.
    """
    assert len(set(form.names)) == len(form.names), f"two parameters of one name: {', '.join(form.names)}"
    unknown = {*form.variables, *form.by, *form.needs} - set(VARIABLES)
    assert not unknown, f"no data have {', '.join(sorted(unknown))}; known: {', '.join(VARIABLES)}"
    assert form.points > len(form.names), f"{form.points} points cannot tell {len(form.names)} parameters"
    assert form.source, "a form says where it is from"
    for published in form.published:
        assert set(published.values) == set(form.names), f"{published.name}: coefficients of other names"
        assert set(published.group) == set(form.by), f"{published.name}: of no group that the form is fitted in"
    theta = np.random.default_rng(0).uniform(0.3, 1.5, len(form.names))
    _check_gradient(form, theta)
    _check_inverse(form, theta)


def _check_gradient(form: Form, theta: Vector, step: float = 1e-6) -> None:
    columns = gradient(form, theta, POINTS)
    for i, name in enumerate(form.names):
        up, down = theta.copy(), theta.copy()
        up[i] += step
        down[i] -= step
        numeric = (log_response(form, up, POINTS) - log_response(form, down, POINTS)) / (2 * step)
        np.testing.assert_allclose(columns[:, i], numeric, rtol=1e-6, atol=1e-8, err_msg=f"gradient by {name}")


def _check_inverse(form: Form, theta: Vector) -> None:
    for row in range(3):
        point = {variable: float(values[row]) for variable, values in POINTS.items()}
        log = float(log_response(form, theta, {v: values[[row]] for v, values in POINTS.items()})[0])
        for variable in form.variables:
            others = {name: value for name, value in point.items() if name != variable}
            solved = solve(form, theta, variable, others, log)
            np.testing.assert_allclose(solved, point[variable], rtol=1e-9, err_msg=f"solved for {variable}")


def check_exporter(exporter: Exporter, model: Model, plan: Plan, folder: Path, refused: Plan | None = None) -> None:
    """Check an exporter on a plan that its format can hold.

    Args:
        exporter: The module, or whatever offers the same.
        model: Quantized by the plan.
        plan: That the format holds.
        folder: Empty; two exports are left in it.
        refused: A plan of the same model that the format cannot hold, if there is one.

    Raises:
        AssertionError: Nothing written, the plan's own file changed, other bytes the second time, progress that goes
            back, notes that are no lines, or the plan that cannot be held not refused.
    """
    exporter.check(model, plan)
    if refused is not None:
        try:
            exporter.check(model, refused)
        except UserError:
            pass
        else:
            raise AssertionError("a plan that the format cannot hold is refused by `check`, before any work")
    first, second = (_written(exporter, model, plan, folder / name) for name in ("first", "second"))
    assert set(first) - {MARK}, "nothing is written"
    assert first == second, f"other bytes the second time: {[n for n in first if first[n] != second.get(n)]}"


def _written(exporter: Exporter, model: Model, plan: Plan, folder: Path) -> dict[str, str]:
    """Name to hash of every file that an export consists of."""
    folder.mkdir()
    (folder / MARK).write_text(encode_plan(plan))
    told: list[int] = []
    notes = exporter.write(model, plan, folder, progress=lambda stage, done, total: told.append(done))
    assert not isinstance(notes, str), "notes are a sequence of lines"
    assert all(isinstance(note, str) for note in notes), "notes are a sequence of lines"
    assert not told or told == sorted(told), "progress goes forward"
    assert (folder / MARK).read_text() == encode_plan(plan), "the plan's own file is not the exporter's to change"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
