// SPDX-License-Identifier: Apache-2.0
// 128-bit digests of byte ranges at memory speed. Every 16-byte word is mixed with its index and the
// seed by a bijection, and the results are added, so the order of blocks does not matter and a change
// confined to one word is always seen. It catches corruption and mix-ups. It is NOT a cryptographic
// hash: whoever wants to forge a digest can. kernels/reference/digest.ts defines every bit.

#include <relight/abi.h>
#include <relight/device/ptx.cuh>

namespace relight::digest {
namespace {

constexpr uint64_t kStep = 0x9e3779b97f4a7c15ull;
constexpr uint64_t kMix0 = 0xbf58476d1ce4e5b9ull, kMix1 = 0x94d049bb133111ebull;
constexpr uint64_t kMix2 = 0xff51afd7ed558ccdull, kMix3 = 0xc4ceb9fe1a85ec53ull;
constexpr uint32_t kThreads = 256;
constexpr uint32_t kBatch = 8;  // 16-byte loads in flight in a thread

struct Sum {
    uint64_t low, high;
};

__device__ __forceinline__ uint64_t rotate(uint64_t value, uint32_t by) {
    return value << by | value >> (64 - by);
}

// A bijection of the word for each key.
__device__ __forceinline__ void mix_in(Sum& sum, uint64_t low, uint64_t high, uint64_t key) {
    uint64_t a = low ^ key;
    uint64_t b = high + rotate(key, 32);
    a = (a ^ a >> 32) * kMix0;
    b = (b ^ b >> 29) * kMix1;
    a += rotate(b, 27);
    b ^= rotate(a, 31);
    a = (a ^ a >> 29) * kMix2;
    b = (b ^ b >> 32) * kMix3;
    sum.low += a;
    sum.high += b;
}

__device__ __forceinline__ uint64_t key_of(uint64_t index, uint64_t seed) {
    return (index + 1) * kStep + seed;
}

// A word byte by byte: the last one of a range, and all of a range that starts off a 16-byte border.
__device__ void mix_bytes(Sum& sum, const uint8_t* at, uint32_t count, uint64_t key) {
    uint64_t half[2] = {0, 0};
    for (uint32_t i = 0; i < count; i++) half[i / 8] |= uint64_t(at[i]) << (i % 8 * 8);
    mix_in(sum, half[0], half[1], key);
}

__device__ Sum sum_chunk(const RelightDigestSegment& segment, uint64_t chunk, uint64_t seed) {
    const uint64_t from = chunk * RELIGHT_DIGEST_CHUNK;
    const uint64_t end = min(from + RELIGHT_DIGEST_CHUNK, segment.bytes);
    const auto* base = reinterpret_cast<const uint8_t*>(segment.address);
    const uint64_t first = from / 16, words = end / 16;  // whole words
    Sum sum{0, 0};
    if (segment.address % 16 == 0) {
        uint64_t word = first + threadIdx.x;
        for (; word + (kBatch - 1) * kThreads < words; word += kBatch * kThreads) {
            uint4 part[kBatch];
#pragma unroll
            for (uint32_t i = 0; i < kBatch; i++)
                part[i] = ptx::load_once(base + 16 * (word + i * kThreads));
#pragma unroll
            for (uint32_t i = 0; i < kBatch; i++)
                mix_in(sum, part[i].x | uint64_t(part[i].y) << 32,
                       part[i].z | uint64_t(part[i].w) << 32, key_of(word + i * kThreads, seed));
        }
        for (; word < words; word += kThreads) {
            const uint4 part = ptx::load_once(base + 16 * word);
            mix_in(sum, part.x | uint64_t(part.y) << 32, part.z | uint64_t(part.w) << 32,
                   key_of(word, seed));
        }
    } else {
        for (uint64_t word = first + threadIdx.x; word < words; word += kThreads)
            mix_bytes(sum, base + 16 * word, 16, key_of(word, seed));
    }
    if (end % 16 != 0 && threadIdx.x == 0)
        mix_bytes(sum, base + 16 * words, static_cast<uint32_t>(end % 16), key_of(words, seed));
    return sum;
}

// The segment that holds a chunk: the last whose first chunk is not after it and that has bytes.
__device__ uint32_t segment_of(const RelightDigestSegment* segments, uint32_t count,
                               uint64_t chunk) {
    uint32_t low = 0, high = count;
    while (high - low > 1) {
        const uint32_t middle = low + (high - low) / 2;
        (segments[middle].first_chunk <= chunk ? low : high) = middle;
    }
    return low;
}

__device__ uint64_t finished(uint64_t sum, uint64_t other, uint64_t bytes, uint64_t seed) {
    uint64_t h = sum ^ rotate(other, 32) ^ (bytes * kStep + seed);
    h = (h ^ h >> 30) * kMix0;
    h = (h ^ h >> 27) * kMix1;
    return h ^ h >> 31;
}

}  // namespace
}  // namespace relight::digest

// Adds every chunk's words to its segment's sums. Any number of blocks, 256 threads.
extern "C" __global__ void __launch_bounds__(256)
    relight_digest(const __grid_constant__ RelightDigestArgs args) {
    using namespace relight::digest;
    __shared__ Sum partial[kThreads / 32];
    const auto* segments = reinterpret_cast<const RelightDigestSegment*>(args.segments);
    for (uint64_t chunk = blockIdx.x; chunk < args.chunk_count; chunk += gridDim.x) {
        const uint32_t at = segment_of(segments, args.segment_count, chunk);
        const RelightDigestSegment segment = segments[at];
        Sum sum = sum_chunk(segment, chunk - segment.first_chunk, args.seed);
#pragma unroll
        for (uint32_t step = 16; step > 0; step /= 2) {
            sum.low += __shfl_xor_sync(0xffffffffu, sum.low, step);
            sum.high += __shfl_xor_sync(0xffffffffu, sum.high, step);
        }
        if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
        __syncthreads();
        if (threadIdx.x < 2) {
            uint64_t all = 0;
            for (uint32_t w = 0; w < kThreads / 32; w++)
                all += threadIdx.x == 0 ? partial[w].low : partial[w].high;
            auto* out = reinterpret_cast<unsigned long long*>(args.out);
            atomicAdd(out + 2ull * at + threadIdx.x, all);
        }
        __syncthreads();
    }
}

// Turns sums into digests: one thread a segment.
extern "C" __global__ void __launch_bounds__(256)
    relight_digest_finish(const __grid_constant__ RelightDigestArgs args) {
    using namespace relight::digest;
    const uint32_t at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= args.segment_count) return;
    const auto* segments = reinterpret_cast<const RelightDigestSegment*>(args.segments);
    auto* out = reinterpret_cast<uint64_t*>(args.out);
    const uint64_t bytes = segments[at].bytes;
    const uint64_t low = finished(out[2 * at], out[2 * at + 1], bytes, args.seed);
    const uint64_t high = finished(out[2 * at + 1], low, bytes, ~args.seed);
    out[2 * at] = low;
    out[2 * at + 1] = high;
}
