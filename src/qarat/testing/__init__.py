"""What tests share: tiny models and texts, made in memory, and checks that an extension keeps its promises.

No download, no GPU, a fraction of a second each. What somebody adds in one file (a family, a rounding, a form of a
law, …) is held to what the rest of qarat relies on by the check of its kind, here or in a test of one's own. Whether it
mixes tensors of the CPU with those of a GPU shows on a CUDA device that is pretended.
"""

from qarat.testing.extensions import check_kernel, check_metric, check_rounding, check_transform
from qarat.testing.models import Architecture, plant_spike, tiny_checkpoint, tiny_documents, tiny_tokenizer
from qarat.testing.parts import check_exporter, check_family, check_law_form
from qarat.testing.pretended import pretended_cuda

__all__ = [
    "Architecture",
    "check_exporter",
    "check_family",
    "check_kernel",
    "check_law_form",
    "check_metric",
    "check_rounding",
    "check_transform",
    "plant_spike",
    "pretended_cuda",
    "tiny_checkpoint",
    "tiny_documents",
    "tiny_tokenizer",
]
