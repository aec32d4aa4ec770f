"""Published figures of known checkpoints, to be set beside a study's own.

Only what a public source states, each with that source and its scheme. None is of the paper this study follows
(arXiv 2504.21553): its tables could not be recovered. Conventions differ between sources, so compare differences and
factors, and those only where the float perplexities agree.
"""

from __future__ import annotations

from typing import NamedTuple

CAVEAT = "None is the first paper's (arXiv 2504.21553), whose tables could not be recovered; conventions differ."
"""What published figures are not."""


class PublishedResult(NamedTuple):
    """One published figure.

    Attributes:
        model: Checkpoint, as models are commonly named.
        what: PublishedResult and scheme.
        value: As printed.
        source: Whose, and where it was read.
    """

    model: str
    what: str
    value: str
    source: str


class PublishedResults(NamedTuple):
    """Published figures.

    Attributes:
        rows: In an order to be read.
    """

    rows: tuple[PublishedResult, ...]


_QFEM = "QFeM, github.com/onnoo/activation-spikes"
_CUSHION = "Son et al., EMNLP 2024 (relayed)"
_SMOOTH = "mit-han-lab/smoothquant README"
_DUQUANT = "DuQuant, arXiv 2406.01721"
_R = "r of the inputs above 64"
_STATIC = "WikiText2 perplexity, W8A8, inputs per tensor static"
_W8 = "WikiText2 perplexity, W8A8 per channel and token, SmoothQuant"
_W6 = "WikiText2 perplexity, W6A6 per channel and token"

PUBLISHED = PublishedResults(
    (
        PublishedResult("Llama-2-7B", _R, "1.down 4136, 30.down 139", _QFEM),
        PublishedResult("Llama-2-13B", _R, "3.down 1290, 0.down 108", _QFEM),
        PublishedResult("Llama-2-70B", _R, "8.down 7300, 2.down 1033, 12.down 137", _QFEM),
        PublishedResult("Llama-3-70B", _R, "3.down 2033, 0.down 570, 3.up+gate 78", _QFEM),
        PublishedResult("Mistral-7B-v0.1", _R, "1.down 3866, 31.down 68", _QFEM),
        PublishedResult("SOLAR-10.7B", _R, "1.down 5348", _QFEM),
        PublishedResult("Llama-2-7B", _STATIC, "naive 9250.33, SmoothQuant 15439.73, a prefix instead 5.98", _CUSHION),
        PublishedResult("Llama-3-8B", _STATIC, "naive 9759.46, SmoothQuant 14022.91, a prefix instead 7.41", _CUSHION),
        PublishedResult("Mistral-7B-v0.1", _STATIC, "naive 85.51, SmoothQuant 618.27, a prefix instead 5.84", _CUSHION),
        PublishedResult(
            "Llama-2-13B",
            "perplexity, W8A8, inputs per tensor dynamic",
            "naive 34.09, SmoothQuant 34.87, spiking modules freed and a prefix 5.13",
            "QFeM, arXiv 2405.14428 (relayed)",
        ),
        PublishedResult("Llama-2-7B", _W8, "5.515", _SMOOTH),
        PublishedResult("Llama-2-13B", _W8, "4.929", _SMOOTH),
        PublishedResult("Llama-3-8B", _W8, "6.258", _SMOOTH),
        PublishedResult("Mistral-7B", _W8, "5.277", _SMOOTH),
        PublishedResult("Llama-2-7B", _W6, "SmoothQuant 6.20, OmniQuant 5.87, DuQuant 5.53 (float 5.47)", _DUQUANT),
        PublishedResult("Llama-2-13B", _W6, "SmoothQuant 5.18, OmniQuant 5.14, DuQuant 4.92 (float 4.88)", _DUQUANT),
        PublishedResult("Llama-3-8B", _W6, "SmoothQuant 7.07, OmniQuant 7.24, DuQuant 6.27 (float 6.14)", _DUQUANT),
    )
)


def published_of(name: str) -> PublishedResults:
    """The figures of a checkpoint, by the name it was opened by.

    Args:
        name: A folder, or a hub id.
    """
    said = name.rstrip("/").rpartition("/")[2].casefold().replace("_", "-")
    plain = said.removeprefix("meta-").removesuffix("-hf")  # not -chat or -instruct: those are other weights
    return PublishedResults(
        tuple(row for row in PUBLISHED.rows if plain in (row.model.casefold(), f"{row.model.casefold()}-v0.1"))
    )
