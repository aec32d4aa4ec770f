"""A model in the harness's hands: the same answers as its own `HFLM` gives, bit by bit, and nothing cut."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from qarat.ground.errors import UserError
from qarat.ground.runtime import no_progress
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.tokens import make_token_set
from qarat.stages.measure.tasks.harness_model import BATCH, wrap_model
from qarat.stages.observe import observe
from qarat.stages.quantize import quantize
from qarat.testing import tiny_checkpoint, tiny_documents, tiny_tokenizer
from qarat.values.plans import assign
from qarat.values.records.files import content_hash

pytest.importorskip("lm_eval")

TEXTS = [document.text for document in tiny_documents(5, characters=400)]
TEXT = TEXTS[0]
"""As many tokens as characters, and BOS in front."""


def ask(kind: str, *arguments: tuple[Any, ...], task: str = "task") -> list[Any]:
    """Requests as the harness makes them."""
    instance: Any = importlib.import_module("lm_eval.api.instance").Instance
    return [instance(kind, {}, given, 0, (task, number, 1)) for number, given in enumerate(arguments)]


def harness_own(folder: Path) -> Any:
    models: Any = importlib.import_module("lm_eval.models.huggingface")
    return models.HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=BATCH)


@pytest.fixture(scope="module")
def theirs(tiny_llama: Path) -> Any:
    return harness_own(tiny_llama)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model with an EOS, without which the harness has nothing written."""
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "~"
    eos = tokenizer.eos_token_id
    folder = tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny-writer", eos_token_id=eos)
    tokenizer.save_pretrained(folder)
    return open_model(str(folder))


def test_log_likelihoods_are_the_harness_own(tiny_model: Model, theirs: Any):
    """More than a batch, of many lengths; a question without a context, and two that share an answer's beginning."""
    assert theirs.max_length == tiny_model.length
    pairs = [(TEXT[i : 3 * i], TEXT[3 * i : 4 * i]) for i in range(1, 20)]
    requests = ask("loglikelihood", *pairs, ("", TEXT[:9]), (TEXT[:9], "a"), (TEXT[:9], "b"))
    assert len(requests) > BATCH
    ours = wrap_model(tiny_model, "", no_progress).loglikelihood(requests)
    assert ours == theirs.loglikelihood(requests, disable_tqdm=True)
    assert len({nats for nats, _ in ours}) == len(requests)


LENGTHS = ask("loglikelihood", *((text[: 9 * n], text[9 * n : 10 * n]) for n, text in enumerate(TEXTS, start=1)))
"""Questions of as many lengths, of which all but one are padded where they are asked together."""


def low_model(model: Model, low: str, *rules: tuple[str, str], prefix: tuple[int, ...] = ()) -> Model:
    tokens = make_token_set("calibration", tiny_documents(4), model.tokenizer, length=32, bos="each")
    stats = observe(model, tokens, prefix=len(prefix)) if "static" in low else None
    digest = content_hash(stats) if stats else ""
    return quantize(model, assign(model.fingerprint, 32, model.sites(), low, rules, digest, prefix), stats)


@pytest.mark.parametrize(
    ("low", "rules"),
    [
        ("w=int4/channel a=int4/tensor/dynamic", ()),
        ("w=int4/channel a=int4/token/outliers-1", ()),
        ("w=int4/channel a=nvfp4", ()),
        ("w=int4/channel", (("*.av", "l=mxint4 r=mxint4"),)),
    ],
)
def test_a_dynamic_scale_is_that_of_one_question(tiny_model: Model, low: str, rules: tuple[tuple[str, str], ...]):
    """Whatever is asked together with it."""
    small = wrap_model(low_model(tiny_model, low, *rules), "", no_progress)
    assert small.batch_size == 1
    alone = small.loglikelihood(LENGTHS)
    assert alone == [small.loglikelihood([request])[0] for request in LENGTHS]
    small.batch_size_per_gpu = BATCH  # and would be another beside others
    assert any(abs(a - b) > 1e-3 for (a, _), (b, _) in zip(small.loglikelihood(LENGTHS), alone, strict=True))


@pytest.mark.parametrize(
    ("low", "prefix"),
    [
        ("w=int4/channel a=int4/tensor/static", 0),
        ("w=int4/channel a=int4/tensor/static", 1),
        ("w=int4/channel a=int4/token", 0),
        ("w=int4/channel a=mxint4", 0),
        ("w=int4/g16", 0),
    ],
)
def test_questions_that_do_not_meet_in_a_scale_are_asked_together(tiny_model: Model, low: str, prefix: int):
    """As the padding is behind them, each is answered as it is alone."""
    bos: Any = tiny_model.tokenizer.bos_token_id
    small = wrap_model(low_model(tiny_model, low, prefix=(bos,) * prefix), "", no_progress)
    assert small.batch_size == BATCH
    together, alone = small.loglikelihood(LENGTHS), [small.loglikelihood([request])[0] for request in LENGTHS]
    assert [nats for nats, _ in together] == pytest.approx([nats for nats, _ in alone], rel=1e-6)
    assert [greedy for _, greedy in together] == [greedy for _, greedy in alone]


def test_rolling_log_likelihoods_are_the_harness_own(tiny_model: Model, theirs: Any):
    """Of documents shorter than the model's length, as long, longer, and of many windows."""
    seen: list[tuple[str, int, int]] = []
    length = tiny_model.length
    cuts = (10, length - 1, length, 2 * length, 400)
    requests = ask("loglikelihood_rolling", *((text[:n],) for text, n in zip(TEXTS, cuts, strict=True)))
    ours = wrap_model(tiny_model, "evaluate", lambda *step: seen.append(step)).loglikelihood_rolling(requests)
    assert ours == theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    windows = 1 + 1 + 2 + 3 + 7  # of so many tokens and BOS
    assert seen[0] == ("evaluate", 0, windows)
    assert seen[-2:] == [("evaluate", windows, windows)] * 2  # every window was run, and the end was told


def test_a_question_may_have_one_token_more_than_is_read(tiny_model: Model, theirs: Any):
    length = tiny_model.length
    ours = wrap_model(tiny_model, "", no_progress)
    fits = ask("loglikelihood", (TEXT[:20], TEXT[20:length]))  # BOS in front makes it one more
    assert ours.loglikelihood(fits) == theirs.loglikelihood(fits, disable_tqdm=True)
    cut = ask("loglikelihood", (TEXT[:20], TEXT[20 : length + 1]), (TEXT[:20], TEXT[20 : length + 9]), task="long")
    with pytest.raises(
        UserError, match=rf"trained for {length} .*\n  long: question 1 has {length + 9} tokens to read$"
    ):
        ours.loglikelihood([*fits, *cut])
    with pytest.raises(UserError, match=rf"long: question 0 has {length + 1} tokens to read$"):
        ours.loglikelihood(cut[:1])


def test_written_answers_are_the_harness_own(writer: Model):
    seen: list[tuple[str, int, int]] = []
    length = writer.length
    how = {"until": ["\n"], "max_gen_toks": 12}
    requests = ask("generate_until", *((TEXT[n : 2 * n], how) for n in (5, 20, length - 13)))
    ours = wrap_model(writer, "evaluate", lambda *step: seen.append(step)).generate_until(requests)
    assert ours == harness_own(writer.folder).generate_until(requests, disable_tqdm=True)
    assert all(ours)
    assert seen == [("evaluate", done, 3) for done in (0, 1, 2, 3, 3)]


def test_prompts_that_the_harness_would_cut_are_refused(writer: Model):
    """It keeps room for 256 tokens where a task names no number."""
    length = writer.length
    how = {"until": ["\n"], "max_gen_toks": 12}
    fits, cut = ask("generate_until", (TEXT[: length - 13], how), (TEXT[: length - 12], how), task="cut")
    roomy = ask("generate_until", (TEXT[:5], {"until": ["\n"]}), task="roomy")
    first = rf"cut: question 1 has {length - 11} tokens to read and asks for up to 12 more"
    with pytest.raises(
        UserError, match=rf"{first}\n  roomy: question 0 has 6 tokens to read and asks for up to 256 more$"
    ):
        wrap_model(writer, "", no_progress).generate_until([fits, cut, *roomy])


def test_nothing_is_written_without_an_end(tiny_model: Model):
    requests = ask("generate_until", (TEXT[:5], {"max_gen_toks": 8}), (TEXT[:9], {"max_gen_toks": 8}), task="essay")
    with pytest.raises(UserError, match=r"tiny-llama has no EOS.*: essay$"):
        wrap_model(tiny_model, "", no_progress).generate_until(requests)


def test_prompts_of_many_lengths_stand_behind_a_prefix(writer: Model):
    """Each is answered as it would be alone: nothing is padded in front."""
    bos: Any = writer.tokenizer.bos_token_id
    low = "w=int4/channel a=int4/tensor/dynamic"
    plan = assign(writer.fingerprint, 32, writer.sites(), low, prefix=(bos,))
    small = quantize(writer, plan, None)
    prompts = [TEXT[n : 2 * n] for n in (5, 20)]
    module: Any = small.module()
    expected: list[Any] = []
    for prompt in prompts:
        ids = torch.tensor([writer.tokenizer(prompt).input_ids])
        whole = module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        expected.append(writer.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True))
    requests = ask("generate_until", *((prompt, {"until": [], "max_gen_toks": 8}) for prompt in prompts))
    assert wrap_model(small, "", no_progress).generate_until(requests) == expected
