"""What a study holds at once: of many models one after the other, never all their blocks."""

import subprocess
import sys
from pathlib import Path

import pytest

from qarat.testing import tiny_checkpoint

GROWTH = """
import sys
from pathlib import Path

import torch

from qarat.ground.runtime import Runtime, no_progress
from qarat.jobs.estimates import estimate
from qarat.jobs.folder import Run
from qarat.jobs.spike_study.job import SpikeJob
from qarat.jobs.spike_study.worlds import SpikeTokens
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.values.requests.spike_study import SpikeRequest


def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def tokens(name, seed):
    ids = torch.randint(2, 98, (2, 32), generator=torch.Generator().manual_seed(seed))
    return TokenSet(name, "windows-32-nobos", ids, ("a", "b"), (str(seed) * 64,), (name,))


torch.set_num_threads(1)
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


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read as Linux tells it")
def test_models_that_follow_one_another_leave_nothing_behind(tmp_path: Path) -> None:
    """Seven transformed models, and as many quantized ones: of those one alone is held whole, to continue a prompt.

    And what a dry run says of memory is true.
    """
    wide = tiny_checkpoint(tmp_path / "wide", hidden=256, intermediate=4096, blocks=6)
    words = [sys.executable, "-c", GROWTH, str(wide), str(tmp_path / "s")]
    answer = subprocess.run(words, check=True, capture_output=True, text=True)
    grown, blocks, peak, foreseen = map(int, answer.stdout.split())
    assert grown < 3 * blocks
    assert foreseen == pytest.approx(peak, rel=0.2)
