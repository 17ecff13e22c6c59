# SPDX-License-Identifier: Apache-2.0
"""What dispatch and combine must give, computed slowly with torch on whole tensors.

The bits of the quantiser are defined in kernels/reference/quantise.ts; test/ep_vectors.py holds
this file to that definition.
"""
import torch

from relight_host import groups_of


def quantise(x, fmt):
    """bf16 [n, hidden] -> payload bytes [n, hidden * size], scale words i32 [n, words], dequantised f32."""
    n, hidden = x.shape
    if fmt == "bf16":
        return x.contiguous().view(torch.uint8), None, x.float()
    groups = groups_of(hidden)
    wide = torch.zeros(n, groups * 128, dtype=torch.float32, device=x.device)
    wide[:, :hidden] = x.float()
    wide = wide.view(n, groups, 128)
    magnitude = wide.abs().amax(-1).clamp(min=torch.tensor(1e-4, dtype=torch.float32).item())
    inverse = magnitude * torch.tensor(1.0 / 448.0, dtype=torch.float32, device=x.device)
    multiply = torch.tensor(448.0, dtype=torch.float32, device=x.device) / magnitude
    if fmt != "fp8":
        bits = inverse.view(torch.int32)
        up = (bits >> 23) + (bits & 0x7FFFFF).ne(0).int()
        exponent = up.clamp(max=254)
        multiply = ((254 - exponent) << 23).int().view(torch.float32)
        inverse = (exponent << 23).int().view(torch.float32)
    q = (wide * multiply[..., None]).to(torch.float8_e4m3fn)
    back = (q.float() * inverse[..., None]).view(n, groups * 128)[:, :hidden]
    payload = q.view(n, groups * 128).view(torch.uint8)[:, :hidden].contiguous()
    if fmt == "fp8_ue8m0":
        exponents = torch.zeros(n, (groups + 3) // 4 * 4, dtype=torch.uint8, device=x.device)
        exponents[:, :groups] = (inverse.view(torch.int32) >> 23).to(torch.uint8)
        return payload, exponents.view(torch.int32), back
    return payload, inverse.view(torch.int32), back


def inputs(seed, rank, tokens, hidden, topk, experts, holes=0, only=None):
    """A rank's step: the same on whoever computes it (generated on the CPU from the seed)."""
    g = torch.Generator().manual_seed(seed * 1000 + rank)
    x = torch.randn(tokens, hidden, generator=g) * torch.exp(2 * torch.randn(tokens, 1, generator=g))
    scores = torch.rand(tokens, experts, generator=g)
    if only is not None:
        scores[:, list(only)] += 10
    index = scores.topk(topk, dim=1).indices.int() if tokens else torch.zeros(0, topk).int()
    for _ in range(holes if tokens else 0):
        t = int(torch.randint(tokens, (1,), generator=g))
        index[t, int(torch.randint(topk, (1,), generator=g))] = -1
    weights = torch.rand(tokens, topk, generator=g)
    return x.bfloat16().cuda(), index.cuda(), weights.cuda()


def gain(expert):
    """What our test expert multiplies its input by."""
    return ((expert * 37) % 61).float() / 61 + 0.5


def expected_rows(me, table, everyone, tokens_max, local_experts, alive):
    """For each local expert: [(source, token) as source * tokens_max + token], in order."""
    rows = [[] for _ in range(local_experts)]
    for source in sorted(everyone):
        if not alive >> source & 1:
            continue
        index = everyone[source][1].long()
        owner_rank, owner_local = table
        valid = index >= 0
        safe = index.clamp(min=0)
        local = torch.where(valid & (owner_rank[safe] == me), owner_local[safe], -1)
        for l in range(local_experts):
            rows[l].append(source * tokens_max + (local == l).nonzero()[:, 0])
    return [torch.cat(r) if r else torch.zeros(0, dtype=torch.long, device="cuda") for r in rows]


def expected_home(mine, table, fmt, alive):
    """f64 [tokens, hidden]: what combine must give for expert(x) = bf16(dequantised * gain)."""
    x, index, weights = mine
    _, _, back = quantise(x, fmt)
    total = torch.zeros(x.shape, dtype=torch.float64, device="cuda")
    for k in range(index.shape[1]):
        expert = index[:, k].long()
        safe = expert.clamp(min=0)
        owner = table[0][safe]
        counts = (expert >= 0) & (owner >= 0) & ((alive >> owner.clamp(min=0)) & 1).bool()
        y = (back * gain(safe)[:, None]).bfloat16().double()
        total += torch.where(counts[:, None], y * weights[:, k, None].double(), 0.0)
    return total
