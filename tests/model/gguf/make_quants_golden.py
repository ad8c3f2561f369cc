#!/usr/bin/env python3
"""Makes quants.gguf: values in each of ggml's tensor types, and the floats they stand for.

    pip install gguf==0.19.0 llama-cpp-python==0.3.36   # the second builds ggml, whose K-quants have no other reference
    tests/model/gguf/make_quants_golden.py tests/model/gguf/data/quants.gguf

For each type T the file holds "T" (random blocks), "T.values" (what the gguf package dequantises them to) and, where
ggml quantises T without an importance matrix, "T.quantised" (what ggml makes of "input").
"""

import ctypes
import pathlib
import sys

import gguf
import llama_cpp
import numpy as np
from gguf.quants import dequantize, quantize

Type = gguf.GGMLQuantizationType
COUNT = 2048
TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
# Where a block's half-precision scales stand.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def random_blocks(name, rng):
    block, size = gguf.GGML_QUANT_SIZES[Type[name]]
    data = rng.integers(0, 256, (COUNT // block, size), dtype=np.uint8)
    for offset in SCALES[name]:
        scale = (rng.standard_normal(len(data)) * 0.01).astype(np.float16)
        data[:, offset : offset + 2] = scale.view(np.uint8).reshape(-1, 2)
    return data


def inputs(rng):
    """Rows as weights are, and rows as they are not: zeros, constants, one sign, large steps, tiny values."""
    rows = rng.standard_normal((8, 256)) * 0.02
    rows[1] = 0
    rows[2] = 0.75
    rows[3] = np.abs(rows[3])
    rows[4] *= np.exp(rng.standard_normal(256) * 2)
    rows[5, ::2] = 0
    rows[6] = np.round(rows[6] * 100) / 8
    rows[7, 32:64] *= 1e-18
    return rows.astype(np.float32)


def with_ggml(name, values):
    library = ctypes.CDLL(str(next((pathlib.Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so"))))
    block, size = gguf.GGML_QUANT_SIZES[Type[name]]
    out = np.zeros(values.size // block * size, np.uint8)
    pointer = lambda array: array.ctypes.data_as(ctypes.c_void_p)
    getattr(library, f"quantize_row_{name.lower().replace('_k', '_K')}_ref")(
        pointer(values), pointer(out), ctypes.c_int64(values.size))
    return out.reshape(values.shape[0], -1)


def main():
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(sys.argv[1], "test")
    values = inputs(rng)
    writer.add_tensor("input", values)
    for name in TYPES:
        blocks = random_blocks(name, rng)
        writer.add_tensor(name, blocks.reshape(8, -1), raw_dtype=Type[name])
        writer.add_tensor(f"{name}.values", dequantize(blocks.reshape(8, -1), Type[name]).reshape(8, 256))
        if name not in ("Q2_K", "Q3_K"):
            writer.add_tensor(f"{name}.quantised", with_ggml(name, values), raw_dtype=Type[name])
    for name in ("F16", "BF16"):
        data = quantize(values, Type[name])
        writer.add_tensor(name, data, raw_dtype=Type[name])
        writer.add_tensor(f"{name}.quantised", data, raw_dtype=Type[name])
        writer.add_tensor(f"{name}.values", dequantize(data, Type[name]).reshape(8, 256))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
