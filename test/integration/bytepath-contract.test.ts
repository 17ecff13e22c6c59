// SPDX-License-Identifier: Apache-2.0
// The transport's contract over real sockets on loopback.

import { startHttpFetcher } from "../../src/transport/http-fetcher.ts";
import { startHttpServer } from "../../src/transport/http-server.ts";
import { transportContract } from "../contracts/transport.ts";

transportContract("http", {
  serve: ({ events, readersMax }) =>
    startHttpServer({
      host: "127.0.0.1",
      port: 0,
      events,
      ...(readersMax === undefined ? {} : { limits: { readersMax } }),
    }),
  fetcher: () => startHttpFetcher(),
});
