"""`qarat bench` with real vLLM: a float folder beside its export, and a folder that vLLM refuses."""

import sys
from pathlib import Path
from typing import Any

import pytest

from qarat.ground.errors import UserError
from qarat.jobs.engine_process import EngineProcess
from qarat.jobs.engine_speed import time_folders
from qarat.values.engines import ENGINES
from qarat.values.requests.speed import SpeedRequest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

REQUEST = SpeedRequest(prompt_tokens=16, new_tokens=8, batches=(1, 2), turns=1, eager=True)
PROCESS = EngineProcess("vllm", Path(sys.executable), threads=1)


def test_a_float_folder_and_its_export_are_timed(exporting: Any) -> None:
    wide = {"hidden": 512, "intermediate": 1024, "vocabulary": 128}  # 11 MB of matrices in bfloat16
    export = exporting("w=int8/channel a=int8/tensor/static", **wide)
    names = [str(export.folder.parent / "float"), str(export.folder)]
    record = time_folders(names, PROCESS, REQUEST)
    assert record.version in ENGINES["vllm"].ran
    assert record.threads == 1
    for folder in record.folders:
        [turn] = folder.turns
        assert min(turn.load, *turn.prefill, *turn.decode) > 0
    measures = {m.name: m for m in record.measures(record.folders[1])}
    assert measures["weights [MB]"].ratios.median < 1


def test_a_refusal_is_vllms_own_beside_ours(exporting: Any) -> None:
    export = exporting("w=int8/channel")
    with pytest.raises(UserError, match=r"(?s)did not run .*not supported by CPUWNA16") as refused:
        time_folders([str(export.folder)], PROCESS, REQUEST)
    assert "qarat verify, warning: packed int: where there is AVX-512, 4 bits alone" in str(refused.value)
