"""Tiny random models of every family, from the config.json that shall stand in their folder, and what transformers computes with them.

Shared by make_family_golden.py, make_peft_golden.py and tests/model/compare_families.py. Needs torch, transformers and safetensors.
"""
import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FP8_BLOCK = 128


def randomise(model, seed):
    """Weights whose logits lie far from uniform and from ties: matrices scaled by their fan-in, norms round 1, no bias zero."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape, mean, deviation):
        return mean + deviation * torch.randn(shape, generator=generator)

    state = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name in sorted(state):
            tensor = state[name]
            if "rotary_emb" in name:
                continue
            if name.endswith("e_score_correction_bias"):
                value = normal(tensor.shape, 0.0, 0.3)
            elif "norm" in name:
                value = normal(tensor.shape, 1.5 if name.endswith(("q_norm.weight", "k_norm.weight")) else 1.0, 0.2)
            elif name.endswith("bias"):
                value = normal(tensor.shape, 0.0, 0.3)
            elif "embed_tokens" in name:
                value = normal(tensor.shape, 0.0, 0.35)
            else:
                value = normal(tensor.shape, 0.0, (1.6 if "gate.weight" not in name else 1.0) / tensor.shape[-1] ** 0.5)
            tensor.copy_(value)


def published_tensors(model):
    """The state dict under the names of published checkpoints: a tensor for each projection of each expert, no tied copies."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("mlp.experts.gate_up_proj"):
            prefix = name.removesuffix("gate_up_proj")
            for expert, both in enumerate(tensor):
                gate, up = both.chunk(2)
                tensors[f"{prefix}{expert}.gate_proj.weight"], tensors[f"{prefix}{expert}.up_proj.weight"] = gate, up
        elif name.endswith("mlp.experts.down_proj"):
            for expert, down in enumerate(tensor):
                tensors[f"{name.removesuffix('down_proj')}{expert}.down_proj.weight"] = down
        elif name != "lm_head.weight" or not model.config.tie_word_embeddings:
            tensors[name] = tensor
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def prediction_layer(config, seed):
    """Multi-token prediction weights as DeepSeek-V3 publishes them: one more decoder layer behind the last, with its own head."""
    model = AutoModelForCausalLM.from_config(config)
    randomise(model, seed)
    last, layer = config.num_hidden_layers - 1, config.num_hidden_layers
    tensors = {name.replace(f"layers.{last}.", f"layers.{layer}."): tensor
               for name, tensor in published_tensors(model).items() if f"layers.{last}." in name}
    width = config.hidden_size
    for name, shape in (("embed_tokens", (config.vocab_size, width)), ("enorm", (width,)), ("hnorm", (width,)), ("eh_proj", (width, 2 * width)),
                        ("shared_head.norm", (width,)), ("shared_head.head", (config.vocab_size, width))):
        tensors[f"model.layers.{layer}.{name}.weight"] = torch.ones(shape)
    return tensors


def block_quantised(weight):
    """(float8_e4m3fn values, float32 scales of 128x128 blocks that multiply them back)."""
    rows, columns = weight.shape
    down, across = -(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK)
    padded = torch.zeros(down * FP8_BLOCK, across * FP8_BLOCK)
    padded[:rows, :columns] = weight
    blocks = padded.view(down, FP8_BLOCK, across, FP8_BLOCK)
    scales = blocks.abs().amax(dim=(1, 3)) / 448.0
    values = (blocks / scales[:, None, :, None]).view(padded.shape)[:rows, :columns].to(torch.float8_e4m3fn)
    return values.contiguous(), scales.contiguous()


def block_dequantised(values, scales):
    rows, columns = values.shape
    spread = scales.repeat_interleave(FP8_BLOCK, 0)[:rows].repeat_interleave(FP8_BLOCK, 1)[:, :columns]
    return values.float() * spread


def is_quantised(name):
    return name.endswith("_proj.weight") or "kv_a_proj_with_mqa" in name and name.endswith(".weight")


def stored(tensors, config):
    """`tensors` as the file holds them: rounded to the config's dtype, the router's bias in f32, fp8 with scales where config.json says so."""
    kind = DTYPES[config.get("dtype") or config.get("torch_dtype") or "float32"]
    out = {}
    for name, tensor in tensors.items():
        if config.get("quantization_config") and is_quantised(name):
            out[name], out[f"{name}_scale_inv"] = block_quantised(tensor)
        else:
            out[name] = tensor.float() if name.endswith("e_score_correction_bias") else tensor.to(kind)
    return out


def write_tokenizer(folder, vocab_size):
    """A tokenizer whose text shows the ids: token 7 is "w7"."""
    vocab = {f"w{index}": index for index in range(vocab_size)}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                 "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None,
                 "decoder": None, "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, separators=(",", ":")) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0"}) + "\n")


def save_tensors(tensors, folder, shards):
    """One file, or as many shards with their index, a layer's tensors spread over them."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    names = sorted(tensors)
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def read_config(folder):
    """config.json as transformers reads it, but for "su": it knows the old name of longrope, yet looks before that for a key that published files
    have beside rope_scaling."""
    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    for key in ("type", "rope_type"):
        if rope.get(key) == "su":
            rope[key] = "longrope"
    return AutoConfig.for_model(config.pop("model_type"), **config)


def write_model(folder, config, seed, generation=None, shards=1, tokenizer=True):
    """Writes a folder with `config` as its config.json, word for word, and random weights."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    parsed = read_config(folder)
    if hasattr(parsed, "quantization_config"):
        del parsed.quantization_config
    model = AutoModelForCausalLM.from_config(parsed, dtype=torch.float32)
    randomise(model, seed)
    tensors = published_tensors(model)
    if config.get("num_nextn_predict_layers"):
        tensors |= prediction_layer(parsed, seed + 1)
    save_tensors(stored(tensors, config), folder, shards)
    if tokenizer:
        write_tokenizer(folder, config["vocab_size"])


def read_tensors(folder):
    """The folder's tensors in f32, block scales multiplied in."""
    from safetensors.torch import load_file
    tensors = {}
    for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
        tensors |= load_file(file)
    out = {}
    for name, tensor in tensors.items():
        if f"{name}_scale_inv" in tensors:
            out[name] = block_dequantised(tensor, tensors[f"{name}_scale_inv"])
        elif not name.endswith("_scale_inv"):
            out[name] = tensor.float()
    return out


def load_reference(folder, dtype=torch.float32):
    """The folder as transformers reads it. Its fp8 loader rounds to bf16 and refuses blocks that do not fill the grid, so those are multiplied out here."""
    options = dict(dtype=dtype, attn_implementation="eager", experts_implementation="eager")
    config = read_config(folder)
    if not hasattr(config, "quantization_config"):
        model, report = AutoModelForCausalLM.from_pretrained(folder, config=config, output_loading_info=True, **options)
        assert not report["missing_keys"] and not report["mismatched_keys"], report
        unexpected = [name for name in report["unexpected_keys"] if f"layers.{config.num_hidden_layers}." not in name]
        assert not unexpected, unexpected
        return model.eval()
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, **options)
    tensors = read_tensors(folder)
    state = model.state_dict()
    for name in state:
        prefix = name.rpartition(".")[0]
        if name.endswith("experts.gate_up_proj"):
            value = torch.stack([torch.cat([tensors[f"{prefix}.{expert}.{part}_proj.weight"] for part in ("gate", "up")])
                                 for expert in range(state[name].shape[0])])
        elif name.endswith("experts.down_proj"):
            value = torch.stack([tensors[f"{prefix}.{expert}.down_proj.weight"] for expert in range(state[name].shape[0])])
        else:
            value = tensors[name if name != "lm_head.weight" or not config.tie_word_embeddings else "model.embed_tokens.weight"]
        state[name].copy_(value)
    return model.eval()


@torch.no_grad()
def logits_of(model, ids):
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def logprobs_of(model, ids):
    """Natural log of each token's probability given those before it; the first is null."""
    values = torch.log_softmax(logits_of(model, ids)[:-1].double(), -1).gather(1, torch.tensor(ids[1:], dtype=torch.long)[:, None])
    return [None] + values[:, 0].tolist()


def round_weights(model):
    """Rounds the weights to bf16 where they are, but for the router's bias, which decides in float32; False: they are bf16 as they stand."""
    changed = False
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("e_score_correction_bias"):
                continue
            values = weight.bfloat16().float()
            changed |= not torch.equal(values, weight)
            weight.copy_(values)
    return changed


def greedy_of(model, ids, steps):
    """(new tokens, how far each stood above the second best), a whole forward pass for each, no cache."""
    ids, margins = list(ids), []
    for _ in range(steps):
        best = logits_of(model, ids)[-1].topk(2)
        margins.append((best.values[0] - best.values[1]).item())
        ids.append(int(best.indices[0]))
    return ids[-steps:], margins


@torch.no_grad()
def hidden_norms_of(model, ids):
    """L2 norm of each token's vector: embeddings, the output of every layer before the final norm, and after it."""
    outputs = []
    hooks = [layer.register_forward_hook(lambda module, inputs, output: outputs.append(output[0] if isinstance(output, tuple) else output))
             for layer in model.model.layers]
    try:
        embeddings = model.get_input_embeddings()(torch.tensor([ids]))
        final = model.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    def norms(tensor):
        return tensor[0].float().norm(dim=-1).tolist()
    return {"embeddings": norms(embeddings), "layers": [norms(output) for output in outputs], "final_norm": norms(final)}
