"""Passes through a float model that show its sites, to metrics and roundings; forward alone or with gradients.

Forward keeps what a backward pass needs of every block, where that fits. Where it does not, forward leaves each block's
inputs on disk, and backward recomputes one block at a time: memory is then that of the walk, and the gradients are the
same. Where the disk does not hold those inputs, windows go in groups, each through the whole model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from qarat.ground.runtime import Progress
from qarat.model.capture import Captured, Graph, build_graph, differentiate_block, graph_bytes, run_capturing
from qarat.model.model import Model
from qarat.model.states import States, room_on_disk
from qarat.model.tokens import TokenSet
from qarat.values.schemes import Scheme

STAGE = "damage"  # what progress is told

Objective = Callable[[Tensor, int, int], Tensor]
"""What is differentiated, a sum over tokens: from the log-probabilities at some neighbouring tokens of a window,
(tokens, vocabulary) float32, its index in the token set, and the place of the first of them in it, to a scalar."""

THROUGH_HEAD = 32
"""Tokens that go through the head at once: with a large vocabulary, a window's logits alone would be the peak."""


class CapturedBatch(NamedTuple):
    """What one batch showed inside one block, and that block's index and float weights."""

    index: int
    block: nn.Module
    captured: Captured


class Subject(Protocol):
    """What a pass is through."""

    @property
    def model(self) -> Model:
        """In float."""
        ...

    @property
    def tokens(self) -> TokenSet:
        """That it computes."""
        ...

    @property
    def attention(self) -> Sequence[str]:
        """Sites inside the attention that are to be shown too (`qarat.model.capture`)."""
        ...

    @property
    def progress(self) -> Progress:
        """Called after every block, forward and backward."""
        ...


S = TypeVar("S", bound=Subject)


def forward(subject: Subject) -> Iterator[CapturedBatch]:
    """The pass of a metric that needs no gradients, one forward: blocks in order, and the batches of each."""
    model, attention = subject.model, subject.attention
    hidden = model.enter(subject.tokens.batches(model.runtime.batch_tokens))
    subject.progress(STAGE, 0, model.blocks)
    for index, block in model.walk():
        for j, states in enumerate(hidden):
            with torch.no_grad():
                hidden[j], captured = run_capturing(model, index, block, states, attention)
            yield CapturedBatch(index, block, captured)
        subject.progress(STAGE, index + 1, model.blocks)


def backward(objective: Callable[[S], Objective], *, whole: bool = False) -> Callable[[S], Iterator[CapturedBatch]]:
    """The pass of a metric that needs gradients: blocks from the last to the first, and the batches of each.

    Args:
        objective: What is differentiated.
        whole: Whether all windows go through together, whatever room that takes, so that each block comes once.
    """

    def capture(subject: S) -> Iterator[CapturedBatch]:
        model, tokens, wanted = subject.model, subject.tokens, objective(subject)
        everything = [tokens.batches(model.runtime.batch_tokens)]
        groups = everything if whole else split_batches(model, tokens, model.blocks + 1, room_on_disk())
        first = 0
        keeps = _keeps_graphs(model, tokens)
        for number, batches in enumerate(groups):
            progress = part_of(subject.progress, number, len(groups))
            yield from _capture_group(subject, batches, first, wanted, progress, keeps=keeps)
            first += sum(map(len, batches))

    return capture


def backward_forwards(model: Model, tokens: TokenSet, schemes: Sequence[Scheme]) -> int:
    """What `backward` costs: a forward, a backward that counts two, and a recomputation where memory asks for it."""
    return (3 if _keeps_graphs(model, tokens) else 4) * model.blocks


def _capture_group(
    subject: Subject, batches: Sequence[Tensor], first: int, objective: Objective, progress: Progress, *, keeps: bool
) -> Iterator[CapturedBatch]:
    """As `backward`, of some batches.

    Args:
        subject: Whose model and sites are looked at.
        batches: (windows, length) token ids each.
        first: Index in the token set of their first window.
        objective: What is differentiated.
        progress: Called after every block, forward and backward.
        keeps: Whether forward keeps what backward needs.
    """
    model, attention = subject.model, subject.attention
    kept: defaultdict[int, list[Graph]] = defaultdict(list)

    def run(index: int, block: nn.Module, hidden: Tensor) -> Tensor:
        if not keeps:  # capturing all the same, so that rounding is the same
            return run_capturing(model, index, block, hidden, attention)[0]
        kept[index].append(build_graph(model, index, block, hidden, attention))
        return kept[index][-1].output.detach()

    entrances = forward_states(model, batches, progress, run)
    offsets = accumulate(map(len, batches[:-1]), initial=first)  # index of every batch's first window
    ends = zip(entrances.pop(), offsets, strict=True)
    gradients = model.hold((_differentiate(model, *last, objective) for last in ends), batches)
    for index, block in model.walk(backwards=True):
        graphs = kept.pop(index, [])
        for j in range(len(batches)):
            graph = graphs[j] if graphs else build_graph(model, index, block, entrances[index][j], attention)
            gradients[j] = differentiate_block(graph, gradients[j])
            yield CapturedBatch(index, block, graph.captured)
        progress(STAGE, 2 * model.blocks - index, 2 * model.blocks)


def _differentiate(model: Model, hidden: Tensor, first: int, objective: Objective) -> Tensor:
    """Gradient of the objective with respect to the hidden states behind the last block.

    Args:
        model: For norm and head.
        hidden: (windows, length, hidden).
        first: Index of the batch's first window.
        objective: Of each window.

    Returns:
        (windows, length, hidden).
    """
    gradients = torch.empty_like(hidden)
    for j, states in enumerate(hidden):
        for at in range(0, len(states), THROUGH_HEAD):
            some = states[at : at + THROUGH_HEAD].detach().requires_grad_(True)
            with torch.enable_grad():
                value = objective(model.logits(some).log_softmax(-1), first + j, at)
            (gradients[j, at : at + len(some)],) = torch.autograd.grad(value, some)
    return gradients


def _keeps_graphs(model: Model, tokens: TokenSet) -> bool:
    """Whether what a backward pass needs of all blocks fits a quarter of the memory bound.

    Their weights are part of it, so a model that keeps no blocks keeps no graphs.
    """
    return (
        model.keeps_blocks and graph_bytes(model, tokens.windows.shape[1]) * tokens.windows.numel() <= model.memory // 4
    )


def split_batches(model: Model, tokens: TokenSet, copies: int, room: int) -> list[list[Tensor]]:
    """The batches of a token set, in groups whose hidden states fit; one at the least.

    Batches are cut as without groups, so that nothing rounds otherwise.

    Args:
        model: Whose runtime cuts batches.
        tokens: The set.
        copies: Hidden states that are held of every token at once.
        room: Bytes they may take.
    """
    per_token = copies * model.state_bytes
    groups: list[list[Tensor]] = []
    taken = 0
    for batch in tokens.batches(model.runtime.batch_tokens):
        if not groups or (taken + batch.numel()) * per_token > room:
            groups.append([])
            taken = 0
        groups[-1].append(batch)
        taken += batch.numel()
    return groups


def part_of(progress: Progress, number: int, groups: int) -> Progress:
    """Progress of one of several groups, as that of them all."""
    return lambda stage, done, total: progress(stage, number * total + done, groups * total)


def forward_states(
    model: Model,
    batches: Sequence[Tensor],
    progress: Progress,
    run: Callable[[int, nn.Module, Tensor], Tensor] | None = None,
) -> States:
    """Hidden states at the entrance of every block, and behind the last.

    Args:
        model: In float or quantized.
        batches: (windows, length) token ids each.
        progress: Called after every block, of which a backward pass will see as many again.
        run: Runs a block; default `Model.run_block`.
    """
    run = run or model.run_block
    states, hidden = States(), model.enter(batches)
    states.append(hidden)
    progress(STAGE, 0, 2 * model.blocks)
    with torch.no_grad():
        for index, block in model.walk():
            for j, entering in enumerate(hidden):
                hidden[j] = run(index, block, entering)
            states.append(hidden)
            progress(STAGE, index + 1, 2 * model.blocks)
    return states


# ---------------------------------------------------------------- objectives


def draw_labels(seed: int, before: int = 0) -> Objective:
    """Log-probability of labels drawn from the model itself, summed over a window: its squared gradient is the Fisher.

    Args:
        seed: Of the draw. Each window has a generator of its own, so that the labels do not depend on how windows are
            batched, nor on how many of its tokens come at once.
        before: Windows of a larger set in front of these, of which they are part.
    """

    def objective(log_probabilities: Tensor, window: int, first: int) -> Tensor:
        # torch's generator takes the lower 32 bits of its seed. Fibonacci hashing (Knuth, TAOCP vol. 3, 6.4) keeps the
        # windows of one seed away from those of the next.
        generator = torch.Generator().manual_seed((seed * 2654435769 + before + window) % 2**32)
        uniform = torch.rand(first + len(log_probabilities), 1, generator=generator, dtype=torch.float64)[first:]
        below = log_probabilities.detach().double().exp().cumsum(-1)
        # The first id that lies beyond: one of probability 0 never does.
        labels = torch.searchsorted(below, uniform.to(below.device) * below[:, -1:], right=True)
        return log_probabilities.gather(-1, labels).sum()

    return objective


def next_tokens(tokens: TokenSet) -> Objective:
    """Mean log-probability of a window's own next tokens: minus the loss, in nats per predicted token."""

    def objective(log_probabilities: Tensor, window: int, first: int) -> Tensor:
        labels = tokens.windows[window, 1 + first :, None][: len(log_probabilities)].to(log_probabilities.device)
        return log_probabilities[: len(labels)].gather(-1, labels).sum() / (tokens.length - 1)

    return objective
