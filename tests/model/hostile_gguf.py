"""GGUF files that lie, for check_hostile_models.py: headers that break off or count what is not there, and one sound Llama with each of its parts spoilt."""
import random
import struct

U32, F32, BOOL, TEXT, ARRAY = 4, 6, 7, 8, 9
WIDTH, HEADS, INNER, VOCAB = 32, 4, 32, 260


def gguf_string(text):
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def gguf_value(kind, payload):
    return struct.pack("<I", kind) + payload


def gguf_cases():
    name, u32, text, array = gguf_string, U32, TEXT, ARRAY

    def file(*parts, magic=b"GGUF", version=3, tensors=0, values=0):
        return magic + struct.pack("<IQQ", version, tensors, values) + b"".join(parts)

    architecture = name("general.architecture") + gguf_value(text, gguf_string("llama"))
    tensor = name("token_embd.weight") + struct.pack("<IQQIQ", 2, 8, 8, 0, 0)

    def info(dimensions, kind=0, offset=0, label="token_embd.weight"):
        return name(label) + struct.pack("<I", len(dimensions)) + b"".join(struct.pack("<Q", size) for size in dimensions) + struct.pack("<IQ", kind, offset)

    cases = {
        "empty": b"", "another magic": file(magic=b"GGML"), "version 0": file(version=0), "version 1": file(version=1), "version 99": file(version=99),
        "big endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "nothing in it": file(), "an architecture alone": file(architecture, values=1),
        "no such architecture": file(name("general.architecture") + gguf_value(text, gguf_string("nosuch")), values=1),
        "an architecture that is a number": file(name("general.architecture") + gguf_value(u32, struct.pack("<I", 7)), values=1),
        "a million brackets deep": file(name("a") + gguf_value(array, struct.pack("<IQ", 9, 1) * 200000), values=1),
        "an unknown kind of value": file(name("a") + gguf_value(77, b"\0" * 8), values=1),
        "a key without end": file(struct.pack("<Q", 2**62) + b"abc", values=1), "a key of 2^64-1": file(struct.pack("<Q", 2**64 - 1), values=1),
        "a text without end": file(name("a") + gguf_value(text, struct.pack("<Q", 2**40)), values=1),
        "an array without end": file(name("a") + gguf_value(array, struct.pack("<IQ", 0, 2**60)), values=1),
        "an array of 2^62 texts": file(name("a") + gguf_value(array, struct.pack("<IQ", 8, 2**62)), values=1),
        "an array of 2^61 doubles": file(name("a") + gguf_value(array, struct.pack("<IQ", 12, 2**61)), values=1),
        "the same key twice": file(architecture, architecture, values=2), "non-UTF-8 keys": file(gguf_string(b"\xff\xfe") + gguf_value(u32, b"\0" * 4), values=1),
        "a boolean of 7": file(name("a") + gguf_value(7, b"\7"), values=1),
        "tensors without data": file(architecture, tensor, tensors=1, values=1),
        "the same tensor twice": file(architecture, tensor, tensor, b"\0" * 600, tensors=2, values=1),
    }
    for count in (1, 2, 1000, 2**20, 2**32, 2**61, 2**63, 2**64 - 1):
        cases[f"{count} values that are not there"] = file(values=count)
        cases[f"{count} tensors that are not there"] = file(architecture, tensors=count, values=1)
    for dimensions in ([], [0], [2**32, 2**32], [2**63, 2], [2**64 - 1], [8] * 5, [8] * 100, [7, 1], [8, 0]):
        cases[f"dimensions {str(dimensions)[:40]}"] = file(architecture, info(dimensions), b"\0" * 1024, tensors=1, values=1)
    for kind in (2, 4, 8, 12, 14, 29, 39, 99, 2**31):
        cases[f"an odd row of type {kind}"] = file(architecture, info([7, 3], kind), b"\0" * 4096, tensors=1, values=1)
    for offset in (1, 31, 2**20, 2**40, 2**63, 2**64 - 32):
        cases[f"an offset of {offset}"] = file(architecture, info([8, 8], 0, offset), b"\0" * 1024, tensors=1, values=1)
    for alignment in (0, 1, 3, 2**31, 2**32 - 1):
        cases[f"an alignment of {alignment}"] = file(architecture, name("general.alignment") + gguf_value(u32, struct.pack("<I", alignment)), tensor, b"\0" * 512,
                                                     tensors=1, values=2)
    for length in range(1, 100, 6):
        cases[f"the first {length} bytes"] = file(architecture, tensor, b"\0" * 512, tensors=1, values=1)[:length]
    for label, data in cases.items():
        def spoil(folder, data=data):
            path = folder / "model.gguf"
            path.write_bytes(data)
            return ["--model", str(path)]
        yield f"gguf: {label}", spoil, "score", False


def texts(values):
    return gguf_value(ARRAY, struct.pack("<IQ", TEXT, len(values)) + b"".join(map(gguf_string, values)))


def number(value):
    return gguf_value(U32, struct.pack("<I", value))


def byte_symbols():
    """GPT-2's printable stand-ins for the 256 bytes, in their order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def sound_metadata():
    tokens = byte_symbols() + ["<unk>", "<s>", "</s>", "<pad>"]
    llama = {"block_count": 1, "context_length": 64, "embedding_length": WIDTH, "feed_forward_length": INNER, "attention.head_count": HEADS,
             "attention.head_count_kv": HEADS, "rope.dimension_count": WIDTH // HEADS, "vocab_size": VOCAB}
    return {"general.architecture": gguf_value(TEXT, gguf_string("llama"))} | {f"llama.{key}": number(value) for key, value in llama.items()} | {
        "llama.attention.layer_norm_rms_epsilon": gguf_value(F32, struct.pack("<f", 1e-5)), "llama.rope.freq_base": gguf_value(F32, struct.pack("<f", 1e4)),
        "tokenizer.ggml.model": gguf_value(TEXT, gguf_string("gpt2")), "tokenizer.ggml.pre": gguf_value(TEXT, gguf_string("gpt-2")),
        "tokenizer.ggml.tokens": texts(tokens), "tokenizer.ggml.merges": texts(["a b"]),
        "tokenizer.ggml.token_type": gguf_value(ARRAY, struct.pack("<IQ", 5, VOCAB) + struct.pack(f"<{VOCAB}i", *[1] * 256, *[3] * 4)),
        "tokenizer.ggml.bos_token_id": number(257), "tokenizer.ggml.eos_token_id": number(258)}


def sound_tensors():
    """{name: dimensions as GGUF orders them, the innermost first}."""
    block = {"attn_norm": [WIDTH], "ffn_norm": [WIDTH], "attn_q": [WIDTH, WIDTH], "attn_k": [WIDTH, WIDTH], "attn_v": [WIDTH, WIDTH],
             "attn_output": [WIDTH, WIDTH], "ffn_gate": [WIDTH, INNER], "ffn_up": [WIDTH, INNER], "ffn_down": [INNER, WIDTH]}
    return {"token_embd.weight": [WIDTH, VOCAB], "output_norm.weight": [WIDTH], "output.weight": [WIDTH, VOCAB]} | {
        f"blk.0.{name}.weight": shape for name, shape in block.items()}


def assembled(metadata, tensors):
    """A file of f32 tensors, each at a multiple of 32 bytes."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + b"".join(gguf_string(key) + value for key, value in metadata.items())
    offset, body = 0, b""
    rng = random.Random(1)
    for name, shape in tensors.items():
        count = 1
        for size in shape:
            count *= size
        head += gguf_string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", 0, offset)
        data = struct.pack(f"<{count}f", *(rng.uniform(-0.3, 0.3) for _ in range(count)))
        body += data + b"\0" * (-len(data) % 32)
        offset = len(body)
    return head, b"\0" * (-len(head) % 32) + body


def spoilt_gguf_cases():
    def case(name, data, may_pass=False):
        def spoil(folder):
            (folder / "model.gguf").write_bytes(data)
            return ["--model", str(folder / "model.gguf")]
        return f"gguf: {name}", spoil, "score", may_pass

    metadata, tensors = sound_metadata(), sound_tensors()
    head, body = assembled(metadata, tensors)
    yield case("a sound one", head + body, True)
    needed = ("general.architecture", "llama.block_count", "llama.embedding_length", "llama.feed_forward_length", "llama.attention.head_count")
    for key in metadata:
        without = {name: value for name, value in metadata.items() if name != key}
        yield case(f"without {key}", b"".join(assembled(without, tensors)), key not in needed)
        for label, value in (("a text", gguf_value(TEXT, gguf_string("x"))), ("a list", gguf_value(ARRAY, struct.pack("<IQ", U32, 0))),
                             ("2^32-1", number(2**32 - 1)), ("zero", number(0)), ("-1.5", gguf_value(F32, struct.pack("<f", -1.5)))):
            harmless = key not in needed
            yield case(f"{key} is {label}", b"".join(assembled(metadata | {key: value}, tensors)), harmless)
    for name, shape in tensors.items():
        yield case(f"without {name}", b"".join(assembled(metadata, {key: value for key, value in tensors.items() if key != name})), name == "output.weight")
        for label, other in (("a row short", shape[:-1] + [shape[-1] - 1]), ("turned round", shape[::-1] + [2]), ("wider", [shape[0] * 2] + shape[1:])):
            yield case(f"{name} {label}", b"".join(assembled(metadata, tensors | {name: other})))
    for tokens in (["a"] * VOCAB, [""] * VOCAB, byte_symbols()[:10], ["a" * 70000] + byte_symbols()[1:] + ["x1", "x2", "x3", "x4"]):
        yield case(f"tokens like {str(tokens[:2])[:30]}", b"".join(assembled(metadata | {"tokenizer.ggml.tokens": texts(tokens)}, tensors)), True)
    for merges in (["nospace"], ["a  b"], [" "], ["a b"] * 1000, ["zz yy"]):
        yield case(f"merges like {merges[0]!r}", b"".join(assembled(metadata | {"tokenizer.ggml.merges": texts(merges)}, tensors)), True)
    for length in (len(head) + 1, len(head) + len(body) // 2, len(head) + len(body) - 1, len(head) - 1, len(head) // 2):
        yield case(f"a sound one's first {length} bytes", (head + body)[:length])
    rng = random.Random(2)
    places = [at for at in range(len(head)) if at < 900 or at > len(head) - 900]
    for index in range(60):
        data = bytearray(head)
        for _ in range(rng.randint(1, 4)):
            data[rng.choice(places)] = rng.randrange(256)
        yield case(f"a sound one with bytes changed, {index}", bytes(data) + body, True)
