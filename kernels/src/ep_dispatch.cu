// SPDX-License-Identifier: Apache-2.0
// Dispatch: each token goes once to each rank that owns one of its experts, straight to
// window(rank).row[me][token]. The routing tables travel first, so that a receiver knows every row's
// place before the row arrives. One flag a row: packing overlaps with the wire.
// Warps 0-7 of a block send, warps 8-15 push routes and receive; they meet only at the end.

#include <relight/device/member.cuh>
#include <relight/device/quantise.cuh>

namespace relight::ep::dispatch {
namespace {

constexpr uint32_t kStages = 4;      // rows in shared memory, being filled or being read by the engine
constexpr uint32_t kReceivers = 256;
constexpr uint32_t kReceiverWarps = kReceivers / 32;
constexpr uint32_t kSenderBarrier = 1, kReceiverBarrier = 2;
constexpr uint32_t kTallyMax = 8192;   // u32 entries of shared memory for counting
constexpr uint32_t kPlacesMax = 4096;  // (local expert, source) pairs

struct Places {
    uint32_t tally[kTallyMax];  // [token block][local expert][source], then its exclusive prefix
    uint32_t first[kPlacesMax]; // [local expert][source]: first row of that source
};
static_assert(kStages * 16384 + sizeof(Places) <= RELIGHT_EP_DISPATCH_SHARED, "fits the launch");

__device__ uint32_t token_count(const RelightEpDispatchArgs& args) {
    return args.token_count_at == 0 ? args.token_count
                                    : *reinterpret_cast<const uint32_t*>(args.token_count_at);
}

__device__ uint32_t owner_of(const View& view, const RelightEpDispatchArgs& args, uint64_t choice) {
    const State* s = view.state;
    const int64_t expert = args.flags & RELIGHT_EP_INDEX_64
                               ? reinterpret_cast<const int64_t*>(args.topk_index)[choice]
                               : reinterpret_cast<const int32_t*>(args.topk_index)[choice];
    if (expert < 0 || expert >= s->experts_max) return RELIGHT_EP_NO_OWNER;
    const bool later = s->owner[1] != 0 && view.epoch >= s->owner_at;
    return reinterpret_cast<const uint32_t*>(s->owner[later ? 1 : 0])[expert];
}

// May I write to `slot`? Only when it has consumed what I put there `parities` epochs ago.
__device__ bool gate(const View& view, uint32_t slot) {
    const State* s = view.state;
    if (slot == s->rank || view.epoch < s->parities) return true;
    const uint64_t older = view.epoch - s->parities;
    if (older == 0 || older < s->on_at[slot] || older < s->on_at[s->rank]) return true;
    const uint64_t* cell = &view.line(s->rank, slot)->consumed[older % s->parities];
    const uint64_t wanted = tag(older, s->incarnation[slot]);
    const Wait wait = await<true>(view.live, cell, wanted, slot, RELIGHT_EP_PHASE_GATE, view.epoch);
    if (wait != Wait::kReady) atomicOr(&view.live->dispatch_failed, 1u << slot);
    return wait == Wait::kReady;
}

// ---- Sending rows: warps 0-7 ----

// Ranks of a token's experts. Warp 0.
__device__ uint32_t destinations(const View& view, const RelightEpDispatchArgs& args,
                                 uint32_t token) {
    const uint32_t lane = threadIdx.x & 31, topk = view.state->topk;
    uint32_t bit = 0;
    if (lane < topk) {
        const uint32_t owner = owner_of(view, args, uint64_t(token) * topk + lane);
        if (owner != RELIGHT_EP_NO_OWNER && (owner >> 16) < kRanksMax) bit = 1u << (owner >> 16);
    }
    return __reduce_or_sync(0xffffffffu, bit);
}

template <bool kFp8>
__device__ void send_rows(const View& view, const RelightEpDispatchArgs& args, uint32_t members,
                          uint32_t tokens, char* stages) {
    const State* s = view.state;
    const uint32_t thread = threadIdx.x, lane = thread & 31;
    const bool issuer = thread < 32;
    const uint32_t bytes = row_bytes(s->hidden, args.format);
    const uint32_t stage_stride = static_cast<uint32_t>(align(bytes, 128));
    uint32_t reachable = 0, history = 0, step = 0;

    // Lane r of warp 0 owns the traffic to rank r. Flags trail by two rows: bulk_wait<2> proves that
    // the row before the last two has landed, and frees the stage that the next row will fill.
    const auto flag = [&](uint32_t back, uint32_t token) {
        if (history >> back & 1)
            ptx::store_release_system(view.row_cell(lane, s->rank, token), view.tag_of(s->rank));
    };
    uint32_t token = blockIdx.x;
    for (; token < tokens; token += gridDim.x, step++) {
        char* stage = stages + (step % kStages) * stage_stride;
        const char* x = reinterpret_cast<const char*>(args.x) + 2ull * token * s->hidden;
        const Chunks row = load_row(x, s->hidden, thread);
        uint32_t to = 0;
        if (issuer) {
            if (step == 0)
                reachable = __ballot_sync(0xffffffffu, (members >> lane & 1) && gate(view, lane));
            to = destinations(view, args, token) & reachable;
        }
        if constexpr (kFp8)
            quantise_row(row, stage, s->hidden, args.format, thread);
        else
            copy_row(row, stage, s->hidden, thread);
        ptx::fence_shared_to_async();
        ptx::barrier(kSenderBarrier, kSenders);
        if (!issuer) continue;
        if (lane == 0) view.sent()[token] = to;
        if (to >> lane & 1) ptx::bulk_store(view.row(lane, s->rank, token), stage, bytes);
        ptx::bulk_commit();
        history = history << 1 | (to >> lane & 1);
        ptx::bulk_wait<2>();
        if (step >= 2) flag(2, token - 2 * gridDim.x);
    }
    if (!issuer) return;
    ptx::bulk_wait<1>();
    if (step >= 2) flag(1, token - 2 * gridDim.x);
    ptx::bulk_wait<0>();
    if (step >= 1) flag(0, token - gridDim.x);
}

// ---- Routing tables: warps 8-15 ----

// One block pushes my table to one rank: a header, my choices as the holder's local experts (or -1),
// and the weights. Padded with -1 to whole 16-byte chunks.
__device__ void push_route(const View& view, const RelightEpDispatchArgs& args, uint32_t to,
                           uint32_t tokens) {
    const State* s = view.state;
    const uint32_t thread = threadIdx.x - kSenders;
    const uint32_t choices = tokens * s->topk;
    int16_t* table = view.choices(to, s->rank);
    for (uint32_t i = thread * 8; i < choices; i += kReceivers * 8) {
        uint32_t packed[4];
#pragma unroll
        for (uint32_t j = 0; j < 8; j++) {
            uint32_t local = 0xffffu;
            if (i + j < choices) {
                const uint32_t owner = owner_of(view, args, i + j);
                const bool here = owner != RELIGHT_EP_NO_OWNER && (owner >> 16) == to &&
                                  (owner & 0xffffu) < s->local_experts_max;
                if (here) local = owner & 0xffffu;
            }
            packed[j / 2] = j % 2 == 0 ? local : packed[j / 2] | local << 16;
        }
        ptx::store_once(table + i, uint4{packed[0], packed[1], packed[2], packed[3]});
    }
    if (args.topk_weights != 0) {
        const auto* from = reinterpret_cast<const float*>(args.topk_weights);
        float* weights = view.weights(to, s->rank);
        for (uint32_t i = thread; i < choices; i += kReceivers) weights[i] = from[i];
    }
    if (thread == 0)
        *view.route(to, s->rank) =
            RouteHeader{tokens, args.format, s->topk, args.topk_weights != 0 ? 1u : 0u};
    ptx::barrier(kReceiverBarrier, kReceivers);
    if (thread == 0)
        ptx::store_release_system(&view.line(to, s->rank)->route[view.parity],
                                  view.tag_of(s->rank));
}

__device__ void push_routes(const View& view, const RelightEpDispatchArgs& args, uint32_t members,
                            uint32_t tokens, uint32_t* open) {
    // The last blocks do it: with few tokens they have no row to send.
    for (uint32_t to = gridDim.x - 1 - blockIdx.x; to < view.state->ranks_max; to += gridDim.x) {
        if ((members >> to & 1) == 0) continue;
        if (threadIdx.x == kSenders) *open = gate(view, to) ? 1 : 0;
        ptx::barrier(kReceiverBarrier, kReceivers);
        if (*open != 0) push_route(view, args, to, tokens);
        ptx::barrier(kReceiverBarrier, kReceivers);
    }
}

// Waits for every member's table. One warp, lane = source.
__device__ uint32_t await_routes(const View& view, const RelightEpDispatchArgs& args,
                                 uint32_t members, uint32_t* tokens_of) {
    const State* s = view.state;
    const uint32_t source = threadIdx.x & 31;
    bool arrived = false;
    tokens_of[source] = 0;
    if (members >> source & 1) {
        const Wait wait =
            await(view.live, &view.line(s->rank, source)->route[view.parity],
                  view.tag_of(source), source, RELIGHT_EP_PHASE_ROUTE, view.epoch);
        if (wait == Wait::kReady) {
            const RouteHeader header = *view.route(s->rank, source);
            arrived = header.format == args.format && header.topk == s->topk &&
                      header.tokens <= s->tokens_max;
            if (arrived)
                tokens_of[source] = header.tokens;
            else
                suspect(view.live, source, RELIGHT_EP_PHASE_FORMAT, view.epoch, args.format,
                        header.format);
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
    uint32_t block_tokens;  // tokens a tally entry covers, multiple of 8
    uint32_t pairs;         // local experts * slots
};

__device__ Shape shape_of(const View& view, uint32_t tokens_most) {
    const uint32_t pairs = view.state->local_experts_max * view.state->ranks_max;
    uint32_t tokens = 64;
    while ((tokens_most + tokens - 1) / tokens * pairs > kTallyMax) tokens *= 2;
    return {tokens, pairs};
}

__device__ void count_choices(const View& view, uint32_t sources, const uint32_t* tokens_of,
                              const Shape& shape, uint32_t blocks, Places* places) {
    const State* s = view.state;
    const uint32_t thread = threadIdx.x - kSenders;
    for (uint32_t i = thread; i < blocks * shape.pairs; i += kReceivers) places->tally[i] = 0;
    ptx::barrier(kReceiverBarrier, kReceivers);
    const uint32_t block_choices = shape.block_tokens * s->topk;
    for (uint32_t left = sources; left != 0; left &= left - 1) {
        const uint32_t source = __ffs(left) - 1;
        const uint32_t choices = tokens_of[source] * s->topk;
        const int16_t* table = view.choices(s->rank, source);
        for (uint32_t i = thread * 8; i < choices; i += kReceivers * 8) {
            const uint4 raw = *reinterpret_cast<const uint4*>(table + i);
            const uint32_t packed[4] = {raw.x, raw.y, raw.z, raw.w};
            uint32_t* tally = places->tally + (i / block_choices) * shape.pairs + source;
#pragma unroll
            for (uint32_t j = 0; j < 8; j++) {
                const uint32_t local = packed[j / 2] >> (j % 2 * 16) & 0xffffu;
                if (local < s->local_experts_max) atomicAdd(tally + local * s->ranks_max, 1u);
            }
        }
    }
    ptx::barrier(kReceiverBarrier, kReceivers);
}

// Turns counts into places: prefix over token blocks, then over sources within an expert.
__device__ void place_rows(const View& view, const RelightEpDispatchArgs& args, const Shape& shape,
                           uint32_t blocks, Places* places) {
    const State* s = view.state;
    const uint32_t thread = threadIdx.x - kSenders;
    for (uint32_t pair = thread; pair < shape.pairs; pair += kReceivers) {
        uint32_t sum = 0;
        for (uint32_t b = 0; b < blocks; b++) {
            uint32_t& entry = places->tally[b * shape.pairs + pair];
            const uint32_t count = entry;
            entry = sum;
            sum += count;
        }
        places->first[pair] = sum;
    }
    ptx::barrier(kReceiverBarrier, kReceivers);
    const bool writer = blockIdx.x == 0;
    for (uint32_t local = thread; local < s->local_experts_max; local += kReceivers) {
        uint32_t sum = 0;
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

// How often `local` occurs in table[from, to). `from` is a multiple of 8. A whole warp.
__device__ uint32_t occurrences(const int16_t* table, uint32_t from, uint32_t to, uint32_t local) {
    const uint32_t wanted = local | local << 16;
    uint32_t bits = 0;
    for (uint32_t i = from + (threadIdx.x & 31) * 8; i < to; i += 256) {
        const uint4 raw = *reinterpret_cast<const uint4*>(table + i);
        const uint32_t packed[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            uint32_t equal = __vcmpeq2(packed[j], wanted);
            if (i + 2 * j >= to) equal = 0;
            if (i + 2 * j + 1 == to) equal &= 0xffffu;
            bits += __popc(equal);
        }
    }
    return __reduce_add_sync(0xffffffffu, bits) / 16;
}

// ---- Receiving rows ----

struct Target {
    uint32_t local;  // of this lane's choice, 0xffff for none
    uint32_t place;  // row within that expert's output
};

__device__ Target target_of(const View& view, uint32_t source, uint32_t token, const Shape& shape,
                            const Places* places) {
    const State* s = view.state;
    const uint32_t lane = threadIdx.x & 31;
    const int16_t* table = view.choices(s->rank, source);
    const uint32_t start = token * s->topk;
    uint32_t local = 0xffffu;
    if (lane < s->topk) local = static_cast<uint16_t>(table[start + lane]);
    if (local >= s->local_experts_max) local = 0xffffu;
    Target target{local, 0};
    const uint32_t block = token / shape.block_tokens;
    for (uint32_t left = __ballot_sync(0xffffffffu, local != 0xffffu); left != 0; left &= left - 1) {
        const uint32_t choice = __ffs(left) - 1;
        const uint32_t wanted = __shfl_sync(0xffffffffu, local, choice);
        const uint32_t same = __ballot_sync(0xffffffffu, local == wanted);
        const uint32_t before =
            occurrences(table, block * shape.block_tokens * s->topk, start, wanted) +
            __popc(same & ((1u << choice) - 1));
        const uint32_t pair = wanted * s->ranks_max + source;
        if (lane == choice)
            target.place = places->first[pair] + places->tally[block * shape.pairs + pair] + before;
    }
    return target;
}

// Writes one row to each of its experts. `row` is null for a row that never came: zeros.
template <bool kFp8>
__device__ void pack_row(const View& view, const RelightEpDispatchArgs& args, const char* row,
                         const Target& target, uint32_t valid) {
    constexpr uint32_t kBatch = 7;  // 7 * 32 * 16 bytes in flight: half a row of e4m3 at 7168
    const State* s = view.state;
    const uint32_t lane = threadIdx.x & 31;
    const uint32_t bytes = payload_bytes(s->hidden, args.format);
    const uint64_t out_row = (uint64_t(target.local) * args.slots + target.place) * bytes;
    for (uint32_t base = 0; base < bytes / 16; base += kBatch * 32) {
        uint4 part[kBatch];
#pragma unroll
        for (uint32_t i = 0; i < kBatch; i++) {
            const uint32_t at = base + i * 32 + lane;
            part[i] = uint4{0, 0, 0, 0};
            if (row != nullptr && at < bytes / 16) part[i] = ptx::load_once(row + 16 * at);
        }
        for (uint32_t left = valid; left != 0; left &= left - 1) {
            char* to = reinterpret_cast<char*>(args.out_x) +
                       __shfl_sync(0xffffffffu, out_row, __ffs(left) - 1);
#pragma unroll
            for (uint32_t i = 0; i < kBatch; i++) {
                const uint32_t at = base + i * 32 + lane;
                if (at < bytes / 16) ptx::store_once(to + 16 * at, part[i]);
            }
        }
    }
    if constexpr (!kFp8) return;
    // Scales go to [local expert][word][slot]: the layout a grouped GEMM loads.
    const uint32_t groups = groups_of(s->hidden);
    const uint32_t words = args.format == RELIGHT_EP_FP8_UE8M0 ? (groups + 3) / 4 : groups;
    const auto* scales = reinterpret_cast<const uint32_t*>(row + scale_at(s->hidden));
    for (uint32_t word = lane; word < align(words, 32); word += 32) {
        uint32_t value = row != nullptr && word < words ? scales[word] : 0;
        if (args.format == RELIGHT_EP_FP8_UE8M0 && word == words - 1 && groups % 4 != 0)
            value &= (1u << groups % 4 * 8) - 1;
        for (uint32_t left = valid; left != 0; left &= left - 1) {
            const uint32_t local = __shfl_sync(0xffffffffu, target.local, __ffs(left) - 1);
            const uint32_t place = __shfl_sync(0xffffffffu, target.place, __ffs(left) - 1);
            if (word < words)
                reinterpret_cast<uint32_t*>(
                    args.out_scales)[(uint64_t(local) * words + word) * args.slots + place] = value;
        }
    }
}

template <bool kFp8>
__device__ void receive_row(const View& view, const RelightEpDispatchArgs& args, uint32_t source,
                            uint32_t token, const Shape& shape, const Places* places) {
    const State* s = view.state;
    const uint32_t lane = threadIdx.x & 31;
    const Target target = target_of(view, source, token, shape, places);
    const uint32_t valid = __ballot_sync(0xffffffffu, target.local != 0xffffu);
    if (valid == 0) return;
    if (valid >> lane & 1) {
        view.index(source)[token * s->topk + lane] = static_cast<int32_t>(target.place);
        reinterpret_cast<int32_t*>(args.out_source)[uint64_t(target.local) * args.slots +
                                                    target.place] =
            static_cast<int32_t>(source * s->tokens_max + token);
    }
    Wait wait = Wait::kReady;
    if (lane == 0)
        wait = await(view.live, view.row_cell(s->rank, source, token), view.tag_of(source), source,
                     RELIGHT_EP_PHASE_ROW, view.epoch);
    const bool lost = __shfl_sync(0xffffffffu, static_cast<uint32_t>(wait), 0) != 0;
    if (lost && lane == 0) atomicOr(&view.live->dispatch_failed, 1u << source);
    if (args.flags & RELIGHT_EP_ZERO_COPY) return;
    const char* row = lost ? nullptr : view.row(s->rank, source, token);
    pack_row<kFp8>(view, args, row, target, valid);
}

template <bool kFp8>
__device__ void receive(const View& view, const RelightEpDispatchArgs& args, uint32_t members,
                        Places* places) {
    __shared__ uint32_t tokens_of[kRanksMax];
    __shared__ uint32_t shared_sources;
    const uint32_t warp = (threadIdx.x - kSenders) / 32, lane = threadIdx.x & 31;

    // Phase 1: routing tables. Ends with the receivers' barrier.
    if (warp == 0) {
        const uint32_t arrived = await_routes(view, args, members, tokens_of);
        if (lane == 0) shared_sources = arrived;
    }
    ptx::barrier(kReceiverBarrier, kReceivers);

    // Phase 2: places. The other blocks' agreement is asked for now and read after the counting,
    // which hides its latency; it differs only when a peer fails in this very moment.
    uint32_t sources = shared_sources, most = 0, blocks = 0;
    Shape shape{};
    for (bool agreed = false; !agreed;) {
        most = 0;
        for (uint32_t left = sources; left != 0; left &= left - 1)
            most = max(most, tokens_of[__ffs(left) - 1]);
        shape = shape_of(view, most);
        blocks = (most + shape.block_tokens - 1) / shape.block_tokens;
        uint32_t verdict = 0;
        if (warp == 0 && lane == 0) verdict = agree(view, sources);
        count_choices(view, sources, tokens_of, shape, blocks, places);
        if (warp == 0) {
            verdict = __shfl_sync(0xffffffffu, verdict, 0);
            // A source that another block has seen and we have not: its table is there by now.
            if (verdict & ~sources) await_routes(view, args, verdict, tokens_of);
            if (lane == 0) shared_sources = verdict;
        }
        ptx::barrier(kReceiverBarrier, kReceivers);
        agreed = shared_sources == sources;
        sources = shared_sources;
    }
    place_rows(view, args, shape, blocks, places);
    if (blockIdx.x == 0 && warp == 0) {
        view.received()[2 + lane] = sources >> lane & 1 ? tokens_of[lane] : 0;
        if (lane == 0) {
            view.received()[0] = sources;
            atomicOr(&view.live->dispatch_failed, members & ~sources);
        }
    }

    // Phase 3: rows, tokens in order and sources in turn, spread over all blocks first.
    const uint32_t count = __popc(sources);
    const uint32_t my_source = __fns(sources, 0, lane + 1);  // lane i knows the source of turn i
    const uint32_t stride = gridDim.x * kReceiverWarps;
    for (uint32_t unit = warp * gridDim.x + blockIdx.x; unit < most * count; unit += stride) {
        const uint32_t source = __shfl_sync(0xffffffffu, my_source, unit % count);
        const uint32_t token = unit / count;
        if (token < tokens_of[source])
            receive_row<kFp8>(view, args, source, token, shape, places);
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
        const uint32_t failed = live->dispatch_failed;
        live->dispatch_failed = 0;
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
        if (sends) push_routes(sending, args, members, tokens, &open);
        if (receives)
            receive<kFp8>(receiving, args, members,
                          reinterpret_cast<Places*>(shared + kStages * 16384));
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
