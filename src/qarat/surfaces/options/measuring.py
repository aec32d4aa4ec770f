"""Options of the verbs that measure models as they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from qarat.surfaces.options.groups import BUNDLED, General, Machine, Name, Text

Result = Annotated[Path | None, arg(aliases=["-o"], metavar="FILE", help_behavior_hint="(default: nowhere)")]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What is measured: perplexity of the report text, unless one of these says otherwise."""

    convention: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: windows-N-bos)")] = None
    """How the report text becomes windows, all of them: wikitext2-2048, lm-eval-words, llama.cpp-512, windows-N-bos."""
    against: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="")] = None
    """Measure the divergence from this float model, token by token."""
    tasks: Annotated[tuple[str, ...], arg(metavar="TASK ...", help_behavior_hint="")] = ()
    """Measure accuracy: code_continuation, any task of the lm-evaluation-harness, or a *_local one of --task-data."""
    task_data: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder with the JSON lines of local tasks; their scores stand beside no published ones, as prompts differ."""
    limit: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """At most so many questions of each task, or windows of a --convention."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure perplexity, divergence from float or zero-shot accuracy of a model, a run or an export."""

    model: Positional[Name] = BUNDLED
    """A float model as for the other verbs, a folder of `qarat quantize` or `run`, or a compressed-tensors folder."""
    out: Result = None
    """Where the evaluation goes."""
    measure: Measure = field(default_factory=Measure)
    text: Text = field(default_factory=Text)
    machine: Machine = field(default_factory=Machine)
    general: General = field(default_factory=General)


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare models, runs, exports or records with the first, pair by pair, with intervals."""

    names: Positional[Annotated[tuple[str, ...], arg(metavar="A B ...", help_behavior_hint="")]]
    """Files of evaluations, scores or divergences; runs; exports; or models. Those without a record are measured."""
    out: Result = None
    """Where the comparison goes."""
    measure: Measure = field(default_factory=Measure)
    text: Text = field(default_factory=Text)
    machine: Machine = field(default_factory=Machine)
    general: General = field(default_factory=General)
