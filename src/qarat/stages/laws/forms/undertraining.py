"""Ouyang et al.'s law: low-bit quantization favours undertrained models."""

from qarat.stages.laws.forms.base import MEAN_BITS, Form, Published, Term

FORM = Form(
    title="undertraining law: size, tokens and bits",
    equation="δ = k · D^β / (N^α · P^γ), N without embeddings",
    source="Ouyang et al., arXiv 2411.17691",
    terms=(Term("β", "tokens", "log"), Term("α", "size", "log", -1), Term("γ", "bits", "log", -1)),
    prefactor="k",
    needs={"tokens": 2, "size": 2, "bits": 2},
    points=6,
    mixed=MEAN_BITS,
    transfers="AWQ and bitsandbytes give similar shapes with other constants",
    published=(
        Published(
            values={"k": 0.017, "β": 0.5251, "α": 0.2261, "γ": 5.4967},
            domain={"size": (160e6, 12e9), "bits": (2.0, 4.0)},
            note="GPTQ on Pythia checkpoints; N without embeddings",
        ),
    ),
)
