"""Text drawn from the model itself, and texts mixed by weight, as calibration."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.jobs.open_any import plan_low
from qarat.jobs.protecting import profile
from qarat.model import drawing
from qarat.model.drawing import draw_windows
from qarat.model.mixtures import Share, parse_mixture, share_out
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.token_sets import load_report_set, load_token_sets
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.testing import Architecture, tiny_checkpoint
from qarat.values.records.scores import paired_difference

Qarat = Callable[..., Any]


# ---------------------------------------------------------------- drawing


def test_windows_begin_as_the_rule_says_and_the_same_seed_gives_the_same(tiny_model: Model):
    bos = tiny_model.tokenizer.bos_token_id
    each, never = (draw_windows(tiny_model, 5, 12, rule, seed=3) for rule in ("each", "never"))  # type: ignore[arg-type]
    assert each.shape == never.shape == (5, 12)
    assert each.dtype == torch.int64
    assert each[:, 0].tolist() == [bos] * 5
    assert torch.equal(each, draw_windows(tiny_model, 5, 12, "each", seed=3))
    assert not torch.equal(each, draw_windows(tiny_model, 5, 12, "each", seed=4))
    assert len({tuple(row) for row in each.tolist()}) == 5  # drawn, not the likeliest tokens
    assert never.max() < len(tiny_model.tokenizer)


def test_windows_do_not_depend_on_which_are_drawn_beside_them(tiny_model: Model, monkeypatch: pytest.MonkeyPatch):
    together = draw_windows(tiny_model, 5, 12, "each")
    monkeypatch.setattr(drawing, "_CACHE", 1)
    assert torch.equal(together, draw_windows(tiny_model, 5, 12, "each"))


@pytest.mark.parametrize("architecture", ["llama", "opt", "gemma2", "qwen3"])
def test_tokens_are_drawn_from_the_models_own_distribution(architecture: Architecture, tmp_path: Path):
    """The uniform numbers of the seed find, in the float model's ordinary forward, the tokens that were drawn."""
    model = open_model(str(tiny_checkpoint(tmp_path / architecture, architecture=architecture)))
    windows = draw_windows(model, 3, 10, "each", seed=1)
    numbers = torch.rand(3, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hidden = model.embed(windows)
    for index, block in model.walk():
        hidden = model.run_block(index, block, hidden)
    sums = model.logits(hidden)[..., : len(model.tokenizer)].double().softmax(-1).cumsum(-1)  # type: ignore[arg-type]
    drawn = sums[:, :-1].gather(-1, windows[:, 1:, None])[..., 0]
    before = (sums - sums.diff(dim=-1, prepend=torch.zeros_like(sums[..., :1])))[:, :-1]
    before = before.gather(-1, windows[:, 1:, None])[..., 0]
    assert (before - 1e-5 <= numbers).all()
    assert (numbers <= drawn + 1e-5).all()


def test_progress_ends_whole(tiny_model: Model):
    told: list[tuple[str, int, int]] = []
    draw_windows(tiny_model, 2, 8, "each", progress=lambda *step: told.append(step))
    assert told[0] == ("draw calibration", 0, 16)
    assert told[-1] == ("draw calibration", 16, 16)


def test_a_model_larger_than_the_memory_bound_is_refused(tiny_llama: Path):
    with pytest.raises(UserError, match=r"token by token.*give more, or a text for `calibration`"):
        draw_windows(open_model(str(tiny_llama), Runtime(memory=1000)), 2, 8, "each")


def test_a_quantized_model_is_refused(tiny_model: Model, tiny_text: Path):
    tokens = load_token_sets(tiny_model, calibration=str(tiny_text), length=32, samples=2)[0]
    low = plan_low(tiny_model, "w=int8/channel", tokens)(tiny_model)
    with pytest.raises(UserError, match="cannot draw text from"):
        load_token_sets(low, calibration="self")


# ---------------------------------------------------------------- as a token set


def test_self_is_recorded_and_leaves_selection_and_report_as_they_are(tiny_model: Model):
    sets = load_token_sets(tiny_model, calibration="self", length=32, samples=4, report_samples=6)
    own = load_token_sets(tiny_model, length=32, samples=4, report_samples=6)
    assert sets[1:] == own[1:]
    assert sets[0].convention == "windows-32-bos self"
    assert sets[0].sources == ("self#1", "self#2", "self#3", "self#4")
    assert sets[0].fingerprint != own[0].fingerprint
    assert profile(tiny_model, sets[0], attention=False).provenance.convention == "windows-32-bos self"
    assert load_report_set(tiny_model, calibration="self", length=32, report_samples=6) == own[2]


def test_self_beside_a_selection_text_that_is_split(tiny_model: Model, tiny_text: Path):
    sizes = {"length": 32, "samples": 4, "report_samples": 6}
    sets = load_token_sets(tiny_model, calibration="self", selection=str(tiny_text), **sizes)  # type: ignore[arg-type]
    assert all(source.startswith("tiny/") for tokens in sets[1:] for source in tokens.sources)
    more = {"calibration": "self", "selection": str(tiny_text), **sizes}
    assert load_report_set(tiny_model, **more) == sets[2]  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [{"report": "self"}, {"selection": "mix:1=self,1=x.txt"}])
def test_choices_and_figures_need_real_text(given: dict[str, str], tiny_model: Model, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text("some text")
    texts = {"calibration": "self", "selection": "x.txt", "report": "x.txt"} | given
    with pytest.raises(UserError, match="self is for `calibration` alone: choices and figures need text"):
        load_token_sets(tiny_model, **texts)  # type: ignore[arg-type]


def test_self_with_a_report_alone_asks_for_the_selection(tiny_model: Model, tiny_text: Path):
    with pytest.raises(UserError, match="missing for: selection; with `calibration` self give it"):
        load_token_sets(tiny_model, calibration="self", report=str(tiny_text))


# ---------------------------------------------------------------- mixtures


def _file(path: Path, letter: str, documents: int = 8) -> str:
    path.write_text("".join(json.dumps({"text": f"{letter}{i} " * 60}) + "\n" for i in range(documents)))
    return str(path)


def test_a_mixture_has_windows_in_proportion_and_says_so(tiny_model: Model, tmp_path: Path):
    one, other = _file(tmp_path / "one.jsonl", "a"), _file(tmp_path / "other, too.jsonl", "b")
    mix = f"mix:3={one},1={other}"
    sets = load_token_sets(tiny_model, calibration=mix, length=32, samples=8, report_samples=12)
    for tokens, windows in zip(sets, (8, 8, 12), strict=True):
        homes = [source.partition("#")[0] for source in tokens.sources]
        assert (homes.count("one.jsonl"), homes.count("other, too.jsonl")) == (windows * 3 // 4, windows // 4)
        assert tokens.convention == "windows-32-bos mix:3=one.jsonl,1=other, too.jsonl"


def test_a_mixture_with_the_models_own_text(tiny_model: Model, tiny_text: Path):
    sets = load_token_sets(tiny_model, calibration=f"mix:1=self,1={tiny_text}", length=32, samples=4, report_samples=6)
    assert [source.partition("#")[0].partition("/")[0] for source in sets[0].sources] == ["self"] * 2 + ["tiny"] * 2
    assert all(source.startswith("tiny/") for tokens in sets[1:] for source in tokens.sources)


def test_a_text_too_short_for_its_share(tiny_model: Model, tmp_path: Path):
    one, other = _file(tmp_path / "one.jsonl", "a", documents=80), _file(tmp_path / "other.jsonl", "b", documents=8)
    with pytest.raises(UserError, match=r"other.jsonl holds \d+ windows, and its share of the 64 windows of the calib"):
        load_token_sets(tiny_model, calibration=f"mix:1={one},1={other}", length=32)
    with pytest.raises(UserError, match=r"other.jsonl has no share of the 4 windows of the calibration set"):
        load_token_sets(tiny_model, calibration=f"mix:100={one},1={other}", length=32, samples=4)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("mix:a.txt,b.txt", "'a.txt,b.txt' is no weight"),
        ("mix:3=a.txt", "no mixture of at least two"),
        ("mix:1=a.txt,2=a.txt", "no mixture of at least two"),
        ("mix:0=a.txt,1=b.txt", "'0=a.txt' is no weight above 0"),
        ("mix:nan=a.txt,1=b.txt", "'nan=a.txt' is no weight above 0"),
        ("mix:1=a.txt,inf=b.txt", "'inf=b.txt' is no weight above 0"),
        ("mix:1=,1=b.txt", "'1=' is no weight above 0"),
    ],
)
def test_what_is_no_mixture(name: str, wrong: str):
    with pytest.raises(UserError, match=wrong):
        parse_mixture(name)


def test_names_that_are_no_mixture_stay_as_they_are():
    for name in ("a.txt", "hub:me/data:train", "C:mix,1=2", "./mix:1=a"):
        assert parse_mixture(name) == (Share(1.0, name),)
    assert parse_mixture("mix:0.5=hub:me/data:train,2=./a=b.txt")[1] == Share(2.0, "./a=b.txt")


@pytest.mark.parametrize(
    ("total", "weights", "counts"), [(8, [3, 1], [6, 2]), (10, [1, 1, 1], [4, 3, 3]), (7, [0.2, 0.8], [1, 6])]
)
def test_whole_shares(total: int, weights: list[float], counts: list[int]):
    assert share_out(total, weights) == counts


# ---------------------------------------------------------------- on the command line


def test_self_on_the_command_line(qarat: Qarat, tiny_llama: Path, tmp_path: Path):
    sizes = ["--samples", "4", "--report-samples", "4", "--length", "32", "--threads", "1"]
    outs = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for out in outs:
        answer = qarat("profile", tiny_llama, "--calibration", "self", *sizes, "-o", out)
        assert answer.code == 0
        assert "windows-32-bos self" in answer.out
    assert outs[0].read_bytes() == outs[1].read_bytes()
    refused = qarat("profile", tiny_llama, "--calibration", "self", "--report-text", "self", *sizes)
    assert refused.code == 1
    assert "self is for --calibration alone" in refused.err
    dry = qarat("profile", tiny_llama, "--calibration", "self", *sizes, "--dry-run", "-o", tmp_path / "c.safetensors")
    assert dry.code == 0
    assert "4 windows of 32 tokens would be drawn first" in dry.err


# ---------------------------------------------------------------- what it is worth


@pytest.mark.slow
def test_scales_from_the_models_own_text_do_as_well_as_those_from_real_text():
    """ZSAQ's promise on py-64, W8A8 static: within one standard error of the loss that real text comes to."""
    model = open_model("py-64")
    calibration, _, report = load_token_sets(model, samples=8, report_samples=32)
    own = load_token_sets(model, calibration="self", samples=8, report_samples=32)[0]
    base = measure_perplexity(model, report, label="float")
    low = "w=int8/channel a=int8/tensor/static"
    real, self = (
        paired_difference(measure_perplexity(plan_low(model, low, tokens)(model), report, label="low"), base)
        for tokens in (calibration, own)
    )
    assert abs(self.nats - real.nats) < real.standard_error < real.nats
