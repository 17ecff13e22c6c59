// SPDX-License-Identifier: Apache-2.0
// Seals caches on a thread of its own (seal-worker.ts), one after the other.

import { Worker } from "node:worker_threads";
import { type Code, type Details, RelightError } from "../errors.ts";
import { workerUrl } from "../platform/worker-url.ts";
import type { Cache } from "./families.ts";
import type { Family } from "./family.ts";
import type { Seal, SealedFile } from "./seal.ts";

export interface SealOrder {
  readonly id: number;
  readonly family: FamilyOrder;
  readonly root: string;
  readonly excluded: readonly string[];
  readonly settledBeforeMs: number;
  readonly known: readonly SealedFile[];
}

/** A family in words, because its functions cannot be sent to a thread. */
export type FamilyOrder =
  | { readonly kind: "known" | "custom"; readonly name: string }
  | { readonly kind: "checkpoint"; readonly allowsCode: boolean };

export interface SealAnswer {
  readonly id: number;
  readonly seal?: Seal | null;
  readonly error?: { readonly code: Code; readonly message: string; readonly details: Details };
}

export interface Sealer extends AsyncDisposable {
  /** @throws RelightError what `seal` throws, or the signal's reason. */
  seal(
    cache: Cache,
    options: {
      readonly settledBeforeMs: number;
      /** Digests from elsewhere; each counts only while the file's stamp is the same. */
      readonly known?: readonly SealedFile[];
    },
    signal: AbortSignal,
  ): Promise<Seal | null>;
}

export function startSealer(): Sealer {
  const worker = new Worker(workerUrl(new URL("./seal-worker.ts", import.meta.url)), {
    name: "seal",
  });
  worker.unref();
  const waiting = new Map<number, PromiseWithResolvers<Seal | null>>();
  let lastId = 0;
  worker.on("message", (answer: SealAnswer) => {
    const waiter = waiting.get(answer.id);
    waiting.delete(answer.id);
    if (answer.error !== undefined) {
      waiter?.reject(
        new RelightError(answer.error.code, answer.error.message, {
          details: answer.error.details,
        }),
      );
    } else waiter?.resolve(revive(answer.seal ?? null));
  });
  worker.on("error", (cause) => {
    for (const waiter of waiting.values())
      waiter.reject(new RelightError("internal", "The sealing thread ended", { cause }));
    waiting.clear();
  });
  return {
    seal: async (cache, { settledBeforeMs, known = [] }, signal) => {
      signal.throwIfAborted();
      const id = ++lastId;
      const waiter = Promise.withResolvers<Seal | null>();
      waiting.set(id, waiter);
      const onAbort = () => waiter.reject(signal.reason);
      signal.addEventListener("abort", onAbort, { once: true });
      const { family, root, excluded } = cache;
      worker.postMessage({
        id,
        family: familyOrder(family),
        root,
        excluded,
        settledBeforeMs,
        known,
      } satisfies SealOrder);
      try {
        return await waiter.promise;
      } finally {
        waiting.delete(id);
        signal.removeEventListener("abort", onAbort);
      }
    },
    [Symbol.asyncDispose]: async () => {
      await worker.terminate();
    },
  };
}

function familyOrder({ name, variable, whole }: Family): FamilyOrder {
  if (whole !== undefined) return { kind: "checkpoint", allowsCode: whole.allowsCode };
  return { kind: variable === null ? "custom" : "known", name };
}

/** Structured clone hands buffers over as plain byte arrays. */
function revive(seal: Seal | null): Seal | null {
  if (seal === null) return null;
  const files = seal.files.map((file) =>
    file.portable === undefined ? file : { ...file, portable: asBuffer(file.portable) },
  );
  return { ...seal, files, manifest: { ...seal.manifest, bytes: asBuffer(seal.manifest.bytes) } };
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
