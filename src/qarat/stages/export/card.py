"""The model card of an export: what it is, under which terms, what it lost, and how to serve it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from qarat import __version__
from qarat.model.model import Model
from qarat.values.plans import Plan
from qarat.values.records.origin import spell_bounds
from qarat.values.records.scores import Evaluation, paired_difference

CARD = "README.md"


def write_card(model: Model, plan: Plan, folder: Path, format: str, measured: Sequence[Evaluation]) -> None:
    """Write the card of a Hugging Face folder, in the words that the hub reads.

    Args:
        model: Quantized by the plan.
        plan: Of the model.
        folder: With everything else of the export.
        format: It is written in.
        measured: Losses of the float model and of the plan; empty where none were measured.
    """
    checkpoint = model.checkpoint
    formats = {w.format for scheme in plan.projections.values() if (w := scheme.weight) is not None}
    head: dict[str, Any] = {"base_model": checkpoint.origin, "base_model_relation": "quantized"}
    head |= {"library_name": "transformers", "pipeline_tag": "text-generation"} | checkpoint.card
    head["tags"] = ["qarat", format, "quantized", *sorted(formats)]
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    parts = ["---\n" + text + "---", f"# {checkpoint.origin}, quantized", *_body(plan, format, measured)]
    (folder / CARD).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _body(plan: Plan, format: str, measured: Sequence[Evaluation]) -> list[str]:
    counts = Counter(str(scheme) for scheme in plan.projections.values())
    rows = "\n".join(f"| `{scheme}` | {count} |" for scheme, count in counts.most_common())
    kept = f"{plan.bits_per_weight():.4g} bits per weight, scales included; embedding, head and norms as they were."
    parts = [
        f"Made with qarat {__version__}, in the format `{format}`; "
        "`qarat-plan.json` has the scheme of every projection and why.",
        f"| scheme | projections |\n| --- | --- |\n{rows}\n\n{kept}",
        *_losses(measured),
    ]
    if format == "compressed-tensors":
        parts.append("```\nvllm serve PATH_TO_THIS_FOLDER\n```")
    return parts


def _losses(measured: Sequence[Evaluation]) -> list[str]:
    """What was measured, as a table; nothing where the float model or the plan is missing."""
    by_label = {evaluation.label: evaluation for evaluation in measured}
    if not {"float", "plan"} <= by_label.keys():
        return []
    before, after = by_label["float"], by_label["plan"]
    more = paired_difference(after, before)
    rows = "\n".join(
        f"| {name} | {e.perplexity:,.4f} | {e.loss:.4f} |" for name, e in (("float", before), ("this model", after))
    )
    return [
        f"| | perplexity | nats per token |\n| --- | --- | --- |\n{rows}",
        f"{more.nats:+.4f} nats per token{spell_bounds(more.nats, more.standard_error, sign=True)}, measured by qarat "
        f"on {sum(after.predicted):,} tokens ({after.provenance.convention}, set {after.provenance.tokens[:12]}).",
    ]
