// SPDX-License-Identifier: Apache-2.0
// The roofline: the same bytes to the same ranks as dispatch or combine, and nothing else. No
// routing, no arithmetic, no flags: shared memory to peers, as fast as bulk stores go.

#include <relight/device/ptx.cuh>

struct PushArgs {
    uint64_t to[32];      // where each rank's copy goes
    uint64_t masks;       // u32[rows]: ranks that a row goes to
    uint32_t rows;
    uint32_t row_bytes;   // multiple of 16
    uint32_t row_stride;
    uint32_t trace_at;    // entry of `trace`
    uint64_t trace;       // u64[2 * entries] start and end in ns
    uint64_t left;        // u32, zero
    uint32_t ranks;
    uint32_t rank;
};

extern "C" __global__ void __launch_bounds__(32) push(const __grid_constant__ PushArgs args) {
    using namespace relight;
    extern __shared__ __align__(128) char row[];
    auto* trace = reinterpret_cast<unsigned long long*>(args.trace) + 2 * args.trace_at;
    if (threadIdx.x == 0) atomicMin(trace, ptx::now_ns());
    for (uint32_t i = threadIdx.x; i < args.row_bytes / 4; i += 32)
        reinterpret_cast<uint32_t*>(row)[i] = i * 2654435761u;
    ptx::fence_shared_to_async();
    __syncwarp();
    const auto* masks = reinterpret_cast<const uint32_t*>(args.masks);
    for (uint32_t at = blockIdx.x; at < args.rows; at += gridDim.x) {
        // Each block starts with another rank, as dispatch does.
        const uint32_t peer = threadIdx.x < args.ranks
                                  ? (threadIdx.x + args.rank + 1 + blockIdx.x) % args.ranks
                                  : threadIdx.x;
        if (masks[at] >> peer & 1)
            ptx::bulk_store(reinterpret_cast<char*>(args.to[peer]) +
                                uint64_t(at) * args.row_stride,
                            row, args.row_bytes);
        ptx::bulk_commit();
    }
    ptx::bulk_wait<0>();
    __syncwarp();
    if (threadIdx.x != 0) return;
    auto* left = reinterpret_cast<uint32_t*>(args.left);
    if (ptx::add_acq_rel_gpu(left, 1) != gridDim.x - 1) return;
    *left = 0;
    trace[1] = ptx::now_ns();
}
