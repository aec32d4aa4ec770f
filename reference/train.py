"""Train one model of the reference family from nothing: `python reference/train.py py-64`.

Plain PyTorch and transformers, one recipe for all but the peak rate of the two largest: AdamW, peak rate falling as
1 / width, every model sees the same windows in the same order. Nothing is planted: no loss term, no initialisation and
no data is chosen to make spikes.

The state is written to `reference/work/NAME/` every few hundred steps, so a killed run continues where it was and ends
with the same bytes (same thread count, same machine kind). The finished model is an ordinary Hugging Face folder in
`reference/models/NAME/`, with `training.json` (recipe, curve, hours, machine, hashes) beside the weights.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    set_seed,
)

HERE = Path(__file__).parent
WORK = HERE / "work"
MODELS = HERE / "models"
VOCABULARY = 4096
WINDOW = 256  # positions, the first of which is BOS
BOS = "<|bos|>"
NOTE_EVERY, SAVE_EVERY = 50, 250  # steps; a state is saved only where the curve has just been extended
WATCHED = 4  # windows, never trained on, on which spikes are watched while they grow


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the bytes of a model, except the corpus and the library versions.

    Attributes:
        packed: Documents laid end to end, BOS only where a document begins, windows cut anywhere.
        keep_at: Shares of training at which a copy of the model is kept as well.
    """

    name: str
    hidden: int
    intermediate: int
    architecture: str = "llama"
    blocks: int = 8
    heads: int = 4
    packed: bool = False
    keep_at: tuple[float, ...] = ()
    steps: int = 3000
    batch: int = 16
    warmup: int = 100
    peak_rate_at_128: float = 6e-3
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0

    @property
    def peak_rate(self) -> float:
        return self.peak_rate_at_128 * 128 / self.hidden

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine to a tenth of the peak."""
        if step < self.warmup:
            return self.peak_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak_rate * (0.55 + 0.45 * math.cos(math.pi * progress))


# Widths and MLP sizes are multiples of 32, so that blocks of 32 divide every weight.
FAMILY = {
    recipe.name: recipe
    for recipe in (
        Recipe("py-64", 64, 160, keep_at=(0.12, 0.25, 0.5)),
        Recipe("py-96", 96, 256),
        Recipe("py-128", 128, 352),
        # A peak of 6e-3 at 128 is too high for these: they learned less than py-128 (LOG.md).
        Recipe("py-160", 160, 448, peak_rate_at_128=4e-3),
        Recipe("py-224", 224, 608, peak_rate_at_128=3.4e-3),
        Recipe("py-128-qwen2", 128, 352, architecture="qwen2"),
        Recipe("py-128-packed", 128, 352, packed=True),
    )
}


def build_model(recipe: Recipe) -> torch.nn.Module:
    shape: dict[str, Any] = dict(
        vocab_size=VOCABULARY,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.blocks,
        num_attention_heads=recipe.heads,
        max_position_embeddings=WINDOW,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
        # Eager attention compiles into fewer passes over memory than the CPU's flash kernel at these sizes.
        attn_implementation="eager",
    )
    if recipe.architecture == "qwen2":
        # Grouped queries, untied head, biases on q, k and v.
        return Qwen2ForCausalLM(Qwen2Config(**shape, num_key_value_heads=recipe.heads // 2, tie_word_embeddings=False))
    return LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=recipe.heads, tie_word_embeddings=True))


def build_optimizer(model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; only matrices decay. The rate is set at every step."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=True)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE; BOS is id 0 and the tokenizer puts it in front of every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


def cut_windows(tokenizer: Tokenizer, texts: list[str], packed: bool) -> np.ndarray:
    """All training windows, (windows, WINDOW) uint16, in the order in which they are learnt.

    Not packed: each window is BOS and WINDOW - 1 tokens of one file, a file's tail dropped. Packed: see `Recipe`.
    """
    documents = [np.array(e.ids, np.uint16) for e in tokenizer.encode_batch_fast(texts)]
    if packed:
        stream = np.concatenate(documents)
        windows = stream[: len(stream) // WINDOW * WINDOW].reshape(-1, WINDOW)
    else:
        pieces = []
        for ids in documents:
            body = ids[1:]
            rows = len(body) // (WINDOW - 1)
            piece = np.zeros((rows, WINDOW), np.uint16)
            piece[:, 1:] = body[: rows * (WINDOW - 1)].reshape(rows, WINDOW - 1)
            pieces.append(piece)
        windows = np.concatenate(pieces)
    return windows[np.random.default_rng(corpus.SEED).permutation(len(windows))]


def prepare(packed: bool) -> tuple[Tokenizer, np.ndarray]:
    """The tokenizer and the windows, made once and kept in the work folder."""
    WORK.mkdir(parents=True, exist_ok=True)
    tokenizer_file, kept = WORK / f"tokenizer-{corpus_hash()[:12]}.json", windows_file(packed)
    if not (tokenizer_file.exists() and kept.exists()):
        print("reading the corpus ...", flush=True)
        splits, differences = corpus.build()
        write_whole(differences_file(packed), lambda path: path.write_text("\n".join(differences)))
        texts = [text for _, text in splits["train"]]
        if not tokenizer_file.exists():
            trained = train_tokenizer(texts)
            write_whole(tokenizer_file, lambda path: trained.save(str(path)))
        windows = cut_windows(Tokenizer.from_file(str(tokenizer_file)), texts, packed)
        write_whole(kept, lambda path: np.save(path.open("wb"), windows))
    if differences := known_differences(packed):
        print(
            f"{corpus.describe(differences)}\nDelete {kept} and {tokenizer_file} to read the corpus anew.", flush=True
        )
    return Tokenizer.from_file(str(tokenizer_file)), np.load(kept)


def corpus_hash() -> str:
    return hashlib.sha256(corpus.LISTING.read_bytes()).hexdigest()


def windows_file(packed: bool) -> Path:
    return WORK / f"windows-{corpus_hash()[:12]}-{'packed' if packed else 'bos'}.npy"


def differences_file(packed: bool) -> Path:
    """Beside the windows: how the corpus they were cut from differed from its listing, one file a line."""
    return windows_file(packed).with_suffix(".differences.txt")


def known_differences(packed: bool) -> list[str]:
    return differences_file(packed).read_text().splitlines() if differences_file(packed).exists() else []


def write_whole(path: Path, write) -> None:
    """Write a file beside its place and rename it, so that a kill or a full disk leaves the old one."""
    partial = path.with_name(path.name + ".partial")
    with explained(path):
        try:
            write(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """End with a sentence where something cannot be written: a full disk is another exception in every library."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise SystemExit(
            f"{path} cannot be written: {error}\n"
            "Is there space left? What was there before is kept, and the same command continues."
        ) from error


@dataclass
class State:
    """What a run needs to go on.

    Attributes:
        identity: What decides the bytes of a model, see `identify`.
        curve: Step, and the mean training loss since the last entry.
        spikes: Step, and what `watch` saw.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    identity: dict[str, str | int]
    step: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)
    spikes: list[tuple[int, list[list[float]]]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        saved = {
            **self.identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
            "spikes": self.spikes,
        }
        write_whole(path, lambda partial: torch.save(saved, partial))

    def load(self, path: Path) -> None:
        saved = torch.load(path, weights_only=True)
        # A state of before one of these was written is taken at its word.
        others = [(key, saved[key], here) for key, here in self.identity.items() if saved.get(key, here) != here]
        if others:
            raise SystemExit(
                "\n".join(
                    f"{path} belongs to another {k}:\n  there {there}\n  here  {here}" for k, there, here in others
                )
                + "\nDelete the folder to begin anew, or ask for what it was begun with."
            )
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.seconds = saved["step"], saved["seconds"]
        self.curve, self.spikes = saved["curve"], saved["spikes"]


def identify(recipe: Recipe, windows: np.ndarray) -> dict[str, str | int]:
    """What decides the bytes of a model; the number of threads by the order in which sums are added up."""
    return {
        "recipe": json.dumps(asdict(recipe)),
        "corpus": corpus_hash(),
        "set of windows": hashlib.sha256(windows.tobytes()).hexdigest(),
        "number of threads": torch.get_num_threads(),
    }


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
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    tokenizer, windows = prepare(recipe.packed)
    needed = recipe.steps * recipe.batch + WATCHED
    if len(windows) < needed:
        raise SystemExit(
            f"the corpus holds {len(windows)} windows, {needed} are needed: raise TRAIN_BYTES in corpus.py"
        )
    set_seed(recipe.seed)
    model = build_model(recipe)
    state = State(model, build_optimizer(model, recipe), identify(recipe, windows))
    checkpoint = (out / "work" if out else WORK) / recipe.name / "state.pt"
    models = out or MODELS
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        state.load(checkpoint)
        print(f"continuing {recipe.name} at step {state.step}", flush=True)

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        logits = model(batch, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY).float(), batch[:, 1:].reshape(-1))

    compiled = torch.compile(loss_of)
    keep = {round(share * recipe.steps): share for share in recipe.keep_at}
    last = recipe.steps if stop_after is None else min(recipe.steps, state.step + stop_after)
    begun, since, running = time.perf_counter(), state.step, []
    while state.step < last:
        rows = windows[state.step * recipe.batch : (state.step + 1) * recipe.batch]
        running.append(take_step(recipe, state, lambda rows=rows: compiled(as_ids(rows)), checkpoint))
        if state.step % NOTE_EVERY == 0 or state.step == recipe.steps:
            state.curve.append((state.step, sum(running) / len(running)))
            state.spikes.append((state.step, watch(model, as_ids(windows[-WATCHED:]))))
            running = []
            print_progress(recipe, state, (time.perf_counter() - begun) / (state.step - since))
        saving = state.step % SAVE_EVERY == 0 or state.step == last
        if saving or state.step in keep:
            state.seconds += time.perf_counter() - begun
            begun, since = time.perf_counter(), state.step
        if state.step in keep:
            copy = f"{recipe.name}-{keep[state.step]:.0%}".replace("%", "pct")
            export(recipe, state, tokenizer, threads, models / copy)
        if saving:
            state.save(checkpoint)
    if state.step < recipe.steps:
        return None
    export(recipe, state, tokenizer, threads, models / recipe.name)
    shutil.rmtree(checkpoint.parent)
    return models / recipe.name


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
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    twin: Any = build_model(recipe)
    twin.load_state_dict(state.model.state_dict())
    twin.to(torch.bfloat16)
    with explained(folder):
        twin.save_pretrained(partial)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=BOS, model_max_length=WINDOW, clean_up_tokenization_spaces=False
        ).save_pretrained(partial)
        record = describe(recipe, state, threads, twin, partial / "model.safetensors")
        (partial / "training.json").write_text(json.dumps(record, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=FAMILY)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop-after", type=int, help="leave after this many steps, state saved")
    parser.add_argument("-o", "--out", type=Path, help="folder for the model's and its state's, not reference/models/")
    arguments = parser.parse_args()
    recipe = replace(FAMILY[arguments.name], seed=arguments.seed)
    folder = train(recipe, arguments.threads, arguments.stop_after, arguments.out)
    print(f"wrote {folder}" if folder else "stopped; the same command continues", file=sys.stderr)


if __name__ == "__main__":
    main()
