"""The verb `study spikes` on a tiny model with a planted spike: all of it, killed and continued, and bad input."""

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qarat.ground.runtime import no_progress
from qarat.jobs.folder import Run
from qarat.jobs.protecting import profile
from qarat.jobs.rewriting import fit_asked, reaching
from qarat.jobs.spike_study.arm_meter import TOGETHER
from qarat.jobs.spike_study.comparisons import ablated
from qarat.jobs.spike_study.job import SpikeJob
from qarat.jobs.spike_study.verdicts import verdict_lines
from qarat.jobs.spike_study.worlds import SpikeTokens
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.stages.choose.trials import Answer, TrialLog
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.quantize import quantize
from qarat.stages.transforms import parse_transform
from qarat.surfaces.page.document import assemble, document
from qarat.surfaces.page.parts import figures_in
from qarat.surfaces.page.story import gather
from qarat.surfaces.page.verdict import verdict
from qarat.testing import plant_spike, tiny_checkpoint
from qarat.values.plans import Plan, assign
from qarat.values.records.files import content_hash, decode_record
from qarat.values.records.prices import Menu
from qarat.values.records.scores import Continuations
from qarat.values.records.spike_study import MAIN, SpikeStudy
from qarat.values.records.streams import ActivationStats
from qarat.values.requests.protect import ProtectRequest
from qarat.values.requests.spike_study import SpikeRequest
from qarat.values.schemes import LinearScheme

Qarat = Callable[..., Any]
SITE = "model.layers.1.mlp.down_proj"
KINDS = ("naive", "protected")
KILLED = 9  # arms after which a study is killed


@pytest.fixture(scope="module")
def spiking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("models") / "spiking", hidden=64, intermediate=96)
    return plant_spike(folder, 1, 3, 4096.0)


def studied(qarat: Qarat, model: Path, small: list[str], out: Path, *words: object) -> SpikeStudy:
    answer = qarat("study", "spikes", model, *small, "-o", out, "--quick", *words)
    assert answer.code == 0, answer.err
    assert "written" in answer.out
    return decode_record(out / "spike-study.json", SpikeStudy)


def test_every_arm_of_a_quick_study(
    qarat: Qarat, spiking: Path, tiny_text: Path, small: list[str], tmp_path: Path
) -> None:
    other = ("--other-calibration", Path(__file__).parents[3] / "LICENSE")
    methods = ("--methods", "smooth", "llm-int8", "hadamard", "split/32", "rewrite", "clip-mse", "prefix")
    study = studied(qarat, spiking, small, tmp_path / "s", *other, *methods)
    assert study.sites[0] == SITE
    assert not study.missing
    assert len({a.name for a in study.arms}) == len(study.arms)
    assert not [a for a in study.arms if a.failure]
    assert {a.group for a in study.arms} == {
        "naive", "protection", "control", "order", "method", "ablation", "bos", "calibration",
    }  # fmt: skip
    assert study.floats.keys() == {MAIN, "BOS once", "BOS never"}
    naive, protected = study.find(study.main, "naive"), study.find(study.main, "protected")
    assert naive is not None
    assert protected is not None
    model = open_model(str(spiking))
    sets = load_token_sets(model, calibration=str(tiny_text), length=32, samples=4, report_samples=6)
    calibration, selection, report = sets
    stats = decode_record(tmp_path / "s" / "stats.safetensors", ActivationStats)
    plan = assign(model.fingerprint, 32, model.sites(), study.main, stats=content_hash(stats))
    kept = plan.with_schemes(dict.fromkeys(study.sites, LinearScheme()), "protected")
    for arm, chosen in ((naive, plan), (protected, kept)):
        measured = measure_perplexity(quantize(model, chosen, stats), report, label=arm.label)
        assert arm.nats == pytest.approx(measured.nats, rel=1e-6)
    assert study.floats[MAIN].nats == pytest.approx(measure_perplexity(model, report, label="float").nats, rel=1e-6)
    assert naive.bits == pytest.approx(plan.bits_per_weight())
    parameters = {s.name: s.parameters for s in model.sites()}
    assert protected.share == pytest.approx(sum(map(parameters.get, study.sites)) / sum(parameters.values()))  # type: ignore[arg-type]

    smooth = study.find(study.main, "smooth")
    assert smooth is not None
    assert smooth.transforms[0].startswith("smooth/0.")
    asked = ProtectRequest(reaching(study.main))
    rewrite, fitted = fit_asked("rewrite", model, asked, stats, selection, seed=0, progress=no_progress)
    for label, text, made_from in (("rewrite", rewrite, fitted), ("split/32", "split/32", stats)):
        arm = study.find(study.main, f"{label} + protected")
        assert arm is not None
        assert arm.transforms == (text,)
        assert arm.scheme == (asked.low if label == "rewrite" else study.main)
        assert arm.note.endswith("into 32 more" if label == "split/32" else f"fitted to damage under {asked.low}")
        changed = parse_transform(text).apply(model, made_from)
        seen = profile(changed, calibration, attention=False)
        low = assign(changed.fingerprint, 32, changed.sites(), arm.scheme, stats=content_hash(seen))
        low = low.with_schemes(dict.fromkeys(study.sites, LinearScheme()), "protected")
        measured = measure_perplexity(quantize(changed, low, seen), report, label=label)
        assert arm.nats == pytest.approx(measured.nats, rel=1e-6)
    prefix = study.find(study.main, "prefix")
    assert prefix is not None
    assert prefix.prefix >= 1
    shown = qarat("show", tmp_path / "s" / "spike-study.json")
    assert "protected: 1.down" in shown.out
    assert qarat("show", tmp_path / "s").out == shown.out
    story = gather([tmp_path / "s"])
    figures = {figure.key for section in assemble(story) for figure in figures_in(section.parts)}
    kinds = ("study", "study-orders", "study-duels", "study-elsewhere")
    assert {f"{kind}-{bits}-channel-static" for kind in kinds for bits in (8, 6)} | {"study-six", "outcome"} <= figures
    (texts,) = story.all(Continuations)
    assert list(texts.texts) == ["float", "naive", "plan"]
    assert len(set(texts.texts.values())) > 1
    # The tiny model is random: low bits may make it better.
    assert "1.down" in " ".join(verdict(story))


def test_only_the_arms_and_settings_that_are_asked_for(
    qarat: Qarat, spiking: Path, small: list[str], tmp_path: Path
) -> None:
    words = ("--arms", "protection", "--settings", "6/tensor/token", "8/channel/static", "--sites", "1.down")
    estimate = qarat("study", "spikes", spiking, *small, "-o", tmp_path / "s", *words, "--dry-run")
    assert "forwards of the 6 report windows" in estimate.err
    assert "10 arms" in estimate.out
    assert "profile 0 more" in estimate.out
    study = studied(qarat, spiking, small, tmp_path / "s", *words)
    assert study.settings == ("w=int8/channel a=int8/tensor/static", "w=int6/tensor a=int6/token")
    assert {arm.group for arm in study.arms} == {"naive", "protection"}
    assert len(study.arms) == 10
    methods = ("--arms", "method", "--settings", "8/channel/token", "8/channel/static", "--sites", "1.down")
    few = studied(qarat, spiking, small, tmp_path / "m", "--methods", "rewrite/0", "clip-mse", *methods)
    assert [arm.label for arm in few.of_group(few.main, "method")] == [
        "clip-mse", "clip-mse + protected", "rewrite/0", "rewrite/0 + protected",
    ]  # fmt: skip
    assert few.settings == (few.main, "w=int8/channel a=int8/token")
    assert ("methods in 8/channel/token", "only `full` has them, where they fit") in [(x.what, x.why) for x in few.left]
    assert few.find(few.main, "naive") == study.find(few.main, "naive")


def test_parts_alone_low(qarat: Qarat, spiking: Path, small: list[str], tiny_text: Path, tmp_path: Path) -> None:
    study = studied(qarat, spiking, small, tmp_path / "s", "--arms", "ablation", "--settings", "8/channel/static")
    parts = {p.part: p for p in ablated(study, study.main)}
    assert list(parts) == [
        "attention",
        "MLP",
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    assert parts["attention"].low + parts["MLP"].low == pytest.approx(1)
    model = open_model(str(spiking))
    calibration, _, report = load_token_sets(model, calibration=str(tiny_text), length=32, samples=4, report_samples=6)
    stats = profile(model, calibration, attention=False)
    low = assign(
        model.fingerprint, 32, model.sites(), "float", [("*.down_proj", study.main)], stats=content_hash(stats)
    )
    measured = measure_perplexity(quantize(model, low, stats), report, label="down")
    assert parts["down_proj"].arm.nats == pytest.approx(measured.nats, rel=1e-6)
    story = gather([tmp_path / "s"])
    figures = {figure.key for section in assemble(story) for figure in figures_in(section.parts)}
    assert "study-ablation-8-channel-static" in figures


def test_a_prefix_where_windows_have_no_token_in_common(
    qarat: Qarat, tiny_text: Path, small: list[str], tmp_path: Path
) -> None:
    """They have none; but BOS can be put in front of each, and in py-64 it is BOS that spikes."""
    words = ("--bos", "never", "--arms", "bos", "--settings", "8/channel/static", "--sites", "1.down")
    study = studied(qarat, Path("py-64"), small, tmp_path / "s", *words)
    labels = [f"{world}: {kind}" for world in ("BOS each", "BOS once", "BOS each with prefix") for kind in KINDS]
    assert [arm.label for arm in study.arms] == ["naive", *labels]
    naive, kept = (study.find(study.main, f"{world}: naive") for world in ("BOS each", "BOS each with prefix"))
    assert naive is not None
    assert kept is not None
    assert (naive.prefix, kept.prefix, kept.tokens) == (0, 1, "BOS each")
    model = open_model("py-64")
    calibration, _, report = load_token_sets(
        model, calibration=str(tiny_text), length=32, samples=4, report_samples=6, bos="each"
    )
    stats = profile(model, calibration, 1, attention=False)
    more = {"stats": content_hash(stats), "prefix": stats.prefix}
    plan = assign(model.fingerprint, model.source_bits, model.sites(), study.main, **more)
    measured = measure_perplexity(quantize(model, plan, stats), report, label="prefix")
    assert kept.nats == pytest.approx(measured.nats, rel=1e-6)
    shown = " ".join(qarat("show", tmp_path / "s").out.split())
    assert "BOS each: naive loses" in shown
    assert "; the first tokens in float" in shown
    assert "BOS each with prefix: in float: the first 1 of every window, '<|bos|>'" in shown


def test_weights_per_tensor_and_the_methods_there(qarat: Qarat, small: list[str], tmp_path: Path) -> None:
    words = ("--full", "--settings", "8/tensor/static", "--methods", "hadamard", "--arms", "protection", "method")
    answer = qarat("study", "spikes", "py-64", *small, "-o", tmp_path / "s", *words, "--sites", "1.down")
    assert answer.code == 0, answer.err
    study = decode_record(tmp_path / "s" / "spike-study.json", SpikeStudy)
    low = "w=int8/tensor a=int8/tensor/static"
    assert study.settings == (low,)
    assert {arm.scheme for arm in study.arms} == {low}
    assert [arm.label for arm in study.of_group(low, "method")] == ["hadamard", "hadamard + protected"]
    first, *_, last = verdict_lines(study)
    assert "INT8 (weights per tensor, inputs per tensor, static): naive loses" in first
    assert "hadamard" in last


def test_a_killed_study_goes_on_from_its_last_arm(
    qarat: Qarat, spiking: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("--methods", "rewrite", "prefix", "--rules", "damage")
    added: list[str] = []
    original = TrialLog.add

    def counted(self: TrialLog, answer: Answer) -> None:
        if self._path is None:  # of what was measured to find the sites, which is no arm
            return original(self, answer)
        if len(added) == KILLED:
            added.append("")
            raise KeyboardInterrupt
        added.append(answer.key)
        original(self, answer)

    monkeypatch.setattr(TrialLog, "add", counted)
    out = tmp_path / "s"
    assert qarat("study", "spikes", spiking, *small, "-o", out, "--quick", *few).code == 130
    begun = decode_record(tmp_path / "s.partial" / "spike-study.json", SpikeStudy)
    # What the log held of the group that it died in comes with the next call. Of two blocks, the first and the last in
    # float are the float model, which was measured first of all.
    assert len({a.nats for a in begun.arms}) == TOGETHER + 1
    assert begun.missing
    assert "not finished" in qarat("show", out).out
    story = gather([out])
    assert story.missing == (begun.missing_words,)
    assert "chart-study-" in document(story, assemble(story))
    studied(qarat, spiking, small, out, *few)
    continued = [key for key in added if key]
    whole = tmp_path / "whole"
    added[:] = [""] * (KILLED + 1)
    studied(qarat, spiking, small, whole, *few)
    once = [key for key in added if key]
    assert sorted(continued) == sorted(once)  # nothing is measured twice, nothing is left out
    assert (out / "spike-study.json").read_bytes() == (whole / "spike-study.json").read_bytes()


def test_an_unfinished_study_says_what_is_missing(
    qarat: Qarat, spiking: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qarat.jobs.spike_study.worlds.observe_front", killed)
    words = ("--methods", "prefix", "--rules", "damage")
    assert qarat("study", "spikes", spiking, *small, "-o", tmp_path / "s", "--quick", *words).code == 130
    shown = qarat("show", tmp_path / "s")
    assert "protected: 1.down" in shown.out
    assert "not finished" in shown.out
    assert "prefix" in shown.out
    story = gather([tmp_path / "s"])
    missing = decode_record(tmp_path / "s.partial" / "spike-study.json", SpikeStudy).missing
    assert story.missing == (f"{len(missing)} arms ({'; '.join(missing[:4])}{'; …' if len(missing) > 4 else ''})",)
    page = html.unescape(document(story, assemble(story)))
    assert f"This run is not finished. Missing: {story.missing[0]}. It continues with the same command: qarat" in page
    assert 'id="chart-study-8-channel-static"' in page


def test_a_study_without_its_first_arms_shows_what_it_found_and_says_what_is_missing(
    qarat: Qarat, spiking: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qarat.jobs.spike_study.job.find_plan", killed)
    assert qarat("study", "spikes", spiking, *small, "-o", tmp_path / "s", "--quick").code == 130
    shown = qarat("show", tmp_path / "s")
    assert shown.code == 0
    assert "down_in" in shown.out
    assert "predicted damage" in shown.out
    assert "is a study that is not finished; missing: plan, continue, smooth, columns, every arm" in shown.err
    assert f"it continues with the same command: qarat study spikes {spiking}" in shown.err
    story = gather([tmp_path / "s"])
    assert [type(r) for r in story.records] == [ActivationStats, Menu]
    assert story.missing == ("plan", "continue", "smooth", "columns", "every arm")


def test_a_study_that_has_only_begun_is_known_as_one(qarat: Qarat, tmp_path: Path) -> None:
    Run(tmp_path / "s", "spike-study").begin(command="qarat study spikes py-128")
    shown = qarat("show", tmp_path / "s")
    assert "missing: profile, damage, plan, continue, smooth, columns, every arm" in shown.err
    assert "evaluate" not in shown.err
    assert gather([tmp_path / "s"]).missing[-1] == "every arm"


def test_a_model_too_large_to_hold_in_one_piece_is_studied_without_continuations(
    qarat: Qarat, spiking: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qarat.jobs.spike_study.job._WHOLE", 0)
    study = studied(qarat, spiking, small, tmp_path / "s", "--methods", "clip-mse", "--rules", "damage")
    assert "continuations" in [left.what for left in study.left]
    assert study.arms
    assert not (tmp_path / "s" / "continuations.json").exists()
    page = (tmp_path / "s" / "report.html").read_text("utf-8")
    assert "continuations" in page
    assert "What each remedy buys" in page


def test_the_planner_keeps_to_most(spiking: Path, tiny_text: Path, tmp_path: Path) -> None:
    model = open_model(str(spiking))
    sets = load_token_sets(model, calibration=str(tiny_text), length=32, samples=4, report_samples=4)
    run = Run(tmp_path / "s", "spike-study")
    run.begin()
    chosen: list[tuple[str, ...]] = []
    for most in (1, 2):
        request = SpikeRequest("quick", budget="nats+0", most=most)
        job = SpikeJob(model, SpikeTokens(*sets, {}, None, ()), request, name="m", seed=0, progress=no_progress)
        chosen.append(job._find_sites(run).sites)
        plan = decode_record(run.path("plan.json"), Plan)
        # What the arms protect is what was planned and measured, and the study's words are of that plan.
        assert {a.site.name for a in plan.exceptions()} == set(chosen[-1])
        assert plan.note.endswith(f"or more protected than the {most} allowed")
    assert chosen[0] == (SITE,)
    assert len(chosen[1]) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--methods", "smoth", "hadamrd"), "did you mean hadamard"),
        (("--methods", "smoth"), "did you mean smooth"),
        (("--methods", "smoth/0.5"), "did you mean smooth"),
        (("--methods", "rewrite/many"), "--methods rewrite/many: transform 'rewrite/many': write rewrite"),
        (("--arms", "controls"), "did you mean control"),
        (("--settings", "8/channel/statc"), "did you mean 8/channel/static"),
        (("--rules", "snt"), "did you mean snr"),
        (("--quick", "--full"), "give one of them"),
        (("--sites", "9.down"), "matches no site"),
        (("--budget", "lots"), "lots"),
        (("--most", "0"), "at least 1"),
        (("--other-calibration", "no-such.txt"), "no-such.txt"),
    ],
)
def test_bad_input(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    answer = qarat("study", "spikes", tiny_llama, *small, "-o", tmp_path / "s", *words)
    assert answer.code in (1, 2)
    assert says in answer.err
    assert not list(tmp_path.iterdir())


def test_published_figures_and_an_estimate_measure_nothing(
    qarat: Qarat, tiny_llama: Path, small: list[str], tmp_path: Path
) -> None:
    listed = qarat("study", "spikes", "--published")
    assert "9250.33" in listed.out
    assert "None is the first paper's" in listed.out
    assert qarat("study", "spikes", tiny_llama, *small, "-o", tmp_path / "s", "--dry-run").code == 0
    assert not list(tmp_path.iterdir())


def test_roundings_are_methods(qarat: Qarat, spiking: Path, tiny_text: Path, small: list[str], tmp_path: Path) -> None:
    """In the settings that methods are compared in; what is measured is the plan rounded so, on the same tokens."""
    words = ["--arms", "method", "--methods", "round-gptq", "--settings", "6/channel/static", "--sites", "1.down"]
    study = studied(qarat, spiking, small, tmp_path / "s", *words)
    low = "w=int6/channel/round-gptq a=int6/tensor/static"
    assert [(a.label, a.scheme) for a in study.arms if a.group == "method"] == [
        ("round-gptq", low), ("round-gptq + protected", low),
    ]  # fmt: skip
    model = open_model(str(spiking))
    calibration, _, report = load_token_sets(model, calibration=str(tiny_text), length=32, samples=4, report_samples=6)
    stats = decode_record(tmp_path / "s" / "stats.safetensors", ActivationStats)
    plan = assign(model.fingerprint, 32, model.sites(), low, stats=content_hash(stats))
    loss = measure_perplexity(quantize(model, plan, stats, calibration), report, label="again")
    (arm,) = [a for a in study.arms if a.label == "round-gptq"]
    assert arm.nats == loss.nats
    naive = study.find(study.twin, "naive")
    assert naive is not None
    assert arm.nats != naive.nats


@pytest.mark.parametrize(
    ("method", "why"), [("round-gptp", "unknown rounding 'gptp'; did you mean gptq"), ("round-gwq", "round-gwq cannot")]
)
def test_a_rounding_that_cannot_be_is_refused(
    qarat: Qarat, spiking: Path, small: list[str], tmp_path: Path, method: str, why: str
) -> None:
    answer = qarat("study", "spikes", spiking, *small, "-o", tmp_path / "s", "--quick", "--methods", method)
    assert answer.code == 1
    assert f"--methods {method}: " in answer.err
    assert why in " ".join(answer.err.split())
