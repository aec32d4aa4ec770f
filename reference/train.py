"""Train one model of the reference family from nothing: `python reference/train.py py-64`.

Plain PyTorch and transformers, one recipe for all but the peak rate of the two largest: AdamW, peak rate falling as
1 / width, every model sees the same windows in the same order. Nothing is planted: no loss term, no initialisation and
no data is chosen to make spikes.

The state is written to `reference/work/NAME/` every few hundred steps, so a killed run continues where it was and ends
with the same bytes (same thread count, same versions, same machine kind). The finished model is an ordinary Hugging
Face folder in `reference/models/NAME/`, with `training.json` (recipe, curve, hours, machine, hashes) beside the
weights; one that was made by another recipe or on other threads is never replaced.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from recipes import FAMILY, Recipe, build_model, build_optimizer
from state import State, identify
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, set_seed
from windows import BOS, VOCABULARY, WINDOW, WORK, corpus_hash, known_differences, prepare
from writing import explained

MODELS = Path(__file__).parent / "models"
NOTE_EVERY, SAVE_EVERY = 50, 250  # steps; a state is saved only where the curve has just been extended
WATCHED = 4  # windows, never trained on, on which spikes are watched while they grow


def train(recipe: Recipe, threads: int, stop_after: int | None = None, out: Path | None = None) -> Path | None:
    """Train, or go on training, and return the folder of the finished model.

    Args:
        recipe: Of the model.
        threads: To compute with; part of what decides the bytes.
        stop_after: Leave after this many steps of this call, state saved; a multiple of `NOTE_EVERY`.
        out: Where the model's folder and its state go; default `MODELS` and `WORK`.
    """
    if stop_after is not None and (stop_after < 1 or stop_after % NOTE_EVERY):
        raise SystemExit(f"--stop-after {stop_after}: give a multiple of {NOTE_EVERY}, where the curve is extended")
    folder = (out or MODELS) / recipe.name
    shares = {round(share * recipe.steps): share for share in recipe.keep_at}
    copies = {step: folder.with_name(f"{folder.name}-{share * 100:.0f}pct") for step, share in shares.items()}
    refuse_to_replace(recipe, threads, [folder, *copies.values()])
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    tokenizer, windows = prepare(recipe.packed)
    checkpoint = (out / "work" if out else WORK) / recipe.name / "state.pt"
    state = begin(recipe, windows, checkpoint)
    last = recipe.steps if stop_after is None else min(recipe.steps, state.step + stop_after)
    keep = {step: partial(export, recipe, state, tokenizer, threads, copy) for step, copy in copies.items()}
    learn(recipe, state, windows, last, checkpoint, keep)
    if state.step < recipe.steps:
        return None
    export(recipe, state, tokenizer, threads, folder)
    shutil.rmtree(checkpoint.parent)
    return folder


def learn(
    recipe: Recipe,
    state: State,
    windows: np.ndarray,
    last: int,
    checkpoint: Path,
    keep: Mapping[int, Callable[[], None]],
) -> None:
    """Train up to step `last`, saving the state on the way; `keep`: what keeps a copy, by the step after which."""
    compiled = compile_loss(state.model)
    begun, since, running = time.perf_counter(), state.step, []
    while state.step < last:
        rows = windows[state.step * recipe.batch : (state.step + 1) * recipe.batch]
        running.append(take_step(recipe, state, lambda rows=rows: compiled(as_ids(rows)), checkpoint))
        if state.step % NOTE_EVERY == 0 or state.step == recipe.steps:
            state.curve.append((state.step, sum(running) / len(running)))
            state.spikes.append((state.step, watch(state.model, as_ids(windows[-WATCHED:]))))
            running = []
            print_progress(recipe, state, (time.perf_counter() - begun) / (state.step - since))
        saving = state.step % SAVE_EVERY == 0 or state.step == last
        if saving or state.step in keep:
            state.seconds += time.perf_counter() - begun
            begun, since = time.perf_counter(), state.step
        if state.step in keep:
            keep[state.step]()
        if saving:
            state.save(checkpoint)


def refuse_to_replace(recipe: Recipe, threads: int, folders: Iterable[Path]) -> None:
    """Stop before models made by another recipe, or on other threads, are replaced."""
    asked = {**json.loads(json.dumps(asdict(recipe))), "threads": threads}  # as JSON has it: lists, no tuples
    lines = []
    for file in (folder / "training.json" for folder in folders):
        if file.exists():
            record = json.loads(file.read_text())
            made = {**record["recipe"], "threads": record["threads"]}
            if others := [f"{k} {made.get(k)}, asked {v}" for k, v in asked.items() if made.get(k) != v]:
                lines.append(f"  {file.parent}, by `{record['command']}`: {'; '.join(others)}")
    if lines:
        raise SystemExit(
            "\n".join(["models made otherwise would be replaced:", *lines])
            + "\nGive what they were made with, or -o FOLDER to put the new ones elsewhere."
        )


def begin(recipe: Recipe, windows: np.ndarray, checkpoint: Path) -> State:
    """The state that was saved, or that of step 0."""
    needed = recipe.steps * recipe.batch + WATCHED
    if len(windows) < needed:
        raise SystemExit(
            f"the corpus holds {len(windows)} windows, {needed} are needed: raise TRAIN_BYTES in corpus.py"
        )
    set_seed(recipe.seed)
    model = build_model(recipe)
    state = State(model, build_optimizer(model, recipe), identify(recipe, windows))
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        state.load(checkpoint)
        print(f"continuing {recipe.name} at step {state.step}", flush=True)
    return state


def compile_loss(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """From windows of ids to the mean loss of their tokens, nats."""

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        logits = model(batch, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY).float(), batch[:, 1:].reshape(-1))

    return torch.compile(loss_of)


def take_step(recipe: Recipe, state: State, loss_of: Callable[[], torch.Tensor], checkpoint: Path) -> float:
    """One step of the optimizer; the loss before it."""

    def stop_if_lost(what: str, value: float) -> None:
        if not math.isfinite(value):
            kept = f"the last good state: {checkpoint}" if checkpoint.exists() else "no state was saved yet"
            raise SystemExit(f"{recipe.name}: {what} is {value} at step {state.step}; {kept}")

    for group in state.optimizer.param_groups:
        group["lr"] = recipe.rate(state.step)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of()
    stop_if_lost("loss", loss.item())
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip)
    stop_if_lost("norm of the gradient", norm.item())
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1
    return loss.item()


def as_ids(windows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(windows.astype(np.int64))


@torch.no_grad()
def watch(model: Any, windows: torch.Tensor) -> list[list[float]]:
    """Of every block's `down_proj` input: the maximum, r (docs/spikes.md) and the position of the largest token."""
    seen: list[list[float]] = []

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes = inputs[0].abs().amax(-1)  # (windows, tokens)
        ratio = (sizes.amax(1) / sizes.median(1).values).mean()
        seen.append([round(sizes.max().item(), 3), round(ratio.item(), 3), int(sizes.mean(0).argmax())])

    hooks = [block.mlp.down_proj.register_forward_pre_hook(note) for block in model.model.layers]
    model(windows, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def print_progress(recipe: Recipe, state: State, per_step: float) -> None:
    print(
        f"{recipe.name} step {state.step}/{recipe.steps}  loss {state.curve[-1][1]:.4f}  "
        f"{recipe.batch * WINDOW / per_step:,.0f} tokens/s  "
        f"{(recipe.steps - state.step) * per_step / 60:.1f} min left  "
        f"largest spike {max(peak for peak, _, _ in state.spikes[-1][1]):.0f}",
        flush=True,
    )


def export(recipe: Recipe, state: State, tokenizer: Tokenizer, threads: int, folder: Path) -> None:
    """Write the model as a Hugging Face folder in bf16, beside its place and then renamed."""
    beside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    twin: Any = build_model(recipe)
    twin.load_state_dict(state.model.state_dict())
    twin.to(torch.bfloat16)
    with explained(folder):
        twin.save_pretrained(beside)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=BOS, model_max_length=WINDOW, clean_up_tokenization_spaces=False
        ).save_pretrained(beside)
        record = describe(recipe, state, threads, twin, beside / "model.safetensors")
        (beside / "training.json").write_text(json.dumps(record, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(beside, folder)


def describe(recipe: Recipe, state: State, threads: int, model: torch.nn.Module, weights: Path) -> dict[str, object]:
    """What lies beside the weights as `training.json`."""
    record: dict[str, object] = {
        "recipe": asdict(recipe),
        "steps_done": state.step,
        "tokens": state.step * recipe.batch * (WINDOW if recipe.packed else WINDOW - 1),
        "parameters_outside_embedding": count_parameters(model),
        "curve": state.curve,
        "spikes": state.spikes,
        "hours": round(state.seconds / 3600, 3),
        "threads": threads,
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "corpus_sha256": corpus_hash(),
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "command": f"python reference/train.py {recipe.name} --threads {threads}"
        + (f" --seed {recipe.seed}" if recipe.seed else ""),
    }
    if differences := known_differences(recipe.packed):
        record["corpus_differences"] = len(differences)  # the hash above is the listing's, not this corpus's
    return record


def count_parameters(model: torch.nn.Module) -> int:
    """Parameters without embedding and head."""
    return sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" not in n and "lm_head" not in n)


def machine() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor()}, {os.cpu_count()} cores"


def thread_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number of threads, 1 or more")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=FAMILY)
    parser.add_argument("--threads", type=thread_count, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop-after", type=int, help="leave after this many steps, state saved")
    parser.add_argument("-o", "--out", type=Path, help="folder for the model's and its state's, not reference/models/")
    arguments = parser.parse_args()
    recipe = replace(FAMILY[arguments.name], seed=arguments.seed)
    folder = train(recipe, arguments.threads, arguments.stop_after, arguments.out)
    print(f"wrote {folder}" if folder else "stopped; the same command continues", file=sys.stderr)


if __name__ == "__main__":
    main()
