// SPDX-License-Identifier: Apache-2.0
// Every expert group of this coordinator: one keeper each, opened from the store at start and when the
// first rank of a new one says hello.

import { abortOperation, beginOperation } from "../elastic/begin.ts";
import { confirmDeath } from "../elastic/controller.ts";
import type { ControllerLimits, Group } from "../elastic/group.ts";
import { checkConfig } from "../elastic/group.ts";
import { GroupKeeper, type KeeperClock } from "../elastic/keeper.ts";
import type { OperationRequest } from "../elastic/operation.ts";
import type { GroupConfig } from "../elastic/view.ts";
import { RelightError } from "../errors.ts";
import type { Store } from "../store/store.ts";
import { GroupDocuments } from "./ep-store.ts";

export interface GroupsOptions {
  readonly store: Store;
  readonly clock: KeeperClock;
  readonly limits?: Partial<ControllerLimits>;
  /** Told of each record once it is durable. */
  readonly onChange?: (group: Group, before: Group | null) => void;
  readonly onFailure?: (error: RelightError) => void;
}

/** Also those without a member: they are records in the store. */
const groupsMax = 256;

export class Groups implements AsyncDisposable {
  readonly #options: GroupsOptions;
  readonly #documents: GroupDocuments;
  readonly #keepers = new Map<string, GroupKeeper>();

  constructor(options: GroupsOptions) {
    this.#options = options;
    this.#documents = new GroupDocuments(options.store);
  }

  /** Takes up what was under way. @throws RelightError `store_unavailable`, `store_corrupt`. */
  async open(signal: AbortSignal): Promise<void> {
    for (const name of await this.#documents.names(signal)) {
      const stored = await this.#documents.load(name, signal);
      this.#keepers.set(name, new GroupKeeper(this.#keeperOptions(name), stored));
    }
  }

  get names(): readonly string[] {
    return [...this.#keepers.values()].flatMap(({ name, group }) => (group === null ? [] : [name]));
  }

  get all(): readonly GroupKeeper[] {
    return [...this.#keepers.values()];
  }

  /** @throws RelightError `not_found`. */
  keeper(name: string): GroupKeeper {
    const keeper = this.#keepers.get(name);
    if (keeper?.group != null) return keeper;
    throw new RelightError("not_found", `Cannot find group "${name}": nobody has joined it yet`);
  }

  /** The group's keeper, for a rank that joins. @throws RelightError `request_invalid`, `conflict`. */
  keeperFor(config: GroupConfig): GroupKeeper {
    const known = this.#keepers.get(config.group);
    if (known !== undefined) return known;
    checkConfig(config);
    if (this.#keepers.size >= groupsMax) {
      throw new RelightError(
        "conflict",
        `Cannot make "${config.group}": there are ${groupsMax} groups`,
      );
    }
    const keeper = new GroupKeeper(this.#keeperOptions(config.group), null);
    this.#keepers.set(config.group, keeper);
    return keeper;
  }

  /** @throws RelightError as `beginOperation`; `store_unavailable`: ask again by the same id. */
  async begin(name: string, request: OperationRequest): Promise<void> {
    const nowMs = this.#options.clock.now();
    await this.keeper(name).request((group) => {
      const begun = beginOperation(group, request, { by: "operator", nowMs });
      return request.confirmsDeath && begun !== group ? confirmDeath(begun, request.remove) : begun;
    });
  }

  /** @throws RelightError `not_found`, `ep_committed`, `store_unavailable`. */
  async abort(name: string, operationId: string): Promise<void> {
    const nowMs = this.#options.clock.now();
    await this.keeper(name).request((group) => abortOperation(group, operationId, nowMs));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#keepers.values()].map((keeper) => keeper.stop()));
  }

  #keeperOptions(name: string): ConstructorParameters<typeof GroupKeeper>[0] {
    const { clock, limits, onChange, onFailure } = this.#options;
    return {
      ...{ name, clock, store: this.#documents },
      ...(limits === undefined ? {} : { limits }),
      ...(onChange === undefined ? {} : { onChange }),
      ...(onFailure === undefined ? {} : { onFailure }),
    };
  }
}
