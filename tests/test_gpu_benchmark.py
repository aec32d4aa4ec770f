"""`benchmarks/gpu.py`, which nobody has run on a GPU, runs to its end on a CPU: each part finds what it is to find."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(out: Path, *parts: str) -> subprocess.CompletedProcess[str]:
    words = ["--device", "cpu", "--small", "--threads", "1", "--parts", *parts, "-o", str(out)]
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)


def test_every_part_finds_something(tmp_path: Path) -> None:
    answer = run(tmp_path / "gpu.json", "equal", "observing", "kernels", "shape")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert len(found["equal"]) == 11
    assert all(row["met"] for row in found["equal"])
    assert max(row["difference"] for row in found["equal"]) > 0  # another algorithm of attention, so another side
    assert {row["what"] for row in found["observing"]} == {"observe / plain", "observe, no attention / plain"}
    assert {row["what"] for row in found["kernels"]} >= {"bfloat16", "int8 product", "int8 projection"}
    assert {(row["what"], row["blocks"]) for row in found["shape"]} == {
        (step, depth) for step in ("checkpoint", "profile", "damage", "plan", "quantize", "export") for depth in (1, 2)
    }
    assert "beyond their bounds: none" in answer.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_it_says_so() -> None:
    answer = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert answer.returncode == 1
    assert "no CUDA device; --device cpu --small" in answer.stderr
