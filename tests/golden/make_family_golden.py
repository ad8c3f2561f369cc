#!/usr/bin/env python3
"""Writes families/: for every model family tiny random models with the quirks of published ones, and what transformers computes with them.

Each case is a folder: config.json (old and new spellings), weights, most with a tokenizer (token 7 is the word "w7"), and expected.json:
  sequences     [{token_ids, logprobs}], float32, eager attention, no cache; one of two tokens, one past the window or the original context
  bfloat16      where the stored weights are not bf16: the sequences' logprobs in float32 from the weights rounded to bf16
  greedy        [{prompt, token_ids, stop_at}]: 32 tokens, a whole forward pass each, EOS ignored; stop_at is how many tokens there are, the EOS
                included, when it is not (null: it never comes)
  hidden_norms  {token_ids, embeddings, layers, final_norm}: L2 norm of each token's vector; `layers` are the layers' outputs, before the final
                norm (transformers' hidden_states[-1] is after it)
Seeds are tried until every greedy token stands 1e-3 above the second best and float64 agrees with float32 to 2e-5.
Run where torch and transformers are installed:
  python tests/golden/make_family_golden.py [FOLDER [NAME...]]
"""
import json
import pathlib
import random
import shutil
import sys

import torch
from family_models import greedy_of, hidden_norms_of, load_reference, logprobs_of, round_weights, write_model

STEPS = 32
LEAST_MARGIN = 1e-3
WITHOUT_TOKENIZER = {"qwen3_biases", "deepseek_v3_plain"}  # token ids need none
MOST_ROUNDING = 2e-5


def decoder(model_type, architecture, **rest):
    sizes = {"vocab_size": 160, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
             "hidden_act": "silu", "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2}
    return {"architectures": [architecture], "model_type": model_type} | sizes | rest


def llama(**rest):
    return decoder("llama", "LlamaForCausalLM", **rest)


def mistral(**rest):
    return decoder("mistral", "MistralForCausalLM", num_key_value_heads=2, **rest)


def qwen2(**rest):
    return decoder("qwen2", "Qwen2ForCausalLM", num_key_value_heads=2, **rest)


def qwen3(**rest):
    return decoder("qwen3", "Qwen3ForCausalLM", num_key_value_heads=2, **rest)


def phi3(**rest):
    return decoder("phi3", "Phi3ForCausalLM", resid_pdrop=0.0, embd_pdrop=0.0, pad_token_id=0, **rest)


def deepseek(version, **rest):
    sizes = {"moe_intermediate_size": 24, "n_routed_experts": 8, "num_experts_per_tok": 3, "first_k_dense_replace": 1, "moe_layer_freq": 1,
             "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 14, "num_key_value_heads": 4,
             "ep_size": 1, "aux_loss_alpha": 0.001, "seq_aux": True}
    return decoder(f"deepseek_v{version}", f"DeepseekV{version}ForCausalLM", **(sizes | rest))


FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}

# name: (config.json, generation_config.json or None, lengths of the sequences, lengths of the prompts continued, shards)
CASES = {
    # Llama 2: as many key-value heads as heads, neither rope_theta nor rope_scaling, f16.
    "llama_mha": (llama(torch_dtype="float16", rope_scaling=None, pretraining_tp=1), None, (2, 19, 45), (1, 9), 1),
    # Llama 3.2: grouped heads, tied, frequencies scaled in three bands, several EOS.
    "llama3_tied": (llama(torch_dtype="bfloat16", num_key_value_heads=2, tie_word_embeddings=True, rope_theta=500000.0, hidden_size=64,
                          intermediate_size=96, num_attention_heads=4, eos_token_id=[2, 3, 4], max_position_embeddings=512,
                          rope_scaling={"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 32,
                                        "rope_type": "llama3"}),
                    {"eos_token_id": [2, 3, 4], "do_sample": True, "temperature": 0.6, "top_p": 0.9}, (2, 17, 70), (1, 20), 1),
    # Every bias, heads wider than hidden_size / heads, positions divided; "type" as the first releases spelt it.
    "llama_biases": (llama(torch_dtype="bfloat16", num_key_value_heads=1, head_dim=20, attention_bias=True, mlp_bias=True,
                           rope_scaling={"type": "linear", "factor": 4.0}), None, (1, 18, 60), (3,), 1),
    # transformers 5's spelling, in three shards.
    "llama_yarn": (llama(dtype="bfloat16", num_key_value_heads=2, head_dim=16, max_position_embeddings=128,
                         rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
                                          "beta_fast": 16.0, "beta_slow": 2.0}), None, (2, 16, 80), (2, 25), 3),
    # Its layer_types are ignored: the window is every layer's.
    "mistral_window": (mistral(torch_dtype="bfloat16", sliding_window=12, rope_theta=10000.0, layer_types=["full_attention"] * 2),
                       None, (2, 12, 13, 50), (2, 11), 1),
    "mistral_head_dim": (mistral(dtype="bfloat16", sliding_window=None, head_dim=20,
                                 rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}), None, (2, 40), (5,), 1),
    # Qwen2.5: biases on q, k and v alone, tied, a window that stands there and is not used.
    "qwen2_tied": (qwen2(torch_dtype="bfloat16", tie_word_embeddings=True, rope_theta=1000000.0, sliding_window=8, use_sliding_window=False,
                         max_window_layers=0, use_mrope=False, rms_norm_eps=1e-6), {"eos_token_id": [2, 5], "repetition_penalty": 1.1, "top_k": 20},
                   (2, 40), (4,), 1),
    "qwen2_window": (qwen2(torch_dtype="bfloat16", rope_theta=10000.0, num_hidden_layers=3, sliding_window=9, use_sliding_window=True,
                           max_window_layers=1), None, (2, 9, 10, 44), (3,), 1),
    "qwen2_yarn": (qwen2(torch_dtype="bfloat16", rope_theta=1000000.0, max_position_embeddings=32, sliding_window=16, use_sliding_window=False,
                         max_window_layers=2, rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}),
                   None, (2, 20, 75), (2, 28), 1),
    "qwen3_tied": (qwen3(torch_dtype="bfloat16", head_dim=20, tie_word_embeddings=True, attention_bias=False, rope_theta=1000000.0,
                         rope_scaling=None, sliding_window=None, use_sliding_window=False, max_window_layers=2, rms_norm_eps=1e-6),
                   None, (2, 40), (4,), 1),
    "qwen3_biases": (qwen3(dtype="bfloat16", head_dim=16, attention_bias=True, num_hidden_layers=3, sliding_window=7, use_sliding_window=True,
                           max_window_layers=1, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                           rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}), None, (2, 7, 8, 40), (4,), 1),
    # Phi-3-mini-4k: fused projections, a window.
    "phi3_window": (phi3(torch_dtype="bfloat16", num_key_value_heads=4, rope_theta=10000.0, rope_scaling=None, sliding_window=11,
                         original_max_position_embeddings=256), None, (2, 11, 12, 50), (3,), 1),
    # Phi-3-mini-128k: factors for short and for long sequences, told by the sequence's length; first called "su".
    "phi3_longrope": (phi3(torch_dtype="bfloat16", num_key_value_heads=2, rope_theta=10000.0, original_max_position_embeddings=24,
                           max_position_embeddings=128, sliding_window=262144,
                           rope_scaling={"type": "su", "short_factor": [1.0, 1.1, 1.2, 1.35, 1.5, 1.8],
                                         "long_factor": [1.05, 1.3, 2.1, 4.5, 9.0, 16.0]}), None, (2, 24, 25, 60), (2, 20), 1),
    # Phi-4-mini: the last quarter of a head is not turned; tied.
    "phi3_partial": (phi3(dtype="bfloat16", num_key_value_heads=2, hidden_size=64, tie_word_embeddings=True, original_max_position_embeddings=20,
                          max_position_embeddings=80, sliding_window=None,
                          rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
                                           "short_factor": [1.0, 1.0, 1.05, 1.1, 1.2, 1.4], "long_factor": [1.0, 1.2, 1.8, 3.5, 6.0, 12.0]}),
                     None, (2, 20, 21, 55), (2, 16), 1),
    # DeepSeek-V2-Lite: queries are not compressed, softmax gate, one dense layer first.
    "deepseek_v2_lite": (deepseek(2, torch_dtype="bfloat16", q_lora_rank=None, n_shared_experts=2, norm_topk_prob=False, routed_scaling_factor=1.0,
                                  scoring_func="softmax", topk_method="greedy", n_group=1, topk_group=1, rope_theta=10000,
                                  max_position_embeddings=128,
                                  rope_scaling={"beta_fast": 32, "beta_slow": 1, "factor": 4, "mscale": 0.707, "mscale_all_dim": 0.707,
                                                "original_max_position_embeddings": 32, "type": "yarn"}), None, (2, 18, 60), (2, 25), 1),
    "deepseek_v2": (deepseek(2, dtype="bfloat16", q_lora_rank=24, n_shared_experts=1, norm_topk_prob=False, routed_scaling_factor=4.0,
                             scoring_func="softmax", topk_method="group_limited_greedy", n_group=4, topk_group=2, attention_bias=True,
                             max_position_embeddings=128,
                             rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "beta_fast": 32, "beta_slow": 1, "factor": 4.0,
                                              "mscale": 1.0, "mscale_all_dim": 0.7, "original_max_position_embeddings": 32}),
                    None, (2, 18, 60), (2,), 1),
    # DeepSeek-V3 and R1: sigmoid gate with a bias for the choice alone, groups, and a layer that predicts the token after the next.
    "deepseek_v3": (deepseek(3, torch_dtype="bfloat16", q_lora_rank=24, n_shared_experts=1, norm_topk_prob=True, routed_scaling_factor=2.5,
                             scoring_func="sigmoid", topk_method="noaux_tc", n_group=4, topk_group=2, num_nextn_predict_layers=1, rope_theta=10000,
                             max_position_embeddings=128, rms_norm_eps=1e-6, attention_bias=False,
                             rope_scaling={"beta_fast": 32, "beta_slow": 1, "factor": 4, "mscale": 1.0, "mscale_all_dim": 1.0,
                                           "original_max_position_embeddings": 32, "type": "yarn"}), None, (2, 18, 60), (2, 25), 1),
    "deepseek_v3_plain": (deepseek(3, dtype="bfloat16", q_lora_rank=None, n_shared_experts=2, norm_topk_prob=False, routed_scaling_factor=1.5,
                                   scoring_func="sigmoid", topk_method="noaux_tc", n_group=2, topk_group=1, num_nextn_predict_layers=0,
                                   first_k_dense_replace=0, attention_bias=True, rope_interleave=False,
                                   rope_parameters={"rope_type": "default", "rope_theta": 10000.0}), None, (2, 40), (4,), 1),
    # R1's fp8: blocks of 128x128 with a scale each, the last of a row or column cut off.
    "deepseek_v3_fp8": (deepseek(3, torch_dtype="bfloat16", hidden_size=144, intermediate_size=136, moe_intermediate_size=32, n_routed_experts=4,
                                 num_experts_per_tok=2, q_lora_rank=40, kv_lora_rank=24, n_shared_experts=1, norm_topk_prob=True,
                                 routed_scaling_factor=2.5, scoring_func="sigmoid", topk_method="noaux_tc", n_group=2, topk_group=1,
                                 num_nextn_predict_layers=0, rope_theta=10000, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=40,
                                 quantization_config=FP8), None, (2, 30), (4,), 2),
}


def rounded(logprobs):
    return [None] + [round(value, 7) for value in logprobs[1:]]


def expectations(folder, name, lengths, prompts):
    """expected.json's content, or None where this seed's model is too near to ties."""
    model, precise = load_reference(folder), load_reference(folder, torch.float64)
    rng = random.Random(name)
    vocab = model.config.vocab_size
    sequences = []
    for length in lengths:
        ids = [rng.randrange(vocab) for _ in range(length)]
        logprobs = logprobs_of(model, ids)
        if any(abs(own - other) > MOST_ROUNDING for own, other in zip(logprobs[1:], logprobs_of(precise, ids)[1:])):
            return None
        sequences.append({"token_ids": ids, "logprobs": rounded(logprobs)})
    eos = json.loads((folder / "config.json").read_text())["eos_token_id"]
    generation = folder / "generation_config.json"
    if generation.exists():
        eos = json.loads(generation.read_text()).get("eos_token_id", eos)
    eos = eos if isinstance(eos, list) else [eos]
    greedy = []
    for length in prompts:
        prompt = [rng.randrange(vocab) for _ in range(length)]
        tokens, margins = greedy_of(model, prompt, STEPS)
        if min(margins) < LEAST_MARGIN:
            return None
        stop = next((index + 1 for index, token in enumerate(tokens) if token in eos), None)
        greedy.append({"prompt": prompt, "token_ids": tokens, "stop_at": stop})
    ids = sequences[-1]["token_ids"]
    norms = {kind: [[round(x, 5) for x in row] for row in rows] if kind == "layers" else [round(x, 5) for x in rows]
             for kind, rows in hidden_norms_of(model, ids).items()}
    expected = {"sequences": sequences, "greedy": greedy, "hidden_norms": {"token_ids": ids} | norms}
    if round_weights(model):
        expected["bfloat16"] = [rounded(logprobs_of(model, one["token_ids"])) for one in sequences]
    return expected


def make_case(folder, name):
    config, generation, lengths, prompts, shards = CASES[name]
    for seed in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        write_model(folder, config, seed, generation, shards, name not in WITHOUT_TOKENIZER)
        expected = expectations(folder, name, lengths, prompts)
        if expected is not None:
            break
    else:
        raise RuntimeError(f"{name}: a hundred seeds, and all too near to ties")
    lines = [f' "{kind}": {json.dumps(value, separators=(",", ":"))}' for kind, value in expected.items()]
    (folder / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    size = sum(file.stat().st_size for file in folder.iterdir())
    worst = min(value for one in expected["sequences"] for value in one["logprobs"][1:]) if lengths != (1,) else 0.0
    print(f"{name}: seed {seed}, {size // 1024} KiB, least logprob {worst:.2f}, greedy {expected['greedy'][0]['token_ids'][:8]}", flush=True)


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "families")
    for name in sys.argv[2:] or CASES:
        make_case(root / name, name)


if __name__ == "__main__":
    main()
