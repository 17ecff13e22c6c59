// SPDX-License-Identifier: Apache-2.0
// Messages of gRPC that lie about their length or unpack to more than they may have, as no gRPC library
// sends them.

import http2 from "node:http2";
import type { TLSSocket } from "node:tls";
import { gzipSync } from "node:zlib";

const MiB = 1_024 * 1_024;
const answerMsMax = 15_000;

const messages = {
  /** Announces as much as the field can hold, and waits. */
  announced: () => ({ bytes: prefixed(0, 0x7fff_ffff), isEnd: false }),
  /** 256 MiB of nothing in a quarter of a MiB. */
  bomb: () => {
    const packed = gzipSync(Buffer.alloc(256 * MiB));
    return { bytes: Buffer.concat([prefixed(1, packed.length), packed]), isEnd: true };
  },
} satisfies Record<string, () => { bytes: Buffer; isEnd: boolean }>;

/** @returns `grpc_STATUS` by its number, `reset`, or `hung_up`. */
export async function sendMessage(what: keyof typeof messages, socket: TLSSocket): Promise<string> {
  const session = http2.connect("https://relight", { createConnection: () => socket });
  session.on("error", () => {});
  const request = session.request({
    ":method": "POST",
    ":path": "/model_express.p2p.P2pService/ListSources",
    "content-type": "application/grpc",
    "grpc-encoding": "gzip",
    te: "trailers",
  });
  const { bytes, isEnd } = messages[what]();
  const answered = new Promise<string>((resolve) => {
    const look = (headers: http2.IncomingHttpHeaders) => {
      if (headers["grpc-status"] !== undefined) resolve(`grpc_${headers["grpc-status"]}`);
    };
    request.on("response", look);
    request.on("trailers", look);
    request.on("error", () => resolve("reset"));
    request.on("close", () => resolve("hung_up"));
    setTimeout(() => resolve("still_open"), answerMsMax).unref();
  });
  request.resume();
  request.write(bytes);
  if (isEnd) request.end();
  const answer = await answered;
  session.destroy();
  return answer;
}

/** The five bytes before a message. */
function prefixed(isCompressed: 0 | 1, bytes: number): Buffer {
  const head = Buffer.alloc(5);
  head[0] = isCompressed;
  head.writeUInt32BE(bytes, 1);
  return head;
}
