"""What a family is: the names of a model's parts and the streams between them."""

from __future__ import annotations

import msgspec
from torch import nn

from qarat.values.roles import Role


class Stream(msgspec.Struct, frozen=True):
    """One activation tensor of a block that projections read.

    Attributes:
        role: What it is to the block; one of `qarat.values.roles.INPUTS`.
        readers: The projections that read it, by their name inside the block.
        source: The module whose output channels could be rescaled in the readers' stead; empty if there is none.
        fused: Whether engines merge the readers into one product, so that they must share a scheme.
    """

    role: Role
    readers: tuple[str, ...]
    source: str = ""
    fused: bool = False

    @property
    def name(self) -> str:
        """As names of streams end: ``down_in``."""
        return self.role.value


class Gguf(msgspec.Struct, frozen=True):
    """How GGUF files hold the models of a family.

    Attributes:
        architecture: As ``general.architecture`` names it.
        model_type: As transformers' config does.
        named: What the model's name holds, where families share an architecture; empty for that of all others.
        paired_rows: Whether rows of q and k are in the order of a rotary embedding that turns neighbours, not halves.
        fields: Of the config, beyond those that all have, to what stands behind the architecture's name.
        fixed: Fields of the config that no file says, and what llama.cpp runs.
        query_width: Of models known by their number of blocks, what the scores are divided by the root of; in all
            others that is the width of a head. No file says it.
    """

    architecture: str
    model_type: str
    named: str = ""
    paired_rows: bool = False
    fields: dict[str, str] = {}
    fixed: dict[str, None] = {}
    query_width: dict[int, int] = {}


class Family(msgspec.Struct, frozen=True):
    """The wiring of one architecture; names are paths inside the transformers model.

    Attributes:
        architectures: As ``config.json`` names them.
        blocks: The list of decoder layers.
        embedding: Token embedding.
        rotary: Module that computes position embeddings once for all blocks; empty where positions are embedded.
        norm: Norm behind the last block.
        head: Projection onto the vocabulary.
        attention: The attention module inside a block, home of the products `qk` and `av`.
        streams: Activation tensors that projections read, in the order of the forward pass.
        block: Class of the decoder layers, where transformers' own do not show streams as (windows, tokens, channels);
            it has the same parts.
        norm_offset: What a norm adds to its weight before it multiplies; 1 where a weight of 0 changes nothing.
        inner_width: The config's field that says how wide the MLP's inner activation is.
        gguf: How GGUF files hold them; None where they are not read.
    """

    architectures: tuple[str, ...]
    blocks: str
    embedding: str
    rotary: str
    norm: str
    head: str
    attention: str
    streams: tuple[Stream, ...]
    block: type[nn.Module] | None = None
    norm_offset: float = 0.0
    inner_width: str = "intermediate_size"
    gguf: Gguf | None = None

    @property
    def projections(self) -> tuple[str, ...]:
        """Every projection of a block, in the order of the forward pass."""
        return tuple(reader for stream in self.streams for reader in stream.readers)

    def stream(self, role: Role) -> Stream:
        """The stream of a role."""
        return next(stream for stream in self.streams if stream.role == role)

    def reader(self, role: Role) -> str:
        """The projection that reads the stream of a role; of several the first."""
        return self.stream(role).readers[0]
