"""What the terminal reports say: facts, widths, and that text is never read as markup."""

from __future__ import annotations

import math
from io import StringIO

import msgspec
import pytest
import torch
from rich.console import Console, RenderableType

from qarat.ground.errors import UserError
from qarat.surfaces.tables import scores
from qarat.surfaces.tables.wording import decimals, fixed, megabytes, visible
from qarat.surfaces.terminal import draw, ending, render
from qarat.values.parsing import parse_scheme, parse_tensor_scheme
from qarat.values.plans import Assignment, Plan
from qarat.values.records.origin import Difference, Provenance
from qarat.values.records.prices import Menu, MenuEntry, Protection, Trial
from qarat.values.records.scores import Continuations, Evaluation, TaskScore, ZeroShot, paired_difference
from qarat.values.records.streams import ActivationStats, Peak, StreamStats
from qarat.values.schemes import LinearScheme, MatmulScheme
from qarat.values.sites import Site, short_name

MODEL = "0123456789abcdef" * 4
LOW = "w=int8/tensor a=int8/tensor/static"
INPUT = parse_tensor_scheme("int8/tensor/static", "a")
LEAVES = {
    "self_attn.q_proj": ((64, 64), "qkv"),
    "self_attn.k_proj": ((32, 64), "qkv"),
    "self_attn.v_proj": ((32, 64), "qkv"),
    "self_attn.o_proj": ((64, 64), ""),
    "mlp.gate_proj": ((192, 64), "gate_up"),
    "mlp.up_proj": ((192, 64), "gate_up"),
    "mlp.down_proj": ((64, 192), ""),
}


def show(renderable: RenderableType, width: int = 100) -> str:
    console = Console(file=StringIO(), width=width, no_color=True)
    console.print(renderable)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in text.splitlines()), text
    assert "\x1b" not in text
    return text


def line_with(text: str, *needles: str) -> str:
    found = [line for line in text.splitlines() if all(n in line for n in needles)]
    assert found, f"no line with {needles} in\n{text}"
    return found[0]


def make_provenance(model: str = MODEL, tokens: str = "t" * 64) -> Provenance:
    return Provenance(model, tokens, "windows-256-bos", {"qarat": "0.1.0"})


def make_stream(block: int, kind: str, *, ratio: float, maximum: float, text: str = "<|bos|>") -> StreamStats:
    peak = Peak(maximum, window=3, position=17, token=5, text=text, channel=41)
    name = f"model.layers.{block}.{kind}"
    return StreamStats(name, block, kind, 192, 16384, ratio, maximum, maximum / ratio, 0.04, 0.02, (peak,), {})


def make_stats(*more: StreamStats, blocks: int = 4, text: str = "<|bos|>") -> ActivationStats:
    streams = [
        make_stream(block, kind, ratio=3.0 + block / 10, maximum=4.0)
        for block in range(blocks)
        for kind in ("attn_in", "o_in", "mlp_in", "down_in", "down_out", "block_out")
    ]
    streams.append(make_stream(1, "down_in", ratio=53.7, maximum=51.0, text=text))  # in place of the ordinary one
    named = {s.name: s for s in [*streams, *more]}
    return ActivationStats(make_provenance(), 64, 256, 4, torch.tensor([0.0, 1.0]), named)


def make_sites(blocks: int = 4) -> tuple[Site, ...]:
    return tuple(
        site
        for b in range(blocks)
        for site in (
            *(
                Site(f"model.layers.{b}.{leaf}", b, "projection", (f"model.layers.{b}.x",), shape, tie)
                for leaf, (shape, tie) in LEAVES.items()
            ),
            *(Site(f"model.layers.{b}.self_attn.{leaf}", b, "product", ("l", "r")) for leaf in ("qk", "av")),
        )
    )


def site(short: str) -> str:
    block, leaf = short.split(".")
    part = "mlp" if leaf in ("gate", "up", "down") else "self_attn"
    return f"model.layers.{block}.{part}.{leaf}_proj"


def make_plan(*protected: str, reason: str = "protected: leaving it low adds 0.0211 nats", blocks: int = 4) -> Plan:
    kept = {site(s) for s in protected}

    def assignment(s: Site) -> Assignment:
        if s.kind == "product":
            return Assignment(s, MatmulScheme(), "left in float")
        if s.name in kept:
            return Assignment(s, LinearScheme(), reason)
        return Assignment(s, parse_scheme(LOW), "low scheme")

    note = "1 protected: loss 0.0035 nats over float, within ppl+1% (0.0100)" if protected else ""
    return Plan(MODEL, LOW, 32, tuple(map(assignment, make_sites(blocks))), "s" * 64, note)


def make_menu(*schemes: str, blocks: int = 4) -> Menu:
    entries = []
    for scheme in schemes or (LOW,):
        for i, s in enumerate(x for x in make_sites(blocks) if x.kind == "projection"):
            damage = 0.0230 if s.name == site("1.down") else 0.0001 * (i + 1)
            entries.append(MenuEntry(s.name, scheme, damage, damage / 10))
    return Menu(make_provenance(), "fisher", "s" * 64, tuple(entries))


def make_protection(model: str = MODEL) -> Protection:
    one, two = (site("1.down"),), (site("1.down"), site("0.q"), site("0.k"), site("0.v"))
    return Protection(
        make_provenance(model),
        "Fisher damage",
        "ppl+1%",
        math.log1p(0.01),
        (
            Trial("nothing protected", (), Difference(0.0245, 0.0031, 12)),
            Trial("1 protected", one, Difference(0.0134, 0.0009, 12)),
            Trial("2 protected", two, Difference(0.0035, 0.0004, 12)),
        ),
        (0.0309, 0.0079, 0.0071),
        two,
        "2 protected: loss 0.0035 nats over float, within ppl+1% (0.0100 nats); 3 plans measured",
    )


def make_evaluation(label: str, shift: float = 0.0, *, sources: int = 3, tokens: str = "t" * 64) -> Evaluation:
    nats = tuple(255 * (2.0 + 0.1 * (i % 4) + shift * (1 + 0.2 * (i % 3))) for i in range(12))
    names = tuple(f"file{i % sources}.txt" for i in range(12))
    return Evaluation(label, make_provenance(tokens=tokens), "", nats, (255,) * 12, names)


def compare(evaluations: list[Evaluation]) -> RenderableType:
    return draw(scores.compare(evaluations))


def continuations(prompt: str, texts: dict[str, str]) -> RenderableType:
    return render(Continuations(make_provenance(), prompt, texts))


# ---------------------------------------------------------------- stats


def test_stats_say_where_the_spike_is():
    text = show(render(make_stats(), low=INPUT))
    assert MODEL[:12] in text
    assert MODEL[:13] not in text
    assert "64 windows × 256 tokens" in text
    assert "windows-256-bos" in text
    row = line_with(text, "1.down_in", "53.7", "51.0", "'<|bos|>'", "17", "41", "snr")
    assert text.index("1.down_in") < text.index("0.attn_in")
    assert "gap" in row


def test_observed_streams_are_shown_only_if_flagged():
    text = show(render(make_stats(), low=INPUT))
    assert "block_out" not in text
    text = show(render(make_stats(make_stream(2, "block_out", ratio=400.0, maximum=2000.0)), low=INPUT))
    assert "massive" in line_with(text, "2.block_out", "2,000.0", "n/a")


def test_every_rule_is_listed_with_flags_and_margin():
    text = show(render(make_stats(), low=INPUT))
    assert "dB to the next" in line_with(text, "snr", "1.down_in", "12 dB")
    assert "1.2 times to the limit" in line_with(text, "ratio", "none", "r > 64")
    assert "none" in line_with(text, "massive", "25.0 times")
    assert "none" in line_with(text, "super-weight")


def test_stats_without_a_low_input_have_no_snr():
    text = show(render(make_stats(), low=None))
    assert "leaves inputs in float" in text
    assert "n/a" in line_with(text, "1.down_in", "53.7")


def test_many_flagged_streams_are_counted_not_hidden():
    more = [make_stream(b, "block_out", ratio=400.0, maximum=2000.0) for b in range(20)]
    text = show(render(make_stats(*more, blocks=20), low=INPUT))
    assert "10 more are flagged" in text
    assert "and 14 more" in text


# ---------------------------------------------------------------- menu


def test_menu_ranks_the_sites_and_sums_them():
    text = show(render(make_menu()))
    total = sum(make_menu().damages(LOW).values())
    assert text.index("1.down") < text.index("3.down") < text.index("3.up")
    row = line_with(text, "1.down", "0.0230", "0.0023")
    assert f"{100 * 0.0230 / total:.1f}" in row
    assert f"sum predicted {total:.4f} nats per token over 28 sites; the 10 shown make" in text
    assert "parameters" not in text
    assert "0.q" not in text


def test_menu_with_shapes_prices_a_million_parameters():
    text = show(render(make_menu(), sites=make_sites()))
    assert f"{0.0230 / (64 * 192 / 1e6):.3f}" in line_with(text, "1.down")


def test_menu_in_another_unit_says_so_and_claims_no_nats():
    menu = msgspec.structs.replace(make_menu(), metric="output-error", unit="squared output error per token")
    text = show(render(menu, plan=make_plan("1.down")))
    assert "prices are squared output error per token: they rank sites" in text
    assert "nats per token" not in text
    assert "(price)" in text


def test_a_menu_of_several_schemes_has_a_table_for_each():
    menu = make_menu("w=int4/g32", LOW)
    first, second = show(render(menu, plan=make_plan())).split(LOW)
    assert "w=int4/g32" in first
    line_with(first, "1.down", "0.0230")
    line_with(second, "1.down", "0.0230")


# ---------------------------------------------------------------- plan


def test_plan_says_what_it_keeps_and_what_it_weighs():
    plan = make_plan("1.down")
    text = show(render(plan, protection=make_protection()))
    assert f"Q_r {100 * plan.ratio():.1f} % by parameters" in text
    assert f"{plan.bits_per_weight():.3f} bits per weight" in text
    assert f"{plan.weight_bits() / 8e6:.3f} MB of weights" in text
    assert "8 attention products in float" in text
    assert "a token: 196,608 multiply-accumulates, " in text  # as many as parameters
    line_with(text, LOW, "27", "184,320", "93.8")
    line_with(text, "float", "1", "12,288", "6.2", "32.000")
    line_with(text, "total", "28", "196,608", "100.0")
    row = line_with(text, "1.down", "float", "6.25")
    assert "protected:" in row
    assert plan.note in text


def test_plan_without_protection():
    text = show(render(make_plan()))
    assert "no projection is protected" in text
    assert "Q_r 100.0 %" in text


def test_a_long_list_of_protected_sites_is_cut_aloud():
    plan = make_plan(*(f"{b}.{leaf}" for b in range(9) for leaf in ("q", "k", "v", "o", "down")), blocks=9)
    assert "and 5 more sites" in show(render(plan))


def test_overrides_are_listed_without_being_called_protected():
    sweep = msgspec.structs.replace(make_protection(), kept=())
    text = show(render(make_plan("2.up", reason="matches 2.up"), protection=sweep))
    assert "no projection is protected" in text
    assert "matches 2.up" in line_with(text, "2.up", "float")
    text = show(render(make_plan("1.down", "2.up"), protection=make_protection()))
    assert "no projection is protected" not in text
    line_with(text, "2.up", "float")


# ---------------------------------------------------------------- protection


def test_protection_says_what_was_predicted_and_measured_of_each_plan():
    record, plan = make_protection(), make_plan("1.down", "0.q", "0.k", "0.v")
    text = show(render(record, plan=plan))
    assert "budget ppl+1% (0.0100 nats)" in text
    assert "chosen by Fisher damage" in text
    sizes = {short_name(s.name): 100 * s.parameters / sum(x.parameters for x in plan.sites) for s in plan.sites}
    line_with(text, "nothing protected", "0.00", "0.0309", "0.0245", "0.0031", "+2.48", "no")
    line_with(text, "1 protected", f"{sizes['1.down']:.2f}", "0.0079", "0.0134", "+1.35", "no")
    both = sum(sizes[name] for name in ("1.down", "0.q", "0.k", "0.v"))
    line_with(text, "2 protected", f"{both:.2f}", "0.0071", "0.0035", "+0.35", "yes")
    assert record.verdict in text


def test_protection_alone_knows_no_parameters_and_another_unit_is_no_nats():
    text = show(render(make_protection()))
    assert "share" not in text
    line_with(text, "2 protected", "0.0071", "0.0035")
    text = show(render(msgspec.structs.replace(make_protection(), unit="squared output error per token")))
    assert "(price)" in text


# ---------------------------------------------------------------- evaluations


def test_evaluation_alone():
    evaluation = make_evaluation("float")
    text = show(render(evaluation))
    assert f"perplexity {evaluation.perplexity:.2f}" in text
    assert f"loss {evaluation.loss:.4f} nats per token" in text
    assert "12 windows of 3 sources, 3,060 predicted tokens, windows-256-bos" in text


def test_compare_is_paired_with_the_first():
    first, naive, plan = make_evaluation("float"), make_evaluation("naive", 0.02), make_evaluation("plan", 0.001)
    text = show(compare([first, naive, plan]))
    d = paired_difference(naive, first)
    low, high = d.interval
    row = line_with(text, "naive", f"{naive.perplexity:.2f}", f"{d.nats:+.4f}", f"{d.standard_error:.4f}")
    assert f"{low:+.4f} to {high:+.4f}" in row
    assert f"{100 * math.expm1(d.nats):+.2f}" in row
    assert text.index("naive") < text.index("plan")
    assert "errors over 3 clusters" in text
    assert "12 windows of 3 sources, 3,060 predicted tokens, windows-256-bos" in text


def test_naive_says_what_was_done_to_it_as_well():
    first, *others = make_evaluation("float"), make_evaluation("naive", 0.02), make_evaluation("plan", 0.001)
    model = f"{MODEL}+smooth/0.6@0123456789ab+hadamard"
    other = msgspec.structs.replace(make_provenance(), model=model)
    naive, plan = (msgspec.structs.replace(e, provenance=other) for e in others)
    text = show(compare([first, naive, plan]))
    assert line_with(text, first.label, f"{first.perplexity:.2f}").split()[0] == "float"
    assert "naive, with smooth/0.6, hadamard" in text
    assert "naive and plan alike are of the model with smooth/0.6, hadamard" in text
    rotated = msgspec.structs.replace(plan, provenance=make_provenance(f"{MODEL}+hadamard"))
    assert "alike" not in show(compare([first, naive, rotated]))  # here the transforms are what differs
    assert "alike" not in show(compare([first, naive]))


def test_compare_with_one_source_has_no_error():
    text = show(compare([make_evaluation("float", sources=1), make_evaluation("naive", 0.02, sources=1)]))
    assert "n/a" in line_with(text, "naive")
    assert "no standard error" in text


def test_compare_refuses_strangers_and_nothing():
    with pytest.raises(UserError, match="do not belong together"):
        compare([make_evaluation("float"), make_evaluation("naive", tokens="other")])
    with pytest.raises(UserError, match="no evaluations"):
        compare([])


def make_zero_shot(label: str, *items: float, tokens: str = "t" * 64) -> ZeroShot:
    value = sum(items) / len(items)
    score = TaskScore("code_continuation", "1.0", "acc", value, 0.25, items)
    return ZeroShot(label, make_provenance(tokens=tokens), "", (score,))


def test_scores_alone():
    row = line_with(show(render(make_zero_shot("float", 1, 0, 1, 1))), "code_continuation", "acc", "float")
    assert "0.7500" in row
    assert "0.2500" in row


def test_questions_are_counted_also_where_none_has_a_score_of_its_own():
    group = TaskScore("group", "1.0", "acc", 0.5, math.nan, (), 1234)
    line_with(show(render(ZeroShot("float", make_provenance(), "", (group,)))), "group", "1,234", "0.5000", "n/a")


def test_scores_are_compared_question_by_question():
    first, plan = make_zero_shot("float", 1, 0, 1, 1), make_zero_shot("plan", 1, 0, 0, 0)
    row = line_with(show(render(first, plan)), "plan")
    assert "-0.5000" in row
    assert f"{math.sqrt(1 / 3) / 2:.4f}" in row  # of the differences 0, 0, -1, -1


def test_scores_of_other_questions_are_not_compared():
    with pytest.raises(UserError, match="do not belong together"):
        render(make_zero_shot("float", 1, 0), make_zero_shot("plan", 1, 0, tokens="other"))


# ---------------------------------------------------------------- continuations


def test_continuations_mark_the_departure():
    prompt = "def add(a, b):\n    "
    texts = {
        "float": "c = a + b\n    return c",
        "naive": "c = a + b\n    print(c)\n    x",
        "plan": "c = a + b\n    return c",
    }
    text = show(continuations(prompt, texts))
    assert "departs from float after 14 of 28 characters" in line_with(text, "naive")
    assert "as float" in line_with(text, "plan")
    marked = [line for line in text.splitlines() if "≠" in line]
    assert len(marked) == 2
    assert "print(c)" in marked[0]
    assert all("return" not in line for line in marked)


def test_the_departing_part_is_bold_and_underlined_on_a_terminal():
    console = Console(file=StringIO(), width=100, force_terminal=True, color_system=None, _environ={})
    segments = console.render(continuations("x = ", {"float": "12 + 3", "naive": "12 - 3"}))
    marked = "".join(s.text for s in segments if s.style and s.style.underline)
    assert marked.strip() == "- 3"


def test_a_continuation_that_ends_early_says_so():
    text = show(continuations("x", {"float": "abc", "naive": "ab"}))
    assert "ends after 2 characters, where float goes on" in line_with(text, "naive")
    with pytest.raises(UserError):
        continuations("x", {})


# ---------------------------------------------------------------- all of them


NASTY = "[red]x[/red] \x1b[31m[/] \u202egnp"


def test_text_is_never_markup_and_never_moves_the_cursor():
    quoted = "[red]x[/red]"
    assert quoted in show(render(make_stats(text=quoted), low=INPUT))
    assert quoted in show(render(make_plan("1.down", reason=NASTY)))
    text = show(continuations(f"p {NASTY}", {f"float {NASTY}": "a", "naive": NASTY}))
    assert text.count(quoted) == 6  # the prompt; a label and its mention; before each continuation; the continuation
    assert "\\x1b[31m[/] \\u202egnp" in text
    assert quoted in show(compare([make_evaluation(NASTY), make_evaluation("naive")]))
    assert quoted in show(ending([f"wrote {NASTY}"]))
    trial = Trial(NASTY, (), Difference(0.1, 0.1, 2))
    assert quoted in show(render(Protection(make_provenance(), NASTY, "ppl+1%", 0.01, (trial,), (0.1,), (), NASTY)))


@pytest.mark.parametrize("width", [80, 100])
def test_no_number_is_cut(width: int):
    """Where space is short words wrap; a number cut short would be another number."""
    for renderable in (
        render(make_stats(make_stream(2, "block_out", ratio=400.0, maximum=2000.0)), low=INPUT),
        render(make_menu(), plan=make_plan("1.down")),
        render(make_plan("1.down", "0.q", "0.k", "0.v"), protection=make_protection()),
        render(make_protection(), plan=make_plan("1.down")),
        compare([make_evaluation("float"), make_evaluation("naive", 0.02)]),
    ):
        assert "…" not in show(renderable, width)


def test_strangers_are_refused():
    stranger = make_protection("f" * 64)
    with pytest.raises(UserError, match="the protection is of ffffffffffff"):
        render(make_plan(), protection=stranger)
    with pytest.raises(UserError, match="the protection is of the model ffffffffffff…, but the plan is of "):
        render(stranger, plan=make_plan())
    with pytest.raises(TypeError, match="no report of a int"):
        render(3)


def test_ending_keeps_its_lines():
    assert show(ending(["wrote out/plan.json", "next: qarat run out"])) == "wrote out/plan.json\nnext: qarat run out\n"


# ---------------------------------------------------------------- numbers


def test_numbers():
    assert decimals([0.0245, 0.0001]) == 4
    assert decimals([0.000123]) == 6
    assert decimals([]) == decimals([math.inf, math.nan, 0.0]) == 4
    assert fixed(-0.00001, 4) == "0.0000"
    assert fixed(-0.00001, 4, sign=True) == "+0.0000"
    assert fixed(12345.678, 2) == "12,345.68"
    assert fixed(-1234567.0, 2, sign=True) == "-1.23e+06"
    assert fixed(math.inf, 2) == "inf"
    assert fixed(math.nan, 2) == "n/a"
    assert megabytes(8e6) == "1.000"
    assert megabytes(8e8) == "100.0"
    assert visible("a\tb\r\n\x9b") == "a\tb\\r\n\\x9b"
