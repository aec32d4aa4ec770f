"""Static scales: from what the calibration pass saw of a stream to the scales of an input quantized with them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.maths.scales import static_scales
from qarat.maths.tiles import Scales
from qarat.values.fingerprints import brief
from qarat.values.records.streams import ActivationStats
from qarat.values.roles import Role
from qarat.values.schemes import Scheme, TensorScheme


def reach_of(stats: ActivationStats, stream: str) -> Tensor:
    """Largest magnitude of each channel of a stream, (channels,) float32.

    Raises:
        UserError: If the stats hold no stream of that name.
    """
    seen = stats.stream(stream).arrays
    return torch.maximum(-seen["channel_min"], seen["channel_max"])


def static_operands(streams: tuple[str, ...], scheme: Scheme) -> list[tuple[str, TensorScheme]]:
    """The streams of a site of which stats are needed, each with the scheme it is under.

    Args:
        streams: Of the site, in the order of its operands.
        scheme: Of the site; the number of its operands must be that of the streams.
    """
    return [(name, s) for name, s in zip(streams, scheme.operands(), strict=True) if s is not None and s.needs_stats]


def check_static(
    needed: Iterable[tuple[str, TensorScheme]],
    stats: ActivationStats | None,
    model: str,
    prefix: tuple[int, ...] = (),
) -> None:
    """Check that the stats can give every static scale, before any long work.

    Args:
        needed: Streams, each with the static scheme it is under.
        stats: Of the float model on the calibration tokens; None if there are none.
        model: Fingerprint of the float model.
        prefix: Ids of the tokens that stay in float, which the stats must have left out.

    Raises:
        UserError: No stats, those of another model or with another prefix; or listing every stream that is missing or
            cannot serve.
    """
    pairs = list(dict.fromkeys(needed))
    if stats is not None and stats.provenance.model != model:
        raise UserError(f"these stats are of another model ({brief(stats.provenance.model)}, this is {brief(model)})")
    if not pairs:
        return
    if stats is None:
        streams = len({name for name, _ in pairs})
        raise UserError(f"static scales need stats, here of {streams} streams; run `qarat profile`")
    if stats.prefix != prefix:
        raise UserError(
            f"with the prefix {list(prefix)} in float, static scales need stats that leave these tokens out; these "
            f"leave out {list(stats.prefix)}: profile again with `prefix` {len(prefix)}"
        )
    if missing := sorted({name for name, _ in pairs} - stats.streams.keys()):
        listed = "\n  ".join(missing)
        raise UserError(
            f"the stats lack streams with static scales; profile again with the attention products:\n  {listed}"
        )
    offences: list[str] = []
    for name, scheme in pairs:
        try:
            static_scales_of(stats, name, scheme)
        except UserError as error:
            offences.append(f"{name}: {error}")
    if offences:
        raise UserError("static scales that these stats cannot give:\n  " + "\n  ".join(offences))


def static_scales_of(stats: ActivationStats | None, stream: str, scheme: TensorScheme, device: str = "cpu") -> Scales:
    """The scales of a static input, or those of a cache's channels, from the calibration stats.

    Args:
        stats: Of the float model on the calibration tokens.
        stream: Name of the stream.
        scheme: That needs stats.
        device: Where the input is; stats are on the CPU.

    Raises:
        UserError: If the stats lack the stream, or cannot give scales of this granularity.
    """
    if stats is None:
        raise UserError(f"{stream}: static scales need stats; run `qarat profile`")
    seen = stats.stream(stream)
    if seen.kind in (Role.PROBABILITIES, Role.VALUES) and scheme.granularity.cols is not None:
        # Of this product the groups run along the tokens that are summed over; channels say nothing of them.
        raise UserError("static groups would run along tokens, which are not known beforehand; use tensor/static")
    if "channel_min" in seen.arrays:
        low, high = seen.arrays["channel_min"], seen.arrays["channel_max"]
    else:
        # Attention probabilities: only their overall range is kept, and they are never negative.
        low, high = torch.zeros(1), torch.tensor([seen.maximum])
    if scheme.two_dimensional:
        return channel_scales(low, high).to(device)
    return static_scales(low, high, seen.arrays["histogram"], stats.edges, scheme).to(device)


def channel_scales(channel_min: Tensor, channel_max: Tensor) -> Scales:
    """The shift and scale that take each channel of a cache to the range from -1 to 1 (WKVQuant, arXiv 2402.12065).

    With m and M a channel's extremes, the shift is (M + m) / 2 and the scale (M - m) / 2; 1 where they are the same.

    Args:
        channel_min: (cols,) float32, least value of each channel.
        channel_max: (cols,) float32, greatest value of each channel.
    """
    half = (channel_max - channel_min) / 2
    middle = (channel_max + channel_min) / 2
    return Scales(torch.where(half > 0, half, 1.0)[None], shift=middle[None])
