"""What a family is: the names of a model's parts and the streams between them."""

from __future__ import annotations

import msgspec

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
    """

    architectures: tuple[str, ...]
    blocks: str
    embedding: str
    rotary: str
    norm: str
    head: str
    attention: str
    streams: tuple[Stream, ...]

    @property
    def projections(self) -> tuple[str, ...]:
        """Every projection of a block, in the order of the forward pass."""
        return tuple(reader for stream in self.streams for reader in stream.readers)

    def reader(self, role: Role) -> str:
        """The projection that reads the stream of a role; of several the first."""
        return next(stream.readers[0] for stream in self.streams if stream.role == role)
