"""A checkpoint opened without being loaded: the walk goes through it block by block.

A `Model` is a transformers skeleton on the meta device, of which only embedding, norms and head are real, and a
function that brings in one block. Observation, damage, perplexity and conversion all go the same way: embed, then for
each block bring it in, run every batch through it, hand the hidden states on. So peak memory is one block plus hidden
states; where the weights fit the memory bound, blocks are kept and not read again: that changes time, never results.

A quantized model is the same `Model` with another block function, so whatever works on one works on the other.

What stands in front of the blocks, and what they are called with, is transformers' own (`qarat.model.entrance`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, cast

import msgspec
import torch
import transformers
from torch import Tensor, nn
from transformers import Cache, PreTrainedTokenizerBase

from qarat import __version__
from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.ground.summaries import Summarized
from qarat.maths.kernels import REFERENCE
from qarat.model.attention import capped
from qarat.model.checkpoints import Checkpoint
from qarat.model.entrance import Entrance
from qarat.model.families import family_of
from qarat.model.families.base import Family
from qarat.model.layers import RotatedMlp, Rotation
from qarat.model.skeleton import build_skeleton, list_sites, widen, with_parts
from qarat.model.states import Batches
from qarat.model.widening import widened
from qarat.values.fingerprints import brief, join
from qarat.values.records.origin import Provenance
from qarat.values.roles import Role
from qarat.values.sites import Site

ROTATION = "hadamard"
"""The transform that is not in the tensors alone: blocks of a model that has it rotate the input of ``down_proj``."""


class Transform(NamedTuple):
    """What was done to a float model that left its function as it is (`qarat.stages.transforms`).

    Attributes:
        word: What and with which data, as fingerprints spell it.
        fold: Index and state of a block in float to its new state, tensors of the old one left alone; None where the
            blocks that are brought in have it folded in already, or no block will be.
        inner: Channels of the MLP's inner activation behind it; None where they stay as many.
        outside: The same as ``fold`` for the state of what lies outside the blocks; None where that stays as it is.
    """

    word: str
    fold: Callable[[int, dict[str, Tensor]], dict[str, Tensor]] | None = None
    inner: int | None = None
    outside: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None


class Model(Summarized):
    """An opened checkpoint.

    Attributes:
        config: Of transformers; the checkpoint's own, unless a transform changed a width.
        family: The wiring.
        runtime: Device, dtype and limits.
        fingerprint: SHA-256 over config and weights of the *float* model, and what transforms did to it
            (`qarat.values.fingerprints`).
        transforms: What was done to the checkpoint's blocks, in order; most models have none.
        source_bits: Bits of an element in the checkpoint's own dtype.
        tokenizer: Of the checkpoint.
        path: What the model can be opened by again: the checkpoint's folder, or its file.
        folder: Where its config and tokenizer lie.
        is_float: Whether its blocks are the checkpoint's own, or those of an equal float model.
        memory: Bound on what is held, in bytes: half of it for blocks that are kept, a quarter for hidden states, and
            what is left for work and for what saves time.
        keeps_blocks: Whether each block is read once: all fit half of the memory bound, and nobody asked for `unkept`.
        length: Tokens the model was trained to take at once.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        runtime: Runtime,
        load_block: Callable[[int], nn.Module] | None = None,
        transforms: tuple[Transform, ...] = (),
    ) -> None:
        """Build the skeleton; `open_model` and `qarat.stages.quantize` are the ways in."""
        self.checkpoint = checkpoint
        self.runtime = runtime
        self.config = checkpoint.config
        self.family: Family = family_of(list(self.config.architectures or []))
        self.path, self.folder = checkpoint.path, checkpoint.folder
        self._skeleton = build_skeleton(checkpoint, self.family, runtime)
        # What the checkpoint holds of a block, whatever transforms make of it; all have the same shapes.
        self._stored = self._skeleton.get_submodule(f"{self.family.blocks}.0").state_dict()
        if widths := [t.inner for t in transforms if t.inner is not None]:
            self.config = widen(self._skeleton, self.family, widths[-1])
        for fold in filter(None, (t.outside for t in transforms)):
            wide = {name: value.to(runtime.torch_dtype) for name, value in self.outside().items()}
            self._skeleton.load_state_dict(fold(wide), assign=True, strict=False)
        # None, not a method of its own: a model that holds itself waits for the garbage collector with all its blocks.
        self._load_block = load_block
        self._sites = list_sites(self._skeleton, self.family)
        self.transforms = transforms
        # One for all blocks: all have the same width.
        turns = ROTATION in (t.word for t in transforms)
        self._rotation = Rotation.of(self.inner_width, runtime.device) if turns else None
        self.is_float = load_block is None
        # Decided once: what is free changes while a walk goes on.
        self.memory = runtime.memory_bytes()
        self.keeps_blocks = self.block_bytes() * self.blocks <= self.memory // 2
        self._kept: dict[int, nn.Module] = {}
        self._entrance = Entrance(self._skeleton, self.family, self.blocks, runtime)
        self._head: nn.Module | None = None  # in the runtime's dtype, from when it is used to the next block

    def facts(self) -> dict[str, str]:
        """What it is, where it lies, and what it computes with."""
        kind = "float" if self.is_float else "quantized"
        projections = sum(site.kind == "projection" for site in self._sites)
        return {
            "folder": str(self.path),
            "architecture": ", ".join(self.config.architectures or ()),
            "weights": kind,
            "model": brief(self.fingerprint),
            "blocks": str(self.blocks),
            "projections": str(projections),
            "computes": f"{self.runtime.dtype} on {self.runtime.device}",
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 over config and weights of the float model, and what transforms did to it."""
        return join(self.checkpoint.fingerprint, [t.word for t in self.transforms])

    @property
    def is_rotated(self) -> bool:
        """Whether its blocks compute more than its config says: a rotation in front of every ``down_proj``."""
        return self._rotation is not None

    @property
    def source_bits(self) -> int:
        """Bits of an element in the checkpoint's own dtype."""
        return torch.finfo(self.checkpoint.dtype).bits

    @property
    def source_bytes(self) -> int:
        """Of all tensors, in the checkpoint's own dtype."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values()) * self.source_bits // 8

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the checkpoint."""
        return self.checkpoint.tokenizer

    @property
    def length(self) -> int:
        """Tokens the model was trained to take at once."""
        return self.config.max_position_embeddings

    @property
    def head_width(self) -> int:
        """Channels of an attention head."""
        return getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads

    @property
    def blocks(self) -> int:
        """How many decoder layers there are."""
        return self.config.num_hidden_layers

    def provenance(self, tokens: str, convention: str, seed: int = 0) -> Provenance:
        """Where a record made from this model comes from.

        Args:
            tokens: Fingerprint of the token set.
            convention: How its windows were cut.
            seed: Of whatever is drawn at random.
        """
        versions = {"qarat": __version__, "torch": str(torch.__version__), "transformers": transformers.__version__}
        if self.runtime.kernels != REFERENCE:
            versions["kernels"] = self.runtime.kernels
        return Provenance(
            self.fingerprint, tokens, convention, versions, seed, self.runtime.dtype, self.checkpoint.source
        )

    def require_float(self, verb: str) -> None:
        """Refuse a model that is quantized already.

        Args:
            verb: What was about to be done, for the message.

        Raises:
            UserError: If it is.
        """
        if not self.is_float:
            raise UserError(f"cannot {verb} {self.path}: it is quantized already; begin from the float model")

    def with_blocks(self, load_block: Callable[[int], nn.Module]) -> Model:
        """The same model with another function that brings in blocks, each made anew at every call."""
        other = copy.copy(self)
        other._load_block, other.is_float, other._kept = load_block, False, {}
        return other

    def unkept(self) -> Model:
        """The same model, whose blocks are brought in anew each time, as are those of what is made from it."""
        other = copy.copy(self)
        other.keeps_blocks, other._kept = False, {}
        return other

    def with_transform(self, transform: Transform) -> Model:
        """This float model with a transform folded into each block as it is brought in."""
        self.require_float("transform")
        return self._as_kept(Model(self.checkpoint, self.runtime, transforms=(*self.transforms, transform)))

    def in_float32(self) -> Model:
        """This float model computed in float32, so that what is written of it is not rounded to a narrower dtype."""
        self.require_float("reopen")
        if self.runtime.dtype == "float32":
            return self
        runtime = msgspec.structs.replace(self.runtime, dtype="float32")
        return self._as_kept(Model(self.checkpoint, runtime, transforms=self.transforms))

    def _as_kept(self, made: Model) -> Model:
        """A model made from this one, which keeps no blocks where this one does not."""
        return made if self.keeps_blocks else made.unkept()

    def sites(self) -> tuple[Site, ...]:
        """Every site of the model, in the order of the forward pass."""
        return self._sites

    @property
    def inner_width(self) -> int:
        """Channels of the MLP's inner activation."""
        block = self._skeleton.get_submodule(f"{self.family.blocks}.0")
        return cast(nn.Linear, block.get_submodule(self.family.reader(Role.DOWN_INPUT))).in_features

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every tensor of the float model, in model order; a tied head is not repeated."""
        state = self._skeleton.state_dict()
        if self.config.tie_word_embeddings:
            state.pop(f"{self.family.head}.weight", None)
        return {name: tuple(value.shape) for name, value in state.items()}

    def outside(self) -> dict[str, Tensor]:
        """The tensors outside the blocks, by name: embedding, norm and head; some in the dtype they are stored in."""
        blocks = f"{self.family.blocks}."
        return {name: value for name, value in self._skeleton.state_dict().items() if not name.startswith(blocks)}

    def empty_block(self, index: int) -> nn.Module:
        """A fresh copy of a block on the meta device, weights still to be assigned."""
        block = copy.deepcopy(self._skeleton.get_submodule(f"{self.family.blocks}.{index}"))
        if self.family.block is not None:
            block.__class__ = self.family.block
        if self._rotation is not None:
            home = self.family.reader(Role.DOWN_INPUT).rpartition(".")[0]
            setattr(block, home, RotatedMlp(block.get_submodule(home), self._rotation))
        return block

    def load_float_block(self, index: int) -> nn.Module:
        """Read one block's weights from the checkpoint, cast to the runtime's dtype, transforms folded in.

        Raises:
            UserError: Tensors missing, too many or of other shapes (all of them), or NaN or Inf in a weight.
        """
        block = self.empty_block(index)
        prefix = f"{self.family.blocks}.{index}."
        state = self.checkpoint.read(prefix, self._stored, self.runtime)
        for transform in self.transforms:
            if transform.fold is not None:
                state = transform.fold(index, state)
        block.load_state_dict(state, assign=True)
        return block.eval().requires_grad_(False)

    def block(self, index: int) -> nn.Module:
        """One block, from memory if it is kept there."""
        if index in self._kept:
            return self._kept[index]
        if not self.keeps_blocks:
            self._head = None
        block = (self._load_block or self.load_float_block)(index)
        if self.keeps_blocks:
            self._kept[index] = block
        return block

    def expect(self, index: int) -> None:
        """Have the bytes of a block that is not here brought from the disk while something else is done."""
        if 0 <= index < self.blocks and index not in self._kept:
            self.checkpoint.expect(f"{self.family.blocks}.{index}.")

    def forget_blocks(self) -> None:
        """Leave the memory of blocks to others; each is read again when it is asked for."""
        self._kept.clear()

    def block_bytes(self) -> int:
        """Memory of one block in the runtime's dtype."""
        size = torch.finfo(self.runtime.torch_dtype).bits // 8
        block = self._skeleton.get_submodule(f"{self.family.blocks}.0")
        return sum(p.numel() for p in block.parameters()) * size

    def embed(self, tokens: Tensor) -> Tensor:
        """Hidden states at the entrance of block 0.

        Args:
            tokens: (windows, length) token ids, one window a row.

        Returns:
            (windows, length, hidden) in the runtime's dtype.
        """
        return self._entrance.enter(tokens)

    def enter(self, batches: Sequence[Tensor]) -> Batches:
        """Hidden states at the entrance of block 0, as `hold` holds them; arguments as `hold` and `embed`."""
        return self.hold(map(self.embed, batches), batches)

    def hold(self, states: Iterable[Tensor], batches: Sequence[Tensor]) -> Batches:
        """Hidden states of some batches: on disk where they take more than a quarter of the memory bound.

        Args:
            states: (windows, length, hidden) each.
            batches: Their (windows, length) token ids.

        Raises:
            UserError: No room on disk.
        """
        size = sum(batch.numel() for batch in batches) * self.state_bytes
        return Batches(states, on_disk=size > self.memory // 4)

    @property
    def state_bytes(self) -> int:
        """Memory of one token's hidden states."""
        return self.config.hidden_size * self.runtime.torch_dtype.itemsize

    def run_block(self, index: int, block: nn.Module, hidden: Tensor, cache: Cache | None = None) -> Tensor:
        """Hidden states behind a block.

        Args:
            index: Of the block.
            block: From `block`, or any module that stands for it.
            hidden: (windows, length, hidden); of a shape that `embed` has seen or can be asked about.
            cache: Where the block's keys and values go, if they are wanted; with nothing of this block in it.

        Returns:
            Shape and dtype of ``hidden``.
        """
        arguments = self._entrance.arguments(index, (hidden.shape[0], hidden.shape[1]))
        output = block(hidden, **(arguments | {"past_key_values": cache}))
        return output[0] if isinstance(output, tuple) else output

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits from the hidden states behind the last block, float32, (…, vocabulary)."""
        normed = self._skeleton.get_submodule(self.family.norm)(hidden)
        if self._head is None:
            self._head = widened(self._skeleton.get_submodule(self.family.head), self.runtime.torch_dtype)
        return capped(self._head(normed), getattr(self.config, "final_logit_softcapping", None)).float()

    def walk(self, first: int = 0, *, backwards: bool = False) -> Iterator[tuple[int, nn.Module]]:
        """The blocks from ``first`` on, one in memory at a time unless all fit.

        Where they do not, a block is emptied when the next one is asked for: whoever walks has it in hand still, and
        two would be the peak. The system is asked for the next one's bytes while one is gone through, so that a slow
        disk is waited for only where it takes longer than the work.

        Args:
            first: Where to begin.
            backwards: Whether from the last block to ``first``.
        """
        step, end = (-1, first - 1) if backwards else (1, self.blocks)
        for index in range(self.blocks - 1 if backwards else first, end, step):
            block = self.block(index)
            self.expect(index + step)
            yield index, block
            if not self.keeps_blocks:
                block._modules.clear()

    def module(self) -> nn.Module:
        """The whole model as a transformers module, every block in place; it can `generate` and prints the truth."""
        family, dtype = self.family, self.runtime.torch_dtype
        embedding = widened(self._skeleton.get_submodule(family.embedding), dtype)
        head = widened(self._skeleton.get_submodule(family.head), dtype)
        if self.config.tie_word_embeddings:
            head._parameters["weight"] = embedding.get_parameter("weight")
        blocks = nn.ModuleList(self.block(index) for index in range(self.blocks))
        parts = {family.blocks: blocks, family.embedding: embedding, family.head: head}
        return with_parts(self._skeleton, parts).eval()
