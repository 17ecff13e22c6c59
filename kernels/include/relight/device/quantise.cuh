// SPDX-License-Identifier: Apache-2.0
// One token from bf16 in global memory to a row in shared memory: a copy, or e4m3 with a scale for
// each 128 channels. kernels/reference/quantise.ts defines every bit.
#pragma once

#include <relight/device/layout.cuh>

namespace relight::ep {

constexpr uint32_t kSenders = 256;        // threads that make and send rows
constexpr uint32_t kChunksEach = 4;       // 16-byte chunks a sender takes: 256 * 4 * 8 channels = 8192
static_assert(kSenders * kChunksEach * 8 >= RELIGHT_EP_HIDDEN_MAX, "one pass covers a row");

struct Chunks {
    uint4 raw[kChunksEach];
};

__device__ __forceinline__ Chunks load_row(const char* x, uint32_t hidden, uint32_t thread) {
    Chunks row;
#pragma unroll
    for (uint32_t i = 0; i < kChunksEach; i++) {
        const uint32_t chunk = thread + i * kSenders;
        row.raw[i] = chunk < hidden / 8 ? ptx::load_once(x + 16ull * chunk) : uint4{0, 0, 0, 0};
    }
    return row;
}

__device__ __forceinline__ void copy_row(const Chunks& row, char* to, uint32_t hidden,
                                         uint32_t thread) {
#pragma unroll
    for (uint32_t i = 0; i < kChunksEach; i++) {
        const uint32_t chunk = thread + i * kSenders;
        if (chunk < hidden / 8) *reinterpret_cast<uint4*>(to + 16 * chunk) = row.raw[i];
    }
}

struct Scale {
    float multiply;  // x * multiply is what e4m3 holds
    float stored;    // what the receiver multiplies by
};

__device__ __forceinline__ Scale scale_for(float magnitude, uint32_t format) {
    const float inverse = __fmul_rn(magnitude, 1.0f / 448.0f);
    if (format == RELIGHT_EP_FP8) return {__fdiv_rn(448.0f, magnitude), inverse};
    const uint32_t bits = __float_as_uint(inverse);
    const uint32_t up = (bits >> 23) + ((bits & 0x7fffffu) != 0 ? 1u : 0u);
    const uint32_t exponent = up < 254u ? up : 254u;
    return {__uint_as_float((254u - exponent) << 23), __uint_as_float(exponent << 23)};
}

// 16 neighbouring lanes hold one group of 128 channels; all lanes of a warp call together.
__device__ __forceinline__ void quantise_row(const Chunks& row, char* to, uint32_t hidden,
                                             uint32_t format, uint32_t thread) {
#pragma unroll 2  // fewer instructions to fetch, and as fast
    for (uint32_t i = 0; i < kChunksEach; i++) {
        const uint32_t chunk = thread + i * kSenders;
        const uint32_t pairs[4] = {row.raw[i].x, row.raw[i].y, row.raw[i].z, row.raw[i].w};
        float magnitude = 1e-4f;
#pragma unroll
        for (uint32_t p = 0; p < 4; p++) {
            magnitude = fmaxf(magnitude, fabsf(ptx::bf16_low(pairs[p])));
            magnitude = fmaxf(magnitude, fabsf(ptx::bf16_high(pairs[p])));
        }
#pragma unroll
        for (uint32_t step = 1; step < 16; step *= 2)
            magnitude = fmaxf(magnitude, __shfl_xor_sync(0xffffffffu, magnitude, step));
        if (chunk >= hidden / 8) continue;
        const Scale scale = scale_for(magnitude, format);
        uint32_t halves[4];
#pragma unroll
        for (uint32_t p = 0; p < 4; p++)
            halves[p] = ptx::to_e4m3x2(__fmul_rn(ptx::bf16_low(pairs[p]), scale.multiply),
                                       __fmul_rn(ptx::bf16_high(pairs[p]), scale.multiply));
        *reinterpret_cast<uint2*>(to + 8 * chunk) =
            uint2{halves[0] | halves[1] << 16, halves[2] | halves[3] << 16};
        if (chunk % 16 != 0) continue;
        char* scales = to + scale_at(hidden);
        if (format == RELIGHT_EP_FP8_UE8M0)
            scales[chunk / 16] = static_cast<char>(__float_as_uint(scale.stored) >> 23);
        else
            reinterpret_cast<float*>(scales)[chunk / 16] = scale.stored;
    }
}

}  // namespace relight::ep
