"""Model folders, adapters and rows that lie: what check_hostile_models.py gives to the programs.

Each case is (name, spoil(folder) -> arguments after the verb or None for the usual ones, verb, may_pass): `folder` is a copy of a sound model;
may_pass marks damage that can leave something sound.
"""
import json
import random
import struct

from hostile_gguf import gguf_cases, spoilt_gguf_cases

ROWS = [{"token_ids": [1, 2, 3, 4]}]


def read_header(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write_header(path, header, body, size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + body)


def safetensors_cases():
    def file_of(folder):
        return folder / "model.safetensors"

    def truncated(count):
        def spoil(folder):
            data = file_of(folder).read_bytes()
            file_of(folder).write_bytes(data[:count] if count >= 0 else data[:len(data) + count])
        return spoil

    for count in (0, 1, 7, 8, 9, 100, 1000, 5000, -1, -2, -1000, -50000):
        yield f"truncated at {count}", truncated(count), "score", False

    def header_size(size):
        def spoil(folder):
            header, body = read_header(file_of(folder))
            write_header(file_of(folder), header, body, size)
        return spoil

    for size in (0, 1, 2, 100, 2**20, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64 - 8, 2**64 - 1):
        yield f"header size {size}", header_size(size), "score", False

    def header_text(text):
        def spoil(folder):
            write_header(file_of(folder), text, read_header(file_of(folder))[1])
        return spoil

    for label, text in (("empty object", b"{}"), ("array", b"[1,2]"), ("null", b"null"), ("number", b"1e999"), ("not JSON", b"{model"),
                        ("non-UTF-8", b'{"\xff\xfe": 1}'), ("NUL", b"\0" * 64), ("100,000 brackets", b"[" * 100000), ("100,000 objects", b'{"a":' * 100000),
                        ("a number as an entry", b'{"a": 3}'), ("a metadata list", b'{"__metadata__": [1]}'),
                        ("one key a million times", b"{" + b",".join([b'"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'] * 20000) + b"}")):
        yield f"header of {label}", header_text(text), "score", False

    def entry(change, key="model.layers.0.self_attn.q_proj.weight"):
        def spoil(folder):
            header, body = read_header(file_of(folder))
            change(header, header[key])
            write_header(file_of(folder), header, body)
        return spoil

    def setter(field, value):
        return entry(lambda header, one: one.__setitem__(field, value))

    for value in ([-1, 10], [0, 2**63], [0, 2**64], [10, 5], [1, 4609], [0, 10**7], [0], [0, 1, 2], [], None, "0", [0.5, 9.5], [[0], [1]], {"a": 1}):
        yield f"data_offsets {value}", setter("data_offsets", value), "score", False
    for value in ([], [48], [48, 47], [47, 48], [48, 48, 1], [-48, -48], [2**32, 2**32], [2**63, 2], [0, 48], [1.5, 2], None, "48", [[48]], [1] * 10000):
        yield f"shape {str(value)[:40]}", setter("shape", value), "score", False
    for value in ("F64", "I8", "BOOL", "F7", "", None, 3, "f16", "F32", "\ud83d\ude00", "F8_E4M3", "X" * 10000):
        yield f"dtype {str(value)[:20]}", setter("dtype", value), "score", False
    for field in ("dtype", "shape", "data_offsets"):
        yield f"no {field}", entry(lambda header, one, field=field: one.pop(field)), "score", False

    def overlap(header, one):
        other = header["model.layers.0.self_attn.k_proj.weight"]
        one["data_offsets"] = list(other["data_offsets"])

    yield "overlapping tensors", entry(overlap), "score", False

    def half_overlap(header, one):
        one["data_offsets"] = [value + 2 for value in one["data_offsets"]]

    yield "tensors that overlap by two bytes", entry(half_overlap), "score", False
    for key in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "model.layers.1.mlp.down_proj.weight",
                "model.layers.0.input_layernorm.weight", "model.layers.1.self_attn.v_proj.weight"):
        yield f"without {key}", entry(lambda header, one, key=key: header.pop(key), key), "score", False
        yield f"{key} one row short", entry(lambda header, one: one["shape"].__setitem__(0, one["shape"][0] - 1), key), "score", False
    rng = random.Random(0)
    for index in range(40):
        def flip(folder, seed=rng.randrange(2**32)):
            local = random.Random(seed)
            data = bytearray(file_of(folder).read_bytes())
            size = struct.unpack("<Q", data[:8])[0]
            for _ in range(local.randint(1, 6)):
                data[local.randrange(8 + size)] = local.randrange(256)
            file_of(folder).write_bytes(data)
        yield f"header bytes changed, {index}", flip, "score", True

    def missing(folder):
        file_of(folder).unlink()

    def directory(folder):
        missing(folder)
        file_of(folder).mkdir()

    def dangling(folder):
        missing(folder)
        file_of(folder).symlink_to(folder / "elsewhere")

    def loop(folder):
        missing(folder)
        file_of(folder).symlink_to(file_of(folder))

    for label, spoil in (("no file", missing), ("a folder for a file", directory), ("a link to nothing", dangling), ("a link to itself", loop)):
        yield f"weights: {label}", spoil, "score", False


def index_cases():
    def index(text):
        def spoil(folder):
            (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
            (folder / "model.safetensors.index.json").write_bytes(text if isinstance(text, bytes) else json.dumps(text).encode())
        return spoil

    names = {"model.embed_tokens.weight": "model-00001-of-00001.safetensors"}
    for label, text in (("no map", {}), ("a list", []), ("an empty map", {"weight_map": {}}), ("a number for a file", {"weight_map": {"a": 3}}),
                        ("a file that is not there", {"weight_map": {"model.embed_tokens.weight": "none.safetensors"}}),
                        ("a way out of the folder", {"weight_map": {"model.embed_tokens.weight": "../../../../../../etc/passwd"}}),
                        ("an absolute path", {"weight_map": {"model.embed_tokens.weight": "/etc/passwd"}}),
                        ("one tensor of many", {"weight_map": names}), ("not JSON", b"{"), ("non-UTF-8", b'{"weight_map": {"\xff": "\xff"}}'),
                        ("a NUL in a name", {"weight_map": {"model.embed_tokens.weight": "a\0b"}}),
                        ("a name of 100,000 bytes", {"weight_map": {"model.embed_tokens.weight": "a" * 100000}}), ("deep nesting", b"[" * 200000)):
        yield f"index: {label}", index(text), "score", False


def config_cases():
    def setter(key, value):
        def spoil(folder):
            config = json.loads((folder / "config.json").read_text())
            config[key] = value
            (folder / "config.json").write_text(json.dumps(config))
        return spoil

    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    for key in sizes:
        for value in (0, -1, 2**31, 2**63, 2**64, 1e30, "48", None, [48], 47.5, True):
            yield f"config {key} = {value}", setter(key, value), "score", False
    for key in ("num_key_value_heads", "head_dim"):
        for value in (0, -1, 3, 2**62, "2", {}, 1e300):
            yield f"config {key} = {value}", setter(key, value), "score", False
    for key, values in (("max_position_embeddings", (0, -5, 2**63, "x")), ("rms_norm_eps", (-1.0, "1e-5", 1e999, [])), ("rope_theta", (0, -1, "x", [])),
                        ("tie_word_embeddings", ("yes", 1, [])), ("hidden_act", (3, "", "nosuch")), ("model_type", ("nosuch", 7, None, "")),
                        ("eos_token_id", (-1, 10**12, "2", {}, [2, "x"])), ("torch_dtype", ("float7", 3)),
                        ("quantization_config", ({"quant_method": "nosuch"}, {"quant_method": "fp8", "weight_block_size": [0, 0]}, 3)),
                        ("rope_scaling", ({"type": "nosuch"}, {"rope_type": "linear"}, {"rope_type": "linear", "factor": 0}, {"rope_type": "yarn"},
                                          {"rope_type": "linear", "factor": "x"}, {"rope_type": "linear", "factor": -3}, [], "linear",
                                          {"rope_type": "longrope", "short_factor": [], "long_factor": [], "factor": 2.0},
                                          {"rope_type": "longrope", "short_factor": [0] * 6, "long_factor": [0] * 6, "factor": 2.0},
                                          {"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4,
                                           "original_max_position_embeddings": 0}))):
        for value in values:
            # What generation alone reads, or what another reader might take as it is, need not stop scoring.
            yield f"config {key} = {str(value)[:60]}", setter(key, value), "score", key in ("eos_token_id", "torch_dtype", "max_position_embeddings",
                                                                                           "tie_word_embeddings", "rope_scaling")

    def text(value):
        def spoil(folder):
            (folder / "config.json").write_bytes(value)
        return spoil

    for label, value in (("empty", b""), ("not JSON", b"{"), ("an array", b"[]"), ("NULs", b"\0" * 100), ("non-UTF-8", b'{"model_type": "\xff"}'),
                         ("200,000 brackets", b"[" * 200000), ("16 MB of blanks", b" " * (16 << 20)), ("a byte order mark", b"\xef\xbb\xbf")):
        yield f"config: {label}", text(value), "score", False


def row_cases():
    def rows(text, verb):
        def spoil(folder):
            path = folder / "rows.jsonl"
            path.write_bytes(text if isinstance(text, bytes) else json.dumps(text).encode() + b"\n")
            return ["--input", str(path)]
        return spoil

    wrong = [("not JSON", b"{\n"), ("a number", b"3\n"), ("nothing known", {"nothing": 1}), ("no tokens", {"token_ids": []}), ("text for ids", {"token_ids": "1 2"}),
             ("negative ids", {"token_ids": [1, -1]}), ("ids past the vocabulary", {"token_ids": [1, 10**6]}), ("ids past 32 bits", {"token_ids": [1, 2**40]}),
             ("ids past 64 bits", {"token_ids": [2**70]}), ("fractions", {"token_ids": [1.5]}), ("lists of lists", {"token_ids": [[1]]}),
             ("non-UTF-8", b'{"text": "\xff\xfe\x80"}\n'), ("200,000 brackets", b"[" * 200000 + b"\n"), ("a half surrogate", b'{"text": "\\ud800"}\n'),
             ("messages of numbers", {"messages": [1, 2]}), ("messages without roles", {"messages": [{}]}), ("NULs", b"\0\0\0\n")]
    for label, text in wrong:
        yield f"score of {label}", rows(text, "score"), "score", label in ("a half surrogate", "no tokens")
    for label, text in wrong[:11]:
        yield f"generate of {label}", rows(text, "generate"), "generate", False
    for label, text in wrong + [("100 MB of one letter", b'{"text": "' + b"a" * (100 << 20) + b'"}\n'), ("100 MB of blanks", b'{"text": "' + b" " * (100 << 20) + b'"}\n'),
                                ("100 MB without an end", b"x" * (100 << 20)), ("a million empty rows", b'{"text": ""}\n' * 1000000)]:
        yield f"tokenize of {label}", rows(text, "tokenize"), "tokenize", "100 MB of" in label or "empty rows" in label or label in ("a half surrogate", "no tokens")


def tokenizer_cases():
    def file_text(name, value):
        def spoil(folder):
            (folder / name).write_bytes(value)
            return rows(folder)
        return spoil

    def rows(folder, row=None):
        path = folder / "rows.jsonl"
        path.write_text(json.dumps(row or {"text": "w1 w2"}) + "\n")
        return ["--input", str(path)]

    for label, value in (("empty", b""), ("not JSON", b"{"), ("an empty object", b"{}"), ("an array", b"[]"), ("non-UTF-8", b'{"\xff":1}'),
                         ("200,000 brackets", b"[" * 200000), ("a model of no known kind", b'{"version":"1.0","model":{"type":"Nosuch"}}'),
                         ("ids that are texts", b'{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":"b"},"unk_token":"a"}}'),
                         ("negative ids", b'{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":-1},"unk_token":"a"}}'),
                         ("merges of what is not there", b'{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":["b c"]}}'),
                         ("an endless expression", b'{"version":"1.0","pre_tokenizer":{"type":"Split","pattern":{"Regex":"(((("},"behavior":"Isolated","invert":false},'
                                                   b'"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}')):
        yield f"tokenizer.json: {label}", file_text("tokenizer.json", value), "tokenize", False
    for label, value in (("not JSON", b"{"), ("an array", b"[]"), ("non-UTF-8", b'{"chat_template": "\xff"}'), ("200,000 brackets", b"[" * 200000),
                         ("a number for a template", b'{"chat_template": 3}')):
        yield f"tokenizer_config.json: {label}", file_text("tokenizer_config.json", value), "tokenize", label == "a number for a template"

    def template(text):
        def spoil(folder):
            (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": "w0", "chat_template": text}))
            return rows(folder, {"messages": [{"role": "user", "content": "w3"}]})
        return spoil

    for label, text in (("an unclosed tag", "{% if messages %}"), ("no such tag", "{% nosuch %}"), ("an unknown filter", "{{ messages | nosuch }}"),
                        ("an endless loop", "{% for i in range(10 ** 15) %}x{% endfor %}"), ("loops in loops", "{% for a in range(99999) %}" * 6 + "x" + "{% endfor %}" * 6),
                        ("a macro that calls itself", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
                        ("two macros that call each other", "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}"),
                        ("a text of terabytes", "{{ 'a' * 10 ** 13 }}"), ("texts that double", "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(64) %}"
                                                                                          "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"),
                        ("100,000 parentheses", "{{ " + "(" * 100000 + "1" + ")" * 100000 + " }}"), ("100,000 ifs", "{% if 1 %}" * 100000 + "{% endif %}" * 100000),
                        ("itself included", "{% include 'chat_template' %}"), ("an extension", "{% extends 'x' %}"), ("an import", "{% import 'os' as os %}"),
                        ("a raised exception", "{{ raise_exception('no') }}"), ("a division by zero", "{{ 1 // 0 }}"), ("a huge power", "{{ 10 ** 10 ** 10 }}"),
                        ("dunder names", "{{ ''.__class__.__mro__[1].__subclasses__() }}"), ("a list in itself", "{% set l = [] %}{% set _ = l.append(l) %}{{ l }}"),
                        ("100,000 minus signs", "{{ " + "-" * 100000 + "1 }}"), ("100,000 nots", "{{ " + "not " * 100000 + "1 }}"),
                        ("100,000 brackets", "{{ " + "[" * 100000 + "]" * 100000 + " }}"), ("a format of terabytes", "{{ '%1000000000000d' | format(1) }}"),
                        ("an indent of terabytes", "{{ 'a\nb' | indent(10 ** 13) }}"), ("a join of itself", "{{ ('a' * 100000) | join('b' * 1000000) }}"),
                        ("a filter that replaces", "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}"),
                        ("a method that replaces", "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}"),
                        ("a million indented lines", "{{ ('a\n' * 1000000) | indent(65536) }}"),
                        ("a list of the same long text, as JSON", "{{ (['a' * 1000000] * 1000000) | tojson }}"),
                        ("a list of the same long text", "{{ ['a' * 1000000] * 1000000 }}"),
                        ("long texts mapped", "{{ ('a,' * 1000000).split(',') | map('replace', 'a', 'b' * 1000000) | list }}"),
                        ("a terabyte in a loop", "{% for i in range(99999) %}{{ 'a' * 10000000 }}{% endfor %}"),
                        ("a hundred gigabytes kept", "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = ns.l + ['a' * 1000000 ~ i] %}"
                                                     "{% endfor %}"),
                        ("lists within lists", "{% set ns = namespace(l=[1] * 1000) %}{% for i in range(99) %}{% set ns.l = [ns.l] * 1000 %}{% endfor %}{{ ns.l }}"),
                        ("wide formats kept", "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = ns.l + ['{:>1000000}'.format(i)] %}"
                                              "{% endfor %}{{ ns.l }}"),
                        ("a dict that doubles", "{% set ns = namespace(d={'a': 'aaaaaaaa'}) %}{% for i in range(64) %}{% set ns.d = {'a': ns.d, 'b': ns.d} %}"
                                                "{% endfor %}{{ ns.d }}"),
                        ("sums of long lists", "{{ range(99999) | list | batch(1) | map('list') | list | sum(start=[]) }}"),
                        ("a text that is split to letters again and again", "{% for i in range(9999) %}{% for c in 'a' * 60000000 %}{% endfor %}{% endfor %}")):
        yield f"template: {label}", template(text), "tokenize", label in ("a list in itself", "dunder names", "a huge power", "itself included", "sums of long lists")


def adapter_cases():
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}

    def adapter(change, tensors=b""):
        def spoil(folder):
            target = folder / "adapter"
            target.mkdir()
            (target / "adapter_config.json").write_bytes(change if isinstance(change, bytes) else json.dumps(config | change).encode())
            write_header(target / "adapter_model.safetensors", *(tensors or good()))
            return ["--adapter", str(target)]
        return spoil

    def good(rows=48, rank=2, layers=2, columns=48):
        header, at = {}, 0
        for layer in range(layers):
            for part, shape in (("A", [rank, columns]), ("B", [rows, rank])):
                size = 4 * shape[0] * shape[1]
                header[f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{part}.weight"] = {
                    "dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
                at += size
        return header, b"\0" * at

    yield "adapter: sound", adapter({}), "score", True
    for change in ({"r": 0}, {"r": -1}, {"r": 2**40}, {"r": "x"}, {"r": 3}, {"lora_alpha": "x"}, {"lora_alpha": 1e999}, {"target_modules": 3},
                   {"target_modules": []}, {"target_modules": ["nosuch"]}, {"target_modules": "("}, {"target_modules": "(a+)+$"},
                   {"target_modules": "(" * 10000}, {"peft_type": "NOSUCH"}, {"bias": "nosuch"}, {"rank_pattern": []}, {"rank_pattern": {"(": 2}},
                   {"rank_pattern": {"q_proj": -1}}, {"layers_to_transform": [99]}, {"layers_to_transform": "x"}, {"modules_to_save": ["nosuch"]},
                   {"modules_to_save": 3}, {"use_dora": "x"}, {"use_dora": True}, {"init_lora_weights": 7}):
        # A few of these say nothing about tensors that are there.
        yield f"adapter {str(change)[:60]}", adapter(change), "score", any(word in str(change) for word in ("init", "alpha", "layers", "modules_to_save"))
    for label, text in (("not JSON", b"{"), ("an array", b"[]"), ("non-UTF-8", b'{"r": "\xff"}'), ("200,000 brackets", b"[" * 200000)):
        yield f"adapter_config.json: {label}", adapter(text), "score", False
    for label, tensors in (("rows", good(rows=47)), ("rank", good(rank=3)), ("columns", good(columns=47)), ("layers", good(layers=3)), ("no tensors", ({}, b"")),
                           ("a short body", (good()[0], b"\0" * 8))):
        yield f"adapter: wrong {label}", adapter({}, tensors), "score", False


def all_cases():
    for group in (safetensors_cases, index_cases, config_cases, row_cases, tokenizer_cases, adapter_cases, gguf_cases, spoilt_gguf_cases):
        yield from group()
