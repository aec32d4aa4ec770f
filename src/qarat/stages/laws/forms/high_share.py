"""The weak law with a power of the share left high in the place of the exponential of Q_r: ours.

Plans leave the dearest units to the last, so the loss does not grow by the same factor for every tenth of the
parameters that goes low, as the weak law has it: the last tenth costs most. d keeps the loss finite where nothing is
left high.
"""

from qarat.stages.laws.forms import weak
from qarat.stages.laws.forms.base import Form, Term

_SIZE = weak.FORM.terms[1]

FORM = Form(
    title="power of the share left high: size and ratio",
    equation="δ = C · (1 − Q_r + d)^(−κ) · N^(−γ_N), d ≥ 0",
    source="ours, for plans that leave the dearest units to the last; the size's part is the weak law's",
    terms=(Term("κ", "ratio", "log-share", -1, offset="d"), _SIZE),
    prefactor="C",
    needs={"size": 2, "ratio": 3},
    points=6,
    transfers=weak.FORM.transfers,
)
