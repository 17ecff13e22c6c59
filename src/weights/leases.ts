// SPDX-License-Identifier: Apache-2.0
// Who may read a source's memory, and until when. A lease holds for one generation: before the engine
// changes its weights the generation is raised, readers are refused from then on, and the change waits
// until those under way have let go or their leases have run out. Pure; the holder of time acts.

export interface Lease {
  readonly id: number;
  readonly generation: number;
  /** On the owner's monotonic clock. */
  readonly expiresAtMs: number;
}

export interface LeaseTable {
  readonly generation: number;
  /** While the engine writes: nobody reads, and no claim is granted. */
  readonly isChanging: boolean;
  readonly readersMax: number;
  readonly leases: readonly Lease[];
  readonly nextId: number;
}

export type Refusal = "source_busy" | "generation_changed" | "source_gone";

export function openLeases(readersMax: number, generation = 1): LeaseTable {
  return { generation, isChanging: false, readersMax, leases: [], nextId: 1 };
}

/** A lease for the generation that the reader has the manifest of, or why not. */
export function claim(
  table: LeaseTable,
  want: { readonly generation: number; readonly ttlMs: number },
  nowMs: number,
): [LeaseTable, Lease | Refusal] {
  const live = expire(table, nowMs);
  if (live.isChanging || want.generation !== live.generation) return [live, "generation_changed"];
  if (live.leases.length >= live.readersMax) return [live, "source_busy"];
  const lease = { id: live.nextId, generation: live.generation, expiresAtMs: nowMs + want.ttlMs };
  return [{ ...live, leases: [...live.leases, lease], nextId: live.nextId + 1 }, lease];
}

/** More time for a reader that is still reading, or why not. An expired lease does not come back. */
export function renew(
  table: LeaseTable,
  want: { readonly id: number; readonly ttlMs: number },
  nowMs: number,
): [LeaseTable, Lease | Refusal] {
  const live = expire(table, nowMs);
  const held = live.leases.find(({ id }) => id === want.id);
  if (held === undefined) return [live, "source_gone"];
  if (live.isChanging || held.generation !== live.generation) return [live, "generation_changed"];
  const lease = { ...held, expiresAtMs: nowMs + want.ttlMs };
  const leases = live.leases.map((one) => (one.id === lease.id ? lease : one));
  return [{ ...live, leases }, lease];
}

/** Letting go twice is nothing. */
export function release(table: LeaseTable, id: number): LeaseTable {
  return { ...table, leases: table.leases.filter((lease) => lease.id !== id) };
}

/** The engine is about to write: from now on readers are refused. */
export function beginChange(table: LeaseTable): LeaseTable {
  return { ...table, generation: table.generation + 1, isChanging: true };
}

/** The engine has written, and the new digests are known. */
export function endChange(table: LeaseTable): LeaseTable {
  return { ...table, isChanging: false };
}

/** How long the change must still wait for readers; 0 when none is left. */
export function drainMs(table: LeaseTable, nowMs: number): number {
  const { leases } = expire(table, nowMs);
  return leases.reduce((ms, lease) => Math.max(ms, lease.expiresAtMs - nowMs), 0);
}

function expire(table: LeaseTable, nowMs: number): LeaseTable {
  const leases = table.leases.filter(({ expiresAtMs }) => expiresAtMs > nowMs);
  return leases.length === table.leases.length ? table : { ...table, leases };
}
