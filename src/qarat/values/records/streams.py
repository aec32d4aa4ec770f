"""What one observing pass measured, stream by stream; the one record with arrays, and how they lie in its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.ground.summaries import Summarized
from qarat.values.fingerprints import brief
from qarat.values.records.origin import Provenance


class Peak(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the largest values of a stream.

    Attributes:
        value: Signed.
        window: Index of the window in the token set.
        position: Index of the token in its window; 0 is BOS where windows begin with it.
        token: Id of the token.
        text: The token as text.
        channel: Index along the stream's width.
    """

    value: float
    window: int
    position: int
    token: int
    text: str
    channel: int


class StreamStats(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one observing pass measured of one stream.

    Attributes:
        name: ``model.layers.1.down_in``.
        block: Index of the decoder layer.
        kind: Its role, `qarat.values.roles.Role`.
        width: Channels; for attention operands the length of a row.
        tokens: Rows seen.
        ratio: r, the maximum over the median of token-wise absolute maxima, averaged over windows.
        maximum: Largest magnitude.
        typical_maximum: Median token-wise absolute maximum, averaged over windows.
        median_energy: Mean square of the median token, averaged over windows.
        element_median: Median of all sampled magnitudes, from the histogram.
        peaks: The largest values, one a token at the most, descending.
        arrays: ``channel_min``, ``channel_max``, ``channel_square`` (means of squares), each (width,) float32, absent
            for attention probabilities; ``histogram`` of magnitudes, ``token_maxima`` and ``token_energies``, counts
            per bin of `ActivationStats.edges`, int64; ``position_maxima``, the token-wise absolute maximum at each
            position of a window, averaged over windows, (length,) float32.
    """

    name: str
    block: int
    kind: str
    width: int
    tokens: int
    ratio: float
    maximum: float
    typical_maximum: float
    median_energy: float
    element_median: float
    peaks: tuple[Peak, ...]
    arrays: dict[str, Tensor]


class ActivationStats(Summarized, msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one observing pass measured, per stream.

    Attributes:
        provenance: Model and calibration tokens.
        windows: Windows seen.
        length: Tokens of a window.
        sampled_windows: Windows whose elements went into the histograms of magnitudes, from the first on.
        edges: Bin edges of every histogram, (bins + 1,) float32, ascending, the first 0; `qarat.maths.histograms`.
        streams: By name.
        prefix: Ids of the tokens in front of every window that no statistic counts; a plan computes them in float.
    """

    provenance: Provenance
    windows: int
    length: int
    sampled_windows: int
    edges: Tensor
    streams: dict[str, StreamStats]
    prefix: tuple[int, ...] = ()

    def facts(self) -> dict[str, str]:
        """Of which model and tokens, and the stream whose tokens differ most."""
        shown = {"model": brief(self.provenance.model), "streams": f"{len(self.streams):,}"}
        shown["tokens"] = f"{self.windows:,} windows of {self.length:,}"
        if self.prefix:
            shown["left out in front"] = f"{len(self.prefix)} tokens"
        if self.streams:
            top = max(self.streams.values(), key=lambda s: s.ratio)
            shown["largest r"] = f"{top.ratio:.1f} ({top.name}, maximum {top.maximum:.4g})"
        return shown

    def stream(self, name: str) -> StreamStats:
        """The named stream's stats.

        Raises:
            UserError: If the pass did not observe it.
        """
        if name not in self.streams:
            raise UserError(f"these stats hold no stream {name}; profile the model again with the attention products")
        return self.streams[name]


def pack_arrays(stats: ActivationStats, header: str) -> bytes:
    """A safetensors file of the arrays, ``edges`` and ``stream/array``, with the JSON of all else as its metadata."""
    arrays = {f"{name}/{key}": value for name, stream in stats.streams.items() for key, value in stream.arrays.items()}
    arrays = {"edges": stats.edges, **arrays}
    return save({key: value.contiguous() for key, value in arrays.items()}, metadata={"qarat": header})


def read_arrays(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The header and the arrays of a file that `pack_arrays` made.

    Raises:
        UserError: No record, or a damaged file.
    """
    try:
        with cast(Any, safe_open(path, "pt")) as file:  # safetensors has no types
            metadata: dict[str, str] = file.metadata() or {}
            arrays: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}; make it again") from None
    if "qarat" not in metadata:
        raise UserError(f"{path} is a safetensors file, but no record")
    return metadata["qarat"], arrays


def put_arrays(body: dict[str, Any], arrays: Mapping[str, object]) -> None:
    """Put the arrays into the header's values, in the places that name them.

    Raises:
        KeyError: A place whose array is missing.
        TypeError: Arrays of no place.
    """
    body["edges"] = arrays["edges"]
    for stream, fields in body["streams"].items():
        fields["arrays"] = {k: arrays[f"{stream}/{k}"] for k in fields["arrays"]}
    if len(arrays) > 1 + sum(len(fields["arrays"]) for fields in body["streams"].values()):
        raise TypeError("it has arrays that its header does not name")
