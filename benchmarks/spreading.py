"""What workers gain on passes over windows: profile and prices by 1, 2 and 4 processes of one thread, or Ray's actors.

    python benchmarks/spreading.py smollm2-135m --text wiki.txt -o spreading.json
    python benchmarks/spreading.py smollm2-135m --text wiki.txt --workers 2 --ray nodes -o spreading-ray.json

Strong scaling: the same windows by more workers. Weak scaling: as many windows for each (`--weak`). Seconds of the wall
and of all processes' CPUs, and what starting the workers took. `--ray nodes` starts two separate Ray nodes here.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import resource
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from qarat.ground.runtime import Runtime
from qarat.jobs.replicas import Replica
from qarat.jobs.runners import open_runner
from qarat.jobs.runners.base import Runner
from qarat.jobs.runners.pool import Pool
from qarat.jobs.runners.processes import Processes
from qarat.jobs.spreading import Spread
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.model.tokens import TokenSet
from qarat.stages.observe import observe
from qarat.stages.prices.pricing import price
from qarat.values.parsing import parse_scheme
from qarat.values.records.files import encode_record

LOW = "w=int8/channel a=int8/tensor/static"


def cpu_seconds() -> float:
    """Of this process and those of its children that have ended."""
    used = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(each.ru_utime + each.ru_stime for each in used)


@contextmanager
def workers(count: int, ray: str | None) -> Iterator[Runner | None]:
    """So many workers; None for 0."""
    if count == 0:
        yield None
    elif ray is None:
        with closing(Pool(Processes(), count, share=count)) as pool:
            yield pool
    else:
        with _nodes() if ray == "nodes" else open_runner(count, ray) as runner:
            yield runner


@contextmanager
def _nodes() -> Iterator[Runner]:
    """Two actors on two Ray nodes of this machine, a processor each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    try:
        with open_runner(2, cluster.address) as runner:
            yield runner
    finally:
        cluster.shutdown()


def measure(name: str, tokens: TokenSet, count: int, ray: str | None) -> dict[str, Any]:
    """Profile and prices by so many workers."""
    row: dict[str, Any] = {"workers": count, "windows": len(tokens), "load": os.getloadavg()[0]}
    begun, used = time.perf_counter(), cpu_seconds()
    with workers(count, ray) as runner:
        model = open_model(name, Runtime("cpu", threads=1))
        model.fingerprint  # noqa: B018 (it is hashed here, not in what is timed)
        spread = None
        if runner is not None:
            started = time.perf_counter()
            list(runner.map(functools.partial(eval, "list"), list(range(count))))
            row["started"] = time.perf_counter() - started
            spread = Spread(runner, Replica(model, name))
        stats = _timed(row, "profile", lambda: observe(model, tokens, collect=spread and spread.collect))
        windows = spread and spread.prices
        menu = _timed(row, "damage", lambda: price(model, tokens, [parse_scheme(LOW)], stats, windows=windows))
        row["stats"], row["menu"] = (hashlib.sha256(encode_record(record)).hexdigest()[:12] for record in (stats, menu))
    row["wall"], row["cpu"] = time.perf_counter() - begun, cpu_seconds() - used
    return row


def _timed(row: dict[str, Any], what: str, work: Callable[[], Any]) -> Any:
    begun = time.perf_counter()
    result = work()
    row[what] = time.perf_counter() - begun
    return result


def main() -> None:
    """Measure, and write a row for each number of workers; 0 is one process alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", required=True)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--weak", action="store_true", help="so many windows for each worker")
    parser.add_argument("--ray")
    parser.add_argument("-o", type=Path, required=True)
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    torch.set_num_threads(1)
    model: Model = open_model(options.model)
    most = options.windows * (max(options.workers) if options.weak else 1)
    tokens = load_token_sets(model, calibration=options.text, samples=most, length=options.length)[0]
    rows: list[dict[str, Any]] = []
    for count in options.workers:
        windows = options.windows * (max(1, count) if options.weak else 1)
        rows.append(measure(options.model, tokens.part(slice(0, windows)), count, options.ray))
        print(json.dumps(rows[-1]), flush=True)
        options.o.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
