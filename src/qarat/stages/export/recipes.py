"""What the translations of a plan into other tools' input share: going through the sites, and refusing.

A translation says, site by site, what the other tool should do. What the tool cannot say is refused with every site at
once: a translation that left a site out, or wrote the nearest thing in silence, would be a different plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress
from qarat.model.model import Model
from qarat.values.fingerprints import changes_of, transforms_of
from qarat.values.plans import Assignment, Plan
from qarat.values.schemes import NEAREST, LinearScheme, TensorScheme

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Recipe:
    """An exporter whose result is one file of text, which the other tool carries out by itself.

    Attributes:
        tool: Its name, for messages.
        file: Name of the file.
        text: What goes into it, from a plan and the name of the projection onto the vocabulary.
        notes: What a person should know of it, a line each.
    """

    tool: str
    file: str
    text: Callable[[Plan, str], str]
    notes: tuple[str, ...]

    def check(self, model: Model, plan: Plan) -> None:
        """Refuse what the tool cannot say (protocol `qarat.stages.export.base.Exporter`)."""
        refuse_transforms(plan, self.tool)
        self.text(plan, model.family.head)

    def write(self, model: Model, plan: Plan, folder: Path, *, progress: Progress) -> Sequence[str]:
        """Write the file (protocol `qarat.stages.export.base.Exporter`)."""
        (folder / self.file).write_text(self.text(plan, model.family.head), encoding="utf-8")
        return self.notes


class UnsayableError(Exception):
    """What a tool cannot say of one site, in words; `translate` collects them."""


def translate(
    plan: Plan, tool: str, say: Callable[[Assignment, LinearScheme], Entry], alternatives: str
) -> dict[str, Entry]:
    """What the other tool is told of every projection that is not left in float.

    Args:
        plan: Any.
        tool: Its name, for the message.
        say: The tool's words for a projection's scheme; raises `UnsayableError`.
        alternatives: What the tool can hold, and what else to do, for the message.

    Returns:
        Full site name to the tool's words, in model order.

    Raises:
        UserError: Listing every site whose scheme the tool cannot say, and the alternatives.
    """
    entries: dict[str, Entry] = {}
    reasons: dict[str, list[str]] = {}
    for a in plan.assignments:
        if a.is_float:
            continue
        try:
            if not isinstance(a.scheme, LinearScheme):
                what = "attention products" if a.site.kind == "product" else "caches of keys and values"
                raise UnsayableError(f"{what} are left in float there")
            if a.scheme.weight is not None and (why := beyond_scales(a.scheme.weight)):
                raise UnsayableError(why)
            if a.scheme.weight is not None and a.scheme.weight.rounding != NEAREST:
                raise UnsayableError(f"it rounds weights itself, and round-{a.scheme.weight.rounding} would be lost")
            entries[a.site.name] = say(a, a.scheme)
        except UnsayableError as why:
            reasons.setdefault(str(why), []).append(f"{a.site.name} ({a.scheme})")
    refuse(tool, reasons, alternatives)
    return entries


def beyond_scales(weight: TensorScheme) -> str:
    """Why no format but qarat's own folder holds a weight; empty if others may."""
    if weight.number_format.learned:
        return f"w={weight.spell('w')}: it has no tables by row; use int{weight.number_format.bits} with a scale"
    if weight.sparse is not None:
        return f"w={weight.spell('w')}: it has no place for a sparse part; leave sparse out"
    return ""


def refuse(tool: str, reasons: Mapping[str, list[str]], alternatives: str) -> None:
    """Refuse a plan, if there is anything to refuse it for.

    Args:
        tool: Or format.
        reasons: What cannot be said, in words, to the sites that it is asked of.
        alternatives: What can be said, and what else to do.

    Raises:
        UserError: Listing every reason with every site of it.
    """
    if reasons:
        listed = "\n".join(f"  {why}:\n    " + "\n    ".join(sites) for why, sites in reasons.items())
        raise UserError(f"{tool} cannot hold this plan:\n{listed}\n{alternatives}")


def refuse_transforms(plan: Plan, tool: str) -> None:
    """Refuse a plan of a transformed or tuned model, where the tool would carry it out on the checkpoint as it was.

    Args:
        plan: Any.
        tool: Its name, for the message.

    Raises:
        UserError: Naming what was done.
    """
    if changes_of(plan.model) or plan.tuned:
        done = ", ".join([*transforms_of(plan.model), *(["tuning"] if plan.tuned else [])])
        raise UserError(
            f"{tool} would carry out this plan on the checkpoint as it was before {done}; "
            "export the weights themselves (`format` compressed-tensors), or plan without it"
        )


def float_sites(plan: Plan) -> list[str]:
    """Full names of the projections that are left in float, in model order."""
    return [a.site.name for a in plan.assignments if a.site.kind == "projection" and a.is_float]


def by_entry(entries: Mapping[str, Entry]) -> list[tuple[Entry, list[str]]]:
    """The different entries, in order of appearance, each with its sites: one group a scheme, no site in two."""
    groups: list[tuple[Entry, list[str]]] = []
    for name, entry in entries.items():
        for known, names in groups:
            if known == entry:
                names.append(name)
                break
        else:
            groups.append((entry, [name]))
    return groups
