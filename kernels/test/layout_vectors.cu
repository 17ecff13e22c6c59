// SPDX-License-Identifier: Apache-2.0
// Prints what device/layout.cuh computes, on the host, for src/gpu/ep-layout.test.ts:
//   nvcc -std=c++17 -I kernels/include kernels/test/layout_vectors.cu -o /tmp/layout && /tmp/layout

#include <relight/device/layout.cuh>

#include <cstdio>

int main() {
    const uint32_t configs[][7] = {
        // ranks, tokens, hidden, topk, local experts, parities, select rows
        {8, 128, 7168, 8, 32, 1, 0},   {8, 128, 7168, 8, 32, 2, 1}, {4, 4096, 7168, 8, 64, 1, 0},
        {32, 1024, 2880, 4, 64, 2, 0}, {1, 8, 16, 1, 1, 1, 0},      {3, 40, 2048, 16, 171, 2, 0},
    };
    printf("[");
    for (const auto& c : configs) {
        RelightEpState s{};
        s.ranks_max = c[0], s.tokens_max = c[1], s.hidden = c[2], s.topk = c[3];
        s.local_experts_max = c[4], s.parities = c[5], s.select_rows = c[6];
        uint64_t window, scratch;
        relight::ep::lay_out(&s, &window, &scratch);
        printf("%s\n{\"config\":[%u,%u,%u,%u,%u,%u,%u],", &c == configs ? "" : ",", c[0], c[1], c[2],
               c[3], c[4], c[5], c[6]);
        printf("\"window\":%lu,\"scratch\":%lu,\"row_at\":%lu,\"combine_at\":%lu,\"row_stride\":%lu}",
               window, scratch, s.row_at, s.combine_at, s.row_stride);
    }
    printf("]\n");
}
