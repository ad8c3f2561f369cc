"""Random config.json files of every model family: what published ones have, what they leave out, and both ways of spelling it."""
FAMILIES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
            "phi3": "Phi3ForCausalLM", "deepseek_v2": "DeepseekV2ForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM"}
ROPES = {"phi3": ["default", "longrope"], "deepseek_v2": ["default", "yarn", "yarn", "linear"], "deepseek_v3": ["default", "yarn", "yarn", "linear"]}
ALL_ROPES = ["default", "default", "linear", "llama3", "yarn", "longrope"]


def chance(rng, probability):
    return rng.random() < probability


def divisors(number):
    return [k for k in range(1, number + 1) if number % k == 0]


def base_sizes(rng, family):
    heads = rng.choice([1, 2, 3, 4, 6, 8])
    width = rng.choice([4, 6, 8, 10, 12, 16])
    while not 16 <= heads * width <= 96:
        heads, width = rng.choice([1, 2, 3, 4, 6, 8]), rng.choice([4, 6, 8, 10, 12, 16, 20])
    config = {"vocab_size": rng.randint(40, 200), "hidden_size": heads * width, "intermediate_size": rng.randint(16, 100),
              "num_hidden_layers": rng.randint(1, 3), "num_attention_heads": heads, "num_key_value_heads": rng.choice(divisors(heads)),
              "hidden_act": "silu", "max_position_embeddings": rng.choice([24, 32, 64, 128])}
    if family in ("llama", "phi3") and chance(rng, 0.2):
        config["num_key_value_heads"] = None
        if chance(rng, 0.5):
            del config["num_key_value_heads"]
    if chance(rng, 0.8):
        config["rms_norm_eps"] = rng.choice([1e-6, 1e-5, 1e-3])
    if chance(rng, 0.5):
        config["tie_word_embeddings"] = chance(rng, 0.5)
    if chance(rng, 0.1):
        del config["hidden_act"]
    if chance(rng, 0.1):
        config["attention_dropout"] = 0.1
    return config


def head_sizes(rng, family, config):
    """head_dim where the family knows it (phi3 and qwen2 take it as an extra key); the width of a head that is rotated."""
    width = config["hidden_size"] // config["num_attention_heads"]
    if family == "qwen3" or chance(rng, {"llama": 0.3, "mistral": 0.4, "qwen2": 0.15}.get(family, 0.0)):
        width = rng.choice([4, 6, 8, 10, 12, 16, 20])
        config["head_dim"] = width
    elif family in ("llama", "mistral") and chance(rng, 0.2):
        config["head_dim"] = None
    return width


def deepseek_sizes(rng, family, config):
    heads, version = config["num_attention_heads"], family[-1]
    config["num_key_value_heads"] = rng.choice([None, heads])
    config |= {"q_lora_rank": rng.choice([None, rng.randint(8, 24)]), "kv_lora_rank": 2 * rng.randint(4, 12), "qk_nope_head_dim": rng.choice([4, 6, 10]),
               "qk_rope_head_dim": rng.choice([4, 6, 8]), "v_head_dim": rng.choice([4, 7, 12]), "moe_intermediate_size": rng.randint(8, 24)}
    groups = rng.choice([1, 2, 3, 4])
    each = rng.choice([2, 3, 4])
    taken = rng.randint(1, groups)
    config |= {"n_routed_experts": groups * each, "num_experts_per_tok": rng.randint(1, min(4, taken * each)), "n_group": groups, "topk_group": taken,
               "first_k_dense_replace": rng.randint(0, config["num_hidden_layers"])}
    if chance(rng, 0.8):
        config["n_shared_experts"] = rng.randint(1, 3)
    if chance(rng, 0.8):
        config["norm_topk_prob"] = chance(rng, 0.5)
    if chance(rng, 0.8):
        config["routed_scaling_factor"] = rng.choice([1.0, 2.5, 4.0])
    if chance(rng, 0.3):
        config["attention_bias"] = chance(rng, 0.7)
    if version == "2":
        config |= {"scoring_func": "softmax", "topk_method": rng.choice(["greedy", "group_limited_greedy"])}
        if config["topk_method"] == "greedy" and chance(rng, 0.5):
            config |= {"n_group": None, "topk_group": None}
            if chance(rng, 0.5):
                del config["topk_method"]
        if chance(rng, 0.3):
            config["mlp_bias"] = chance(rng, 0.7)
        if chance(rng, 0.2):
            del config["first_k_dense_replace"]
    else:
        config |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "num_nextn_predict_layers": rng.choice([0, 1])}
        if chance(rng, 0.5):
            config["rope_interleave"] = chance(rng, 0.5)
    return config["qk_rope_head_dim"]


def windows(rng, family, config):
    """Sliding windows; returns the lengths where they begin to matter."""
    window = rng.choice([1, 3, 8, 13, 20])
    if family in ("mistral", "phi3"):
        config["sliding_window"] = rng.choice([None, window, window, 4096])
        if family == "mistral" and chance(rng, 0.2):  # which transformers ignores
            config["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
        return [config["sliding_window"]] if config["sliding_window"] == window else []
    if family not in ("qwen2", "qwen3"):
        if chance(rng, 0.05):
            config["sliding_window"] = window
        return []
    config["sliding_window"] = window
    if chance(rng, 0.3):
        config["max_window_layers"] = rng.randint(0, config["num_hidden_layers"])
    if chance(rng, 0.5):
        config["use_sliding_window"] = chance(rng, 0.7)
        if config["use_sliding_window"]:
            if chance(rng, 0.4):
                kinds = ["sliding_attention", "full_attention"]
                config["layer_types"] = [rng.choice(kinds) for _ in range(config["num_hidden_layers"])]
            return [window]
    return []


def rope(rng, family, config, width):
    """(the scaling's parameters or None, theta or None, partial_rotary_factor or None, top-level original length or None, the lengths that matter)."""
    kind = rng.choice(ROPES.get(family, ALL_ROPES))
    theta = rng.choice([None, 10000.0, 10000, 500000.0, 1e6])
    original = rng.choice([12, 16, 24, 32])
    partial = rng.choice([None, 0.5, 0.75, 1.0]) if family == "phi3" else None
    if partial and int(width * partial) % 2:
        partial = None
    pairs = int(width * (partial or 1.0)) // 2
    top = None
    if kind == "default":
        config["max_position_embeddings"] = 256
        return None, theta, partial, None, []
    out = {"rope_type": kind}
    if kind == "linear":
        out["factor"] = rng.choice([2, 4.0, 8.0])
        return out, theta, partial, None, []
    if kind == "longrope":
        out["short_factor"] = [round(1.0 + 0.1 * rng.random() * index, 3) for index in range(pairs)]
        out["long_factor"] = [round(1.0 + rng.random() * index, 3) for index in range(pairs)]
        if chance(rng, 0.3):
            out["factor"] = rng.choice([1.0, 4.0])
        if chance(rng, 0.3):
            out["attention_factor"] = rng.choice([1.19, 1.0])
    else:
        out["factor"] = rng.choice([2, 4.0, 8.0])
    if kind == "llama3":
        low = rng.choice([1, 1.0, 2.0])
        out |= {"low_freq_factor": low, "high_freq_factor": low * 4}
        theta = theta or 10000.0
    if kind == "yarn":
        for key, choices, probability in (("beta_fast", [32, 32.0, 8.0], 0.5), ("beta_slow", [1, 1.0, 2.0], 0.5), ("mscale", [1.0, 0.707], 0.5),
                                          ("mscale_all_dim", [1.0, 0.707, 0], 0.5), ("attention_factor", [1.0, 1.2], 0.2), ("truncate", [False, True], 0.2)):
            if chance(rng, probability):
                out[key] = rng.choice(choices)
    if family == "phi3" or chance(rng, 0.1):
        top = original
    if family != "phi3" and top is None and chance(rng, 0.85):
        out["original_max_position_embeddings"] = original
    elif top is not None and chance(rng, 0.3):
        out["original_max_position_embeddings"] = rng.choice([original, original * 2])
    if top is None and "original_max_position_embeddings" not in out:
        original = config["max_position_embeddings"]
    return out, theta, partial, top, [original]


def spell_rope(rng, spelling, config, parameters, theta, partial):
    """Puts the rope's parameters where `spelling` has them. Where both are, rope_scaling counts."""
    if spelling == "old":
        if theta is not None:
            config["rope_theta"] = theta
        if partial is not None:
            config["partial_rotary_factor"] = partial
        if parameters is None:
            if chance(rng, 0.5):
                config["rope_scaling"] = None
            return
        scaling = dict(parameters)
        if chance(rng, 0.5):
            scaling["type"] = scaling.pop("rope_type")
        elif chance(rng, 0.2):
            scaling["type"] = scaling["rope_type"]
        if config["model_type"] == "phi3" and chance(rng, 0.3):
            scaling = {key: "su" if key in ("type", "rope_type") else value for key, value in scaling.items()}
        config["rope_scaling"] = scaling
        return
    out = dict(parameters or {"rope_type": "default"})
    if theta is not None:
        if chance(rng, 0.9):
            out["rope_theta"] = theta
        else:
            config["rope_theta"] = theta
    if partial is not None:
        out["partial_rotary_factor"] = partial
    config["rope_parameters"] = out


def random_config(rng, family, spelling):
    """(config.json, generation_config.json or None, lengths at which something changes)."""
    config = {"architectures": [FAMILIES[family]], "model_type": family} | base_sizes(rng, family)
    width = deepseek_sizes(rng, family, config) if family.startswith("deepseek") else head_sizes(rng, family, config)
    if family in ("llama", "qwen3") and chance(rng, 0.4):
        config["attention_bias"] = chance(rng, 0.7)
    if family == "llama" and chance(rng, 0.4):
        config["mlp_bias"] = chance(rng, 0.7)
    lengths = windows(rng, family, config)
    parameters, theta, partial, top, more = rope(rng, family, config, width)
    if top is not None:
        config["original_max_position_embeddings"] = top
    spell_rope(rng, spelling, config, parameters, theta, partial)
    dtype = rng.choice(["float32", "bfloat16", "float16", None])
    if dtype is not None:
        config["torch_dtype" if spelling == "old" else "dtype"] = dtype
    if chance(rng, 0.12):
        config["quantization_config"] = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
    vocab = config["vocab_size"]
    eos = rng.choice([2, [2, 3], rng.sample(range(vocab), 12), 32000, [2, 100000], None])  # tiny models often keep the ids of large ones
    config["bos_token_id"] = 1
    if family == "phi3" or chance(rng, 0.2):
        config["pad_token_id"] = 0
    if eos is not None or chance(rng, 0.5):
        config["eos_token_id"] = eos
    generation = None
    if chance(rng, 0.5):
        generation = {"_from_model_config": True, "temperature": 0.6, "do_sample": True}
        if chance(rng, 0.7):
            generation["eos_token_id"] = rng.choice([2, rng.sample(range(vocab), 10)])
    if chance(rng, 0.1):
        del config["max_position_embeddings"]
        more = [length for length in more if length < 100]
    return config, generation, lengths + more


def lengths_to_score(rng, thresholds):
    most = max([24] + [threshold for threshold in thresholds if threshold]) + rng.randint(8, 24)
    lengths = {1, 2, rng.randint(3, 12), min(most, 100)}
    for threshold in thresholds:
        lengths |= {threshold, threshold + 1}
    return sorted(length for length in lengths if 0 < length <= 120)
