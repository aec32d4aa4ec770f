"""What a study holds at once: of many models one after the other, never all their blocks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from qarat.testing import tiny_checkpoint

GROWTH = """
import sys
from pathlib import Path

from qarat.ground.runtime import Runtime, no_progress
from qarat.jobs.estimates import estimate
from qarat.jobs.folder import Run
from qarat.jobs.spike_study.job import SpikeJob
from qarat.jobs.spike_study.worlds import SpikeTokens
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.values.requests.spike_study import SpikeRequest

def tokens(name, seed):
    ids = torch.randint(2, 98, (2, 32), generator=torch.Generator().manual_seed(seed))
    return TokenSet(name, "windows-32-nobos", ids, ("a", "b"), (str(seed) * 64,), (name,))


model = open_model(sys.argv[1], Runtime(threads=1, memory=4 << 30))
sets = SpikeTokens(*map(tokens, ("calibration", "selection", "report"), range(3)), {}, None, ())
asked = {"arms": ("method",), "methods": ("smooth-all", "hadamard"), "settings": ("8/channel/static",)}
job = SpikeJob(model, sets, SpikeRequest("quick", sites=("1.down",), **asked), name="m", seed=0, progress=no_progress)
run = Run(Path(sys.argv[2]), "spike-study")
run.begin()
before, foreseen = peak(), estimate(job.model, {}, states=0, disk=0, held=job.memory()).memory_bytes >> 20
job.execute(run)
print(peak() - before, model.block_bytes() * model.blocks >> 20, peak(), foreseen)
"""


def test_models_that_follow_one_another_leave_nothing_behind(
    tmp_path: Path, printed_by: Callable[..., list[int]]
) -> None:
    """Seven transformed models, and as many quantized ones: of those one alone is held whole, to continue a prompt.

    And what a dry run says of memory is true.
    """
    wide = tiny_checkpoint(tmp_path / "wide", hidden=256, intermediate=4096, blocks=6)
    grown, blocks, peak, foreseen = printed_by(GROWTH, wide, tmp_path / "s")
    assert grown < 3 * blocks
    assert foreseen == pytest.approx(peak, rel=0.2)
