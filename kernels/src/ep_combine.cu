// SPDX-License-Identifier: Apache-2.0
// Combine: the owner of a token's experts sums its weighted outputs in f32 and sends ONE bf16 row
// home, in four stores, each proven by two sums; home adds the rows in the order of the owners' ranks.
// Warps 0-7 of a block reduce and send, warps 8-15 wait for own tokens and add up.

#include <relight/device/member.cuh>

namespace relight::ep::combine {
namespace {

constexpr uint32_t kReducers = 256, kReducerWarps = kReducers / 32;
constexpr uint32_t kAdders = 256, kAdderWarps = kAdders / 32;
constexpr uint32_t kReducerBarrier = 1, kAdderBarrier = 2;
constexpr uint32_t kStages = 4;           // quarters of a warp's in shared memory
constexpr uint32_t kQuarterBytesMax = 2 * RELIGHT_EP_HIDDEN_MAX / kQuarters;
static_assert(kReducerWarps * kStages * kQuarterBytesMax <= RELIGHT_EP_COMBINE_SHARED, "fits");

struct Span {
    uint32_t first, end;  // 16-byte chunks
};

__device__ Span quarter_of(uint32_t hidden, uint32_t quarter) {
    const uint32_t chunks = hidden / 8, each = (chunks + kQuarters - 1) / kQuarters;
    return {min(quarter * each, chunks), min((quarter + 1) * each, chunks)};
}

struct Sum {
    float value[8];
};

__device__ __forceinline__ void add_weighted(Sum& sum, uint4 raw, float weight) {
    const uint32_t pairs[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (uint32_t p = 0; p < 4; p++) {
        sum.value[2 * p] = __fmaf_rn(ptx::bf16_low(pairs[p]), weight, sum.value[2 * p]);
        sum.value[2 * p + 1] = __fmaf_rn(ptx::bf16_high(pairs[p]), weight, sum.value[2 * p + 1]);
    }
}

__device__ __forceinline__ uint4 rounded(const Sum& sum) {
    return uint4{ptx::to_bf16x2(sum.value[0], sum.value[1]),
                 ptx::to_bf16x2(sum.value[2], sum.value[3]),
                 ptx::to_bf16x2(sum.value[4], sum.value[5]),
                 ptx::to_bf16x2(sum.value[6], sum.value[7])};
}

// ---- Weights that come with combine (the way of engines whose dispatch has none) ----

__device__ void push_weights(const View& view, const RelightEpCombineArgs& args, uint32_t members) {
    const State* s = view.state;
    const uint32_t choices = view.received()[1] * s->topk;
    const auto* from = reinterpret_cast<const float*>(args.topk_weights);
    for (uint32_t to = gridDim.x - 1 - blockIdx.x; to < s->ranks_max; to += gridDim.x) {
        if ((members >> to & 1) == 0) continue;
        float* weights = view.weights(to, s->rank);
        for (uint32_t i = threadIdx.x; i < choices; i += kReducers) weights[i] = from[i];
        ptx::barrier(kReducerBarrier, kReducers);
        if (threadIdx.x == 0)
            ptx::store_release_system(&view.line(to, s->rank)->weight[view.parity],
                                      view.tag_of(s->rank));
    }
}

// Ranks whose weights are here. A whole warp, lane = source.
__device__ uint32_t await_weights(const View& view, uint32_t sources) {
    const uint32_t source = threadIdx.x & 31;
    bool ready = false;
    if (sources >> source & 1) {
        const uint64_t* cell = &view.line(view.state->rank, source)->weight[view.parity];
        ready = await(view.live, cell, view.tag_of(source), false, source, RELIGHT_EP_PHASE_WEIGHT,
                      view.epoch) == Wait::kReady;
        if (!ready) note_failed(&view.live->combine_failed, 1u << source);
    }
    return __ballot_sync(0xffffffffu, ready);
}

// ---- Reducing and sending: warps 0-7 ----

struct Choice {
    uint64_t y;      // address of this lane's expert output row
    float weight;
    bool valid;
};

__device__ Choice choice_of(const View& view, const RelightEpCombineArgs& args, uint32_t source,
                            uint32_t token) {
    const State* s = view.state;
    const uint32_t lane = threadIdx.x & 31, bits = view.block_bits(), block = token >> bits;
    Choice choice{0, 0.0f, false};
    if (lane >= s->topk) return choice;
    const uint32_t at = (token - (block << bits)) * s->topk + lane;
    const uint64_t word = view.choices(s->rank, source, block)[at / 2];
    const uint32_t place = static_cast<uint32_t>(view.index(source)[token * s->topk + lane]);
    const float* weights =
        args.flags & RELIGHT_EP_WEIGHTS
            ? view.weights(s->rank, source) + uint64_t(token) * s->topk
            : reinterpret_cast<const float*>(view.row(s->rank, source, token));
    choice.weight = weights[lane];
    const uint32_t local = static_cast<uint32_t>(word) >> (at % 2 * 16) & 0xffffu;
    choice.valid =
        proves(word, view.epoch) && local < s->local_experts_max && place < args.slots;
    if (choice.valid)
        choice.y = args.y + View::times(local * args.slots + place, 2 * s->hidden);
    return choice;
}

// The two pieces of a quarter meet here.
__device__ uint32_t middle_of(Span quarter) {
    return quarter.first + (quarter.end - quarter.first + 1) / 2;
}

// One quarter of one row to shared memory, and the sums of its two pieces. A whole warp.
__device__ void reduce_quarter(const Choice& choice, uint32_t valid, Span span, char* stage,
                               uint32_t (&proofs)[2]) {
    constexpr uint32_t kBatch = 7;  // a quarter of 7168 channels at once
    const uint32_t lane = threadIdx.x & 31, middle = middle_of(span);
    uint32_t first = 0, second = 0;
#pragma unroll 1
    for (uint32_t base = span.first; base < span.end; base += kBatch * 32) {
        Sum sums[kBatch] = {};
#pragma unroll 1
        for (uint32_t left = valid; left != 0; left &= left - 1) {
            const uint32_t from = __ffs(left) - 1;
            const char* y = reinterpret_cast<const char*>(__shfl_sync(0xffffffffu, choice.y, from));
            const float weight = __shfl_sync(0xffffffffu, choice.weight, from);
            uint4 part[kBatch];
#pragma unroll
            for (uint32_t i = 0; i < kBatch; i++) {
                const uint32_t at = base + i * 32 + lane;
                part[i] = at < span.end ? ptx::load_once(y + 16ull * at) : uint4{0, 0, 0, 0};
            }
#pragma unroll
            for (uint32_t i = 0; i < kBatch; i++) add_weighted(sums[i], part[i], weight);
        }
#pragma unroll
        for (uint32_t i = 0; i < kBatch; i++) {
            const uint32_t at = base + i * 32 + lane;
            if (at >= span.end) continue;
            const uint4 chunk = rounded(sums[i]);
            *reinterpret_cast<uint4*>(stage + 16 * (at - span.first)) = chunk;
            (at < middle ? first : second) += proof_of(chunk, at);
        }
    }
    proofs[0] = __reduce_add_sync(0xffffffffu, first);
    proofs[1] = __reduce_add_sync(0xffffffffu, second);
}

struct Proof {
    uint64_t* cells;
    uint32_t first, second;
};

__device__ void prove(const View& view, const Proof& proof) {
    if (proof.cells != nullptr)
        ptx::store_words(proof.cells, proven(view.epoch, proof.first),
                         proven(view.epoch, proof.second));
}

__device__ void send_sums(const View& view, const RelightEpCombineArgs& args, uint32_t members,
                          char* stages) {
    const State* s = view.state;
    const uint32_t lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    if (args.flags & RELIGHT_EP_WEIGHTS) push_weights(view, args, members);
    // Lane = source: how many tokens it has sent rows of.
    const uint32_t own_tokens = view.received()[2 + lane];
    uint32_t sources = view.received()[0] & members;
    const uint32_t most =
        __reduce_max_sync(0xffffffffu, sources >> lane & 1 ? own_tokens : 0);
    if (args.flags & RELIGHT_EP_WEIGHTS) sources = await_weights(view, sources);

    // With few rows several warps share one, by whole quarters.
    const uint32_t count = __popc(sources), rows = most * count, warps = gridDim.x * kReducerWarps;
    const uint32_t my_source = nth_member(sources, lane);  // lane i knows the source of turn i
    const uint32_t parts = rows * 4 <= warps ? 4 : rows * 2 <= warps ? 2 : 1;
    char* own_stages = stages + warp * kStages * kQuarterBytesMax;
    uint32_t sent = 0;
    Proof owed[2] = {};  // of the last two quarters, older first; lane 0
    for (uint32_t unit = warp * gridDim.x + blockIdx.x; unit < rows * parts; unit += warps) {
        const uint32_t part = unit % parts, row = unit / parts;
        const uint32_t source = __shfl_sync(0xffffffffu, my_source, row % count);
        const uint32_t token = row / count;
        if (token >= __shfl_sync(0xffffffffu, own_tokens, source)) continue;
        const Choice choice = choice_of(view, args, source, token);
        const uint32_t valid = __ballot_sync(0xffffffffu, choice.valid);
        if (valid == 0) continue;
#pragma unroll 1
        for (uint32_t q = part * kQuarters / parts; q < (part + 1) * kQuarters / parts; q++) {
            const Span span = quarter_of(s->hidden, q);
            char* stage = own_stages + (sent++ % kStages) * kQuarterBytesMax;
            // bulk_wait<2> below has left at most two quarters in flight: this stage is free.
            uint32_t proofs[2];
            reduce_quarter(choice, valid, span, stage, proofs);
            ptx::fence_shared_to_async();
            __syncwarp();
            if (lane != 0) continue;
            if (span.end > span.first)
                ptx::bulk_store(view.combine_row(source, s->rank, token) + 16 * span.first, stage,
                                16 * (span.end - span.first));
            ptx::bulk_commit();
            ptx::bulk_wait<2>();
            prove(view, owed[0]);
            owed[0] = owed[1];
            owed[1] = {view.combine_cell(source, s->rank, token) + 2 * q, proofs[0], proofs[1]};
        }
    }
    if (lane == 0) {
        ptx::bulk_wait<1>();
        prove(view, owed[0]);
        ptx::bulk_wait<0>();
        prove(view, owed[1]);
    }

    // All reading of this step's dispatch is done here: the last block tells every source.
    ptx::barrier(kReducerBarrier, kReducers);
    if (warp != 0) return;
    uint32_t before = 0;
    if (lane == 0) before = ptx::add_acq_rel_gpu(&view.live->blocks_consumed, 1);
    if (__shfl_sync(0xffffffffu, before, 0) != gridDim.x - 1) return;
    if (lane == 0) view.live->blocks_consumed = 0;
    __syncwarp();
    // Relaxed: what was read has been used, no later write can reach those reads.
    if (members >> lane & 1)
        ptx::store_relaxed_system(&view.line(lane, s->rank)->consumed[view.parity],
                                  view.tag_of(s->rank));
}

// ---- Adding up own tokens: warps 8-15 ----

// Owners of this token whose whole row is announced, and lane r's sum of owner r's piece. Each warp
// asks for its own piece, all agree, so a row counts entirely or not at all.
__device__ uint32_t await_owners(const View& view, uint32_t token, uint32_t wanted, uint32_t piece,
                                 uint32_t* agreed, uint32_t* sum) {
    const State* s = view.state;
    const uint32_t lane = threadIdx.x & 31;
    Word cell{0, Wait::kReady};
    if (wanted >> lane & 1)
        cell = await_word(view.live, view.combine_cell(s->rank, lane, token) + piece, lane,
                          RELIGHT_EP_PHASE_COMBINE, view.epoch);
    *sum = cell.data;
    const uint32_t lost = __ballot_sync(0xffffffffu, cell.wait != Wait::kReady);
    if (lane == 0 && lost != 0) {
        note_failed(&view.live->combine_failed, lost);
        atomicAnd(agreed, ~lost);
    }
    ptx::barrier(kAdderBarrier, kAdders);
    return *agreed & wanted;
}

constexpr uint32_t kOwnersAtOnce = 4;
constexpr uint32_t kChunksEach = 4;  // of a piece: 32 * 4 * 8 channels are an eighth of 8192

// Reads up to four owners' pieces until each has the sum it was announced with. A whole warp.
__device__ void read_pieces(const View& view, uint32_t token, Span span, uint32_t owners,
                            uint32_t my_sum, uint4 (&parts)[kOwnersAtOnce][kChunksEach]) {
    const State* s = view.state;
    const uint32_t lane = threadIdx.x & 31;
    Patience patience{0, 0};
    Wait wait = Wait::kReady;
    for (uint32_t tries = 1;; tries++) {
        uint32_t left = owners;
#pragma unroll
        for (uint32_t o = 0; o < kOwnersAtOnce; o++) {
            const char* row =
                left != 0 ? view.combine_row(s->rank, __ffs(left) - 1, token) : nullptr;
            left &= left - 1;
#pragma unroll
            for (uint32_t i = 0; i < kChunksEach; i++) {
                const uint32_t at = span.first + i * 32 + lane;
                parts[o][i] = row != nullptr && at < span.end ? ptx::load_afresh(row + 16ull * at)
                                                              : uint4{0, 0, 0, 0};
            }
        }
        left = owners;
        uint32_t wrong = 0, wanted = 0, seen = 0;
#pragma unroll
        for (uint32_t o = 0; o < kOwnersAtOnce; o++) {
            if (left == 0) continue;
            const uint32_t owner = __ffs(left) - 1;
            left &= left - 1;
            uint32_t sum = 0;
#pragma unroll
            for (uint32_t i = 0; i < kChunksEach; i++)
                sum += proof_of(parts[o][i], span.first + i * 32 + lane);
            sum = __reduce_add_sync(0xffffffffu, sum);
            const uint32_t announced = __shfl_sync(0xffffffffu, my_sum, owner);
            if (sum == announced) continue;
            wrong |= 1u << owner;
            wanted = announced;
            seen = sum;
            if (wait == Wait::kReady) continue;
#pragma unroll
            for (uint32_t i = 0; i < kChunksEach; i++) parts[o][i] = uint4{0, 0, 0, 0};
        }
        if (wrong == 0 || wait != Wait::kReady) return;
        wait = again(view.live, &patience, tries, __ffs(wrong) - 1, RELIGHT_EP_PHASE_COMBINE,
                     view.epoch, wanted, seen);
        if (wait != Wait::kReady && lane == 0) note_failed(&view.live->combine_failed, wrong);
    }
}

__device__ void add_piece(const View& view, const RelightEpCombineArgs& args, uint32_t token,
                          uint32_t owners, Span span, uint32_t my_sum) {
    const State* s = view.state;
    const uint32_t lane = threadIdx.x & 31;
    char* out = reinterpret_cast<char*>(args.out) + 2ull * token * s->hidden;
    Sum sums[kChunksEach] = {};
#pragma unroll 1
    while (owners != 0) {
        uint32_t rest = owners;
#pragma unroll
        for (uint32_t o = 0; o < kOwnersAtOnce; o++) rest &= rest - 1;
        uint4 parts[kOwnersAtOnce][kChunksEach];
        read_pieces(view, token, span, owners & ~rest, my_sum, parts);
        owners = rest;
#pragma unroll
        for (uint32_t o = 0; o < kOwnersAtOnce; o++)
#pragma unroll
            for (uint32_t i = 0; i < kChunksEach; i++) add_weighted(sums[i], parts[o][i], 1.0f);
    }
#pragma unroll
    for (uint32_t i = 0; i < kChunksEach; i++) {
        const uint32_t at = span.first + i * 32 + lane;
        if (at < span.end) ptx::store_once(out + 16ull * at, rounded(sums[i]));
    }
}

__device__ void add_up(const View& view, const RelightEpCombineArgs& args, uint32_t members) {
    __shared__ uint32_t agreed[2];
    const uint32_t thread = threadIdx.x - kReducers, piece = thread / 32;
    static_assert(kAdderWarps == kPieces && kPieces == 2 * kQuarters, "a warp adds one piece");
    Span span = quarter_of(view.state->hidden, piece / 2);
    const uint32_t middle = middle_of(span);
    (piece % 2 == 0 ? span.end : span.first) = middle;
    const uint32_t tokens = view.received()[1];
    if (thread < 2) agreed[thread] = ~0u;
    ptx::barrier(kAdderBarrier, kAdders);
    uint32_t turn = 0;
    for (uint32_t token = blockIdx.x; token < tokens; token += gridDim.x, turn++) {
        const uint32_t sent = view.sent()[token];
        const uint32_t wanted = sent & members;
        uint32_t my_sum = 0;
        const uint32_t owners =
            await_owners(view, token, wanted, piece, &agreed[turn % 2], &my_sum);
        // The other word is free: everyone is past the barrier of this turn.
        if (thread == 0) {
            agreed[(turn + 1) % 2] = ~0u;
            note_failed(&view.live->combine_failed, sent & ~wanted);
        }
        add_piece(view, args, token, owners, span, my_sum);
    }
}

// One thread of the last block.
__device__ void finish(State* live, const State& copy, uint32_t members, const View* sent,
                       const View* received) {
    if (sent != nullptr) live->combine_sent = sent->epoch;
    if (received != nullptr) {
        const uint32_t failed = take_failed(&live->combine_failed);
        live->combine_received = received->epoch;
        RelightEpHostRecord* record = host_record(&copy);
        publish(&live->combine, record == nullptr ? nullptr : &record->combine, received->epoch,
                members, failed);
    }
    trace_end(live);
}

__device__ void run(const RelightEpCombineArgs& args) {
    extern __shared__ __align__(128) char shared[];
    __shared__ State copy;
    State* live = reinterpret_cast<State*>(args.state);
    trace_begin(live);
    take_snapshot(&copy, live);
    const bool sends = args.flags & RELIGHT_EP_SEND, receives = args.flags & RELIGHT_EP_RECEIVE;
    const View sending(&copy, live, copy.combine_sent + 1);
    const View receiving(&copy, live, copy.combine_received + 1);
    const uint32_t members = participants(receives ? receiving : sending);

    if (threadIdx.x < kReducers) {
        if (sends) send_sums(sending, args, members, shared);
    } else if (receives) {
        add_up(receiving, args, members);
    }
    if (leave_last(live)) finish(live, copy, members, sends ? &sending : nullptr,
                                 receives ? &receiving : nullptr);
}

}  // namespace
}  // namespace relight::ep::combine

extern "C" __global__ void __launch_bounds__(RELIGHT_EP_THREADS, 1)
    relight_ep_combine(const __grid_constant__ RelightEpCombineArgs args) {
    relight::ep::combine::run(args);
}
