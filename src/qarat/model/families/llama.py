"""LLaMA: pre-norm blocks of grouped-query attention and a gated MLP."""

from qarat.model.families.base import Family, Gguf, Stream
from qarat.values.roles import Role

FAMILY = Family(
    architectures=("LlamaForCausalLM",),
    blocks="model.layers",
    embedding="model.embed_tokens",
    rotary="model.rotary_emb",
    norm="model.norm",
    head="lm_head",
    attention="self_attn",
    streams=(
        Stream(
            Role.ATTENTION_INPUT,
            readers=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            source="input_layernorm",
            fused=True,
        ),
        Stream(Role.ATTENTION_OUTPUT, readers=("self_attn.o_proj",), source="self_attn.v_proj"),
        Stream(
            Role.MLP_INPUT,
            readers=("mlp.gate_proj", "mlp.up_proj"),
            source="post_attention_layernorm",
            fused=True,
        ),
        Stream(Role.DOWN_INPUT, readers=("mlp.down_proj",), source="mlp.up_proj"),
    ),
    gguf=Gguf("llama", "llama", paired_rows=True),
)
