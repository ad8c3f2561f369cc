#!/usr/bin/env python3
"""Takes a GGUF file of a Llama to a Hugging Face folder and back to GGUF, and compares with transformers, the gguf package and llama.cpp.

    pip install transformers==5.17.0 torch==2.11.0 accelerate gguf==0.19.0 llama-cpp-python==0.3.36
    python tests/model/gguf/check_convert.py --bin-dir build/release/bin SmolLM2-135M-Instruct.Q4_1.gguf

1. GGUF -> HF: every tensor equal to what transformers' own loader makes of the file, the same token ids, the same log-probabilities.
2. HF -> GGUF Q8_0: every tensor equal to what the gguf package quantises from that folder.
3. llama.cpp continues texts with the same 64 greedy tokens from either.
4. Q4_K_M: types and bytes that llama.cpp's own quantiser makes of our F32 file.
"""
import argparse
import ctypes
import json
import pathlib
import subprocess
import sys
import tempfile

import gguf
import numpy as np

PROMPTS = ["The capital of France is", "def fibonacci(n):\n", "<|im_start|>user\nWhat is 7 times 8?<|im_end|>\n<|im_start|>assistant\n"]
Q8_0 = gguf.GGMLQuantizationType.Q8_0


def distctl(options, *arguments):
    subprocess.run([options.bin_dir / "distctl", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def check_folder(options, source, folder):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reference = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    wanted = reference.state_dict()
    tensors = load_file(folder / "model.safetensors")
    differ = [name for name, value in tensors.items() if not torch.equal(value.float(), wanted[name])]
    theirs = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    ours = AutoTokenizer.from_pretrained(folder)
    rows = [theirs(text).input_ids for text in PROMPTS]
    tokens_differ = [text for text, ids in zip(PROMPTS, rows) if ours(text).input_ids != ids]
    given, scored = folder.parent / "in.jsonl", folder.parent / "out.jsonl"
    given.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in rows))
    worst = 0.0
    for model in (folder, source):
        distctl(options, "score", "--model", model, "--dtype", "float32", "--device", "cpu", "--input", given, "--output", scored)
        for ids, line in zip(rows, scored.read_text().splitlines()):
            with torch.no_grad():
                logprobs = reference(torch.tensor([ids])).logits[0].log_softmax(-1)
            expected = logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
            worst = max([worst] + [abs(a - b) for a, b in zip(json.loads(line)["logprobs"][1:], expected)])
    print(f"GGUF -> HF: {len(tensors)} tensors, {len(differ)} differ; {len(tokens_differ)} texts tokenise differently; log-probabilities within {worst:.1e}")
    return not differ and not tokens_differ and worst < 2e-4


def permuted(values, heads):
    return values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def quantise_with_package(folder, metadata_from, target):
    """A Q8_0 file of the folder's tensors by the gguf package, with another file's metadata."""
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(target, "llama")
    for key, field in gguf.GGUFReader(metadata_from).fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        writer.add_key_value(key, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for name, values in load_file(folder / "model.safetensors").items():
        base, suffix = name.rsplit(".", 1)
        values = values.astype(np.float32)
        if ".q_proj." in name:
            values = permuted(values, config["num_attention_heads"])
        if ".k_proj." in name:
            values = permuted(values, config["num_key_value_heads"])
        new_name = f"{names.get_name(base)}.{suffix}"
        if values.ndim == 1:
            writer.add_tensor(new_name, values)
        else:
            writer.add_tensor(new_name, gguf.quants.quantize(values, Q8_0), raw_dtype=Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def same_tensors(what, ours, theirs):
    left = {tensor.name: tensor for tensor in gguf.GGUFReader(ours).tensors}
    right = {tensor.name: tensor for tensor in gguf.GGUFReader(theirs).tensors}
    differ = sorted(set(left) ^ set(right))
    for name in set(left) & set(right):
        a, b = left[name], right[name]
        if a.tensor_type != b.tensor_type or list(a.shape) != list(b.shape) or not np.array_equal(a.data, b.data):
            differ.append(name)
    print(f"{what}: {len(left)} tensors, {len(differ)} differ {differ[:3] or ''}")
    return not differ


def greedy(path):
    import llama_cpp

    model = llama_cpp.Llama(str(path), n_ctx=256, verbose=False)
    return [model(prompt, max_tokens=64, temperature=0.0)["choices"][0]["text"] for prompt in PROMPTS]


def quantise_with_llama_cpp(source, target):
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = int(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)) == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-dir", type=pathlib.Path, required=True)
    parser.add_argument("gguf", type=pathlib.Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        folder, ours, theirs = scratch / "hf", scratch / "ours.gguf", scratch / "theirs.gguf"
        distctl(options, "convert", options.gguf, folder)
        good = check_folder(options, options.gguf, folder)
        distctl(options, "convert", folder, ours, "--type", "q8_0")
        quantise_with_package(folder, ours, theirs)
        good &= same_tensors("HF -> GGUF Q8_0, against the gguf package", ours, theirs)
        texts, expected = greedy(ours), greedy(theirs)
        print(f"llama.cpp: {sum(a == b for a, b in zip(texts, expected))} of {len(PROMPTS)} texts of 64 greedy tokens are the same: {texts[0]!r}")
        good &= texts == expected
        plain, mixed, reference = scratch / "f32.gguf", scratch / "q4_k_m.gguf", scratch / "reference.gguf"
        distctl(options, "convert", folder, plain, "--type", "f32")
        distctl(options, "convert", folder, mixed, "--type", "q4_k_m")
        quantise_with_llama_cpp(plain, reference)
        good &= same_tensors("HF -> GGUF Q4_K_M, against llama.cpp's quantiser", mixed, reference)
    print("all equal" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
