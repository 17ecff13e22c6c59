// SPDX-License-Identifier: Apache-2.0
// What a mixture-of-experts layer needs around the exchange and cuBLAS, for the demo and the elastic
// benches: random numbers, the router, the activation, and a check of every output row. A module of its
// own (moe.sm_90.cubin): engines bring these themselves. src/gpu/fake-moe.ts says the same in TypeScript.

#include <stdint.h>

namespace {

__device__ __forceinline__ float from_bf16(uint16_t bits) {
    return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

// Nearest, ties to even.
__device__ __forceinline__ uint16_t to_bf16(float value) {
    const uint32_t bits = __float_as_uint(value);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// murmur3's finaliser over the index and the seed.
__device__ __forceinline__ uint32_t mix(uint32_t value) {
    value ^= value >> 16;
    value *= 0x85ebca6bu;
    value ^= value >> 13;
    value *= 0xc2b2ae35u;
    return value ^ value >> 16;
}

}  // namespace

// out[i] = scale * u, u in [-1, 1) and the same for the same seed and i everywhere.
extern "C" __global__ void relight_moe_fill(uint64_t out, uint64_t count, uint32_t seed, float scale) {
    auto* values = reinterpret_cast<uint16_t*>(out);
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
         i += uint64_t(gridDim.x) * blockDim.x) {
        const uint32_t h = mix(static_cast<uint32_t>(i) * 0x9e3779b1u + mix(seed));
        values[i] = to_bf16(scale * (static_cast<float>(h >> 8) / 8388608.0f - 1.0f));
    }
}

// The topk largest of each token's logits, the lower expert first among equals, and their softmax.
// One warp for each token; experts at most 1024.
extern "C" __global__ void relight_moe_route(uint64_t logits, uint64_t index, uint64_t weights,
                                             uint32_t experts, uint32_t topk) {
    const uint32_t token = blockIdx.x, lane = threadIdx.x;
    const float* row = reinterpret_cast<const float*>(logits) + uint64_t(token) * experts;
    auto* chosen = reinterpret_cast<int32_t*>(index) + uint64_t(token) * topk;
    auto* share = reinterpret_cast<float*>(weights) + uint64_t(token) * topk;
    uint32_t taken = 0;  // bit i: expert lane + 32 i is chosen already
    float first = 0.0f, sum = 0.0f, mine = 0.0f;
    for (uint32_t k = 0; k < topk; k++) {
        float best = -INFINITY;
        uint32_t at = 0xffffffffu;
        for (uint32_t i = 0; lane + 32 * i < experts; i++) {
            const float value = row[lane + 32 * i];
            if ((taken >> i & 1) == 0 && value > best) {
                best = value;
                at = lane + 32 * i;
            }
        }
        for (uint32_t step = 16; step != 0; step /= 2) {
            const float other = __shfl_xor_sync(0xffffffffu, best, step);
            const uint32_t where = __shfl_xor_sync(0xffffffffu, at, step);
            if (other > best || (other == best && where < at)) {
                best = other;
                at = where;
            }
        }
        if (at % 32 == lane) taken |= 1u << at / 32;
        if (k == 0) first = best;
        const float grown = expf(best - first);
        sum += grown;
        if (lane == k) {
            mine = grown;
            chosen[k] = static_cast<int32_t>(at);
        }
    }
    if (lane < topk) share[lane] = mine / sum;
}

// h = silu(gate) * up for rows of [gate | up], `width` channels each.
extern "C" __global__ void relight_moe_silu(uint64_t gate_up, uint64_t out, uint64_t rows,
                                            uint32_t width) {
    const auto* in = reinterpret_cast<const uint16_t*>(gate_up);
    auto* h = reinterpret_cast<uint16_t*>(out);
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * width;
         i += uint64_t(gridDim.x) * blockDim.x) {
        const uint64_t row = i / width, channel = i % width;
        const float gate = from_bf16(in[row * 2 * width + channel]);
        const float up = from_bf16(in[row * 2 * width + width + channel]);
        h[i] = to_bf16(gate / (1.0f + expf(-gate)) * up);
    }
}

struct Verdict {
    uint64_t rows;       // checked so far
    uint64_t bad;        // of them further from the reference than the limit, or not finite
    uint32_t worst;      // relative L2 error of the worst row, as the bits of an f32
    uint32_t reserved;
};

// out[token] against the sum of weight * reference[expert][token] over the choices whose expert is not
// missing. One block of 256 threads for each token.
extern "C" __global__ void relight_moe_check(uint64_t out, uint64_t reference, uint64_t index,
                                             uint64_t weights, uint64_t missing, uint64_t verdict,
                                             uint32_t tokens, uint32_t hidden, uint32_t topk,
                                             float limit) {
    const uint32_t token = blockIdx.x;
    const auto* row = reinterpret_cast<const uint16_t*>(out) + uint64_t(token) * hidden;
    const auto* chosen = reinterpret_cast<const int32_t*>(index) + uint64_t(token) * topk;
    const auto* share = reinterpret_cast<const float*>(weights) + uint64_t(token) * topk;
    const auto* lost = reinterpret_cast<const uint8_t*>(missing);
    float error = 0.0f, size = 0.0f;
    for (uint32_t i = threadIdx.x; i < hidden; i += blockDim.x) {
        float wanted = 0.0f;
        for (uint32_t k = 0; k < topk; k++) {
            if (lost[chosen[k]] != 0) continue;
            const uint64_t at = (uint64_t(chosen[k]) * tokens + token) * hidden + i;
            wanted += share[k] * from_bf16(reinterpret_cast<const uint16_t*>(reference)[at]);
        }
        const float difference = from_bf16(row[i]) - wanted;
        error += difference * difference;
        size += wanted * wanted;
    }
    __shared__ float errors[8], sizes[8];
    for (uint32_t step = 16; step != 0; step /= 2) {
        error += __shfl_xor_sync(0xffffffffu, error, step);
        size += __shfl_xor_sync(0xffffffffu, size, step);
    }
    if (threadIdx.x % 32 == 0) {
        errors[threadIdx.x / 32] = error;
        sizes[threadIdx.x / 32] = size;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (uint32_t w = 1; w < blockDim.x / 32; w++) {
        error += errors[w];
        size += sizes[w];
    }
    const float relative = size == 0.0f ? sqrtf(error) : sqrtf(error / size);
    auto* all = reinterpret_cast<Verdict*>(verdict);
    atomicAdd(reinterpret_cast<unsigned long long*>(&all->rows), 1ull);
    if (!(relative < limit)) atomicAdd(reinterpret_cast<unsigned long long*>(&all->bad), 1ull);
    if (relative == relative) atomicMax(&all->worst, __float_as_uint(relative));
}
