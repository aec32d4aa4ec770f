"""What only reads, lists or refuses is quick: which of the heavy libraries a verb imports, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import contextlib, io, json, sys
from pathlib import Path

HEAVY = (
    "torch transformers safetensors scipy pandas altair vl_convert lm_eval numpy yaml rich.progress typeguard".split()
)
from qarat.surfaces.cli import main

imported = {}
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = main(words)
    imported[" ".join(words)] = [code, [name for name in HEAVY if name in sys.modules]]
print(json.dumps(imported))
"""
LIGHT = {
    "--help": 0,
    "help law": 0,
    "rum": 2,
    "run --sample 3": 2,
    "run --help": 0,
    "search --help": 0,
    "export --help": 0,
    "models": 0,
    "models --json": 0,
    "law forms": 0,
    "law data": 0,
    "law data t1": 0,
    "law data py": 0,
    "show plan.json": 0,
    "show plan.json --json": 0,
    "show none.json": 1,
    "show plan.json --low w=int9": 1,
    "completion bash": 0,
    "run --low w=int9": 1,
    "run --budget 1%": 1,
    "run --memory lots": 1,
    "run --threads 100000": 2,
    "run --samples 1000000000": 1,
    "run --seed -1": 1,
    "run --length 1": 1,
    "run nowhere": 1,
    "run plan.json": 1,
    "run -o /proc/none/out": 1,
    "search --budget 1%": 1,
    "search --workers 0": 2,
    "sweep --keep lots": 1,
    "study ratio --ratios 2": 1,
    "study spikes --arms all": 1,
    "study calibration --low w=int9": 1,
    "study calibration --tests none.txt": 1,
    "study calibration --tests self": 1,
    "run --calibration mix:2=py-64": 1,
    "advise --engine vlm": 1,
    "run --export onx": 1,
    "export nowhere": 1,
    "verify nowhere": 1,
    "verify .": 1,
    "profile .": 1,
    "damage --schemes w=int9": 1,
    "profile -o plan.json": 1,
    "profile --transform-stats none": 1,
    "run --calibration none.txt": 1,
    "run --report-text .": 1,
    "damage": 1,
    "damage --metrics none": 1,
    "plan": 1,
    "plan --stats plan.json": 1,
    "quantize": 1,
    "quantize --plan plan.json --stats none": 1,
    "evaluate --against nowhere": 1,
    "evaluate --limit 3": 2,
    "evaluate --convention windows-64-bos --calibration plan.json": 2,
    "compare py-64": 2,
    "compare py-64 nowhere": 1,
    "compare py-64 none.json": 1,
    "compare py-64 w=int9": 1,
    "bench nowhere": 1,
    "bench py-64 --engine vlm": 1,
    "report none.json": 1,
    "show": 2,
    "sweep nowhere": 1,
    "study spikes --other-calibration none.txt": 1,
    "verify nowhere --live vlm": 1,
    "verify nowhere --engine-python none": 2,
    "verify py-64 --live vllm --against nowhere": 1,
}
ARITHMETIC = {
    "law predict undertraining --size 7B --tokens 2T --bits 4": 0,
    "show law.json": 0,
    "show law.json --json": 0,
}
"""With numpy, which they answer with, and nothing heavier."""


def test_reading_listing_and_refusing_import_nothing_heavy(tmp_path: Path) -> None:
    write = """
from pathlib import Path
from qarat.stages.laws.prediction import published_law
from qarat.values.plans import assign
from qarat.values.records.files import encode_record
from qarat.values.schemes import LOW
from qarat.values.sites import Site
sites = [Site("model.layers.0.mlp.down_proj", 0, "projection", ("model.layers.0.down_in",), (8, 8))]
Path("plan.json").write_bytes(encode_record(assign("f" * 64, 16, sites, LOW)))
Path("law.json").write_bytes(encode_record(published_law("undertraining")))
"""
    subprocess.run([sys.executable, "-c", write], check=True, cwd=tmp_path)
    words = json.dumps([line.split() for line in (*LIGHT, *ARITHMETIC)])
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT, words], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    expected = {line: [code, []] for line, code in LIGHT.items()}
    expected |= {line: [code, ["numpy"]] for line, code in ARITHMETIC.items()}
    assert json.loads(answer.stdout.splitlines()[-1]) == expected
