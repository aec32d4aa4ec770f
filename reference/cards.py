"""Model cards: `python reference/cards.py` writes `cards/NAME.md` for every model, and the family's `cards/README.md`.

From what training recorded (`training.json` beside the weights) and what `table.py` measured (`cards/NAME.json`);
nothing is measured here, so a card can be written anew at any time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from table import CARDS, DRAWS, LOWS, format_damage, format_table

from qarat.model.reference_models import reference_models

CURVE_ROWS = 10


def read_measured(folders: Mapping[str, Path]) -> dict[str, tuple[dict, dict]]:
    """What training recorded and what was measured, of every model that was measured, by size.

    Ends with a sentence where other weights were measured than those that lie there now.
    """
    found: dict[str, tuple[dict, dict]] = {}
    for name, folder in folders.items():
        if not (CARDS / f"{name}.json").is_file():
            print(f"left out, not measured yet: python reference/table.py {name}", file=sys.stderr)
            continue
        record = json.loads((folder / "training.json").read_text())
        found[name] = record, json.loads((CARDS / f"{name}.json").read_text())
    stale = [name for name, (record, row) in found.items() if row.get("weights_sha256") != record["weights_sha256"]]
    if stale:
        raise SystemExit(
            f"measured on other weights than lie there now: {', '.join(stale)}; no card was written.\n"
            f"Measure them anew: python reference/table.py {' '.join(stale)}"
        )
    return dict(sorted(found.items(), key=lambda item: (item[1][0]["parameters_outside_embedding"], item[0])))


def write_card(name: str, config: dict, record: dict, measured: dict) -> str:
    """The card of one model, in Markdown."""
    recipe = record["recipe"]
    kept = f"; this is the copy kept at step {record['steps_done']}" if record["steps_done"] < recipe["steps"] else ""
    bos = "documents laid end to end, BOS where one begins" if recipe["packed"] else "each begun with BOS"
    shape = [
        f"{config['architectures'][0]}, {config['num_hidden_layers']} blocks, hidden {config['hidden_size']}, MLP "
        f"{config['intermediate_size']}, {config['num_attention_heads']} heads of "
        f"{config['hidden_size'] // config['num_attention_heads']} ({config['num_key_value_heads']} for keys and "
        f"values), head {'tied' if config['tie_word_embeddings'] else 'untied'}, vocabulary {config['vocab_size']}",
        f"{record['parameters_outside_embedding']:,} parameters outside embedding and head",
    ]
    training = [
        f"{record['tokens']:,} tokens: windows of 256, {bos}; batch {recipe['batch']}, {recipe['steps']} steps{kept}",
        f"AdamW (0.9, 0.95), decay {recipe['weight_decay']} on matrices, peak rate "
        f"{recipe['peak_rate_at_128'] * 128 / recipe['hidden']:.2e}, {recipe['warmup']} warm-up steps, cosine to a "
        f"tenth, clip {recipe['clip']}, bf16 autocast, seed {recipe['seed']}",
        f"`{record['command']}`: {record['hours']} hours on {record['machine']}, {record['threads']} thread(s), "
        f"torch {record['versions']['torch']}, transformers {record['versions']['transformers']}",
        f"corpus `corpus.tsv` sha256 {record['corpus_sha256']}",
        f"weights sha256 {record['weights_sha256']}",
    ]
    lines = [f"# {name}", "", *_items(shape), "", "## Training", "", *_items(training), "", *_curve(record)]
    return "\n".join([*lines, "", "## Measured", "", *_measured(measured), ""])


def _curve(record: dict) -> list[str]:
    """Loss and the largest spike, at some ten of the recorded steps."""
    spikes = dict(record["spikes"])
    chosen = record["curve"][:: max(1, len(record["curve"]) // CURVE_ROWS)]
    chosen += [] if chosen[-1] == record["curve"][-1] else [record["curve"][-1]]
    rows = ["| step | training loss | largest input of a `down_proj` | its r | block | position |", "|" + " ---: |" * 6]
    for step, loss in chosen:
        block, (peak, ratio, position) = max(enumerate(spikes[step]), key=lambda entry: entry[1][0])
        rows.append(f"| {step} | {loss:.3f} | {peak:.1f} | {ratio:.1f} | {block} | {position} |")
    return rows


def _measured(row: dict) -> list[str]:
    accuracy = row["code_continuation"]
    lines = _items(
        [
            f"report loss {row['loss']:.4f} nats per token, perplexity {row['perplexity']:.2f} "
            f"({row['windows']} windows, {row['convention']})",
            f"code continuation {accuracy['accuracy']:.3f} ± {accuracy['error']:.3f} of {accuracy['questions']} "
            "questions (chance 0.25)",
        ]
    )
    lines += ["", "| input of | maximum | r | SNR (dB) | token | channel | flagged by |", "|" + " --- |" * 7]
    for s in row["streams"]:
        where = f"{s['token']!r} at {s['position']}".replace("|", "\\|")  # a cell of a table ends at a bar
        flags = ", ".join(s["flagged_by"]) or "no rule"
        lines.append(
            f"| {s['stream']} | {s['maximum']} | {s['r']} | {s['snr_db']} | {where} | {s['channel']} | {flags} |"
        )
    lines += ["", "| damage, nats | " + " | ".join(LOWS) + " |", "|" + " --- |" * (1 + len(LOWS))]
    kept = ", ".join(row["protected"])
    for label, key in (("naive", "naive"), (f"{kept} in float", "protected"), ("all `down_proj` in float", "all_down")):
        lines.append(f"| {label} | " + " | ".join(format_damage(row[low][key]) for low in LOWS) + " |")
    for draw in range(len(row["INT8"]["random"])):
        cells = " | ".join(format_damage(row[low]["random"][draw]) for low in LOWS)
        lines.append(f"| {len(row['protected'])} random other `down_proj`, draw {draw + 1} | {cells} |")
    return lines


def _items(lines: Iterable[str]) -> list[str]:
    return [f"- {line}" for line in lines]


def write_family(models: Sequence[tuple[dict, dict]]) -> str:
    """The page of the whole family, in Markdown."""
    windows = ", ".join(sorted({f"{row['windows']} ({row['convention']})" for _, row in models}))
    lows = [f"{label}: `{spelling}`" for label, spelling in LOWS.items()]
    notes = [
        "stream: the input of a projection; those with the lowest SNR under INT8; r: [spikes](../../docs/spikes.md)",
        f"damage: loss over float, nats per token, ± one standard error; report windows: {windows}",
        "naive: everything low; protected: the named sites in float; all `down_proj`: these in float",
        f"random: as many random other `down_proj` in float as are protected, lowest to highest of {DRAWS} draws",
    ]
    lines = [
        "# The reference family",
        "",
        "Written by `python reference/cards.py` from each model's `training.json` and from `NAME.json`, what",
        "`python reference/table.py NAME` measured. `NAME.md` is a model's card.",
        "",
        *_items([*notes, *lows]),
        "",
        *format_table(models),
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    folders = reference_models()
    models = read_measured(folders)
    if not models:
        raise SystemExit("no model was measured yet: python reference/table.py py-64")
    for name, (record, measured) in models.items():
        config = json.loads((folders[name] / "config.json").read_text())
        (CARDS / f"{name}.md").write_text(write_card(name, config, record, measured))
    (CARDS / "README.md").write_text(write_family(list(models.values())))
    print(f"wrote {len(models)} cards and the family's table: {CARDS / 'README.md'}")


if __name__ == "__main__":
    main()
