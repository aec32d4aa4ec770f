"""The power of the share left high times a power of the block size: ours, as the strong law extends the weak one."""

from qarat.stages.laws.forms import high_share
from qarat.stages.laws.forms.base import Form, Term

FORM = Form(
    title="power of the share left high: size, ratio and block size",
    equation="δ = C · (1 − Q_r + d)^(−κ) · N^(−γ_N) · Q_b^γ_c, d ≥ 0",
    source="ours: `high-share` with the block's power of Law 2",
    terms=(*high_share.FORM.terms, Term("γ_c", "block", "log")),
    prefactor="C",
    needs={"size": 2, "ratio": 3, "block": 2},
    points=8,
    transfers=high_share.FORM.transfers,
)
