// SPDX-License-Identifier: Apache-2.0

import { transportContract } from "../../test/contracts/transport.ts";
import { MemoryNetwork } from "./memory.ts";

const network = new MemoryNetwork();

transportContract("memory", {
  serve: async (options) => network.serve(options),
  fetcher: () => network.fetcher(),
});
