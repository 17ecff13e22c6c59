// SPDX-License-Identifier: Apache-2.0
// Whose certificates count no more, by the fleet's policy that lies with the coordinator. Its operator
// put the file there; what is checked is that it is whole and that it does not go back.

import { RelightError } from "../errors.ts";
import { decodeEnvelope, listSigners } from "../trust/envelope.ts";
import { decodePolicy, invalidPolicy, policyBytesMax } from "../trust/policy.ts";

/** Ids of the keys that a policy revokes. Versions only grow, so that no revocation is taken back. */
export class Revocations {
  #version = 0;
  #keys: ReadonlySet<string> = new Set();

  get keys(): ReadonlySet<string> {
    return this.#keys;
  }

  /** @throws RelightError `envelope_invalid`, `policy_invalid`, `policy_rollback`; what was known stays. */
  take(bytes: Buffer): void {
    const envelope = decodeEnvelope(bytes, policyBytesMax);
    const { version, roots, revokedKeys } = decodePolicy(envelope.payload);
    if (listSigners(envelope, roots.keys).length < roots.threshold)
      invalidPolicy("its own roots did not sign it");
    if (version < this.#version) {
      throw new RelightError(
        "policy_rollback",
        `Cannot take revocations from policy version ${version}: version ${this.#version} was seen already`,
      );
    }
    this.#version = version;
    this.#keys = new Set([...this.#keys, ...revokedKeys]);
  }
}
