// SPDX-License-Identifier: Apache-2.0
// Where everything lies: in a rank's window (written by peers) and in its scratch (its own).
// Strides use the maxima, never the present membership, so a join or a crash moves nothing.
// A source writes only its own line and slices of a window: what a masked zombie writes, nobody reads.
#pragma once

#include <relight/abi.h>
#include <relight/device/ptx.cuh>

namespace relight::ep {

using State = RelightEpState;

constexpr uint32_t kRanksMax = RELIGHT_EP_RANKS_MAX;
constexpr uint32_t kQuarters = 4;        // a combined row travels in four stores
constexpr uint32_t kPieces = 8;          // and is proven in eight pieces
constexpr uint32_t kGroupChannels = 128;  // channels under one scale

// What a cell holds when its data is there: 48 bits of epoch, 16 of the writer's incarnation. It
// never wraps in practice, so a stale cell can not look fresh and nothing has to be cleared.
__device__ __forceinline__ uint64_t tag(uint64_t epoch, uint32_t incarnation) {
    return epoch << 16 | (incarnation & 0xffffu);
}

// A word that proves itself: 32 bits of epoch, 32 of data, written in one store. Routing tables are
// made of them. The cell of a row is one too, and its data is the sum of the row's 32-bit words: the
// reader adds up what it reads and reads again until the sums agree. So nothing on the way needs a
// fence. A system fence waits behind all traffic of the GPU (6 us under load, measured), and without
// one a flag does overtake its row (97 of 2000 steps, test/ep_stress.py on one GPU).
__device__ __forceinline__ uint64_t proven(uint64_t epoch, uint32_t data) {
    return epoch << 32 | data;
}
__device__ __forceinline__ bool proves(uint64_t word, uint64_t epoch) {
    return word >> 32 == (epoch & 0xffffffffu);
}

// One line for each source, at the start of the window. Cells are compared, never cleared.
struct alignas(128) Line {
    uint64_t consumed[2];  // by parity: the source has consumed what I dispatched in this epoch
    uint64_t weight[2];    // by parity: the weights that came with combine
    uint64_t barrier[2];
    uint64_t suspects;     // low 32 bits of the epoch << 32 | ranks that the source suspects
    uint64_t unused[9];
};
static_assert(sizeof(Line) == 128, "one source, one line");

// Data of a routing table's first word.
__device__ __forceinline__ uint32_t route_header(uint32_t tokens, uint32_t format, uint32_t topk) {
    return tokens | format << 16 | topk << 24;
}
constexpr uint32_t kTallyMax = 16384;  // (block, local expert, source) counts a receiver can hold

__host__ __device__ constexpr uint64_t align(uint64_t value, uint64_t to) {
    return (value + to - 1) / to * to;
}

__host__ __device__ constexpr uint32_t groups_of(uint32_t hidden) {
    return (hidden + kGroupChannels - 1) / kGroupChannels;
}

// A row in the window: weights, payload, scales, each padded to 16 bytes for the copy engine.
__host__ __device__ constexpr uint32_t row_header_bytes(uint32_t topk) {
    return static_cast<uint32_t>(align(4 * topk, 16));
}
__host__ __device__ constexpr uint32_t payload_bytes(uint32_t hidden, uint32_t format) {
    return format == RELIGHT_EP_BF16 ? 2 * hidden : hidden;
}
__host__ __device__ constexpr uint32_t scale_at(uint32_t hidden) {
    return static_cast<uint32_t>(align(hidden, 16));
}
// Payload and scales, without the header.
__host__ __device__ constexpr uint32_t row_bytes(uint32_t hidden, uint32_t format) {
    if (format == RELIGHT_EP_BF16) return 2 * hidden;
    const uint32_t each = format == RELIGHT_EP_FP8_UE8M0 ? 1 : 4;
    return scale_at(hidden) + static_cast<uint32_t>(align(groups_of(hidden) * each, 16));
}

// Words that hold one block's counts of all local experts, two in a word.
__host__ __device__ constexpr uint32_t count_words(uint32_t local_experts) {
    return static_cast<uint32_t>(align((local_experts + 1) / 2, 2));
}

// Fills the offsets of `s`; returns nothing that the caller must free. Sizes land in window_need and
// scratch_need. src/gpu/ep-layout.ts computes the same.
__host__ __device__ inline void lay_out(State* s, uint64_t* window_need, uint64_t* scratch_need) {
    const uint64_t slices = uint64_t(s->parities) * s->ranks_max;
    const uint64_t rows = slices * s->tokens_max;
    const uint64_t choices = uint64_t(s->tokens_max) * s->topk;
    const uint32_t row_max = row_bytes(s->hidden, RELIGHT_EP_FP8) > 2 * s->hidden
                                 ? row_bytes(s->hidden, RELIGHT_EP_FP8)
                                 : 2 * s->hidden;
    const uint64_t pairs = uint64_t(s->local_experts_max) * s->ranks_max;
    s->route_block_bits = 7;
    while (((s->tokens_max - 1ull) >> s->route_block_bits) * pairs + pairs > kTallyMax)
        s->route_block_bits++;
    const uint64_t blocks = ((s->tokens_max - 1ull) >> s->route_block_bits) + 1;
    s->route_stride = align(16 + blocks * 8 * (count_words(s->local_experts_max) +
                                               ((s->topk << s->route_block_bits) / 2)), 128);
    s->weight_stride = align(choices * 4, 128);
    s->row_stride = align(row_header_bytes(s->topk) + row_max, 128);
    s->combine_stride = align(2 * s->hidden, 128);

    uint64_t at = sizeof(Line) * kRanksMax;
    s->row_cell_at = at;
    at += align(rows * 8, 128);
    s->combine_cell_at = at;
    at += align(rows * kPieces * 8, 128);
    s->route_at = at;
    at += slices * s->route_stride;
    s->weight_at = at;
    at += slices * s->weight_stride;
    s->row_at = at;
    at += rows * s->row_stride;
    s->combine_at = at;
    at += rows * s->combine_stride;
    s->select_at = at;
    if (s->select_rows != 0) {
        // Baseline: [local expert][source][token] rows with a 16-byte header, [global expert][token]
        // rows, then one cell for each (local expert, source) and for each (local expert, owner).
        at += pairs * s->tokens_max * (s->row_stride + 128);
        at += pairs * s->tokens_max * s->combine_stride;
        at += align(2 * pairs * 8, 128);
    }
    *window_need = at;

    uint64_t mine = 0;
    s->index_at = mine;  // i32[parity][source][token][topk]: a choice's place in its expert's rows
    mine += align(slices * choices * 4, 128);
    s->sent_at = mine;  // u32[parity][token]: ranks this token went to
    mine += align(uint64_t(s->parities) * s->tokens_max * 4, 128);
    s->received_at = mine;  // u32[parity][2 + ranks_max]: sources, own tokens, tokens by source
    mine += align(uint64_t(s->parities) * (2 + kRanksMax) * 4, 128);
    s->select_count_at = mine;  // baseline: u32[rank][local expert]
    mine += align(uint64_t(s->local_experts_max) * s->ranks_max * 4, 128);
    *scratch_need = mine;
}

// A block's view of one epoch. `state` is the block's own copy in shared memory, taken at entry, so
// that one launch decides on one membership; `live` is the real one, for what may change meanwhile.
struct View {
    const State* state;
    State* live;
    uint64_t epoch;
    uint32_t parity;

    __device__ View(const State* copy, State* real, uint64_t epoch_now)
        : state(copy), live(real), epoch(epoch_now),
          parity(copy->parities == 2 ? static_cast<uint32_t>(epoch_now & 1) : 0) {}

    __device__ char* window(uint32_t slot) const {
        return reinterpret_cast<char*>(state->window[slot]);
    }
    __device__ char* scratch() const { return reinterpret_cast<char*>(state->scratch); }
    __device__ uint32_t slice(uint32_t slot) const { return parity * state->ranks_max + slot; }
    __device__ uint32_t slot_row(uint32_t slot, uint32_t token) const {
        return slice(slot) * state->tokens_max + token;
    }
    // 32 by 32 bits: a full 64-bit product is three times the instructions.
    __device__ static uint64_t times(uint32_t count, uint64_t stride) {
        return uint64_t(count) * static_cast<uint32_t>(stride);
    }

    __device__ Line* line(uint32_t holder, uint32_t source) const {
        return reinterpret_cast<Line*>(window(holder)) + source;
    }
    __device__ uint64_t* row_cell(uint32_t holder, uint32_t source, uint32_t token) const {
        return reinterpret_cast<uint64_t*>(window(holder) + state->row_cell_at) +
               slot_row(source, token);
    }
    __device__ char* row(uint32_t holder, uint32_t source, uint32_t token) const {
        return window(holder) + state->row_at + times(slot_row(source, token), state->row_stride);
    }
    // A routing table: a header word, a spare one, then by block the counts of the holder's local
    // experts, then by block the choices as the holder's local experts (0xffff: another rank's).
    __device__ uint64_t* route(uint32_t holder, uint32_t source) const {
        return reinterpret_cast<uint64_t*>(window(holder) + state->route_at +
                                           times(slice(source), state->route_stride));
    }
    __device__ uint64_t* counts(uint32_t holder, uint32_t source, uint32_t block) const {
        return route(holder, source) + 2 + block * count_words(state->local_experts_max);
    }
    __device__ uint64_t* choices(uint32_t holder, uint32_t source, uint32_t block) const {
        const uint32_t bits = block_bits(), blocks = ((state->tokens_max - 1) >> bits) + 1;
        return counts(holder, source, blocks) + uint64_t(block) * ((state->topk << bits) / 2);
    }
    __device__ uint32_t block_bits() const {
        return static_cast<uint32_t>(state->route_block_bits);
    }
    // Weights that came with combine; those of dispatch stand at the start of each row.
    __device__ float* weights(uint32_t holder, uint32_t source) const {
        return reinterpret_cast<float*>(window(holder) + state->weight_at +
                                        times(slice(source), state->weight_stride));
    }
    __device__ uint64_t* combine_cell(uint32_t holder, uint32_t owner, uint32_t token) const {
        return reinterpret_cast<uint64_t*>(window(holder) + state->combine_cell_at) +
               slot_row(owner, token) * kPieces;
    }
    __device__ char* combine_row(uint32_t holder, uint32_t owner, uint32_t token) const {
        return window(holder) + state->combine_at +
               times(slot_row(owner, token), state->combine_stride);
    }

    __device__ int32_t* index(uint32_t source) const {
        return reinterpret_cast<int32_t*>(scratch() + state->index_at) +
               slice(source) * state->tokens_max * state->topk;
    }
    __device__ uint32_t* sent() const {
        return reinterpret_cast<uint32_t*>(scratch() + state->sent_at) +
               parity * state->tokens_max;
    }
    // [0] sources agreed on, [1] own tokens, [2 + source] tokens of a source.
    __device__ uint32_t* received() const {
        return reinterpret_cast<uint32_t*>(scratch() + state->received_at) +
               parity * (2 + kRanksMax);
    }
    __device__ uint64_t tag_of(uint32_t slot) const {
        return tag(epoch, state->incarnation[slot]);
    }
};

// Copies the state into shared memory. The whole block; ends with a block barrier.
__device__ inline void take_snapshot(State* copy, const State* live) {
    static_assert(sizeof(State) % 8 == 0, "copied by 8 bytes");
    auto* to = reinterpret_cast<uint64_t*>(copy);
    auto* from = reinterpret_cast<const uint64_t*>(live);
    for (uint32_t i = threadIdx.x; i < sizeof(State) / 8; i += blockDim.x)
        to[i] = ptx::load_relaxed_system(from + i);
    __syncthreads();
}

}  // namespace relight::ep
