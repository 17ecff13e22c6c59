# SPDX-License-Identifier: Apache-2.0
"""The digest kernel and the torch reference against kernels/test/vectors.json; then its speed.

    python3 kernels/test/digest_check.py [--out FILE]
"""
import argparse
import ctypes
import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import ep_reference  # noqa: E402
from relight_host import C, S, Kernels  # noqa: E402

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())


class Digester:
    def __init__(self, ranges, seed):
        """ranges: [(address, bytes)]"""
        self.kernels, chunks, packed = Kernels(), 0, b""
        for address, size in ranges:
            packed += bytes(S["RelightDigestSegment"](address, size, chunks))
            chunks += -(-size // C["DIGEST_CHUNK"])
        self.table = torch.frombuffer(bytearray(packed), dtype=torch.uint8).cuda()
        self.out = torch.zeros(len(ranges), 2, dtype=torch.int64, device="cuda")
        self.args = S["RelightDigestArgs"](self.table.data_ptr(), self.out.data_ptr(), seed, chunks,
                                           len(ranges), 0)
        self.chunks, self.count = chunks, len(ranges)

    def run(self, blocks=132 * 8):
        self.out.zero_()
        if self.chunks:
            self.kernels.launch("relight_digest", self.args, min(blocks, self.chunks), 256)
        self.kernels.launch("relight_digest_finish", self.args, -(-self.count // 256), 256)

    def hex(self):
        words = self.out.cpu().tolist()
        return ["".join(f"{w & (1 << 64) - 1:016x}" for w in pair) for pair in words]


def check_digest():
    cases = VECTORS["digest"]
    data = []
    for case in cases:
        at = torch.arange(case["bytes"], dtype=torch.int64)
        data.append(((at * 131 + (at >> 8) * 7 + 5) & 255).to(torch.uint8).cuda())
    for offset in (0, 1, 8):  # also ranges that start off a 16-byte border
        room = [torch.cat([torch.zeros(offset, dtype=torch.uint8, device="cuda"), d]) for d in data]
        ranges = [(r.data_ptr() + offset, len(d)) for r, d in zip(room, data)]
        digester = Digester(ranges, int(cases[0]["seed"], 16))
        digester.run()
        for case, got in zip(cases, digester.hex()):
            assert got == case["digest"], f"{case['bytes']} bytes at +{offset}: {got}"
    print(f"ok   digest: {len(cases)} lengths at 3 alignments equal the reference")


def check_quantise():
    for case in VECTORS["quantise"]:
        token = torch.tensor(case["token"], dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
        payload, words, _ = ep_reference.quantise(token.cuda()[None], case["format"])
        assert payload[0].tolist() == case["payload"], case["format"]
        if case["format"] == "fp8_ue8m0":
            scales = words[0].view(torch.uint8)[: len(case["scales"])].tolist()
        else:
            scales = [v & 0xFFFFFFFF for v in words[0].tolist()]
        assert scales == case["scales"], case["format"]
    print("ok   torch reference quantises as the TypeScript reference")


def timed(body, repeat=20):
    for _ in range(3):
        body()
    times = []
    for _ in range(repeat):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        body()
        b.record()
        torch.cuda.synchronize()
        times.append(a.elapsed_time(b))
    return sorted(times)[len(times) // 2]


def bench():
    total = 8 << 30
    data = torch.empty(total, dtype=torch.uint8, device="cuda")
    data.view(torch.int64).random_()
    to = torch.empty_like(data)
    copy_gbs = 2 * total / timed(lambda: to.copy_(data)) / 1e6
    whole = Digester([(data.data_ptr(), total)], 1)
    before = None
    for blocks in (132 * 8, 132 * 3, 77):
        whole.run(blocks)
        assert before in (None, whole.hex()), "the number of blocks must not matter"
        before = whole.hex()
    one_gbs = total / timed(whole.run) / 1e6
    size = total // 4096
    many = Digester([(data.data_ptr() + i * size, size) for i in range(4096)], 1)
    many_gbs = total / timed(many.run) / 1e6
    sweep = {b: round(total / timed(lambda: whole.run(132 * b), 5) / 1e6) for b in (4, 8, 16, 32, 64)}
    return {"bytes": total, "gbs": one_gbs, "gbs_4096_tensors": many_gbs, "copy_gbs": copy_gbs,
            "share_of_copy": one_gbs / copy_gbs, "gbs_by_blocks_per_sm": sweep}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    options = parser.parse_args()
    check_quantise()
    check_digest()
    numbers = bench()
    print(json.dumps(numbers))
    if options.out:
        Path(options.out).write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
