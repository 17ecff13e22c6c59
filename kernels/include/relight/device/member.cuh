// SPDX-License-Identifier: Apache-2.0
// Who takes part, how one waits for a peer, and what happens when it does not answer.
// Every wait ends: by the cell, by the host's mask, by a peer's suspicion, or by the deadline.
#pragma once

#include <relight/device/layout.cuh>

namespace relight::ep {

enum class Wait : uint32_t { kReady, kMasked, kTimedOut };

__device__ __forceinline__ uint32_t unmasked(const State* s) {
    return ptx::load_relaxed_system(&s->active) & ~ptx::load_relaxed_system(&s->suspect);
}

// Ranks that take part in the view's epoch, by the block's snapshot: the same answer in every warp.
// Called by whole warps, lane = slot.
__device__ inline uint32_t participants(const View& view) {
    const State* s = view.state;
    const uint32_t slot = threadIdx.x & 31;
    const bool in = slot < s->ranks_max && s->window[slot] != 0 && s->on_at[slot] <= view.epoch &&
                    view.epoch < s->off_at[slot];
    return __ballot_sync(0xffffffffu, in) & s->active & ~s->suspect;
}

// Records a fault, suspects the peer, and tells everyone, so that one detector stops all waiters.
__device__ __noinline__ void suspect(State* s, uint32_t peer, uint32_t phase, uint64_t epoch,
                                     uint64_t wanted, uint64_t seen) {
    const uint32_t bit = 1u << peer;
    const uint32_t before = atomicOr(&s->suspect, bit);
    if (before & bit) return;
    const uint64_t count = atomicAdd(reinterpret_cast<unsigned long long*>(&s->fault.count), 1ull) + 1;
    s->fault.epoch = epoch;
    s->fault.phase = phase;
    s->fault.peer = peer;
    s->fault.wanted = wanted;
    s->fault.seen = seen;
    auto* record = reinterpret_cast<RelightEpHostRecord*>(s->host_record);
    if (record != nullptr) {
        record->fault = s->fault;
        ptx::store_release_system(&record->fault.count, count);
    }
    const uint32_t mine = 1u << s->rank;
#pragma unroll 1
    for (uint32_t slot = 0; slot < s->ranks_max; slot++) {
        if ((s->active >> slot & 1) == 0 || slot == s->rank || s->window[slot] == 0) continue;
        Line* line = reinterpret_cast<Line*>(s->window[slot]) + s->rank;
        const uint32_t all = (before | bit) & ~mine;
        ptx::store_relaxed_system(&line->suspects, (epoch & 0xffffffffu) << 32 | all);
    }
}

// What active peers suspect in this epoch or later. `changed` mixes all words, to notice news.
__device__ inline uint32_t rumours(const State* s, uint64_t epoch, uint64_t* changed) {
    uint32_t all = 0;
    uint64_t mixed = 0;
    const uint32_t trusted = unmasked(s) & ~(1u << s->rank);
    const Line* lines = reinterpret_cast<const Line*>(s->window[s->rank]);
#pragma unroll 1
    for (uint32_t slot = 0; slot < s->ranks_max; slot++) {
        if ((trusted >> slot & 1) == 0) continue;
        const uint64_t word = ptx::load_relaxed_system(&lines[slot].suspects);
        mixed = mixed * 31 + word;
        const int32_t age = static_cast<int32_t>(uint32_t(word >> 32) - uint32_t(epoch));
        if (word != 0 && age >= 0) all |= uint32_t(word);
    }
    *changed = mixed;
    return all & ~(1u << s->rank);
}

// What a waiter remembers between looks at the world.
struct Patience {
    uint64_t deadline, news;
};

// The slow part of a wait, out of line to keep the polling loops small: is it still worth waiting?
// kReady means yes.
__device__ __noinline__ Wait look_around(State* s, Patience* patience, uint32_t peer, uint32_t phase,
                                         uint64_t epoch, uint64_t wanted, uint64_t seen) {
    if ((unmasked(s) >> peer & 1) == 0) return Wait::kMasked;
    uint64_t news;
    const uint32_t heard = rumours(s, epoch, &news);
    if (heard >> peer & 1) {
        suspect(s, peer, phase, epoch, wanted, seen);
        return Wait::kMasked;
    }
    const uint64_t now = ptx::now_ns();
    // A peer that has just found a fault is late because of it: it gets a whole time-out again.
    if (patience->deadline == 0 || news != patience->news)
        *patience = {now + ptx::load_relaxed_system(&s->timeout_ns), news};
    if (now <= patience->deadline) return Wait::kReady;
    suspect(s, peer, phase, epoch, wanted, seen);
    return Wait::kTimedOut;
}

// Does a cell show `wanted`, or a later epoch of the same incarnation?
__device__ __forceinline__ bool reached(uint64_t seen, uint64_t wanted) {
    return (seen & 0xffffu) == (wanted & 0xffffu) && (seen >> 16) >= (wanted >> 16);
}

// Waits until `cell`, in our own window, holds `wanted` (or, with `at_least`, a later epoch of the same
// incarnation). One thread. On kReady, what the peer wrote before is visible to this thread.
__device__ __noinline__ Wait await(State* s, const uint64_t* cell, uint64_t wanted, bool at_least,
                                   uint32_t peer, uint32_t phase, uint64_t epoch) {
    Patience patience{0, 0};
    for (uint32_t polls = 1;; polls++) {
        const uint64_t seen = ptx::load_acquire_system(cell);
        if (seen == wanted || (at_least && reached(seen, wanted))) return Wait::kReady;
        if (polls % 64 != 0) continue;
        const Wait wait = look_around(s, &patience, peer, phase, epoch, wanted, seen);
        if (wait != Wait::kReady) return wait;
    }
}

struct Word {
    uint32_t data;
    Wait wait;  // data is 0 unless kReady
};

// The waiting part of await_word, out of line: code that is fetched costs more than a call.
__device__ __noinline__ Word keep_waiting(State* s, const uint64_t* at, uint32_t peer,
                                          uint32_t phase, uint64_t epoch) {
    Patience patience{0, 0};
    for (uint32_t polls = 1;; polls++) {
        const uint64_t seen = ptx::load_relaxed_system(at);
        if (proves(seen, epoch)) return {static_cast<uint32_t>(seen), Wait::kReady};
        if (polls % 64 != 0) continue;
        const Wait wait = look_around(s, &patience, peer, phase, epoch, proven(epoch, 0), seen);
        if (wait != Wait::kReady) return {0, wait};
    }
}

// Waits until a word proves itself. One thread.
__device__ __forceinline__ Word await_word(State* s, const uint64_t* at, uint32_t peer,
                                           uint32_t phase, uint64_t epoch) {
    const uint64_t seen = ptx::load_relaxed_system(at);
    if (proves(seen, epoch)) return {static_cast<uint32_t>(seen), Wait::kReady};
    return keep_waiting(s, at, peer, phase, epoch);
}

// After a row whose sum is wrong: is it worth reading again? A whole warp, one answer.
__device__ __forceinline__ Wait again(State* s, Patience* patience, uint32_t tries, uint32_t peer,
                                      uint32_t phase, uint64_t epoch, uint32_t wanted,
                                      uint32_t seen) {
    if (tries % 16 != 0) return Wait::kReady;
    uint32_t wait = 0;
    if ((threadIdx.x & 31) == 0)
        wait = static_cast<uint32_t>(look_around(s, patience, peer, phase, epoch,
                                                 proven(epoch, wanted), proven(epoch, seen)));
    return static_cast<Wait>(__shfl_sync(0xffffffffu, wait, 0));
}

// A 16-byte chunk's part of the sum that proves a row; `at` is its number in the row, so that chunks
// of an older row in other places do not add up to the same.
__device__ __forceinline__ uint32_t proof_of(uint4 chunk, uint32_t at) {
    return (chunk.x + chunk.y + chunk.z + chunk.w) * (2 * at + 1);
}

// The n-th set bit, n counted from 0; lane n of a warp asks for its own. Anything beyond is 31.
__device__ __forceinline__ uint32_t nth_member(uint32_t members, uint32_t n) {
    uint32_t found = 31;
#pragma unroll 1
    for (uint32_t i = 0; members != 0; i++, members &= members - 1)
        if (i == n) found = __ffs(members) - 1;
    return found;
}

// Notes a failed peer for the result of this launch. Fenced, because blocks leave without a fence.
__device__ __forceinline__ void note_failed(uint32_t* failed, uint32_t bits) {
    if (bits == 0) return;
    atomicOr(failed, bits);
    __threadfence();
}

// What the blocks of this launch noted. For its last block, when all others have left: a load answers
// sooner than an exchange, and there is seldom anything to clear.
__device__ __forceinline__ uint32_t take_failed(uint32_t* failed) {
    const uint32_t bits = ptx::load_relaxed_system(failed);
    if (bits != 0) *failed = 0;
    return bits;
}

// Entry and exit of a launch. Only the last block to leave writes the epochs, so every block of the
// launch has read the old ones.
__device__ inline void trace_begin(State* s) {
    if (s->trace != 0 && threadIdx.x == 0)
        atomicMin(reinterpret_cast<unsigned long long*>(&s->trace_start), ptx::now_ns());
}

// Called by one thread of the last block.
__device__ inline void trace_end(State* s) {
    if (s->trace == 0) return;
    const uint64_t end = ptx::now_ns();  // before the trace's own work, which is not the kernel's
    auto* ring = reinterpret_cast<uint64_t*>(s->trace);
    const uint64_t at = s->trace_count % s->trace_entries;
    ring[2 * at] = s->trace_start;
    ring[2 * at + 1] = end;
    s->trace_count += 1;
    s->trace_start = ~0ull;
}

// True in one thread of the launch: all other blocks are past their last access to the state. The
// counter orders nothing else: data is published by the end of the launch.
__device__ inline bool leave_last(State* s) {
    __syncthreads();
    if (threadIdx.x != 0) return false;
    if (atomicAdd(&s->blocks_left, 1u) != gridDim.x - 1) return false;
    s->blocks_left = 0;
    return true;
}

// One 16-byte store each: a reader never sees half a result, and nobody waits for the host's memory.
__device__ inline void publish(RelightEpResult* here, RelightEpResult* host, uint64_t epoch,
                               uint32_t used, uint32_t failed) {
    const ulonglong2 whole{epoch, uint64_t(failed) << 32 | used};
    *reinterpret_cast<ulonglong2*>(here) = whole;
    if (host != nullptr) *reinterpret_cast<ulonglong2*>(host) = whole;
}

__device__ __forceinline__ RelightEpHostRecord* host_record(const State* s) {
    return reinterpret_cast<RelightEpHostRecord*>(s->host_record);
}

}  // namespace relight::ep
