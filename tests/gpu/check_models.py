#!/usr/bin/env python3
"""Runs the golden models of every family on this machine's GPU, in float32 and bfloat16, some on two ranks through NCCL; compares adapters and
quantised folders likewise, and times the loading of an 8B model's weights. Python's standard library alone.

    tests/gpu/check_models.py --bin-dir build/cuda/bin [--scratch /dev/shm]

Each check is printed as one JSON line. Exit code 0: all of them hold. The 8B folder (random bf16 weights at Llama-3.1-8B's shapes, 16 GB) is written to
--scratch and removed.
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
    "tie_word_embeddings": False, "eos_token_id": 128001}


TENSOR_PARALLEL = ["llama3_tied", "llama_biases", "qwen2_tied", "phi3_longrope", "deepseek_v3", "deepseek_v2_lite"]


def shapes():
    hidden, inner, keys = CONFIG["hidden_size"], CONFIG["intermediate_size"], 1024
    yield "model.embed_tokens.weight", [CONFIG["vocab_size"], hidden]
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name, shape in (("input_layernorm", [hidden]), ("post_attention_layernorm", [hidden]), ("self_attn.q_proj", [hidden, hidden]),
                            ("self_attn.k_proj", [keys, hidden]), ("self_attn.v_proj", [keys, hidden]), ("self_attn.o_proj", [hidden, hidden]),
                            ("mlp.gate_proj", [inner, hidden]), ("mlp.up_proj", [inner, hidden]), ("mlp.down_proj", [hidden, inner])):
            yield f"{layer}{name}.weight", shape
    yield "model.norm.weight", [hidden]
    yield "lm_head.weight", [CONFIG["vocab_size"], hidden]


def write_8b(folder):
    """Shards of about 4 GB; the values are one block of small numbers over and over."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    block = bytes(b for i in range(1 << 22) for b in ((i * 7919 >> 3) & 0xff, 0x3c if i & 1 else 0xbc))  # bf16 of about +-0.01
    shards, used = [[]], 0
    for name, shape in shapes():
        size = 2
        for one in shape:
            size *= one
        if used + size > 4 << 30 and shards[-1]:
            shards.append([])
            used = 0
        shards[-1].append((name, shape, size))
        used += size
    where = {}
    for number, shard in enumerate(shards):
        file, header, at = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors", {}, 0
        for name, shape, size in shard:
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            where[name] = file
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for left in (size for _, _, size in shard):
                while left > 0:
                    out.write(block[:min(left, len(block))])
                    left -= len(block)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def scores(options, model, rows, *flags):
    """Each row's log-probabilities as `distctl score` gives them."""
    source, output = options.scratch / "retort-rows.jsonl", options.scratch / "retort-scores.jsonl"
    source.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in rows))
    subprocess.run([options.bin_dir / "distctl", "score", "--model", model, "--input", source, "--output", output, *flags], check=True)
    return [json.loads(line)["logprobs"] for line in output.read_text().splitlines()]


def worst(got, wanted):
    return max(abs(a - b) for own, other in zip(got, wanted, strict=True) for a, b in zip(own[1:], other[1:], strict=True))


def check_adapters(options, say):
    """Every golden adapter, merged on the GPU, against the CPU."""
    for dtype, most in (("float32", 2e-4), ("bfloat16", 2e-2)):
        differences = {}
        for case in sorted(path.parent.parent for path in (GOLDEN / "peft").glob("*/adapter/adapter_config.json")):
            model = GOLDEN / "families" / json.loads((case / "expected.json").read_text())["model"]
            rows = [json.loads(line)["input_ids"] for line in (case / "rows.jsonl").read_text().splitlines()[:4]]
            flags = ("--adapter", case / "adapter", "--dtype", dtype, "--device")
            differences[case.name] = worst(scores(options, model, rows, *flags, "cuda"), scores(options, model, rows, *flags, "cpu"))
        say(f"adapters in {dtype}", max(differences.values()) <= most, **differences)


def check_quantised(options, say):
    """Folders that bitsandbytes quantised, widened and kept as they are, against transformers."""
    for flags in ((), ("--load-in-4bit",)):
        differences = {}
        for folder in sorted(path.parent for path in (GOLDEN / "quantized").glob("*/expected.json")):
            expected = json.loads((folder / "expected.json").read_text())["sequences"]
            got = scores(options, folder, [one["token_ids"] for one in expected], "--dtype", "float32", "--device", "cuda", *flags)
            differences[folder.name] = worst(got, [one["logprobs"] for one in expected])
        say(f"quantised folders{' kept' if flags else ''}", max(differences.values()) <= 2e-4, **differences)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin-dir", type=pathlib.Path, required=True)
    parser.add_argument("--scratch", type=pathlib.Path, default=pathlib.Path("/dev/shm"))
    options = parser.parse_args()
    failed = 0

    def say(check, holds, **facts):
        nonlocal failed
        failed += not holds
        print(json.dumps({"check": check, "holds": bool(holds), **facts}), flush=True)

    # Where there is one GPU, the two ranks share it.
    for dtype, ranks in (("float32", 1), ("bfloat16", 1), ("float32", 2)):
        done = subprocess.run([sys.executable, GOLDEN / "check_families.py", "--bin-dir", options.bin_dir, "--device", "cuda", "--dtype", dtype,
                               "--tensor-parallel-size", str(ranks), *(TENSOR_PARALLEL if ranks > 1 else [])], capture_output=True, text=True)
        say(f"golden models in {dtype}, {ranks} rank(s)", done.returncode == 0, lines=done.stdout.strip().splitlines(), errors=done.stderr[-500:])

    check_adapters(options, say)
    check_quantised(options, say)
    folder = options.scratch / "retort-8b"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        write_8b(folder)
        for attempt in (1, 2):
            done = subprocess.run([options.bin_dir / "bench-generate", "--model", folder, "--device", "cuda", "--prompt-tokens", "8", "--new-tokens", "8",
                                   "--batch-size", "1", "--repeats", "1", "--json"], capture_output=True, text=True)
            facts = json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr[-500:]}
            say(f"an 8B folder loads in 4 s, attempt {attempt}", facts.get("load_seconds", 99) <= 4.0, **facts)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
