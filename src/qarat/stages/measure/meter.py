"""Measuring many plans of one model without running a shared prefix twice.

Two plans that agree on the first k blocks agree on the hidden states there. So plans are measured together, in one walk
over the blocks: at each block every distinct (schemes in front, schemes of the block) is computed once, while the
block's weights are at hand, and the states at block boundaries are kept, so that a later plan begins at the deepest
boundary that is known.

What is kept has a bound in bytes, and the states of plans that are on their way count too: where all plans' states do
not fit, they go in groups. A group takes at most half of the bound, so that the other half is left for boundaries that
the next plans begin from. Meeting the bound changes the cost, never the result: a state is the same bits whenever it is
computed, since batches are always cut alike. The cost is counted in block × token forwards.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.model.layers import kernels_of
from qarat.model.model import Model
from qarat.model.states import Batches
from qarat.model.tokens import TokenSet
from qarat.stages.measure.perplexity import Losses, evaluation_of, window_nats
from qarat.values.plans import Plan
from qarat.values.records.scores import Evaluation, Failure
from qarat.values.schemes import Scheme

ROOM = 256 << 20
"""Bytes that hidden states may take however small the model is."""


def room_for_states(model: Model) -> int:
    """Bytes for hidden states: a quarter of the runtime's memory, but no more than half of the blocks', or `ROOM`."""
    return min(model.memory // 4, max(ROOM, model.block_bytes() * model.blocks // 2))


Path = tuple[str, ...]
"""What is done in each block, from the first on; a beginning of one names the hidden states behind it."""


class Meter:
    """Measures plans of one model on one token set.

    Attributes:
        forwards: Block × token forwards spent so far.
    """

    def __init__(
        self,
        model: Model,
        tokens: TokenSet,
        build: Callable[[int, Mapping[str, Scheme]], nn.Module],
        *,
        keep_bytes: int | None = None,
    ) -> None:
        """Prepare; nothing is run yet.

        Args:
            model: In float.
            tokens: The selection set.
            build: A block under its schemes, as `qarat.stages.quantize.build_block` makes it.
            keep_bytes: Bound on all hidden states held; default `room_for_states`. One plan's are always held while it
                is measured.
        """
        self.forwards = 0
        self._model = model
        self._tokens = tokens
        self._batches = tokens.batches(model.runtime.batch_tokens)
        self._targets = tokens.target_batches(model.runtime.batch_tokens)
        self._build = build
        self._kernels: dict[tuple[int, str], Counter[str]] = {}
        bound = room_for_states(model) if keep_bytes is None else keep_bytes
        state = tokens.windows.numel() * model.state_bytes
        self._boundaries = _Boundaries(bound // state)

    def measure(self, plan: Plan, label: str) -> Evaluation:
        """Negative log-likelihood of the token set under a plan, whatever was measured before.

        Args:
            plan: For this model; not checked here.
            label: Of the evaluation.

        Raises:
            UserError: If a window's loss is NaN or Inf.
        """
        outcome = self.measure_many([plan], [label])[0]
        if isinstance(outcome, Failure):
            raise UserError(outcome.error)
        return outcome

    def measure_many(
        self, plans: Sequence[Plan], labels: Sequence[str], *, progress: Progress = no_progress
    ) -> list[Evaluation | Failure]:
        """Negative log-likelihood of the token set under each of many plans, as `measure` gives it.

        Args:
            plans: For this model; not checked here. Equal ones are measured once.
            labels: Of the evaluations, one a plan.
            progress: Called with the different plans done; of plans measured together, each share of the work that is
                done counts as so many of them.

        Returns:
            In the order of the plans; a `Failure` where a window's loss is NaN or Inf.
        """
        return [
            outcome_of(self._model, self._tokens, losses, label)
            for label, losses in zip(labels, self.lose_many(plans, progress=progress), strict=True)
        ]

    @torch.no_grad()
    def lose_many(self, plans: Sequence[Plan], *, progress: Progress = no_progress) -> list[Losses]:
        """What each of many plans loses on every window, arguments as `measure_many`; NaN and Inf are not refused."""
        paths = [_path(plan) for plan in plans]
        different = sorted(dict(zip(paths, plans, strict=True)).items(), key=lambda pair: pair[0])
        nats: dict[Path, Tensor] = {}
        width = max(1, self._boundaries.capacity // 2)
        progress("measure", 0, len(different))
        for first in range(0, len(different), width):
            group = dict(different[first : first + width])
            for share, measured in self._walk(group):
                nats |= measured
                progress("measure", first + int(share * len(group)), len(different))
        return [Losses(nats[path], self._ran(path)) for path in paths]

    def _walk(self, plans: Mapping[Path, Plan]) -> Iterable[tuple[float, dict[Path, Tensor]]]:
        """Measure plans together; yields the share of the work done, and the nats measured since."""
        starts = {path: self._boundaries.deepest(path) for path in plans}
        steps = _steps(plans, starts)
        fronts = [front for fronts in steps.values() for front in fronts]
        self._boundaries.expect(fronts)
        if () in fronts:
            self._boundaries.make_room()
            self._boundaries.put((), self._model.enter(self._batches))
        done = 0
        for (index, key), going in steps.items():
            block = self._build(index, next(iter(going.values())).block(index))
            self._kernels[index, key] = kernels_of(block)
            self._model.expect(index + 1)
            for front in going:
                states = self._boundaries.take(front)
                measured: dict[Path, Tensor] = {}
                if index + 1 < self._model.blocks:
                    self._boundaries.make_room()
                    self._boundaries.put((*front, key), self._run(index, block, states))
                else:
                    self._boundaries.make_room(0)
                    measured[(*front, key)] = self._finish(index, block, states)
                self.forwards += self._tokens.windows.numel()
                done += 1
                yield done / len(fronts), measured
            del block  # or it would lie beside the next while that is built

    def _run(self, index: int, block: nn.Module, states: Batches) -> Batches:
        """The states behind a block; each batch's place is taken by what comes of it, and nothing here outlives it."""
        for j, hidden in enumerate(states):
            states[j] = self._model.run_block(index, block, hidden)
        return states

    def _finish(self, index: int, block: nn.Module, states: Batches) -> Tensor:
        """The nats of every window, from the entrance of the last block; what is behind it is not held."""
        pairs = zip(states, self._targets, strict=True)
        return torch.cat([window_nats(self._model, self._model.run_block(index, block, h), t) for h, t in pairs])

    def _ran(self, path: Path) -> Counter[str]:
        """What computed the projections of a plan."""
        return sum((self._kernels[step] for step in enumerate(path)), Counter[str]())


def outcome_of(model: Model, tokens: TokenSet, losses: Losses, label: str) -> Evaluation | Failure:
    """The evaluation of a plan, or a failure that says why there is none: a loss that is NaN or Inf.

    Args:
        model: In float.
        tokens: The token set.
        losses: On every window of it.
        label: Of the evaluation.
    """
    try:
        return evaluation_of(model, tokens, losses.nats, label=label, kernels=losses.kernels)
    except UserError as error:
        return Failure(label, str(error))


class _Boundaries:
    """Hidden states at block boundaries, at most so many of them.

    What steps still to be done begin from stays. Of the rest the least recently used go first, and last of all those of
    the float model, from which plans are restarted most often. The entrance is not kept: embedding costs no forward.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._states: OrderedDict[Path, Batches] = OrderedDict()
        self._expected: Counter[Path] = Counter()

    def deepest(self, path: Path) -> int:
        """How many blocks of a path lie in front of the deepest boundary that is known."""
        return next((k for k in range(len(path) - 1, 0, -1) if path[:k] in self._states), 0)

    def expect(self, fronts: Iterable[Path]) -> None:
        """Begin a walk that will take these, each as often as it is named."""
        self._expected = Counter(fronts)
        self._states.pop((), None)

    def take(self, front: Path) -> Batches:
        """The states there, of the caller's own: where they are not kept on, he alone has them."""
        self._expected[front] -= 1
        self._states.move_to_end(front)
        if front == () and not self._expected[front]:
            return self._states.pop(front)
        return self._states[front].copy()

    def put(self, path: Path, states: Batches) -> None:
        """Keep states, for which `make_room` was called before they were made."""
        self._states[path] = states

    def make_room(self, more: int = 1) -> None:
        """Drop what is over the bound once there are so many more, as far as no step begins from it."""
        idle = [path for path in self._states if not self._expected[path]]
        idle.sort(key=lambda path: not any(path))  # float last
        over = len(self._states) + more - self.capacity
        for path in idle[: max(0, over)]:
            del self._states[path]


def _steps(plans: Mapping[Path, Plan], starts: Mapping[Path, int]) -> dict[tuple[int, str], dict[Path, Plan]]:
    """What a walk has to do, in its order: (block, its schemes) → the paths in front, each with a plan going there."""
    steps: dict[tuple[int, str], dict[Path, Plan]] = {}
    for path, plan in plans.items():
        for index in range(starts[path], len(path)):
            steps.setdefault((index, path[index]), {}).setdefault(path[:index], plan)
    return dict(sorted(steps.items(), key=lambda step: step[0]))


def _path(plan: Plan) -> Path:
    """A plan's path: for every block the sites that are not in float, with their schemes; empty for a float block."""
    blocks: dict[int, list[str]] = {}
    for a in plan.assignments:
        sites = blocks.setdefault(a.site.block, [])
        if not a.is_float:
            sites.append(f"{a.site.leaf}: {a.scheme}")
    return tuple("; ".join(sorted(sites)) for _, sites in sorted(blocks.items()))


def prefix_order(plans: Sequence[Plan]) -> list[int]:
    """Indices of plans in an order in which those that share their first blocks are neighbours.

    Args:
        plans: Of one model.
    """
    paths = [_path(plan) for plan in plans]
    return sorted(range(len(plans)), key=paths.__getitem__)
