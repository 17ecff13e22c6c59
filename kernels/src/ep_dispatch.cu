// SPDX-License-Identifier: Apache-2.0
// Dispatch: each token goes once to each rank that owns one of its experts, straight to
// window(rank).row[me][token]. The routing tables travel first and prove themselves word by word, so
// that a receiver knows every row's place before the row arrives. One cell a row, which holds the
// sum of the row's words: packing overlaps with the wire, and no fence stands in the way.
// Warps 0-7 of a block send, warps 8-15 push routes and receive; they meet only at the end.

#include <relight/device/member.cuh>
#include <relight/device/quantise.cuh>

namespace relight::ep::dispatch {
namespace {

constexpr uint32_t kStages = 4;      // rows in shared memory, being filled or being read by the engine
constexpr uint32_t kReceivers = 256;
constexpr uint32_t kReceiverWarps = kReceivers / 32;
constexpr uint32_t kSenderBarrier = 1, kReceiverBarrier = 2;
constexpr uint32_t kPlacesMax = 4096;  // (local expert, source) pairs

struct Places {
    uint16_t tally[kTallyMax];   // [block][local expert][source], then its exclusive prefix by block
    uint32_t first[kPlacesMax];  // [local expert][source]: first row of that source
};
constexpr uint32_t kStagesBytes = kStages * 16512;  // a bf16 row of 8192 channels and its header
static_assert(kStagesBytes + sizeof(Places) <= RELIGHT_EP_DISPATCH_SHARED, "fits the launch");

__device__ uint32_t token_count(const RelightEpDispatchArgs& args) {
    return args.token_count_at == 0 ? args.token_count
                                    : *reinterpret_cast<const uint32_t*>(args.token_count_at);
}

__device__ __forceinline__ int64_t expert_at(const RelightEpDispatchArgs& args, uint64_t choice) {
    return args.flags & RELIGHT_EP_INDEX_64
               ? reinterpret_cast<const int64_t*>(args.topk_index)[choice]
               : reinterpret_cast<const int32_t*>(args.topk_index)[choice];
}

__device__ __forceinline__ const uint32_t* owners_of(const View& view) {
    const State* s = view.state;
    const bool later = s->owner[1] != 0 && view.epoch >= s->owner_at;
    return reinterpret_cast<const uint32_t*>(s->owner[later ? 1 : 0]);
}

__device__ __forceinline__ uint32_t owner_of(const View& view, int64_t expert) {
    if (expert < 0 || expert >= view.state->experts_max) return RELIGHT_EP_NO_OWNER;
    return owners_of(view)[expert];
}

// May I write to `slot`? Only when it has consumed what I put there `parities` epochs ago. Asked in two
// steps, so that the answer is on its way while the caller does other things.
struct Gate {
    const uint64_t* cell;  // null: open without asking
    uint64_t wanted, seen;
};

__device__ __forceinline__ Gate approach(const View& view, uint32_t slot) {
    const State* s = view.state;
    Gate gate{nullptr, 0, 0};
    if (slot == s->rank || view.epoch <= s->parities) return gate;
    const uint64_t older = view.epoch - s->parities;  // of the same parity
    if (older < s->on_at[slot] || older < s->on_at[s->rank]) return gate;
    gate.cell = &view.line(s->rank, slot)->consumed[view.parity];
    gate.wanted = tag(older, s->incarnation[slot]);
    gate.seen = ptx::load_relaxed_system(gate.cell);
    return gate;
}

__device__ __noinline__ bool wait_at(const View& view, const Gate& gate, uint32_t slot) {
    const Wait wait =
        await(view.live, gate.cell, gate.wanted, true, slot, RELIGHT_EP_PHASE_GATE, view.epoch);
    if (wait != Wait::kReady) note_failed(&view.live->dispatch_failed, 1u << slot);
    return wait == Wait::kReady;
}

// Relaxed is enough: what follows are stores, which wait for the answer.
__device__ __forceinline__ bool pass(const View& view, const Gate& gate, uint32_t slot) {
    return gate.cell == nullptr || reached(gate.seen, gate.wanted) || wait_at(view, gate, slot);
}

// ---- Sending rows: warps 0-7 ----

// The sum of a row's words, while the copy engine reads them too. Warp 0.
__device__ uint32_t sum_stage(const char* stage, uint32_t bytes) {
    uint32_t sum = 0;
#pragma unroll 4
    for (uint32_t at = (threadIdx.x & 31) * 16; at < bytes; at += 512)
        sum += proof_of(*reinterpret_cast<const uint4*>(stage + at), at / 16);
    return __reduce_add_sync(0xffffffffu, sum);
}

template <bool kFp8>
__device__ void send_rows(const View& view, const RelightEpDispatchArgs& args, uint32_t members,
                          uint32_t tokens, char* stages) {
    const State* s = view.state;
    const uint32_t thread = threadIdx.x, lane = thread & 31;
    const bool issuer = thread < 32;
    const uint32_t header = row_header_bytes(s->topk);
    const uint32_t bytes = header + row_bytes(s->hidden, args.format);
    const uint32_t stage_stride = static_cast<uint32_t>(align(bytes, 128));
    uint32_t reachable = 0, history = 0, step = 0;
    uint32_t sums[3] = {};  // of the last three rows, newest first

    // Each lane of warp 0 owns the traffic to one rank. Lanes store in their order, so every block
    // starts with another rank: else all ranks would storm rank 0 first. While each row has a stage
    // of its own a cell follows its row at once. Beyond that cells trail by two rows, for a reader
    // that comes too early reads twice: by bulk_wait<2> the row before the last two is out and its
    // stage is free for the next row but one.
    const bool at_once = tokens <= kStages * gridDim.x;
    const uint32_t peer =
        lane < s->ranks_max ? (lane + s->rank + 1 + blockIdx.x) % s->ranks_max : lane;
    const auto prove = [&](uint32_t back, uint32_t token) {
        if (history >> back & 1)
            ptx::store_relaxed_system(view.row_cell(peer, s->rank, token),
                                      proven(view.epoch, sums[back]));
    };
    uint32_t token = blockIdx.x;
    for (; token < tokens; token += gridDim.x, step++) {
        char* stage = stages + (step % kStages) * stage_stride;
        const char* x = reinterpret_cast<const char*>(args.x) + 2ull * token * s->hidden;
        const uint64_t choice = uint64_t(token) * s->topk + lane;
        const bool chooses = issuer && lane < s->topk;
        const int64_t expert = chooses ? expert_at(args, choice) : -1;
        float weight = 0.0f;
        if (chooses && args.topk_weights != 0)
            weight = reinterpret_cast<const float*>(args.topk_weights)[choice];
        Gate gate{nullptr, 0, 0};
        if (issuer && step == 0 && (members >> peer & 1)) gate = approach(view, peer);
        const Chunks row = load_row(x, s->hidden, thread);
        // Where it goes is looked up while the row is on its way from memory.
        const uint32_t owner = issuer ? owner_of(view, expert) : RELIGHT_EP_NO_OWNER;
        if constexpr (kFp8)
            quantise_row(row, stage + header, s->hidden, args.format, thread);
        else
            copy_row(row, stage + header, s->hidden, thread);
        if (chooses) reinterpret_cast<float*>(stage)[lane] = weight;
        ptx::fence_shared_to_async();
        ptx::barrier(kSenderBarrier, kSenders);
        if (!issuer) continue;
        if (step == 0) {
            const bool open = (members >> peer & 1) && pass(view, gate, peer);
            reachable = __reduce_or_sync(0xffffffffu, open ? 1u << peer : 0);
        }
        const bool owned = owner != RELIGHT_EP_NO_OWNER && (owner >> 16) < kRanksMax;
        const uint32_t to =
            __reduce_or_sync(0xffffffffu, owned ? 1u << (owner >> 16) : 0) & reachable;
        if (to >> peer & 1) ptx::bulk_store(view.row(peer, s->rank, token), stage, bytes);
        ptx::bulk_commit();
        if (lane == 0) view.sent()[token] = to;
        history = history << 1 | (to >> peer & 1);
        sums[2] = sums[1];
        sums[1] = sums[0];
        sums[0] = sum_stage(stage, bytes);
        if (at_once) {
            prove(0, token);
            continue;
        }
        ptx::bulk_wait<2>();
        if (step >= 2) prove(2, token - 2 * gridDim.x);
    }
    if (!issuer) return;
    if (at_once) return ptx::bulk_wait_read<0>();
    ptx::bulk_wait<1>();
    if (step >= 2) prove(1, token - 2 * gridDim.x);
    ptx::bulk_wait<0>();
    if (step >= 1) prove(0, token - gridDim.x);
}

// ---- Routing tables: warps 8-15 ----

// Owners of four choices of a block; none beyond its end.
__device__ __forceinline__ void owners_at(const View& view, const RelightEpDispatchArgs& args,
                                          uint64_t base, uint32_t first, uint32_t choices,
                                          uint32_t (&owners)[4]) {
    int64_t experts[4];
#pragma unroll
    for (uint32_t j = 0; j < 4; j++)
        experts[j] = first + j < choices ? expert_at(args, base + first + j) : -1;
#pragma unroll
    for (uint32_t j = 0; j < 4; j++) owners[j] = owner_of(view, experts[j]);
}

// One block of my table to one rank: the choices as its local experts, then how often each occurs.
__device__ void push_block(const View& view, const RelightEpDispatchArgs& args, uint32_t to,
                           uint32_t block, uint32_t tokens, uint32_t* tally, uint32_t* open) {
    const State* s = view.state;
    const uint32_t thread = threadIdx.x - kSenders, bits = view.block_bits();
    const uint64_t base = (uint64_t(block) << bits) * s->topk;
    const uint32_t left = tokens - (block << bits);  // of the table, counted in tokens
    const uint32_t choices = min(left, 1u << bits) * s->topk;
    Gate gate{nullptr, 0, 0};
    if (thread == 0) gate = approach(view, to);
    uint32_t owners[4];
    owners_at(view, args, base, thread * 4, choices, owners);
#pragma unroll 1
    for (uint32_t i = thread; i < s->local_experts_max; i += kReceivers) tally[i] = 0;
    if (thread == 0) *open = pass(view, gate, to) ? 1 : 0;
    ptx::barrier(kReceiverBarrier, kReceivers);
    if (*open == 0) return;
    if (thread == 0 && block == 0)
        ptx::store_relaxed_system(
            view.route(to, s->rank),
            proven(view.epoch, route_header(tokens, args.format, s->topk)));
    uint64_t* words = view.choices(to, s->rank, block);
#pragma unroll 1
    for (uint32_t i = thread * 4; i < choices;) {
        uint32_t locals[4];
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            const uint32_t local = owners[j] & 0xffffu;
            const bool here = (owners[j] >> 16) == to && local < s->local_experts_max;
            locals[j] = here ? local : 0xffffu;
            if (here) atomicAdd(tally + local, 1u);
        }
        ptx::store_words(words + i / 2, proven(view.epoch, locals[0] | locals[1] << 16),
                         proven(view.epoch, locals[2] | locals[3] << 16));
        i += kReceivers * 4;
        if (i < choices) owners_at(view, args, base, i, choices, owners);
    }
    ptx::barrier(kReceiverBarrier, kReceivers);
    uint64_t* counts = view.counts(to, s->rank, block);
#pragma unroll 1
    for (uint32_t i = thread * 2; i < s->local_experts_max; i += kReceivers * 2) {
        const uint32_t second = i + 1 < s->local_experts_max ? tally[i + 1] : 0;
        ptx::store_relaxed_system(counts + i / 2, proven(view.epoch, tally[i] | second << 16));
    }
}

// The last blocks do it: with few tokens they have no row to send. A rank without tokens sends a table
// of one empty block, for its header.
__device__ void push_routes(const View& view, const RelightEpDispatchArgs& args, uint32_t members,
                            uint32_t tokens, uint32_t* tally, uint32_t* open) {
    const State* s = view.state;
    const uint32_t bits = view.block_bits();
    const uint32_t blocks = max(1u, (tokens + (1u << bits) - 1) >> bits);
    for (uint32_t unit = gridDim.x - 1 - blockIdx.x; unit < blocks * s->ranks_max;
         unit += gridDim.x) {
        const uint32_t to = unit % s->ranks_max, block = unit / s->ranks_max;
        if ((members >> to & 1) == 0) continue;
        push_block(view, args, to, block, tokens, tally, open);
        ptx::barrier(kReceiverBarrier, kReceivers);
    }
}

// Waits for every member's header. One warp, lane = source.
__device__ uint32_t await_routes(const View& view, const RelightEpDispatchArgs& args,
                                 uint32_t members, uint32_t* tokens_of) {
    const State* s = view.state;
    const uint32_t source = threadIdx.x & 31;
    bool arrived = false;
    tokens_of[source] = 0;
    if (members >> source & 1) {
        const auto [header, wait] = await_word(view.live, view.route(s->rank, source), source,
                                               RELIGHT_EP_PHASE_ROUTE, view.epoch);
        if (wait == Wait::kReady) {
            const uint32_t tokens = header & 0xffffu;
            arrived = header == route_header(tokens, args.format, s->topk) &&
                      tokens <= s->tokens_max;
            if (arrived)
                tokens_of[source] = tokens;
            else
                suspect(view.live, source, RELIGHT_EP_PHASE_FORMAT, view.epoch,
                        route_header(0, args.format, s->topk), header);
        }
    }
    return __ballot_sync(0xffffffffu, arrived);
}

// All blocks of this launch use one set of sources: the first block's to say so. One thread.
__device__ uint32_t agree(const View& view, uint32_t arrived) {
    const uint64_t before = view.state->verdict;
    const uint64_t epoch = view.epoch & 0xffffffffu;
    if (before >> 32 == epoch) return static_cast<uint32_t>(before);
    const uint64_t mine = epoch << 32 | arrived;
    const uint64_t found =
        atomicCAS(reinterpret_cast<unsigned long long*>(&view.live->verdict), before, mine);
    return static_cast<uint32_t>(found == before ? mine : found);
}

// ---- Places: how many rows each source has for each local expert, and where they start ----

struct Shape {
    uint32_t pairs;   // local experts * slots
    uint32_t blocks;  // of the longest table
};

// Fetches all sources' counts; those of absent slots and blocks are 0. Every thread waits for its own
// words.
__device__ void fetch_counts(const View& view, uint32_t sources, const uint32_t* tokens_of,
                             const Shape& shape, Places* places) {
    const State* s = view.state;
    const uint32_t bits = view.block_bits(), slots = s->ranks_max;
    const uint32_t each = (s->local_experts_max + 1) / 2, total = shape.blocks * slots * each;
#pragma unroll 1
    for (uint32_t i = threadIdx.x - kSenders; i < total; i += kReceivers) {
        const uint32_t word = i % each, source = i / each % slots, block = i / each / slots;
        uint32_t pair = 0;
        if ((sources >> source & 1) && (block << bits) < tokens_of[source]) {
            const Word found =
                await_word(view.live, view.counts(view.state->rank, source, block) + word, source,
                           RELIGHT_EP_PHASE_ROUTE, view.epoch);
            if (found.wait != Wait::kReady) note_failed(&view.live->dispatch_failed, 1u << source);
            pair = found.data;
        }
        uint16_t* tally = places->tally + block * shape.pairs + 2 * word * slots + source;
        tally[0] = static_cast<uint16_t>(pair);
        if (2 * word + 1 < s->local_experts_max) tally[slots] = static_cast<uint16_t>(pair >> 16);
    }
    ptx::barrier(kReceiverBarrier, kReceivers);
}

// Turns counts into places: prefix over token blocks, then over sources within an expert.
__device__ void place_rows(const View& view, const RelightEpDispatchArgs& args, const Shape& shape,
                           Places* places) {
    const State* s = view.state;
    const uint32_t thread = threadIdx.x - kSenders;
#pragma unroll 1
    for (uint32_t pair = thread; pair < shape.pairs; pair += kReceivers) {
        uint32_t sum = 0;
#pragma unroll 1
        for (uint32_t b = 0; b < shape.blocks; b++) {
            uint16_t& entry = places->tally[b * shape.pairs + pair];
            const uint32_t count = entry;
            entry = static_cast<uint16_t>(sum);
            sum += count;
        }
        places->first[pair] = sum;
    }
    ptx::barrier(kReceiverBarrier, kReceivers);
    const bool writer = blockIdx.x == 0;
#pragma unroll 1
    for (uint32_t local = thread; local < s->local_experts_max; local += kReceivers) {
        uint32_t sum = 0;
#pragma unroll 1
        for (uint32_t source = 0; source < s->ranks_max; source++) {
            uint32_t& entry = places->first[local * s->ranks_max + source];
            const uint32_t count = entry;
            if (writer)
                reinterpret_cast<uint64_t*>(args.out_range)[local * s->ranks_max + source] =
                    uint64_t(sum) << 32 | count;
            entry = sum;
            sum += count;
        }
        if (writer) reinterpret_cast<uint32_t*>(args.out_count)[local] = sum;
    }
    ptx::barrier(kReceiverBarrier, kReceivers);
}

// Two words of choices. One that never comes counts as no choice.
__device__ __noinline__ uint2 await_pair(const View& view, const uint64_t* at, uint32_t source) {
    const Word low = await_word(view.live, at, source, RELIGHT_EP_PHASE_ROUTE, view.epoch);
    const Word high = await_word(view.live, at + 1, source, RELIGHT_EP_PHASE_ROUTE, view.epoch);
    return {low.wait == Wait::kReady ? low.data : ~0u, high.wait == Wait::kReady ? high.data : ~0u};
}

// A lane's choice of one token of a source.
struct Choice {
    uint32_t local;   // this rank's expert, 0xffff for none
    uint32_t before;  // how often the source chose it before, in the same block of its table
};

// Adds to `before` what the first `count` choices of a block hold of each lane's choice; a block is
// padded to four. A whole warp.
__device__ void count_before(const View& view, const uint64_t* words, uint32_t count,
                             uint32_t source, Choice& choice) {
    constexpr uint32_t kBatch = 4;  // 512 choices at once
    const uint32_t lane = threadIdx.x & 31;
    const uint32_t valid = __ballot_sync(0xffffffffu, choice.local != 0xffffu);
#pragma unroll 1
    for (uint32_t base = lane * 4; base - lane * 4 < count; base += kBatch * 128) {
        ulonglong2 pairs[kBatch];
        uint2 data[kBatch];
#pragma unroll
        for (uint32_t j = 0; j < kBatch; j++)
            if (base + j * 128 < count) pairs[j] = ptx::load_words(words + (base + j * 128) / 2);
#pragma unroll
        for (uint32_t j = 0; j < kBatch; j++) {
            const uint32_t i = base + j * 128;
            data[j] = uint2{~0u, ~0u};
            if (i >= count) continue;
            data[j] = uint2{static_cast<uint32_t>(pairs[j].x), static_cast<uint32_t>(pairs[j].y)};
            if (!proves(pairs[j].x, view.epoch) || !proves(pairs[j].y, view.epoch))
                data[j] = await_pair(view, words + i / 2, source);
            if (i + 1 >= count) data[j].x |= 0xffff0000u;
            if (i + 2 >= count) data[j].y = ~0u;
            if (i + 3 == count) data[j].y |= 0xffff0000u;
        }
#pragma unroll 1
        for (uint32_t left = valid; left != 0; left &= left - 1) {
            const uint32_t from = __ffs(left) - 1;
            const uint32_t local = __shfl_sync(0xffffffffu, choice.local, from);
            const uint32_t wanted = local | local << 16;
            uint32_t bits = 0;
#pragma unroll
            for (uint32_t j = 0; j < kBatch; j++)
                bits += __popc(__vcmpeq2(data[j].x, wanted)) + __popc(__vcmpeq2(data[j].y, wanted));
            bits = __reduce_add_sync(0xffffffffu, bits);
            if (lane == from) choice.before += bits / 16;
        }
    }
}

// What a source chose of this rank's experts for one token. Needs its table, not the counts. A whole
// warp.
__device__ __noinline__ Choice choice_of(const View& view, uint32_t source, uint32_t token) {
    const State* s = view.state;
    const uint32_t lane = threadIdx.x & 31, bits = view.block_bits(), block = token >> bits;
    const uint32_t start = (token - (block << bits)) * s->topk;
    const uint64_t* words = view.choices(s->rank, source, block);
    Choice choice{0xffffu, 0};
    if (lane < s->topk) {
        const uint32_t at = start + lane;
        const Word pair =
            await_word(view.live, words + at / 2, source, RELIGHT_EP_PHASE_ROUTE, view.epoch);
        if (pair.wait == Wait::kReady) choice.local = pair.data >> (at % 2 * 16) & 0xffffu;
    }
    if (choice.local >= s->local_experts_max) choice.local = 0xffffu;
    const uint32_t same = __match_any_sync(0xffffffffu, choice.local);
    choice.before = __popc(same & ((1u << lane) - 1));
    count_before(view, words, start, source, choice);
    return choice;
}

struct Target {
    uint32_t local;  // of this lane's choice, 0xffff for none
    uint32_t place;  // row within that expert's output
};

__device__ Target target_of(const View& view, const RelightEpDispatchArgs& args, uint32_t source,
                            uint32_t token, const Choice& choice, const Shape& shape,
                            const Places* places) {
    Target target{choice.local, 0};
    if (choice.local != 0xffffu) {
        const uint32_t pair = choice.local * view.state->ranks_max + source;
        target.place = places->first[pair] +
                       places->tally[(token >> view.block_bits()) * shape.pairs + pair] +
                       choice.before;
    }
    // More rows than the output holds: only with one expert chosen twice by many tokens.
    if (target.place >= args.slots) target.local = 0xffffu;
    return target;
}

// The scales of a row to [local expert][word][slot], the layout a grouped GEMM loads. Lanes 4 to 19
// hold 4 words each.
__device__ void pack_scales(const View& view, const RelightEpDispatchArgs& args, uint4 part,
                            const Target& target, uint32_t valid) {
    const uint32_t first = ((threadIdx.x & 31) - 4) * 4, groups = groups_of(view.state->hidden);
    const bool bytes = args.format == RELIGHT_EP_FP8_UE8M0;
    const uint32_t words = bytes ? (groups + 3) / 4 : groups;
    const uint32_t values[4] = {part.x, part.y, part.z, part.w};
#pragma unroll 1
    for (uint32_t left = valid; left != 0; left &= left - 1) {
        const uint32_t local = __shfl_sync(0xffffffffu, target.local, __ffs(left) - 1);
        const uint32_t place = __shfl_sync(0xffffffffu, target.place, __ffs(left) - 1);
        uint32_t* to = reinterpret_cast<uint32_t*>(args.out_scales) +
                       uint64_t(local) * words * args.slots + place;
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            const uint32_t word = first + j;
            if (word >= words) continue;
            const bool part_filled = bytes && word == words - 1 && groups % 4 != 0;
            const uint32_t mask = part_filled ? (1u << groups % 4 * 8) - 1 : ~0u;
            to[uint64_t(word) * args.slots] = values[j] & mask;
        }
    }
}

// Writes one row's payload and scales to each of its experts and returns this lane's part of the sum
// of all its words. `row` is null for a row that never came: zeros.
template <bool kFp8>
__device__ uint32_t pack_row(const View& view, const RelightEpDispatchArgs& args, const char* row,
                             uint32_t header, const Target& target, uint32_t valid) {
    constexpr uint32_t kBatch = 14;  // 14 * 32 * 16 bytes in flight: a row of e4m3 at 7168
    const State* s = view.state;
    const uint32_t lane = threadIdx.x & 31;
    const uint32_t chunks = payload_bytes(s->hidden, args.format) / 16;
    const char* payload = row + header;
    const uint64_t out_row = View::times(target.local * args.slots + target.place, chunks * 16);

    // What stands around the payload: lanes 0-3 the header, lanes 4-19 the scales.
    const uint32_t around = row_bytes(s->hidden, args.format) / 16 - chunks;
    const uint32_t head = header / 16;
    const uint32_t rest_at = lane < 4 ? lane : head + chunks + lane - 4;
    const bool has_rest = lane < 4 ? lane < head : lane - 4 < around;
    uint4 rest{0, 0, 0, 0};
    if (row != nullptr && has_rest) rest = ptx::load_afresh(row + 16 * rest_at);
    uint32_t sum = proof_of(rest, rest_at);
#pragma unroll 1
    for (uint32_t base = 0; base < chunks; base += kBatch * 32) {
        uint4 part[kBatch];
#pragma unroll
        for (uint32_t i = 0; i < kBatch; i++) {
            const uint32_t at = base + i * 32 + lane;
            part[i] = uint4{0, 0, 0, 0};
            if (row != nullptr && at < chunks) part[i] = ptx::load_afresh(payload + 16 * at);
        }
#pragma unroll
        for (uint32_t i = 0; i < kBatch; i++) sum += proof_of(part[i], head + base + i * 32 + lane);
        if (args.flags & RELIGHT_EP_ZERO_COPY) continue;
#pragma unroll 1
        for (uint32_t left = valid; left != 0; left &= left - 1) {
            char* to = reinterpret_cast<char*>(args.out_x) +
                       __shfl_sync(0xffffffffu, out_row, __ffs(left) - 1);
#pragma unroll
            for (uint32_t i = 0; i < kBatch; i++) {
                const uint32_t at = base + i * 32 + lane;
                if (at < chunks) ptx::store_once(to + 16 * at, part[i]);
            }
        }
    }
    if (kFp8 && (args.flags & RELIGHT_EP_ZERO_COPY) == 0)
        pack_scales(view, args, rest, target, valid);
    return sum;
}

template <bool kFp8>
__device__ void receive_row(const View& view, const RelightEpDispatchArgs& args, uint32_t source,
                            uint32_t token, const Choice& choice, const Shape& shape,
                            const Places* places) {
    const State* s = view.state;
    const uint32_t lane = threadIdx.x & 31, header = row_header_bytes(s->topk);
    const Target target = target_of(view, args, source, token, choice, shape, places);
    const uint32_t valid = __ballot_sync(0xffffffffu, target.local != 0xffffu);
    if (target.place >= args.slots) view.index(source)[token * s->topk + lane] = -1;
    if (valid == 0) return;
    if (valid >> lane & 1) {
        view.index(source)[token * s->topk + lane] = static_cast<int32_t>(target.place);
        reinterpret_cast<int32_t*>(args.out_source)[uint64_t(target.local) * args.slots +
                                                    target.place] =
            static_cast<int32_t>(source * s->tokens_max + token);
    }
    // The page of the row is looked up while its cell is read.
    if (lane == 31) ptx::prefetch(view.row(s->rank, source, token));
    Word cell{0, Wait::kReady};
    if (lane == 0)
        cell = await_word(view.live, view.row_cell(s->rank, source, token), source,
                          RELIGHT_EP_PHASE_ROW, view.epoch);
    const uint32_t wanted = __shfl_sync(0xffffffffu, cell.data, 0);
    auto wait = static_cast<Wait>(__shfl_sync(0xffffffffu, static_cast<uint32_t>(cell.wait), 0));
    Patience patience{0, 0};
    for (uint32_t tries = 1;; tries++) {
        const bool lost = wait != Wait::kReady;
        if (lost && lane == 0) note_failed(&view.live->dispatch_failed, 1u << source);
        const char* row = lost ? nullptr : view.row(s->rank, source, token);
        const uint32_t sum = __reduce_add_sync(
            0xffffffffu, pack_row<kFp8>(view, args, row, header, target, valid));
        if (lost || sum == wanted) return;
        wait = again(view.live, &patience, tries, source, RELIGHT_EP_PHASE_ROW, view.epoch, wanted,
                     sum);
    }
}

// Which rows a receiving warp takes: tokens in order and sources in turn, spread over all blocks first.
struct Turns {
    uint32_t sources, most, count, unit, my_source;

    Turns() = default;
    // `most` is the longest table's; lane i knows the source of turn i.
    __device__ Turns(uint32_t agreed, const uint32_t* tokens_of)
        : sources(agreed), most(0), count(__popc(agreed)),
          unit((threadIdx.x - kSenders) / 32 * gridDim.x + blockIdx.x),
          my_source(nth_member(agreed, threadIdx.x & 31)) {
        const uint32_t lane = threadIdx.x & 31;
        most = __reduce_max_sync(0xffffffffu, agreed >> lane & 1 ? tokens_of[lane] : 0);
    }
    __device__ bool over() const { return unit >= most * count; }
    __device__ void next() { unit += gridDim.x * kReceiverWarps; }
    __device__ uint32_t token() const { return unit / count; }
    __device__ uint32_t source() const {
        return __shfl_sync(0xffffffffu, my_source, unit % count);
    }
    // None when the turns are over, or when this source has sent fewer tokens.
    __device__ Choice choice(const View& view, const uint32_t* tokens_of) const {
        if (over() || token() >= tokens_of[source()]) return {0xffffu, 0};
        return choice_of(view, source(), token());
    }
};

template <bool kFp8>
__device__ void receive(const View& view, const RelightEpDispatchArgs& args, uint32_t members,
                        Places* places) {
    __shared__ uint32_t tokens_of[kRanksMax];
    __shared__ uint32_t shared_sources;
    const uint32_t warp = (threadIdx.x - kSenders) / 32, lane = threadIdx.x & 31;

    // Phase 1: headers of routing tables. Ends with the receivers' barrier.
    if (warp == 0) {
        const uint32_t arrived = await_routes(view, args, members, tokens_of);
        if (lane == 0) shared_sources = arrived;
    }
    ptx::barrier(kReceiverBarrier, kReceivers);

    // Phase 2: places, and meanwhile what the warp's first row was chosen for. The other blocks'
    // agreement is asked for now and read after the counting, which hides its latency; it differs only
    // when a peer fails in this very moment.
    Turns turns;
    Shape shape{};
    Choice choice{};
    for (bool agreed = false; !agreed;) {
        turns = Turns(shared_sources, tokens_of);
        const uint32_t bits = view.block_bits();
        shape = {view.state->local_experts_max * view.state->ranks_max,
                 (turns.most + (1u << bits) - 1) >> bits};
        uint32_t verdict = 0;
        if (warp == 0 && lane == 0) verdict = agree(view, turns.sources);
        choice = turns.choice(view, tokens_of);
        fetch_counts(view, turns.sources, tokens_of, shape, places);
        if (warp == 0) {
            verdict = __shfl_sync(0xffffffffu, verdict, 0);
            // A source that another block has seen and we have not: its table is there by now.
            if (verdict & ~turns.sources) await_routes(view, args, verdict, tokens_of);
            if (lane == 0) shared_sources = verdict;
        }
        ptx::barrier(kReceiverBarrier, kReceivers);
        agreed = shared_sources == turns.sources;
    }
    place_rows(view, args, shape, places);
    if (blockIdx.x == 0 && warp == 0) {
        view.received()[2 + lane] = turns.sources >> lane & 1 ? tokens_of[lane] : 0;
        if (lane == 0) {
            view.received()[0] = turns.sources;
            note_failed(&view.live->dispatch_failed, members & ~turns.sources);
        }
    }

    // Phase 3: rows.
    while (!turns.over()) {
        receive_row<kFp8>(view, args, turns.source(), turns.token(), choice, shape, places);
        turns.next();
        choice = turns.choice(view, tokens_of);
    }
}

// One thread of the last block.
__device__ void finish(State* live, const State& copy, uint32_t members, uint32_t tokens,
                       const View* sent, const View* received) {
    if (sent != nullptr) {
        sent->received()[1] = tokens;
        live->dispatch_sent = sent->epoch;
    }
    if (received != nullptr) {
        const uint32_t failed = take_failed(&live->dispatch_failed);
        live->dispatch_received = received->epoch;
        RelightEpHostRecord* record = host_record(&copy);
        publish(&live->dispatch, record == nullptr ? nullptr : &record->dispatch, received->epoch,
                members, failed);
    }
    trace_end(live);
}

template <bool kFp8>
__device__ void run(const RelightEpDispatchArgs& args) {
    extern __shared__ __align__(128) char shared[];
    __shared__ State copy;
    __shared__ uint32_t open;
    State* live = reinterpret_cast<State*>(args.state);
    trace_begin(live);
    take_snapshot(&copy, live);
    const bool sends = args.flags & RELIGHT_EP_SEND, receives = args.flags & RELIGHT_EP_RECEIVE;
    const View sending(&copy, live, copy.dispatch_sent + 1);
    const View receiving(&copy, live, copy.dispatch_received + 1);
    const uint32_t members = participants(receives ? receiving : sending);
    const uint32_t tokens = min(token_count(args), copy.tokens_max);

    if (threadIdx.x < kSenders) {
        if (sends) send_rows<kFp8>(sending, args, members, tokens, shared);
    } else {
        auto* places = reinterpret_cast<Places*>(shared + kStagesBytes);
        if (sends) push_routes(sending, args, members, tokens, places->first, &open);
        if (receives) receive<kFp8>(receiving, args, members, places);
    }

    if (leave_last(live))
        finish(live, copy, members, tokens, sends ? &sending : nullptr,
               receives ? &receiving : nullptr);
}

}  // namespace
}  // namespace relight::ep::dispatch

extern "C" __global__ void __launch_bounds__(RELIGHT_EP_THREADS, 1)
    relight_ep_dispatch_bf16(const __grid_constant__ RelightEpDispatchArgs args) {
    relight::ep::dispatch::run<false>(args);
}

extern "C" __global__ void __launch_bounds__(RELIGHT_EP_THREADS, 1)
    relight_ep_dispatch_fp8(const __grid_constant__ RelightEpDispatchArgs args) {
    relight::ep::dispatch::run<true>(args);
}
