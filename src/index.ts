// SPDX-License-Identifier: Apache-2.0
// The public API, by explicit names. Importing it opens nothing, loads no native library and reads no
// environment. What is not exported here may change in any version.

/** @experimental Elastic expert parallelism: see docs/kernels.md and `src/cli/ep-rank-worker.ts`. */
export { agentMembership, openGpus, openWindows } from "./agent/ep-ports.ts";
export type { RankDevice, WindowExchange } from "./elastic/rank/device.ts";
export { EpGroup } from "./elastic/rank/group.ts";
export type {
  EpGroupLimits,
  EpGroupOptions,
  GroupEvent,
  StepOutcome,
} from "./elastic/rank/options.ts";
export type { MembershipSession, OpenMembership } from "./elastic/session.ts";
export type { GroupConfig, Seat } from "./elastic/view.ts";
export type { Blame, Code, CodeFacts, Details, Retry } from "./errors.ts";
export { codes, RelightError } from "./errors.ts";
export type { GpuDriver } from "./gpu/driver.ts";
export type { EpDeviceOptions } from "./gpu/ep-device.ts";
export { EpDevice } from "./gpu/ep-device.ts";
export type { EpShape } from "./gpu/ep-layout.ts";
export { systemClock } from "./platform/clock.ts";
