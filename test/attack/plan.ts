// SPDX-License-Identifier: Apache-2.0
// What the suite tells a hostile peer: for each source, what to publish and what to answer.

import { identityOf, mergeFacts } from "../../src/artifacts/identity.ts";
import { customFamily } from "../../src/artifacts/kinds/custom.ts";

export const model = "attacked/model";

export type StatementAnswer =
  | { readonly kind: "bytes" | "extra_body"; readonly base64: string }
  | { readonly kind: "huge"; readonly bytes: number }
  | { readonly kind: "missing" | "drip" | "endless_head" | "chunked" | "silent" };

export interface HostileSource {
  /** A cache of its own for each attack, so that one start of the target meets them all. */
  readonly family: string;
  readonly artifactId: string;
  /** As it claims. */
  readonly totalBytes: number;
  readonly statement: StatementAnswer;
  /** Base64, as are the pieces. */
  readonly manifest: string;
  readonly pieces: readonly string[];
  /** Frames carry another piece's number. */
  readonly isMislabelled: boolean;
}

export interface HostilePlan {
  readonly coordinator: string;
  readonly sources: readonly HostileSource[];
}

/** The identity that the target computes for a cache given by hand. */
export function identityFor(family: string) {
  const machine = process.arch === "x64" ? "x86_64" : "aarch64";
  return identityOf(customFamily(family, "/"), mergeFacts({ machine, model }), {});
}
