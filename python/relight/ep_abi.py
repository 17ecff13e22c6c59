# SPDX-License-Identifier: Apache-2.0
"""What Python and the kernels agree on, read from kernels/include/relight/abi.h, and the sizes of a window."""

import ctypes
import os
import re
from pathlib import Path

KERNELS = Path(os.environ.get("RELIGHT_KERNELS") or Path(__file__).resolve().parents[2] / "kernels")
HEADER = (KERNELS / "include/relight/abi.h").read_text()
NEVER = (1 << 64) - 1


def _constants():
    found = re.findall(r"^#define RELIGHT_(\w+) (\w+)", HEADER, re.M)
    return {name: int(value.rstrip("u"), 0) for name, value in found}


C = _constants()


def _structs():
    types = {"uint32_t": ctypes.c_uint32, "uint64_t": ctypes.c_uint64}
    for body, name in re.findall(r"typedef struct \w+ \{(.*?)\} (\w+);", HEADER, re.S):
        fields = []
        body = re.sub(r"/\*.*?\*/", "", body, flags=re.S)
        for kind, field, _, count in re.findall(r"(\w+) (\w+)(\[(\w+)\])?;", body):
            base = types[kind]
            if count:
                base = base * (int(count) if count.isdigit() else C[count.replace("RELIGHT_", "")])
            fields.append((field, base))
        types[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return types


S = _structs()
State = S["RelightEpState"]


def align(value, to):
    return (value + to - 1) // to * to


def groups_of(hidden):
    return (hidden + 127) // 128


def needs(config):
    """Bytes of window and scratch: the arithmetic of device/layout.cuh."""
    c = config
    slices = c["parities"] * c["ranks_max"]
    rows, choices = slices * c["tokens_max"], c["tokens_max"] * c["topk"]
    fp8 = align(c["hidden"], 16) + align(groups_of(c["hidden"]) * 4, 16)
    row_stride = align(align(4 * c["topk"], 16) + max(fp8, 2 * c["hidden"]), 128)
    combine_stride = align(2 * c["hidden"], 128)
    pairs = c["local_experts_max"] * c["ranks_max"]
    window = 128 * 32 + align(rows * 8, 128) + align(rows * 64, 128)
    bits = 7
    while -(-c["tokens_max"] // (1 << bits)) * pairs > 16384:
        bits += 1
    blocks = -(-c["tokens_max"] // (1 << bits))
    table = blocks * 8 * (align((c["local_experts_max"] + 1) // 2, 2) + (c["topk"] << bits) // 2)
    window += slices * (align(16 + table, 128) + align(choices * 4, 128))
    window += rows * (row_stride + combine_stride)
    if c["select_rows"]:
        window += pairs * c["tokens_max"] * (row_stride + 128 + combine_stride)
        window += align(2 * pairs * 8, 128)
    scratch = align(slices * choices * 4, 128) + align(c["parities"] * c["tokens_max"] * 4, 128)
    scratch += align(c["parities"] * 34 * 4, 128) + align(pairs * 4, 128)
    return window, scratch
