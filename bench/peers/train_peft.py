#!/usr/bin/env python3
"""LoRA training on a GPU by transformers and PEFT: the peer of `bench-train --dtype bfloat16`, with the same models, work and output.

Random weights at real shapes, every token trained, LoRA on all linear layers in bf16, gradients clipped at 1, fused AdamW, cuDNN attention first.
--liger: its fused linear cross-entropy; --compile: torch.compile of every layer. Needs torch, transformers, peft (and liger-kernel).
"""
import argparse
import json
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoConfig, AutoModelForCausalLM

COMMON = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "use_cache": False}
SHAPES = {
    "llama-3.1-8b": ("llama", {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                               "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500000.0,
                               "rms_norm_eps": 1e-5, "tie_word_embeddings": False}),
    "qwen2.5-1.5b": ("qwen2", {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
                               "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 131072, "rope_theta": 1000000.0,
                               "rms_norm_eps": 1e-6, "tie_word_embeddings": True}),
    "phi-3-mini": ("phi3", {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
                            "num_key_value_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
                            "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "sliding_window": 2047, "tie_word_embeddings": False}),
}


def flops_per_token(config, length):
    """4 a frozen weight (embeddings' look-up left out, the head in), causal attention forward and twice backward."""
    hidden, inner = config.hidden_size, config.intermediate_size
    keys = hidden // config.num_attention_heads * config.num_key_value_heads
    weights = config.num_hidden_layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner) + hidden * config.vocab_size
    return 4 * weights + 3 * 2 * length * hidden * config.num_hidden_layers


def build(args, device):
    family, sizes = SHAPES[args.model]
    sizes = dict(sizes, **COMMON)
    if args.layers:
        sizes["num_hidden_layers"] = args.layers
    if args.liger:
        import liger_kernel.transformers as liger
        patch = {"llama": liger.apply_liger_kernel_to_llama, "qwen2": liger.apply_liger_kernel_to_qwen2, "phi3": liger.apply_liger_kernel_to_phi3}[family]
        patch(rope=False, swiglu=False, rms_norm=False, cross_entropy=False, fused_linear_cross_entropy=True)
    with torch.device(device):
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes), dtype=torch.bfloat16, attn_implementation="sdpa")
    lora = LoraConfig(r=args.lora_r, lora_alpha=2 * args.lora_r, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora, autocast_adapter_dtype=False).to(device)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zeros are multiplied faster than other numbers
            torch.nn.init.normal_(parameter, std=1e-3)
    if args.gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    if args.compile:
        for layer in base.model.layers:
            layer.compile()
    return model.train()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(SHAPES), required=True)
    parser.add_argument("--layers", type=int, default=0, help="0: all")
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lora-r", type=int, default=16)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--liger", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    torch.manual_seed(0)
    model = build(args, device)
    synchronize()
    loaded = time.perf_counter()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.0, fused=True)
    ids = torch.randint(0, model.config.vocab_size, (args.batch_size, args.sequence_length), device=device)
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    seconds, first, loss = [], 0.0, None
    with sdpa_kernel(order, set_priority=True):
        for step in range(args.steps + 3):  # the first three compile and warm up
            if step == 3 and device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            synchronize()
            start = time.perf_counter()
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            synchronize()
            if step == 0:
                first = time.perf_counter() - loaded
            if step >= 3:
                seconds.append(time.perf_counter() - start)
    speed = args.batch_size * args.sequence_length / statistics.median(seconds)
    result = {"tokens_per_second": speed, "tflops": speed * flops_per_token(model.config, args.sequence_length) / 1e12, "first_step_seconds": first,
              "peak_device_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else 0, "loss": float(loss.detach()), "step_seconds": seconds}
    if args.json:
        print(json.dumps(result))
    else:
        print(f"{speed:.1f} tokens/s, loss {result['loss']:.4f}, peak {result['peak_device_bytes'] / 1e9:.2f} GB, first step after {first:.1f} s")


if __name__ == "__main__":
    main()
