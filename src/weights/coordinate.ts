// SPDX-License-Identifier: Apache-2.0
// Which part of a model one worker holds. Two workers may exchange weights when they hold the same part;
// a tensor-parallel rank alone does not say that, for stages and drafts have ranks of their own.

import { z } from "zod";

const rank = z.number().int().min(0).max(65_535);
const size = z.number().int().min(1).max(65_536);
const place = z.strictObject({ rank, size }).refine((one) => one.rank < one.size, "rank < size");

export const coordinateSchema = z.strictObject({
  /** The served model, or the small one that drafts tokens for it. */
  role: z.enum(["target", "draft"]),
  tensor: place,
  pipeline: place,
  expert: place,
  data: place,
});

export type Coordinate = z.infer<typeof coordinateSchema>;

/**
 * What keeps two workers from holding the same weights, in words, or `null`. Data-parallel ranks hold
 * copies of one another: where experts are spread over them, the expert rank says so.
 */
export function coordinateDifference(source: Coordinate, target: Coordinate): string | null {
  if (source.role !== target.role) return `role is ${source.role}, wanted ${target.role}`;
  for (const axis of ["tensor", "pipeline", "expert"] as const) {
    const [have, want] = [source[axis], target[axis]];
    if (have.rank === want.rank && have.size === want.size) continue;
    return `${axis} rank is ${have.rank} of ${have.size}, wanted ${want.rank} of ${want.size}`;
  }
  return null;
}

/** The same for every worker that holds the same part; the key under which a worker publishes. */
export function coordinateKey(coordinate: Coordinate): string {
  const { role, tensor, pipeline, expert } = coordinate;
  const at = (one: { rank: number; size: number }) => `${one.rank}/${one.size}`;
  return `${role} tp${at(tensor)} pp${at(pipeline)} ep${at(expert)}`;
}

/** The same for people, without what there is only one of: "draft tp3". Empty for a whole model. */
export function coordinateLabel(coordinate: Coordinate): string {
  const axes = { tp: coordinate.tensor, pp: coordinate.pipeline, ep: coordinate.expert };
  const split = Object.entries(axes).filter(([, { size }]) => size > 1);
  const ranks = split.map(([name, { rank }]) => `${name}${rank}`);
  return [...(coordinate.role === "draft" ? ["draft"] : []), ...ranks].join(" ");
}
