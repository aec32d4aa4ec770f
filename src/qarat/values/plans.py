"""Plans: the complete map from site to scheme, and what it costs in bits.

A plan names *every* site, also those left in float, each with a reason: what is printed is what runs is what is
exported. Patterns (``*.down_proj``) exist only as a way to *make* a plan, because a pattern that matches nothing, or
matches by accident, is how mixed checkpoints break elsewhere. Costs follow from shapes alone, so planning needs no
weights.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.ground.summaries import Summarized
from qarat.values.engines import cut_parts
from qarat.values.fingerprints import brief
from qarat.values.parsing import parse_scheme
from qarat.values.schemes import FLOATS, CacheScheme, LinearScheme, Scheme
from qarat.values.sites import Site, short_name


class PlanError(UserError):
    """A plan that does not fit; the message lists every offender and what to do."""


class Assignment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A site, its scheme and why."""

    site: Site
    scheme: Scheme
    reason: str

    @property
    def is_float(self) -> bool:
        """Whether nothing of the site is quantized."""
        return self.scheme.is_float


class Plan(Summarized, msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Site to scheme, for every site of one model.

    Attributes:
        model: Fingerprint of the float model.
        low: Spelling of the low scheme, against which Q_r is counted.
        float_bits: Bits of an element left in float: the model's own dtype.
        assignments: One for every site, in model order.
        stats: Content hash of the stats that static scales come from; empty if none are needed.
        note: How the plan came about, one line.
        prefix: Token ids that every sequence begins with, computed in float at every site (`qarat.model.prefixes`).
        calibration: Fingerprint of the tokens that its roundings look at; empty if none does.
        tuned: Steps by which the projections in float were tuned (`qarat.stages.tuning`); 0 where they are the model's.
    """

    model: str
    low: str
    float_bits: int
    assignments: tuple[Assignment, ...]
    stats: str = ""
    note: str = ""
    prefix: tuple[int, ...] = ()
    calibration: str = ""
    tuned: int = 0

    def facts(self) -> dict[str, str]:
        """Of which model, and how much of it is low."""
        kept = len(self.exceptions())
        of_all = sum(a.site.kind == "projection" for a in self.assignments)
        storage = {"bits per weight": f"{self.bits_per_weight():.4g}", "Q_r": f"{self.ratio():.4g}"} if of_all else {}
        shown = {"model": brief(self.model), "low": self.low, "other than low": f"{kept} of {of_all} projections"}
        return shown | storage | ({"note": self.note} if self.note else {})

    def __getitem__(self, name: str) -> Scheme:
        return self.schemes[name]

    @property
    def schemes(self) -> dict[str, Scheme]:
        """Site to scheme, by full name, in model order."""
        return {a.site.name: a.scheme for a in self.assignments}

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site, in model order."""
        return tuple(a.site for a in self.assignments)

    @property
    def projections(self) -> dict[str, LinearScheme]:
        """Projection to scheme, by full name, in model order; those in float are among them."""
        return {a.site.name: a.scheme for a in self.assignments if isinstance(a.scheme, LinearScheme)}

    def block(self, index: int) -> dict[str, Scheme]:
        """The schemes of one block's sites, by full name; two plans equal here give the same block."""
        return {a.site.name: a.scheme for a in self.assignments if a.site.block == index}

    def is_low(self, assignment: Assignment) -> bool:
        """Whether a site counts as low for Q_r: weight bits at most those of the low scheme.

        Of what has no weight, attention products and caches, all operands must be quantized with at most as many as the
        low scheme's inputs; as its weights, where those inputs are in float.
        """
        low, scheme = parse_scheme(self.low), assignment.scheme
        if not isinstance(low, LinearScheme) or low.weight is None:
            return False
        if isinstance(scheme, LinearScheme):
            operands, most = (scheme.weight,), low.weight
        else:
            operands, most = scheme.operands(), low.input or low.weight
        return all(t is not None and t.number_format.bits <= most.number_format.bits for t in operands)

    def exceptions(self) -> tuple[Assignment, ...]:
        """The projections whose scheme is not the low one, protected or overridden."""
        low = parse_scheme(self.low)
        return tuple(a for a in self.assignments if a.site.kind == "projection" and a.scheme != low)

    def ratio(self, basis: Literal["parameters", "macs"] = "parameters", length: int = 0) -> float:
        """Q_r: parameters (or multiply-accumulates) of the low sites over those of all sites.

        Args:
            basis: What is counted. Attention products have no parameters, so only ``macs`` sees them.
            length: Tokens of the window that ``macs`` counts; products weigh the more, the longer it is.

        Raises:
            PlanError: ``macs`` without a length.
        """
        if basis == "macs" and length < 1:
            raise PlanError(f"Q_r by MACs is of a window of at least one token, got a length of {length}")
        sizes = [a.site.parameters if basis == "parameters" else a.site.macs(length) for a in self.assignments]
        low = sum(size for a, size in zip(self.assignments, sizes, strict=True) if self.is_low(a))
        return low / sum(sizes) if sum(sizes) else 0.0

    def weight_bits(self) -> int:
        """Storage of all sites' weights, scales and zero points, in bits; biases are not counted."""
        return sum(self.site_bits(a) for a in self.assignments)

    def site_bits(self, assignment: Assignment) -> int:
        """Storage of one site's weight with its scales and zero points, in bits."""
        site, scheme = assignment.site, assignment.scheme
        if not isinstance(scheme, LinearScheme):
            return 0
        if scheme.weight is None:
            return site.parameters * self.float_bits
        return scheme.weight.bits(*site.shape)

    def cache_bits(self) -> int:
        """Storage of one token's keys and values over all blocks, in bits; dynamic scales and zero points included."""
        return sum(map(self.token_bits, self.assignments))

    def token_bits(self, assignment: Assignment) -> int:
        """Storage of what one token leaves in one cache, in bits; 0 of any other site."""
        site, scheme = assignment.site, assignment.scheme
        return scheme.token_bits(site.width, self.float_bits) if isinstance(scheme, CacheScheme) else 0

    @property
    def keeps_caches_in_float(self) -> bool:
        """Whether no key or value of an earlier token is quantized."""
        return all(a.is_float for a in self.assignments if a.site.kind == "cache")

    def bits_per_weight(self) -> float:
        """Mean storage of a weight in bits, scales and zero points included; embeddings, head and norms outside."""
        return self.weight_bits() / sum(a.site.parameters for a in self.assignments)

    def with_schemes(self, changes: Mapping[str, Scheme], reason: str | Callable[[str], str]) -> Plan:
        """A plan in which the named sites have other schemes.

        Args:
            changes: Full site name to scheme.
            reason: One for all, or a function from site name to reason.

        Raises:
            PlanError: For names that are no sites of the plan.
        """
        unknown = changes.keys() - {s.name for s in self.sites}
        if unknown:
            raise PlanError(f"no such sites: {', '.join(sorted(unknown))}")

        def change(a: Assignment) -> Assignment:
            name = a.site.name
            if name not in changes:
                return a
            return Assignment(a.site, changes[name], reason(name) if callable(reason) else reason)

        return msgspec.structs.replace(self, assignments=tuple(map(change, self.assignments)))

    def in_float(self) -> Plan:
        """The plan of the same sites that leaves everything in float, called so."""
        everything: dict[str, Scheme] = {a.site.name: type(a.scheme)() for a in self.assignments}
        return msgspec.structs.replace(self.with_schemes(everything, "float"), note="float")

    def check(self, model: str, sites: Sequence[Site]) -> None:
        """Check the whole plan against the whole model, before any long work.

        Args:
            model: Fingerprint of the float model.
            sites: Every site of it.

        Raises:
            PlanError: Listing every offender: another model's plan, sites missing or too many, sites that differ.
        """
        offences: list[str] = []
        if self.model != model:
            offences.append(f"it was made for the model {brief(self.model)}, this is {brief(model)}")
        mine, theirs = {s.name: s for s in self.sites}, {s.name: s for s in sites}
        offences += [f"{name}: not in the model" for name in mine.keys() - theirs.keys()]
        offences += [f"{name}: missing from the plan" for name in theirs.keys() - mine.keys()]
        offences += [
            f"{name}: {field} {getattr(mine[name], field)!r} in the plan, {getattr(theirs[name], field)!r} in the model"
            for name in mine.keys() & theirs.keys()
            for field in Site.__struct_fields__
            if getattr(mine[name], field) != getattr(theirs[name], field)
        ]
        offences += [
            f"{a.site.name}: {a.scheme} does not fit a {a.site.kind}"
            for a in self.assignments
            if not a.scheme.fits(a.site.kind)
        ]
        if offences:
            raise PlanError("the plan does not fit the model:\n  " + "\n  ".join(sorted(offences)))

    def check_ties(self) -> None:
        """Check that tied sites can be merged: they share a scheme, and tiles end where one of them does.

        Raises:
            PlanError: Listing every broken tie.
        """
        groups: dict[tuple[int, str], list[Assignment]] = {}
        for a in self.assignments:
            if a.site.tie:
                groups.setdefault((a.site.block, a.site.tie), []).append(a)
        broken = {f"block {block}: {why}" for (block, _), tied in groups.items() if (why := _why_apart(tied))}
        if broken:
            raise PlanError(
                "tied sites must share one scheme, and end where a tile does, or vLLM refuses the model "
                "(`runtime` any, if yours fuses none):\n  " + "\n  ".join(sorted(broken))
            )


def _why_apart(tied: Sequence[Assignment]) -> str:
    """Why an engine cannot merge tied sites; empty if it can."""
    if len({str(a.scheme) for a in tied}) > 1:
        return ", ".join(f"{a.site.leaf} {a.scheme}" for a in tied)
    weight = tied[0].scheme.weight
    tall = weight.granularity.rows if weight is not None else None
    cut = cut_parts({a.site.leaf: a.site.shape[0] for a in tied}, tall) if tall else []
    return f"{' and '.join(cut)}, no whole tiles of {tall}: use w=e4m3/channel, or tiles that fit" if cut else ""


def match_sites(pattern: str, sites: Iterable[Site]) -> tuple[Site, ...]:
    """The sites a shell pattern names, by full name (``model.layers.1.mlp.down_proj``) or short (``1.down``).

    Raises:
        PlanError: If it matches nothing.
    """
    sites = tuple(sites)
    matching = tuple(
        s for s in sites if fnmatch.fnmatchcase(s.name, pattern) or fnmatch.fnmatchcase(short_name(s.name), pattern)
    )
    if not matching:
        known = [*dict.fromkeys(f"*.{s.leaf}" for s in sites), *(s.name for s in sites)]
        raise PlanError(f"the pattern {pattern!r} matches no site; {nearest_names(pattern, known)}")
    return matching


def assign(
    model: str,
    float_bits: int,
    sites: Sequence[Site],
    low: str,
    rules: Sequence[tuple[str, str]] = (),
    stats: str = "",
    prefix: tuple[int, ...] = (),
) -> Plan:
    """A plan from the low scheme and ordered patterns; the last match wins.

    Args:
        model: Fingerprint of the model.
        float_bits: Bits of an element left in float.
        sites: Every site of the model.
        low: Spelling of the scheme that every projection gets first; attention products and caches begin in float.
        rules: ``(pattern, spelling)`` pairs.
        stats: Content hash of the stats behind static scales.
        prefix: Token ids that every sequence begins with, computed in float.

    Raises:
        PlanError: A pattern that matches nothing, or a scheme of the wrong kind for a site it matches.
        SchemeError: A malformed spelling.
    """
    scheme = parse_scheme(low)
    if not isinstance(scheme, LinearScheme):
        raise PlanError(f"the low scheme belongs to projections (w=… a=…), got {low!r}")
    chosen: dict[str, tuple[Scheme, str]] = {
        s.name: (scheme, "low scheme") if s.kind == "projection" else (FLOATS[s.kind], "left in float") for s in sites
    }
    for pattern, spelling in rules:
        for site in match_sites(pattern, sites):
            wanted = parse_scheme(spelling, site.kind)
            if not wanted.fits(site.kind):
                raise PlanError(f"{pattern!r} matches {site.name}, a {site.kind}, which {spelling!r} does not fit")
            chosen[site.name] = (wanted, f"matches {pattern}")
    assignments = tuple(Assignment(site, *chosen[site.name]) for site in sites)
    return Plan(model, str(scheme), float_bits, assignments, stats, prefix=prefix)
