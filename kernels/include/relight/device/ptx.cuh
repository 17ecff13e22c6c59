// SPDX-License-Identifier: Apache-2.0
// The PTX instructions the kernels use, each wrapped once. Section names are those of the PTX ISA
// manual. Memory model: a release at system scope by one thread covers what it observed before.
#pragma once

#include <stdint.h>

namespace relight::ptx {

// ld (Data Movement): relaxed at system scope. For polling; says nothing about other data.
__device__ __forceinline__ uint64_t load_relaxed_system(const uint64_t* at) {
    uint64_t value;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
    return value;
}

__device__ __forceinline__ uint32_t load_relaxed_system(const uint32_t* at) {
    uint32_t value;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
    return value;
}

// ld.acquire (Memory Consistency Model): later reads see what the matching release covered.
__device__ __forceinline__ uint64_t load_acquire_system(const uint64_t* at) {
    uint64_t value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
    return value;
}

// Two words in one instruction; each word is whole by itself, the pair need not be.
__device__ __forceinline__ void store_words(uint64_t* at, uint64_t first, uint64_t second) {
    asm volatile("st.volatile.global.v2.u64 [%0], {%1, %2};" ::"l"(at), "l"(first), "l"(second)
                 : "memory");
}

__device__ __forceinline__ ulonglong2 load_words(const uint64_t* at) {
    ulonglong2 value;
    asm volatile("ld.volatile.global.v2.u64 {%0, %1}, [%2];"
                 : "=l"(value.x), "=l"(value.y)
                 : "l"(at)
                 : "memory");
    return value;
}

// st.release: everything observed before is visible to whoever acquires this value.
__device__ __forceinline__ void store_release_system(uint64_t* at, uint64_t value) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}

__device__ __forceinline__ void store_relaxed_system(uint64_t* at, uint64_t value) {
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}

// atom (Parallel Synchronization): one counter of this GPU, both acquire and release.
__device__ __forceinline__ uint32_t add_acq_rel_gpu(uint32_t* at, uint32_t value) {
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(at), "r"(value)
                 : "memory");
    return before;
}

__device__ __forceinline__ uint32_t load_acquire_gpu(const uint32_t* at) {
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
    return value;
}

// %globaltimer (Special Registers): nanoseconds; unlike clock64 it does not follow the SM clock.
__device__ __forceinline__ uint64_t now_ns() {
    uint64_t value;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(value)::"memory");
    return value;
}

// barrier.sync (Parallel Synchronization): `threads` of the block meet at barrier `id`.
__device__ __forceinline__ void barrier(uint32_t id, uint32_t threads) {
    asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// fence.proxy.async: shared memory written by ordinary stores may now be read by the copy engine.
__device__ __forceinline__ void fence_shared_to_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// cp.async.bulk: shared to global (own or a peer's); 16-byte multiples. Joins the open group.
__device__ __forceinline__ void bulk_store(void* to, const void* from_shared, uint32_t bytes) {
    const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(from_shared));
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from),
                 "r"(bytes)
                 : "memory");
}

// cp.async.bulk.commit_group: closes the thread's open group, also an empty one.
__device__ __forceinline__ void bulk_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// cp.async.bulk.wait_group: all but the newest `Pending` groups of this thread are complete, which
// means written and visible. The .read form, which only frees the source, is never used for a flag.
template <int Pending>
__device__ __forceinline__ void bulk_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(Pending) : "memory");
}

template <int Pending>
__device__ __forceinline__ void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
}

// ld, 16 bytes, not kept in L1: data read once.
__device__ __forceinline__ uint4 load_once(const void* at) {
    uint4 value;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(at)
                 : "memory");
    return value;
}

// prefetch.global.L2 (Data Movement): the line, and with it the translation of its page.
__device__ __forceinline__ void prefetch(const void* at) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at) : "memory");
}

// ld.volatile, 16 bytes: data that a peer may still be writing, to be read again if it proves wrong.
__device__ __forceinline__ uint4 load_afresh(const void* at) {
    uint4 value;
    asm volatile("ld.volatile.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(at)
                 : "memory");
    return value;
}

// st, 16 bytes, not kept in L1.
__device__ __forceinline__ void store_once(void* at, uint4 value) {
    asm volatile("st.global.L1::no_allocate.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(at), "r"(value.x),
                 "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
}

// cvt.rn.satfinite.e4m3x2.f32: nearest even; beyond 448 becomes 448.
__device__ __forceinline__ uint32_t to_e4m3x2(float low, float high) {
    uint16_t value;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(value) : "f"(high), "f"(low));
    return value;
}

// cvt.rn.bf16x2.f32: nearest even.
__device__ __forceinline__ uint32_t to_bf16x2(float low, float high) {
    uint32_t value;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(value) : "f"(high), "f"(low));
    return value;
}

__device__ __forceinline__ float bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float bf16_high(uint32_t pair) {
    return __uint_as_float(pair & 0xffff0000u);
}

}  // namespace relight::ptx
