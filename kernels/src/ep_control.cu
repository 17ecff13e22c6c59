// SPDX-License-Identifier: Apache-2.0
// What is not on the data path: laying out a rank's memory, and a barrier of the ranks on the GPU.

#include <relight/device/member.cuh>

extern "C" {
__device__ uint32_t relight_abi_version = RELIGHT_ABI_VERSION;
}

namespace relight::ep {
namespace {

// The first check that fails, or 0.
__device__ uint32_t check(const State* s) {
    if (s->abi_version != RELIGHT_ABI_VERSION) return 1;
    if (s->ranks_max < 1 || s->ranks_max > kRanksMax || s->rank >= s->ranks_max) return 2;
    if (s->tokens_max < 8 || s->tokens_max % 8 != 0 || s->tokens_max > 32768) return 3;
    if (s->hidden < 16 || s->hidden % 16 != 0 || s->hidden > RELIGHT_EP_HIDDEN_MAX) return 4;
    if (s->topk < 1 || s->topk > RELIGHT_EP_TOPK_MAX) return 5;
    if (s->local_experts_max < 1 || s->local_experts_max * s->ranks_max > 4096) return 6;
    if (s->parities < 1 || s->parities > 2) return 7;
    if (s->owner[0] == 0 || s->window[s->rank] == 0 || s->scratch == 0) return 8;
    return 0;
}

}  // namespace
}  // namespace relight::ep

// Fills the offsets; init_status says which check failed (9: window too small, 10: scratch).
extern "C" __global__ void relight_ep_init(const __grid_constant__ RelightEpInitArgs args) {
    if (threadIdx.x != 0) return;
    auto* s = reinterpret_cast<RelightEpState*>(args.state);
    s->init_status = relight::ep::check(s);
    if (s->init_status != 0) return;
    uint64_t window_need, scratch_need;
    relight::ep::lay_out(s, &window_need, &scratch_need);
    if (s->window_bytes < window_need) s->init_status = 9;
    if (s->scratch_bytes < scratch_need) s->init_status = 10;
    s->trace_start = ~0ull;
}

// All members meet. Lane = slot. Two cells by parity: a peer may be one barrier ahead, never two.
extern "C" __global__ void relight_ep_barrier(const __grid_constant__ RelightEpBarrierArgs args) {
    using namespace relight::ep;
    __shared__ State copy;
    State* live = reinterpret_cast<State*>(args.state);
    take_snapshot(&copy, live);
    const View step(&copy, live, copy.dispatch_received + 1);
    const uint32_t members = participants(step) & ~(1u << copy.rank);
    const uint32_t slot = threadIdx.x & 31;
    const uint64_t turn = copy.barriers + 1;
    if (members >> slot & 1) {
        relight::ptx::store_release_system(&step.line(slot, copy.rank)->barrier[turn % 2],
                                           tag(turn, copy.incarnation[copy.rank]));
        await(live, &step.line(copy.rank, slot)->barrier[turn % 2],
              tag(turn, copy.incarnation[slot]), false, slot, RELIGHT_EP_PHASE_BARRIER, step.epoch);
    }
    __syncwarp();
    if (threadIdx.x == 0) live->barriers = turn;
}
