// SPDX-License-Identifier: Apache-2.0
// Times and numbers that the registry keeps to, with their defaults.

import { type LifecycleLimits, lifecycleDefaults } from "./lifecycle.ts";

export interface RegistryLimits extends LifecycleLimits {
  /** How often an agent is asked for a heartbeat. */
  readonly heartbeatMs: number;
  /** Silence after which a session ends; with the owner's tick it stays below 5 s. */
  readonly sessionGraceMs: number;
  /** A pause between two advances after which the registry doubts itself, not its sessions. */
  readonly stallMs: number;
  readonly sessionsMax: number;
  readonly sourcesPerSessionMax: number;
  /** How many records Find looks at per shelf to choose from; a larger fleet is seen in rotation. */
  readonly findWindow: number;
  /** When a write that `advance` needed has failed. */
  readonly retryMs: number;
}

export const registryDefaults: RegistryLimits = {
  ...lifecycleDefaults,
  heartbeatMs: 1_000,
  sessionGraceMs: 4_000,
  stallMs: 2_000,
  sessionsMax: 100_000,
  sourcesPerSessionMax: 4_096,
  findWindow: 64,
  retryMs: 1_000,
};
