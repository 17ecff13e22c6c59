// SPDX-License-Identifier: Apache-2.0
// Sources that break the protocol in every way we could think of, and targets that do: each ends with
// the right code, nothing wrong is written, and other sources carry on.

import assert from "node:assert/strict";
import { once } from "node:events";
import fs from "node:fs";
import net from "node:net";
import path from "node:path";
import { after, before, describe, test } from "node:test";
import { KiB, MiB } from "../../src/core/units.ts";
import type { Code } from "../../src/errors.ts";
import { startHttpFetcher } from "../../src/transport/http-fetcher.ts";
import { startHttpServer } from "../../src/transport/http-server.ts";
import type {
  FetchLimits,
  PieceFetcher,
  PieceServer,
  ServerLimits,
} from "../../src/transport/transport.ts";
import { withCode } from "../contracts/transport.ts";
import { drip, framed, hostileSource, okHead } from "../support/hostile.ts";
import { pullWith } from "../support/pull.ts";
import { differences, makeFolder, makeTree, offerOf, stagingFor } from "../support/tree.ts";

/** Short, so that what is slow is seen to be slow within a test. */
const limits: FetchLimits = {
  connectMsMax: 300,
  firstByteMsMax: 300,
  silenceMsMax: 300,
  progressBytesMin: 4 * KiB,
  headBytesMax: 16 * KiB,
};

const size = 64 * KiB;
const total = size + 8;

interface Fault {
  readonly name: string;
  readonly code: Code;
  answer(socket: net.Socket, piece: Buffer): void;
}

const faults: readonly Fault[] = [
  {
    name: "closes in the middle of the body",
    code: "source_stalled",
    answer: (socket, piece) =>
      socket.end(Buffer.concat([Buffer.from(okHead(total)), framed(0, piece).subarray(0, 999)])),
  },
  {
    name: "resets the connection",
    code: "source_stalled",
    answer: (socket, piece) => {
      socket.write(okHead(total));
      socket.write(framed(0, piece).subarray(0, 999), () => socket.resetAndDestroy());
    },
  },
  { name: "closes without an answer", code: "source_stalled", answer: (socket) => socket.end() },
  { name: "never answers", code: "source_stalled", answer: () => {} },
  {
    name: "falls silent in the body",
    code: "source_stalled",
    answer: (socket, piece) => {
      socket.write(okHead(total));
      socket.write(framed(0, piece).subarray(0, 30 * KiB));
    },
  },
  {
    name: "drips the body a byte at a time",
    code: "source_stalled",
    answer: (socket, piece) => {
      socket.write(okHead(total));
      drip(socket, framed(0, piece), 20);
    },
  },
  {
    name: "drips the head a byte at a time",
    code: "source_stalled",
    answer: (socket) => drip(socket, Buffer.from(`HTTP/1.1 200 OK\r\nX: ${"x".repeat(9_999)}`), 20),
  },
  {
    name: "announces more than was asked for",
    code: "source_protocol",
    answer: (socket) => socket.write(okHead(total + 1)),
  },
  {
    name: "announces less than a frame",
    code: "source_protocol",
    answer: (socket) => socket.write(okHead(3)),
  },
  {
    name: "ends before the piece although its length agrees",
    code: "source_protocol",
    answer: (socket, piece) => {
      socket.write(okHead(1_000));
      socket.write(framed(0, piece).subarray(0, 1_000));
    },
  },
  {
    name: "never ends its head",
    code: "source_protocol",
    answer: (socket) => {
      socket.write("HTTP/1.1 200 OK\r\n");
      for (let line = 0; line < 400; line++) socket.write(`X-Line-${line}: ${"x".repeat(90)}\r\n`);
    },
  },
  {
    name: "sends garbage",
    code: "source_protocol",
    answer: (socket) => socket.write(Buffer.alloc(20, 0xee)),
  },
  {
    name: "speaks another protocol",
    code: "source_protocol",
    answer: (socket) => socket.write("SSH-2.0-OpenSSH_9.2\r\n"),
  },
  {
    name: "answers in chunks",
    code: "source_protocol",
    answer: (socket) => socket.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
  },
  {
    name: "names two lengths",
    code: "source_protocol",
    answer: (socket) => socket.write(okHead(total, `Content-Length: ${total + 1}\r\n`)),
  },
  {
    name: "names no length",
    code: "source_protocol",
    answer: (socket) => socket.write("HTTP/1.1 200 OK\r\n\r\n"),
  },
  {
    name: "redirects",
    code: "source_protocol",
    answer: (socket) =>
      socket.write(
        "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
      ),
  },
  {
    name: "fails inside",
    code: "source_protocol",
    answer: (socket) => socket.write("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"),
  },
  {
    name: "sends another piece",
    code: "source_protocol",
    answer: (socket, piece) =>
      socket.write(Buffer.concat([Buffer.from(okHead(total)), framed(7, piece)])),
  },
  {
    name: "sends a frame of another length",
    code: "source_protocol",
    answer: (socket, piece) =>
      socket.write(Buffer.concat([Buffer.from(okHead(total)), framed(0, piece, size - 1)])),
  },
  {
    name: "no longer has it",
    code: "source_gone",
    answer: (socket) => socket.write("HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"),
  },
  {
    name: "is busy",
    code: "source_busy",
    answer: (socket) =>
      socket.write("HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"),
  },
  {
    name: "flips one bit",
    code: "digest_mismatch",
    answer: (socket, piece) => {
      const flipped = Buffer.from(piece);
      flipped[1_000] = (flipped[1_000] ?? 0) ^ 4;
      socket.write(Buffer.concat([Buffer.from(okHead(total)), framed(0, flipped)]));
    },
  },
];

/** Threads take longer to start than most of these tests run: all share one fetcher and one good server. */
let fetcher: PieceFetcher;
let server: PieceServer;
before(async () => {
  fetcher = startHttpFetcher({ threads: 1, limits });
  server = await serve();
});
after(async () => {
  await fetcher[Symbol.asyncDispose]();
  await server[Symbol.asyncDispose]();
});

describe("a source that", () => {
  for (const fault of faults) {
    test(`${fault.name} ends a request with ${fault.code}, and nothing of it is written`, async () => {
      using tree = makeTree({ kernel: size });
      using folder = makeFolder();
      const piece = fs.readFileSync(path.join(tree.root, "kernel"));
      await using hostile = await hostileSource((socket) => fault.answer(socket, piece));
      const into = stagingFor(tree, folder.path);
      const { artifactId } = tree.manifest;
      const order = { endpoint: hostile.endpoint, artifactId, pieces: [0], into };
      const request = fetcher.pieces(order, () => {}, AbortSignal.timeout(10_000));
      await assert.rejects(request, withCode(fault.code));
      assert.deepEqual(fs.readdirSync(folder.path), []);
      assert.equal(into.have.count(), 0);
    });
  }

  test("sends more than its Content-Length ends with source_protocol; what was verified stays", async () => {
    using tree = makeTree({ kernel: size });
    using folder = makeFolder();
    const piece = fs.readFileSync(path.join(tree.root, "kernel"));
    const answer = Buffer.concat([Buffer.from(okHead(total)), framed(0, piece), Buffer.alloc(100)]);
    await using hostile = await hostileSource((socket) => socket.write(answer));
    const into = stagingFor(tree, folder.path);
    const { artifactId } = tree.manifest;
    const order = { endpoint: hostile.endpoint, artifactId, pieces: [0], into };
    const request = fetcher.pieces(order, () => {}, AbortSignal.timeout(10_000));
    await assert.rejects(request, withCode("source_protocol"));
    assert.deepEqual(differences(tree, folder.path), []);
  });

  test("can not be reached ends a request with source_unreachable", async () => {
    using tree = makeTree({ kernel: 1 });
    // A documentation address (RFC 5737): refused at once or never answered, by where the test runs.
    const at = { endpoint: "http://192.0.2.1:9", artifactId: tree.manifest.artifactId };
    const request = fetcher.manifest(at, { bytesMax: MiB }, AbortSignal.timeout(10_000));
    await assert.rejects(request, withCode("source_unreachable"));
  });

  test("has an endpoint of another kind is refused before anything is opened", async () => {
    using tree = makeTree({ kernel: 1 });
    for (const endpoint of [
      "https://a:1",
      "http://u:p@a:1",
      "http://a:1/x",
      "file:///etc/passwd",
      "x",
    ]) {
      const at = { endpoint, artifactId: tree.manifest.artifactId };
      const request = fetcher.manifest(at, { bytesMax: MiB }, AbortSignal.timeout(10_000));
      await assert.rejects(request, withCode("source_protocol"), endpoint);
    }
  });

  test("announces an endless manifest ends with source_protocol", async () => {
    using tree = makeTree({ kernel: 1 });
    await using hostile = await hostileSource((socket) => socket.write(okHead(999_999_999_999)));
    const at = { endpoint: hostile.endpoint, artifactId: tree.manifest.artifactId };
    const request = fetcher.manifest(at, { bytesMax: MiB }, AbortSignal.timeout(10_000));
    await assert.rejects(request, withCode("source_protocol"));
  });

  test("names a set of pieces of another size ends with source_protocol", async () => {
    using tree = makeTree({ kernel: 1 });
    await using hostile = await hostileSource((socket) => socket.write(`${okHead(1)}x`));
    const at = { endpoint: hostile.endpoint, artifactId: tree.manifest.artifactId };
    const request = fetcher.have(at, 100, AbortSignal.timeout(10_000));
    await assert.rejects(request, withCode("source_protocol"));
  });

  test("closes an idle connection costs no failure: the request goes out again on a new one", async () => {
    using tree = makeTree({ kernel: 1 });
    await using server = await serve({ idleMsMax: 1 });
    await server.offer(offerOf(tree));
    const at = { endpoint: server.endpoint, artifactId: tree.manifest.artifactId };
    for (let round = 0; round < 20; round++) {
      await fetcher.manifest(at, { bytesMax: MiB }, AbortSignal.timeout(10_000));
    }
  });
});

describe("a pull with a whole source and one that", () => {
  const quick = { backoffMsMin: 5, backoffMsMax: 20, stealMsMin: 100 };
  for (const fault of faults) {
    test(`${fault.name} is complete`, async () => {
      using tree = makeTree(
        Object.fromEntries(Array.from({ length: 40 }, (_, at) => [`k${at}`, size])),
      );
      using folder = makeFolder();
      const piece = fs.readFileSync(path.join(tree.root, "k0"));
      await using hostile = await hostileSource((socket) => fault.answer(socket, piece));
      await server.offer(offerOf(tree));
      const staging = stagingFor(tree, folder.path);
      const { artifactId } = tree.manifest;
      const sources = [hostile, server].map(({ endpoint }) => ({ endpoint, isComplete: true }));
      const pull = pullWith({ fetcher, artifactId, sources, staging, settings: quick });
      const report = await pull.done;
      assert.deepEqual(differences(tree, folder.path), []);
      assert.equal(report.pieces, 40);
      assert.equal(report.sources.find((source) => source.endpoint === hostile.endpoint)?.bytes, 0);
      assert.ok(hostile.requests.length > 0);
    });
  }
});

test("startHttpServer() refuses a port that another server has, although its own threads share one", async () => {
  const { host, port } = { host: "127.0.0.1", port: Number(new URL(server.endpoint).port) };
  const events = { fileChanged: () => {} };
  await assert.rejects(startHttpServer({ host, port, events }), withCode("port_in_use"));
});

describe("a target that", () => {
  test("does not read is dropped, and its place is free again", async () => {
    using tree = makeTree({ large: 32 * MiB });
    await using server = await serve({ readerSilenceMsMax: 200, readersMax: 1 });
    await server.offer(offerOf(tree));
    const socket = await connect(server);
    socket.pause();
    socket.write(
      `GET /v1/artifacts/${tree.manifest.artifactId}/files/0 HTTP/1.1\r\nHost: x\r\n\r\n`,
    );
    await until(() => server.stats().readers === 1);
    await until(() => server.stats().readers === 0);
    assert.ok(server.stats().bytesSent < 32 * MiB);
    socket.destroy();
  });

  test("sends an endless head is answered 431 and dropped", async () => {
    await using server = await serve({ headBytesMax: 4 * KiB });
    const answer = await ask(server, `GET /healthz HTTP/1.1\r\nX: ${"x".repeat(6 * KiB)}\r\n\r\n`);
    assert.match(answer, /^HTTP\/1\.1 431 /);
  });

  test("takes too long for its head is answered 408 and dropped", async () => {
    await using server = await serve({ headMsMax: 200 });
    assert.match(await ask(server, "GET /healthz HTTP/1.1\r\nX: "), /^HTTP\/1\.1 408 /);
  });

  const bad: readonly [string, string, number][] = [
    ["posts", "POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n", 400],
    ["sends a body", "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n", 400],
    ["asks for another path", "GET /v1/../etc/passwd HTTP/1.1\r\nHost: x\r\n", 404],
    [
      "asks for an unknown artifact",
      `GET /v1/artifacts/${"0".repeat(64)}/have HTTP/1.1\r\nHost: x\r\n`,
      404,
    ],
    [
      "asks for pieces beyond the last",
      "GET /v1/artifacts/ID/pieces?ranges=0-99 HTTP/1.1\r\nHost: x\r\n",
      400,
    ],
    [
      "asks for pieces backwards",
      "GET /v1/artifacts/ID/pieces?ranges=2,1 HTTP/1.1\r\nHost: x\r\n",
      400,
    ],
    ["asks for no pieces", "GET /v1/artifacts/ID/pieces HTTP/1.1\r\nHost: x\r\n", 400],
    [
      "asks for too many bytes",
      "GET /v1/artifacts/ID/pieces?ranges=0-1 HTTP/1.1\r\nHost: x\r\n",
      400,
    ],
    [
      "asks for a file that is not listed",
      "GET /v1/artifacts/ID/files/9 HTTP/1.1\r\nHost: x\r\n",
      404,
    ],
    [
      "asks for a range beyond the file",
      "GET /v1/artifacts/ID/files/0 HTTP/1.1\r\nHost: x\r\nRange: bytes=200-\r\n",
      416,
    ],
  ];
  for (const [name, head, status] of bad) {
    test(`${name} is answered ${status} with a code`, async () => {
      using tree = makeTree({ a: 100, b: 100, c: 100 });
      await using server = await serve({ bytesPerRequestMax: 150 });
      await server.offer(offerOf(tree));
      const text = head.replace("ID", tree.manifest.artifactId);
      const answer = await ask(server, `${text}Connection: close\r\n\r\n`);
      assert.match(answer, new RegExp(`^HTTP/1\\.1 ${status} `));
      assert.match(answer, /"code":"[a-z_]+"/);
    });
  }

  test("opens more connections than are allowed gets those that are", async () => {
    await using server = await serve({ connectionsMax: 2 });
    const sockets = await Promise.all([connect(server), connect(server), connect(server)]);
    const closed = await Promise.race(
      sockets.map(async (socket) => (await once(socket, "close")) && true),
    );
    assert.equal(closed, true);
    for (const socket of sockets) socket.destroy();
  });
});

function serve(changed: Partial<ServerLimits> = {}): Promise<PieceServer> {
  const events = { fileChanged: () => {} };
  return startHttpServer({ host: "127.0.0.1", port: 0, threads: 1, limits: changed, events });
}

async function connect(server: PieceServer): Promise<net.Socket> {
  const socket = net.connect(Number(new URL(server.endpoint).port), "127.0.0.1");
  socket.on("error", () => {}); // Being reset is one way of being dropped.
  await once(socket, "connect");
  return socket;
}

/** What the server answers until it closes the connection. */
async function ask(server: PieceServer, text: string): Promise<string> {
  const socket = await connect(server);
  let answer = "";
  socket.on("data", (bytes) => {
    answer += bytes.toString("latin1");
  });
  socket.write(text);
  await until(() => socket.destroyed);
  return answer;
}

async function until(isTrue: () => boolean): Promise<void> {
  const giveUpMs = performance.now() + 10_000;
  while (!isTrue()) {
    assert.ok(performance.now() < giveUpMs, "waited in vain");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
