// SPDX-License-Identifier: Apache-2.0
// Everything the host and the kernels agree on: structs, constants, kernel names.
//
// Fixed-width fields only, no padding that the compiler may choose: each struct is a multiple of 8
// bytes and every 64-bit field sits on a multiple of 8. src/gpu/abi.ts mirrors this file once.
// Every kernel takes ONE argument, its Args struct by value. Addresses are u64.
#ifndef RELIGHT_ABI_H
#define RELIGHT_ABI_H

#include <stdint.h>

#define RELIGHT_ABI_VERSION 1u

#define RELIGHT_EP_RANKS_MAX 32
#define RELIGHT_EP_TOPK_MAX 16
#define RELIGHT_EP_HIDDEN_MAX 8192
#define RELIGHT_EP_NO_OWNER 0xffffffffu /* entry of the owner table: this expert lives nowhere */

/* Payload formats of a dispatched row. */
#define RELIGHT_EP_BF16 0u        /* hidden x bf16                                                   */
#define RELIGHT_EP_FP8 1u         /* hidden x e4m3, one f32 scale for each 128 channels             */
#define RELIGHT_EP_FP8_POW2 2u    /* the same, scale rounded up to a power of two                   */
#define RELIGHT_EP_FP8_UE8M0 3u   /* the same power of two, stored as its exponent byte             */

/* Bits of RelightEpDispatchArgs.flags and RelightEpCombineArgs.flags. */
#define RELIGHT_EP_SEND 1u        /* run the sending half                                           */
#define RELIGHT_EP_RECEIVE 2u     /* run the receiving half; both bits: one fused launch            */
#define RELIGHT_EP_INDEX_64 4u    /* topk_index is int64, else int32                                */
#define RELIGHT_EP_ZERO_COPY 8u   /* dispatch: leave rows in the window, write lists only           */
#define RELIGHT_EP_WEIGHTS 16u    /* combine: topk_weights come with this call, not with dispatch   */

/* Phases named in a fault. */
#define RELIGHT_EP_PHASE_GATE 1u      /* dispatch: the peer has not finished an older combine       */
#define RELIGHT_EP_PHASE_ROUTE 2u     /* dispatch: the peer's routing table                         */
#define RELIGHT_EP_PHASE_ROW 3u       /* dispatch: one row                                          */
#define RELIGHT_EP_PHASE_WEIGHT 4u    /* combine: the peer's weights                                */
#define RELIGHT_EP_PHASE_COMBINE 5u   /* combine: one quarter of one row                            */
#define RELIGHT_EP_PHASE_BARRIER 6u
#define RELIGHT_EP_PHASE_FORMAT 7u    /* dispatch: the peer sent another format or another top-k    */

/* What one launch saw. Written when its last block leaves; mirrored to RelightEpState.host_record. */
typedef struct RelightEpResult { /* on a multiple of 16 in the state and in the host record */
  uint64_t epoch;
  uint32_t used;   /* ranks that took part (bit = slot)                                             */
  uint32_t failed; /* ranks of `used` that timed out or were masked while we waited; 0 = good step  */
} RelightEpResult;

/* The first failed wait on one peer. Kept until the host clears `count`. */
typedef struct RelightEpFault {
  uint64_t count; /* faults since the host cleared it; the fields describe the latest              */
  uint64_t epoch;
  uint32_t phase;
  uint32_t peer;
  uint64_t wanted;
  uint64_t seen;
} RelightEpFault;

/* Host memory that the kernels write (mapped, pinned): the engine reads it without a sync. */
typedef struct RelightEpHostRecord {
  RelightEpResult dispatch;
  RelightEpResult combine;
  RelightEpFault fault;
} RelightEpHostRecord;

/* Everything one rank knows. Lives in device memory at an address that never changes, so a captured
 * graph follows joins, leaves and crashes. The host fills the first part, relight_ep_init the rest. */
typedef struct RelightEpState {
  /* Set once by the host. */
  uint32_t abi_version;
  uint32_t rank;
  uint32_t ranks_max;          /* slots, 1..32                                                      */
  uint32_t tokens_max;         /* a rank and a step, multiple of 8                                  */
  uint32_t hidden;             /* multiple of 8, at most RELIGHT_EP_HIDDEN_MAX                      */
  uint32_t topk;               /* 1..16                                                             */
  uint32_t experts_max;        /* entries of an owner table                                         */
  uint32_t local_experts_max;
  uint32_t parities;           /* 1: dispatch and combine strictly alternate; 2: two in flight      */
  uint32_t select_rows;        /* 1: the window also holds the per-selection baseline's rows        */
  uint64_t window_bytes;       /* size of each rank's window                                        */
  uint64_t scratch;            /* device memory of this rank, zeroed                                */
  uint64_t scratch_bytes;
  uint64_t host_record;        /* RelightEpHostRecord as the device sees it, or 0                   */
  uint64_t trace;              /* u64[trace_entries][2] kernel start and end in ns, or 0            */
  uint64_t trace_entries;

  /* Written by the host at any time, also while kernels run. */
  uint64_t timeout_ns;
  uint64_t window[RELIGHT_EP_RANKS_MAX]; /* where slot r's window is mapped here; 0 = not mapped    */
  uint64_t on_at[RELIGHT_EP_RANKS_MAX];  /* slot r takes part in epochs on_at <= e < off_at         */
  uint64_t off_at[RELIGHT_EP_RANKS_MAX];
  uint64_t owner[2];           /* u32[experts_max]: rank << 16 | local expert; [1] from owner_at on */
  uint64_t owner_at;
  uint32_t incarnation[RELIGHT_EP_RANKS_MAX]; /* 16 bits used                                       */
  uint32_t active;             /* mask, bit = slot                                                  */
  uint32_t suspect;            /* set by kernels, cleared by the host: a suspicion, not a verdict   */

  /* Owned by the kernels; the host sets the epochs only while nothing runs. */
  uint64_t dispatch_sent;      /* epoch of the last finished half; the next one is this plus 1      */
  uint64_t dispatch_received;
  uint64_t combine_sent;
  uint64_t combine_received;
  uint64_t barriers;
  uint64_t verdict;            /* epoch << 32 | sources agreed on by all blocks of one dispatch     */
  uint64_t trace_start;
  uint64_t trace_count;
  RelightEpResult dispatch;
  RelightEpResult combine;
  RelightEpFault fault;
  uint32_t dispatch_failed;    /* gathered during a launch                                          */
  uint32_t combine_failed;
  uint32_t blocks_left;        /* blocks that have left the running launch                          */
  uint32_t blocks_consumed;    /* blocks that have consumed the step's dispatch                     */
  uint32_t select_blocks;      /* the baseline's arrivals                                           */
  uint32_t init_status;        /* 0, or which check of relight_ep_init failed                       */

  /* Offsets in the window and the scratch, from device/layout.cuh by relight_ep_init. */
  uint64_t row_cell_at;
  uint64_t combine_cell_at;
  uint64_t route_at;
  uint64_t weight_at;
  uint64_t row_at;
  uint64_t combine_at;
  uint64_t select_at;
  uint64_t route_block_bits; /* a block of a routing table is 2^bits tokens                        */
  uint64_t route_stride;
  uint64_t weight_stride;
  uint64_t row_stride;
  uint64_t combine_stride;
  uint64_t index_at;
  uint64_t sent_at;
  uint64_t received_at;
  uint64_t select_count_at;
} RelightEpState;

typedef struct RelightEpInitArgs {
  uint64_t state;
} RelightEpInitArgs;

typedef struct RelightEpBarrierArgs {
  uint64_t state;
} RelightEpBarrierArgs;

typedef struct RelightEpDispatchArgs {
  uint64_t state;
  uint64_t x;               /* bf16[tokens][hidden], 16-byte aligned                                */
  uint64_t topk_index;      /* int32 or int64 [tokens][topk], global expert, negative = none        */
  uint64_t topk_weights;    /* f32[tokens][topk], or 0 when combine brings them                     */
  uint64_t token_count_at;  /* u32 on the device, or 0 to use token_count                           */
  uint32_t token_count;
  uint32_t format;
  uint32_t flags;
  uint32_t slots;           /* rows of one expert's output, at least ranks_max * tokens_max         */
  uint64_t out_x;           /* [local_experts][slots][hidden] bf16 or e4m3; unused with ZERO_COPY   */
  uint64_t out_scales;      /* f32 [local_experts][groups][slots], or u32 with 4 exponents each     */
  uint64_t out_source;      /* i32 [local_experts][slots]: source rank * tokens_max + token         */
  uint64_t out_range;       /* i64 [local_experts][ranks_max]: first << 32 | count                  */
  uint64_t out_count;       /* i32 [local_experts]                                                  */
} RelightEpDispatchArgs;

typedef struct RelightEpCombineArgs {
  uint64_t state;
  uint64_t y;               /* bf16 [local_experts][slots][hidden], in dispatch's places            */
  uint64_t topk_weights;    /* f32[tokens][topk] with RELIGHT_EP_WEIGHTS, else 0                    */
  uint64_t out;             /* bf16[tokens][hidden]                                                 */
  uint32_t slots;
  uint32_t flags;
} RelightEpCombineArgs;

/* The per-selection baseline's combine. Dispatch takes RelightEpDispatchArgs, out_count zeroed. */
typedef struct RelightEpSelectArgs {
  uint64_t state;
  uint64_t y;            /* bf16 [local_experts][slots][hidden]                                     */
  uint64_t topk_index;   /* int32[tokens][topk]                                                     */
  uint64_t topk_weights; /* f32[tokens][topk]                                                       */
  uint64_t out;          /* bf16[tokens][hidden]                                                    */
  uint64_t source;       /* out_source of the dispatch                                              */
  uint64_t count;        /* out_count of the dispatch                                               */
  uint32_t slots;
  uint32_t reserved;
} RelightEpSelectArgs;

/* One byte range to digest. */
typedef struct RelightDigestSegment {
  uint64_t address;
  uint64_t bytes;
  uint64_t first_chunk; /* chunks of RELIGHT_DIGEST_CHUNK bytes before this segment                 */
} RelightDigestSegment;

#define RELIGHT_DIGEST_CHUNK 262144u /* bytes a block takes at a time; multiple of 16 */

typedef struct RelightDigestArgs {
  uint64_t segments;      /* RelightDigestSegment[segment_count]                                     */
  uint64_t out;           /* u64[segment_count][2]; zeroed by the caller before relight_digest       */
  uint64_t seed;
  uint64_t chunk_count;   /* of all segments                                                         */
  uint32_t segment_count;
  uint32_t reserved;
} RelightDigestArgs;

/* Kernels. Threads are fixed; blocks are the caller's choice, all co-resident (at most one an SM).
 *   relight_ep_init                1 block  x  32
 *   relight_ep_barrier             1 block  x  32
 *   relight_ep_dispatch_bf16/_fp8  n blocks x 512, dynamic shared RELIGHT_EP_DISPATCH_SHARED
 *   relight_ep_combine             n blocks x 512, dynamic shared RELIGHT_EP_COMBINE_SHARED
 *   relight_ep_select_dispatch_bf16/_fp8, relight_ep_select_combine: the baseline, same shapes
 *   relight_digest                 n blocks x 256;  relight_digest_finish  ceil(segments/256) x 256 */
#define RELIGHT_EP_THREADS 512u
#define RELIGHT_EP_DISPATCH_SHARED 131072u /* bytes of dynamic shared memory                         */
#define RELIGHT_EP_COMBINE_SHARED 135168u

#endif
