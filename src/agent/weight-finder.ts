// SPDX-License-Identifier: Apache-2.0
// Where a target's weights can be read now: what the engine names itself, then what the coordinator
// offers under the same identity. Whom this agent cannot reach is left out with a reason; when nobody is
// left, the answer says what keeps those apart that serve the same model.

import type { Facts } from "../artifacts/family.ts";
import { asRelightError, RelightError } from "../errors.ts";
import type { SourceIdentity } from "../protocol/gen/p2p_pb.ts";
import type { FoundSources } from "../weights/host-session.ts";
import type { WeightLayout } from "../weights/manifest.ts";
import type { WeightSource } from "../weights/source.ts";
import type { FoundSource } from "./coordinator-client.ts";
import { identityDifference, weightIdentity } from "./weight-identity.ts";

/** A source that a load may use and then closes. */
export type OpenSource = WeightSource & Disposable;

export interface WeightFinderParts {
  readonly link: {
    readonly identified: Promise<Facts>;
    findAll(
      identities: readonly SourceIdentity[],
      signal: AbortSignal,
    ): Promise<readonly (readonly FoundSource[])[]>;
    weightIdentitiesOf(model: string, signal: AbortSignal): Promise<readonly SourceIdentity[]>;
    servesWeights(model: string, signal: AbortSignal): Promise<boolean>;
  };
  /** Null for an endpoint that leads nowhere from here, such as a socket of another machine. */
  readonly openSource: (endpoint: string) => OpenSource | null;
}

/**
 * @throws RelightError of the coordinator when the engine has named nobody: unknown is not "none".
 *   `layout_mismatch` when only others serve this model; `no_source` when nobody does.
 */
export async function findWeightSources(
  { link, openSource }: WeightFinderParts,
  { layout, hints }: { readonly layout: WeightLayout; readonly hints: readonly string[] },
  signal: AbortSignal,
): Promise<FoundSources> {
  const found = await askCoordinator(link, layout, signal).catch((thrown: unknown) => {
    if (hints.length === 0) throw thrown;
    return [];
  });
  const others = found.filter(({ endpoints }) => !endpoints.some((one) => hints.includes(one)));
  const sources: OpenSource[] = [
    ...hints.map((hint) => openSource(hint) ?? nowhere(hint)),
    ...others.flatMap((source) => openNearest(source, openSource)),
  ];
  if (sources.length === 0) throw await nobody(link, { layout, found: found.length }, signal);
  return {
    sources,
    [Symbol.dispose]: () => {
      for (const source of sources) source[Symbol.dispose]();
    },
  };
}

/** By the best of its endpoints that leads anywhere from here; none when none does. */
function openNearest(
  { endpoints }: FoundSource,
  openSource: WeightFinderParts["openSource"],
): OpenSource[] {
  for (const endpoint of endpoints) {
    const source = openSource(endpoint);
    if (source !== null) return [source];
  }
  return [];
}

/**
 * Whether anybody offers weights of this model, of whichever part and layout.
 * @throws RelightError `no_source`, and those of the coordinator
 */
export async function mayBeServed(
  link: WeightFinderParts["link"],
  model: string,
  signal: AbortSignal,
): Promise<void> {
  await within(link.identified, signal);
  if (!(await link.servesWeights(model, signal))) throw noneServes(model);
}

function noneServes(model: string): RelightError {
  return new RelightError(
    "no_source",
    `Cannot load weights from a live replica: none serves "${model}"`,
  );
}

async function askCoordinator(
  link: WeightFinderParts["link"],
  layout: WeightLayout,
  signal: AbortSignal,
): Promise<readonly FoundSource[]> {
  const identity = weightIdentity(layout, await within(link.identified, signal));
  return (await link.findAll([identity], signal))[0] ?? [];
}

/** One that was named and leads nowhere costs an entry in the ledger, not silence. */
function nowhere(endpoint: string): OpenSource {
  const refuse = () =>
    Promise.reject(
      new RelightError(
        "source_unreachable",
        `Cannot read weights from "${endpoint}": wanted a socket of an agent on this machine, or http://HOST:PORT`,
      ),
    );
  return { name: endpoint, offer: refuse, claim: refuse, [Symbol.dispose]: () => {} };
}

async function nobody(
  link: WeightFinderParts["link"],
  { layout, found }: { readonly layout: WeightLayout; readonly found: number },
  signal: AbortSignal,
): Promise<RelightError> {
  if (found > 0) {
    return new RelightError(
      "no_source",
      `Cannot load weights from a live replica: ${found} serve them where this agent cannot read, wanted a socket of this machine or HTTP`,
    );
  }
  const want = weightIdentity(layout, await within(link.identified, signal));
  const others = await othersOf(link, layout.model, signal);
  const differences = others.map((other) => identityDifference(other, want));
  const difference = differences.find((one) => one !== null);
  return difference == null
    ? noneServes(layout.model)
    : new RelightError(
        "layout_mismatch",
        `Cannot take weights from ${others.length} live sources of "${layout.model}": of the nearest, ${difference}`,
      );
}

/** Why is worth knowing, and not worth failing for. */
async function othersOf(
  link: WeightFinderParts["link"],
  model: string,
  signal: AbortSignal,
): Promise<readonly SourceIdentity[]> {
  try {
    return await link.weightIdentitiesOf(model, signal);
  } catch (thrown) {
    if (asRelightError(thrown).code === "cancelled") throw thrown;
    return [];
  }
}

/** @throws the signal's reason when it fires first */
async function within<Value>(promise: Promise<Value>, signal: AbortSignal): Promise<Value> {
  signal.throwIfAborted();
  const { promise: stopped, reject } = Promise.withResolvers<never>();
  const stop = () => reject(signal.reason);
  signal.addEventListener("abort", stop, { once: true });
  return await Promise.race([promise, stopped]).finally(() =>
    signal.removeEventListener("abort", stop),
  );
}
