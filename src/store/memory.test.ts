// SPDX-License-Identifier: Apache-2.0

import { storeContract } from "../../test/contracts/store.ts";
import { MemoryStore } from "./memory.ts";

storeContract("memory", async (limits) => new MemoryStore(limits));
