"""A transformers model that is in memory already, opened like one on disk.

It is saved once into a temporary folder, which goes away with the checkpoint. So what is computed is what a folder
saved by hand would give, fingerprint and all; everything that reads tensors, headers or files beside the weights works
as it does elsewhere, and the caller's model may be changed or deleted afterwards. What is given up is as much disk as
the model takes in memory (under ``TMPDIR``), and a few seconds.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qarat.ground.disk import explained
from qarat.ground.runtime import Runtime
from qarat.model.checkpoints import Checkpoint
from qarat.model.model import Model
from qarat.model.opening import open_checkpoint


def wrap_model(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, runtime: Runtime | None = None) -> Model:
    """Open a float model that transformers holds in memory.

    Args:
        module: On any device, in its own dtype, which is that of the copy; left as it is.
        tokenizer: That belongs to it.
        runtime: Device, dtype and limits; default CPU, float32.

    Raises:
        UserError: Unsupported architecture, a model that is quantized already, or no room for the copy.
    """
    folder = Path(tempfile.mkdtemp(prefix="qarat-"))
    with explained(folder):
        try:
            module.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            checkpoint = Checkpoint(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    weakref.finalize(checkpoint, shutil.rmtree, folder, ignore_errors=True)
    return open_checkpoint(checkpoint, runtime or Runtime())
