"""LLaMA: pre-norm blocks of grouped-query attention and a gated MLP."""

from qarat.model.families.base import Family, Stream

FAMILY = Family(
    architectures=("LlamaForCausalLM",),
    blocks="model.layers",
    embedding="model.embed_tokens",
    rotary="model.rotary_emb",
    norm="model.norm",
    head="lm_head",
    attention="self_attn",
    streams=(
        Stream("attn_in", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm", fused=True),
        Stream("o_in", ("self_attn.o_proj",), "self_attn.v_proj"),
        Stream("mlp_in", ("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm", fused=True),
        Stream("down_in", ("mlp.down_proj",), "mlp.up_proj"),
    ),
)
