"""What the ONNX graph cannot hold; the graph itself runs in tests/engines (tracing takes many seconds)."""

import pytest

from qarat.ground.errors import UserError
from qarat.model.model import Model
from qarat.stages.export import onnx
from qarat.values.plans import Plan, assign

LOW = "w=int8/channel a=int8/tensor/static"


def plan_of(model: Model, *rules: tuple[str, str]) -> Plan:
    return assign(model.fingerprint, model.source_bits, model.sites(), LOW, rules)


@pytest.mark.parametrize(
    ("scheme", "complaint"),
    [
        ("w=int8/channel a=int8/token", "one static scale per tensor"),
        ("w=int8/channel a=int8/tensor/dynamic", "one static scale per tensor"),
        ("w=int4/g32", "int8 or int7 per tensor or channel"),
        ("w=e4m3/channel", "int8 or int7 per tensor or channel"),
        ("w=int7/channel a=int7/tensor/static", "inputs are int8"),
        ("w=int8/channel/scale-uint8", "not one in units of another"),
        ("w=int8/channel/scale-e4m3", "not one in units of another"),
        ("w=int8/g16", "int8 or int7 per tensor or channel"),
        ("a=int8/tensor/static", "only with its weight"),
    ],
)
def test_what_the_graph_cannot_hold_is_refused(tiny_model: Model, scheme: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        onnx.check(tiny_model, plan_of(tiny_model, ("*.down_proj", scheme)))
    assert all(f"model.layers.{i}.mlp.down_proj" in str(error.value) for i in range(2))
    for held in ("w=int8/channel", "w=int7/tensor a=int8/tensor/static"):
        onnx.check(tiny_model, plan_of(tiny_model, ("*.down_proj", held)))
