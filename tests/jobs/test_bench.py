"""Measuring by a description: the model opened again elsewhere gives what the one that is open gives."""

import pickle

import pytest
import torch

from qarat.jobs.bench import MeterSpec, make_meter, measure_with
from qarat.jobs.replicas import Replica
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.stages.observe import observe
from qarat.values.plans import Plan, assign
from qarat.values.records.scores import Failure

SPELLINGS = ("float", "w=int4/g8", "w=int8/channel a=int8/tensor/static")


@pytest.fixture
def tokens() -> TokenSet:
    ids = torch.randint(2, 98, (4, 16), generator=torch.Generator().manual_seed(0))
    return TokenSet("selection", "windows-16-nobos", ids, tuple("abcd"), ("0" * 64,), ("a",))


def plans_of(model: Model) -> list[Plan]:
    return [assign(model.fingerprint, 32, model.sites(), spelling) for spelling in SPELLINGS]


def elsewhere(spec: MeterSpec) -> MeterSpec:
    return pickle.loads(pickle.dumps(spec))


def test_a_spec_gives_what_the_open_model_gives(tiny_model: Model, tokens: TokenSet):
    stats = observe(tiny_model, tokens)
    spec = MeterSpec(Replica(tiny_model, str(tiny_model.folder)), tokens, stats)
    meter = make_meter(tiny_model, tokens, stats)
    wanted = measure_with(meter)(plans_of(tiny_model))
    assert spec()(plans_of(tiny_model)) == wanted
    assert elsewhere(spec)()(plans_of(tiny_model)) == wanted
    assert sum(measured.forwards for measured in wanted) == meter.forwards


def test_only_the_description_travels(tiny_model: Model, tokens: TokenSet):
    spec = MeterSpec(Replica(tiny_model, str(tiny_model.folder)), tokens, None)
    assert spec.replica.model is tiny_model
    assert elsewhere(spec).replica.model is None
    assert len(pickle.dumps(spec)) < 5000


def test_failures_travel():
    failure = Failure("x", "the loss of window 0 (text) is nan")
    assert pickle.loads(pickle.dumps(failure)) == failure
