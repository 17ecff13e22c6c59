// SPDX-License-Identifier: Apache-2.0
// After a restart: what peers' authors signed and what still lies here as it was installed is offered to
// others again, with the signatures it came with. Otherwise a node that may author nothing would carry
// nothing either, once whoever authored it is gone.

import fs from "node:fs";
import path from "node:path";
import type { Cache } from "../artifacts/families.ts";
import { type Receipt, readReceipts, readStatement } from "../artifacts/receipt.ts";
import { asRelightError, type RelightError } from "../errors.ts";
import type { ClaimedCache } from "./claimed-cache.ts";
import type { Relay } from "./relay.ts";
import type { ArtifactTrust } from "./trust.ts";

/** The newest installation of a cache that came with a statement; a family has one place at the coordinator. */
export async function relayAgain(
  cache: Cache,
  {
    claimed,
    trust,
    relay,
    onFailure,
  }: {
    readonly claimed: ClaimedCache;
    readonly trust: ArtifactTrust;
    readonly relay: Relay;
    readonly onFailure: (error: RelightError) => void;
  },
): Promise<void> {
  const receipts = readReceipts(cache.root, onFailure);
  const newest = receipts.toSorted((left, right) => right.installedAtMs - left.installedAtMs);
  for (const receipt of newest) {
    try {
      const kept = readStatement(cache.root, receipt);
      if (kept === null) continue;
      const { manifest, statement } = trust.readmit(kept, receipt);
      const files = claimed.offered(manifest, unchanged(cache.root, receipt));
      await relay.installed({ family: cache.family, manifest, statement, files });
      return;
    } catch (thrown) {
      onFailure(asRelightError(thrown));
    }
  }
}

/** By the time that each file was given: what the engine wrote since is not what was signed. */
function unchanged(root: string, { files }: Receipt): ReadonlySet<string> {
  const same = files.filter(({ path: name, mtimeMs }) => {
    const stat = fs.lstatSync(path.join(root, name), { throwIfNoEntry: false });
    return stat?.isFile() === true && stat.mtimeMs === mtimeMs;
  });
  return new Set(same.map((file) => file.path));
}
