"""OPT: learned positions, LayerNorms and biases everywhere, and an MLP of two projections with a ReLU between.

What is scaled behind fc1 may be scaled in front of the ReLU, so fc1 is a source like an up projection. The 350M model,
whose norms stand behind what they should stand in front of, is refused.
"""

from typing import Any

from torch import Tensor
from transformers.models.opt.modeling_opt import OPTDecoderLayer

from qarat.model.families.base import Family, Stream
from qarat.values.roles import Role


class Block(OPTDecoderLayer):
    """The decoder layer without what it does between attention and MLP: to put all windows one below the other.

    There what belongs to a window could not be told any more. Nothing else is left out: dropout is no part of a model
    that is not trained, and a model with its norms elsewhere is refused.
    """

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        """(windows, tokens, hidden) to the same."""
        attended, _ = self.self_attn(hidden_states=self.self_attn_layer_norm(hidden_states), **arguments)
        middle = hidden_states + attended
        return middle + self.fc2(self.activation_fn(self.fc1(self.final_layer_norm(middle))))


FAMILY = Family(
    architectures=("OPTForCausalLM",),
    blocks="model.decoder.layers",
    embedding="model.decoder.embed_tokens",
    rotary="",
    norm="model.decoder.final_layer_norm",
    head="lm_head",
    attention="self_attn",
    streams=(
        Stream(
            Role.ATTENTION_INPUT,
            readers=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            source="self_attn_layer_norm",
            fused=True,
        ),
        Stream(Role.ATTENTION_OUTPUT, readers=("self_attn.out_proj",), source="self_attn.v_proj"),
        Stream(Role.MLP_INPUT, readers=("fc1",), source="final_layer_norm", fused=True),
        Stream(Role.DOWN_INPUT, readers=("fc2",), source="fc1"),
    ),
    block=Block,
    inner_width="ffn_dim",
)
