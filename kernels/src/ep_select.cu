// SPDX-License-Identifier: Apache-2.0
// The baseline: one copy for each SELECTION, slots by atomics, one flag for each (expert, source),
// separate sending, waiting and packing, weights applied at home. It is the usual algorithm of
// low-latency expert-parallel kernels, kept for parity of numbers and to show what the other saves.
// It has no elasticity beyond the mask and the deadlines.

namespace relight::ep::select {
namespace {

constexpr uint32_t kHeaderBytes = 16;
constexpr uint32_t kBarrier = 3;

struct Header {
    uint32_t token, choice, unused[2];
};

__device__ uint64_t row_stride(const State* s) { return s->row_stride + 128; }

__device__ char* row(const View& view, uint32_t holder, uint32_t local, uint32_t source,
                     uint32_t slot) {
    const State* s = view.state;
    const uint64_t pair = uint64_t(local) * s->ranks_max + source;
    return view.window(holder) + s->select_at + (pair * s->tokens_max + slot) * row_stride(s);
}

// [global expert][token] at home; experts lie in order of ranks, which is all the baseline knows.
__device__ char* home_row(const View& view, uint32_t holder, uint32_t expert, uint32_t token) {
    const State* s = view.state;
    const uint64_t pairs = uint64_t(s->local_experts_max) * s->ranks_max;
    return view.window(holder) + s->select_at + pairs * s->tokens_max * row_stride(s) +
           (uint64_t(expert) * s->tokens_max + token) * s->combine_stride;
}

// [0]: cells of dispatch, [local][source]. [1]: cells of combine, [local][owner].
__device__ uint64_t* cell(const View& view, uint32_t holder, uint32_t which, uint32_t local,
                          uint32_t peer) {
    const State* s = view.state;
    const uint64_t pairs = uint64_t(s->local_experts_max) * s->ranks_max;
    char* rows = home_row(view, holder, static_cast<uint32_t>(pairs), 0);
    return reinterpret_cast<uint64_t*>(rows) + which * pairs + uint64_t(local) * s->ranks_max +
           peer;
}

__device__ uint32_t* counters(const View& view) {
    return reinterpret_cast<uint32_t*>(view.scratch() + view.state->select_count_at);
}

// True for the whole of the last block whose `group` threads arrive. `note` is shared memory.
__device__ bool arrive_last(State* live, uint32_t threads, uint32_t* note) {
    ptx::barrier(kBarrier, threads);
    if (threadIdx.x == 0) *note = ptx::add_acq_rel_gpu(&live->select_blocks, 1);
    ptx::barrier(kBarrier, threads);
    return *note == gridDim.x - 1;
}

template <bool kFp8>
__device__ void send(const View& view, const RelightEpDispatchArgs& args, uint32_t members,
                     uint32_t tokens, char* stages) {
    const State* s = view.state;
    const uint32_t thread = threadIdx.x;
    const uint32_t bytes = row_bytes(s->hidden, args.format);
    const uint32_t stage_stride = static_cast<uint32_t>(align(kHeaderBytes + bytes, 128));
    uint32_t step = 0;
    for (uint32_t token = blockIdx.x; token < tokens; token += gridDim.x, step++) {
        char* stage = stages + (step % 4) * stage_stride;
        const char* x = reinterpret_cast<const char*>(args.x) + 2ull * token * s->hidden;
        const Chunks chunks = load_row(x, s->hidden, thread);
        uint32_t owner = RELIGHT_EP_NO_OWNER, slot = 0;
        if (thread < s->topk) {
            owner = dispatch::owner_of(
                view, dispatch::expert_at(args, uint64_t(token) * s->topk + thread));
            if (owner != RELIGHT_EP_NO_OWNER && (members >> (owner >> 16) & 1) == 0)
                owner = RELIGHT_EP_NO_OWNER;
            if (owner != RELIGHT_EP_NO_OWNER)
                slot = atomicAdd(counters(view) + (owner >> 16) * s->local_experts_max +
                                     (owner & 0xffffu), 1u);
        }
        if constexpr (kFp8)
            quantise_row(chunks, stage + kHeaderBytes, s->hidden, args.format, thread);
        else
            copy_row(chunks, stage + kHeaderBytes, s->hidden, thread);
        if (thread == 0) *reinterpret_cast<Header*>(stage) = Header{token, 0, {0, 0}};
        ptx::fence_shared_to_async();
        ptx::barrier(dispatch::kSenderBarrier, kSenders);
        if (thread >= 32) continue;
        if (owner != RELIGHT_EP_NO_OWNER)
            ptx::bulk_store(row(view, owner >> 16, owner & 0xffffu, s->rank, slot), stage,
                            kHeaderBytes + bytes);
        ptx::bulk_commit();
        ptx::bulk_wait_read<2>();
    }
    if (thread < 32) ptx::bulk_wait<0>();
}

// One flag for each (rank, local expert), with the number of rows. Threads 0..255 of the last block.
__device__ void flag_counts(const View& view, uint32_t members) {
    const State* s = view.state;
    const uint32_t pairs = s->local_experts_max * s->ranks_max;
    for (uint32_t i = threadIdx.x; i < pairs; i += kSenders) {
        const uint32_t rank = i / s->local_experts_max, local = i % s->local_experts_max;
        const uint32_t count = counters(view)[i];
        counters(view)[i] = 0;
        if (members >> rank & 1)
            ptx::store_release_system(cell(view, rank, 0, local, s->rank),
                                      view.epoch << 24 | count);
    }
}

// Waits for a cell whose upper 40 bits are this epoch; the count, or 0 after a failure.
__device__ uint32_t await_count(const View& view, const uint64_t* at, uint32_t peer) {
    const uint64_t deadline = ptx::now_ns() + view.state->timeout_ns;
    for (uint32_t polls = 1;; polls++) {
        const uint64_t seen = ptx::load_relaxed_system(at);
        if (seen >> 24 == view.epoch) {
            ptx::load_acquire_system(at);
            return static_cast<uint32_t>(seen & 0xffffffu);
        }
        if (polls % 64 == 0 && ptx::now_ns() > deadline) {
            suspect(view.live, peer, RELIGHT_EP_PHASE_ROW, view.epoch, view.epoch << 24, seen);
            return 0;
        }
    }
}

// One pair after the other, rows of a pair over the block's warps.
template <bool kFp8>
__device__ void pack(const View& view, const RelightEpDispatchArgs& args, uint32_t members,
                     uint32_t* note) {
    const State* s = view.state;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    const uint32_t pairs = s->local_experts_max * s->ranks_max;
    for (uint32_t pair = blockIdx.x; pair < pairs; pair += gridDim.x) {
        const uint32_t local = pair / s->ranks_max, source = pair % s->ranks_max;
        __syncthreads();
        if (threadIdx.x == 0) {
            const uint32_t count = members >> source & 1
                                       ? await_count(view, cell(view, s->rank, 0, local, source),
                                                     source)
                                       : 0;
            note[0] = count;
            note[1] = atomicAdd(reinterpret_cast<uint32_t*>(args.out_count) + local, count);
            reinterpret_cast<uint64_t*>(args.out_range)[pair] = uint64_t(note[1]) << 32 | count;
        }
        __syncthreads();
        const uint32_t count = note[0], first = note[1];
        for (uint32_t i = warp; i < count; i += RELIGHT_EP_THREADS / 32) {
            const char* from = row(view, s->rank, local, source, i);
            const uint32_t token = reinterpret_cast<const Header*>(from)->token;
            const dispatch::Target target{local, first + i};
            if (lane == 0)
                reinterpret_cast<int32_t*>(args.out_source)[uint64_t(local) * args.slots + first +
                                                            i] =
                    static_cast<int32_t>(source * s->tokens_max + token);
            dispatch::pack_row<kFp8>(view, args, from, kHeaderBytes, target, 1u);
        }
    }
}

template <bool kFp8>
__device__ void run_dispatch(const RelightEpDispatchArgs& args) {
    extern __shared__ __align__(128) char shared[];
    __shared__ State copy;
    __shared__ uint32_t note[2];
    State* live = reinterpret_cast<State*>(args.state);
    trace_begin(live);
    take_snapshot(&copy, live);
    const View view(&copy, live, copy.dispatch_received + 1);
    const uint32_t members = participants(view);
    const uint32_t tokens = min(dispatch::token_count(args), copy.tokens_max);
    if (threadIdx.x < kSenders) {
        send<kFp8>(view, args, members, tokens, shared);
        if (arrive_last(live, kSenders, note)) {
            if (threadIdx.x == 0) live->select_blocks = 0;
            flag_counts(view, members);
        }
    }
    pack<kFp8>(view, args, members, note);
    if (leave_last(live)) dispatch::finish(live, copy, members, tokens, &view, &view);
}

// ---- Combine: raw rows home, one flag for each (owner, local expert), weights applied at home ----

__device__ void send_home(const View& view, const RelightEpSelectArgs& args, char* stages) {
    const State* s = view.state;
    const uint32_t lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    constexpr uint32_t kWarps = combine::kReducerWarps;
    char* own = stages + warp * combine::kStages * combine::kQuarterBytesMax;
    uint32_t sent = 0;
    const auto* counts = reinterpret_cast<const uint32_t*>(args.count);
    for (uint32_t local = 0; local < s->local_experts_max; local++) {
        const uint32_t count = counts[local];
        for (uint32_t place = (warp * gridDim.x + blockIdx.x + local * 37) %
                              (gridDim.x * kWarps);
             place < count; place += gridDim.x * kWarps) {
            const uint64_t at = uint64_t(local) * args.slots + place;
            const uint32_t from = reinterpret_cast<const uint32_t*>(args.source)[at];
            const uint32_t source = from / s->tokens_max, token = from % s->tokens_max;
            const uint32_t global = s->rank * s->local_experts_max + local;
            const combine::Choice choice{args.y + at * 2 * s->hidden, 1.0f, true};
            for (uint32_t q = 0; q < kQuarters; q++) {
                const combine::Span span = combine::quarter_of(s->hidden, q);
                char* stage = own + (sent++ % combine::kStages) * combine::kQuarterBytesMax;
                uint32_t sums[2];
                combine::reduce_quarter(choice, 1u, span, stage, sums);
                ptx::fence_shared_to_async();
                __syncwarp();
                if (lane != 0) continue;
                ptx::bulk_store(home_row(view, source, global, token) + 16 * span.first,
                                stage, 16 * (span.end - span.first));
                ptx::bulk_commit();
                ptx::bulk_wait_read<2>();
            }
        }
    }
    if (lane == 0) ptx::bulk_wait<0>();
}

__device__ void add_choices(const View& view, const RelightEpSelectArgs& args, uint32_t members) {
    const State* s = view.state;
    const uint32_t pairs = s->local_experts_max * s->ranks_max;
    for (uint32_t pair = threadIdx.x; pair < pairs; pair += RELIGHT_EP_THREADS) {
        const uint32_t owner = pair % s->ranks_max;
        if (members >> owner & 1)
            await_count(view, cell(view, s->rank, 1, pair / s->ranks_max, owner), owner);
    }
    __syncthreads();
    const uint32_t tokens = view.received()[1];
    for (uint32_t token = blockIdx.x; token < tokens; token += gridDim.x) {
        const auto* choices =
            reinterpret_cast<const int32_t*>(args.topk_index) + uint64_t(token) * s->topk;
        const auto* weights =
            reinterpret_cast<const float*>(args.topk_weights) + uint64_t(token) * s->topk;
        char* out = reinterpret_cast<char*>(args.out) + 2ull * token * s->hidden;
        for (uint32_t chunk = threadIdx.x; chunk < s->hidden / 8; chunk += RELIGHT_EP_THREADS) {
            combine::Sum sum{};
#pragma unroll 8
            for (uint32_t k = 0; k < s->topk; k++) {
                const int32_t expert = choices[k];
                if (expert < 0 || (members >> expert / s->local_experts_max & 1) == 0) continue;
                combine::add_weighted(
                    sum, ptx::load_once(home_row(view, s->rank, static_cast<uint32_t>(expert), token) + 16ull * chunk),
                    weights[k]);
            }
            ptx::store_once(out + 16ull * chunk, combine::rounded(sum));
        }
    }
}

__device__ void run_combine(const RelightEpSelectArgs& args) {
    extern __shared__ __align__(128) char shared[];
    __shared__ State copy;
    __shared__ uint32_t note;
    State* live = reinterpret_cast<State*>(args.state);
    trace_begin(live);
    take_snapshot(&copy, live);
    const View view(&copy, live, copy.combine_received + 1);
    const uint32_t members = participants(view);
    if (threadIdx.x < combine::kReducers) {
        send_home(view, args, shared);
        if (arrive_last(live, combine::kReducers, &note)) {
            if (threadIdx.x == 0) live->select_blocks = 0;
            const uint32_t pairs = copy.local_experts_max * copy.ranks_max;
            for (uint32_t i = threadIdx.x; i < pairs; i += combine::kReducers)
                if (members >> i % copy.ranks_max & 1)
                    ptx::store_release_system(
                        cell(view, i % copy.ranks_max, 1, i / copy.ranks_max, copy.rank),
                        view.epoch << 24);
        }
    }
    add_choices(view, args, members);
    if (leave_last(live)) combine::finish(live, copy, members, &view, &view);
}

}  // namespace
}  // namespace relight::ep::select

extern "C" __global__ void __launch_bounds__(RELIGHT_EP_THREADS, 1)
    relight_ep_select_dispatch_bf16(const __grid_constant__ RelightEpDispatchArgs args) {
    relight::ep::select::run_dispatch<false>(args);
}

extern "C" __global__ void __launch_bounds__(RELIGHT_EP_THREADS, 1)
    relight_ep_select_dispatch_fp8(const __grid_constant__ RelightEpDispatchArgs args) {
    relight::ep::select::run_dispatch<true>(args);
}

extern "C" __global__ void __launch_bounds__(RELIGHT_EP_THREADS, 1)
    relight_ep_select_combine(const __grid_constant__ RelightEpSelectArgs args) {
    relight::ep::select::run_combine(args);
}
