// SPDX-License-Identifier: Apache-2.0
// Records of expert groups as documents of the coordinator's store, one each, by compare-and-set.

import type { Group } from "../elastic/group.ts";
import type { GroupStore, StoredGroup } from "../elastic/keeper.ts";
import { encode, readRecord } from "../elastic/wire.ts";
import type { Store } from "../store/store.ts";

const prefix = "ep/";

export class GroupDocuments implements GroupStore {
  readonly #store: Store;

  constructor(store: Store) {
    this.#store = store;
  }

  async load(name: string, signal: AbortSignal): Promise<StoredGroup | null> {
    const document = await this.#store.document(`${prefix}${name}`, signal);
    if (document === undefined) return null;
    return { group: readRecord(document.bytes), revision: document.revision };
  }

  save(group: Group, replaces: number | null, signal: AbortSignal): Promise<number | null> {
    const name = `${prefix}${group.config.group}`;
    return this.#store.putDocument({ name, bytes: encode(group), replaces }, signal);
  }

  async names(signal: AbortSignal): Promise<readonly string[]> {
    const names = await this.#store.documentNames(signal);
    return names.flatMap((name) => (name.startsWith(prefix) ? [name.slice(prefix.length)] : []));
  }
}
