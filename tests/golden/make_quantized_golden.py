#!/usr/bin/env python3
"""Writes quantized/: what bitsandbytes, transformers and PEFT make of small matrices and of models of families/.

  matrices.safetensors   for each case NAME.source, the parts that bitsandbytes saves (NAME.weight, NAME.weight.absmax, ..., NAME.SCB) and what it
                         dequantises: NAME.float32, NAME.bfloat16
  MODEL/                 a folder that transformers saved after quantising, and expected.json: {source: folder of families/, sequences: [{token_ids,
                         logprobs}], training: {...}, losses}; rows.jsonl: two rows a step; adapter/: where training starts
Log-probabilities are those of the dequantised model in float32. Training is PEFT's on the quantised model, in float32 (QLoRA). bitsandbytes' CPU
back-end is what is asked, on a machine without AVX-512: its kernel there takes a row's scales from the wrong place where rows are no multiple of
the block. Run where torch, transformers, peft and bitsandbytes (0.50) are installed, after make_family_golden.py:
  python tests/golden/make_quantized_golden.py [FOLDER [MODEL...]]
"""
import json
import pathlib
import random
import shutil
import sys

import bitsandbytes as bnb
import bitsandbytes.functional as F
import torch
from family_models import logprobs_of
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

FAMILIES = pathlib.Path(__file__).parent / "families"
STEPS, LEARNING_RATE, WEIGHT_DECAY = 20, 2e-3, 0.01
assert not torch.backends.cpu.get_cpu_capability().startswith("AVX512")

# name: (shape, dtype, quantize_4bit's arguments; None: int8)
MATRICES = {
    "nf4": ((24, 40), torch.bfloat16, dict(quant_type="nf4", compress_statistics=True)),
    "nf4_odd": ((7, 19), torch.float32, dict(quant_type="nf4", compress_statistics=True)),
    "nf4_plain": ((12, 33), torch.float32, dict(quant_type="nf4")),
    "nf4_f16": ((5, 128), torch.float16, dict(quant_type="nf4", blocksize=32)),
    "nf4_blocks": ((260, 67), torch.bfloat16, dict(quant_type="nf4", compress_statistics=True)),
    "fp4": ((16, 48), torch.bfloat16, dict(quant_type="fp4", compress_statistics=True, blocksize=128)),
    "fp4_plain": ((3, 35), torch.float32, dict(quant_type="fp4")),
    "int8": ((9, 31), torch.bfloat16, None),
    "int8_f32": ((16, 40), torch.float32, None),
}

# name: (folder of families/, BitsAndBytesConfig's arguments)
FOUR_BITS = dict(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
MODELS = {
    "llama_nf4": ("llama3_tied", dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, **FOUR_BITS)),
    "phi3_fp4": ("phi3_window", dict(bnb_4bit_quant_type="fp4", llm_int8_skip_modules=["o_proj", "lm_head"], **FOUR_BITS)),
    "qwen2_int8": ("qwen2_window", dict(load_in_8bit=True)),
    "deepseek_nf4": ("deepseek_v3", dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, **FOUR_BITS)),
}
TARGETS = {"llama_nf4": "all-linear", "phi3_fp4": ["qkv_proj", "down_proj"], "qwen2_int8": ["q_proj", "v_proj", "gate_proj", "down_proj"],
           "deepseek_nf4": ["q_a_proj", "kv_b_proj", "o_proj"]}
DORA = {"phi3_fp4"}


def make_matrices(path):
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, (shape, dtype, arguments) in MATRICES.items():
        values = torch.randn(shape, generator=generator)
        values[0] = 0  # a block of zeros
        values[-1, -1] = -3.5
        values[1, :4] = torch.tensor([1e-30, -1e-12, 65000.0 if arguments is None else 7.0, 0.5])
        source = values.to(dtype)
        tensors[f"{name}.source"] = source
        if arguments is None:
            codes, scales, _ = F.int8_vectorwise_quant(source.to(torch.float16))
            tensors |= {f"{name}.weight": codes, f"{name}.SCB": scales, f"{name}.weight_format": torch.tensor(0, dtype=torch.uint8)}
            wide = F.int8_vectorwise_dequant(codes, scales)
            tensors |= {f"{name}.float32": wide, f"{name}.bfloat16": wide.to(torch.bfloat16)}
            continue
        codes, state = F.quantize_4bit(source, **arguments)
        tensors[f"{name}.weight"] = codes
        tensors |= {f"{name}.weight.{part}": tensor for part, tensor in state.as_dict(packed=True).items()}
        for dtype in (torch.float32, torch.bfloat16):
            state.dtype = dtype
            tensors[f"{name}.{str(dtype).removeprefix('torch.')}"] = F.dequantize_4bit(codes, state)
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, path, metadata={"format": "pt"})


def make_rows(rng, vocab):
    rows = []
    for _ in range(2 * STEPS):
        ids = [rng.randrange(vocab) for _ in range(rng.randint(3, 22))]
        ignored = rng.randint(1, len(ids) - 1)
        rows.append({"input_ids": ids, "labels": [-100] * ignored + ids[ignored:]})
    return rows


def train(model, rows):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    losses = []
    for step in range(STEPS):
        total, count = 0.0, 0
        for row in rows[2 * step:2 * step + 2]:
            logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
            target = torch.tensor(row["labels"][1:])
            total = total + torch.nn.functional.cross_entropy(logits, target, ignore_index=-100, reduction="sum")
            count += int((target != -100).sum())
        (total / count).backward()
        losses.append((total / count).item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def load(folder, **arguments):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", experts_implementation="eager", device_map="cpu", **arguments)


def make_model(folder, name):
    source, arguments = MODELS[name]
    shutil.rmtree(folder, ignore_errors=True)
    quantised = load(FAMILIES / source, quantization_config=BitsAndBytesConfig(**arguments))
    quantised.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)

    rng = random.Random(name)
    model = load(folder, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dtype == torch.bfloat16:  # stacked experts, which the loader forgets
            parameter.data = parameter.data.float()
    vocab = model.config.vocab_size
    rows = make_rows(rng, vocab)
    sequences = [[rng.randrange(vocab) for _ in range(length)] for length in (2, 30)]
    torch.manual_seed(sum(map(ord, name)))
    # Training mode: there the int8 matrices are multiplied as they are widened, not with activations in 8 bits too.
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=9, target_modules=TARGETS[name], use_dora=name in DORA, init_lora_weights=False,
                                               task_type="CAUSAL_LM")).train()
    for config in adapted.peft_config.values():
        config.base_model_name_or_path = None  # else the path of this machine
    adapted.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    losses = train(adapted, rows)

    wide = load(FAMILIES / source, dtype=torch.float32, quantization_config=BitsAndBytesConfig(**arguments)).dequantize(torch.float32).eval()
    scored = [{"token_ids": ids, "logprobs": [None] + [round(value, 7) for value in logprobs_of(wide, ids)[1:]]} for ids in sequences]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
    expected = {"source": source, "sequences": scored, "training": {"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY}, "losses": losses}
    (folder / "expected.json").write_text("{\n" + ",\n".join(f' "{key}": {json.dumps(value)}' for key, value in expected.items()) + "\n}\n")
    print(name, bnb.__version__, "loss", losses[0], "->", losses[-1], flush=True)


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "quantized")
    root.mkdir(exist_ok=True)
    make_matrices(root / "matrices.safetensors")
    for name in sys.argv[2:] or MODELS:
        make_model(root / name, name)


if __name__ == "__main__":
    main()
