"""gpt_neo: GPT-Neo, learned positions, unscaled attention, local windows in alternate blocks."""

from crumb.architectures.family import Configuration, Family, Windows


def _windows(configuration: Configuration, blocks: int) -> Windows:
    window = int(configuration.get("window_size", 256))
    kinds = configuration.get("attention_layers")
    if kinds is None:
        pattern = configuration.get("attention_types", [[["global", "local"], blocks]])
        kinds = [kind for names, times in pattern for _ in range(times) for kind in names]
    return tuple(window if kind == "local" else None for kind in kinds[:blocks])


FAMILY = Family(
    model_type="gpt_neo",
    keys={
        "hidden": "hidden_size",
        "blocks": "num_layers",
        "heads": "num_heads",
        "feed_forward": "intermediate_size",
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
        "epsilon": "layer_norm_epsilon",
        "activation": "activation_function",
    },
    defaults={"activation": "gelu_new", "positions": 2048},
    tensors={
        "embedding": "transformer.wte",
        "positions": "transformer.wpe",
        "attention_norm": "transformer.h.{block}.ln_1",
        "query": "transformer.h.{block}.attn.attention.q_proj",
        "key": "transformer.h.{block}.attn.attention.k_proj",
        "value": "transformer.h.{block}.attn.attention.v_proj",
        "output": "transformer.h.{block}.attn.attention.out_proj",
        "mlp_norm": "transformer.h.{block}.ln_2",
        "up": "transformer.h.{block}.mlp.c_fc",
        "down": "transformer.h.{block}.mlp.c_proj",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    },
    biases={"output": True, "up": True, "down": True},
    norm="layer",
    gated=False,
    rotary=None,
    learned_positions=True,
    attention_scale=False,
    windows=_windows,
    tied=True,
)
