// SPDX-License-Identifier: Apache-2.0
// One connection to a source, one exchange after the other. node:net reads into one pooled buffer
// (`onread`), in which the body's parts are looked at where they lie: the fastest way that Node has
// (docs/adr), and memory that no source can make grow. Deadlines are checked from outside.

import net from "node:net";
import tls, { type SecureContext } from "node:tls";
import { isLoopback } from "../core/loopback.ts";
import { KiB } from "../core/units.ts";
import { asRelightError, RelightError } from "../errors.ts";
import { errnoOf } from "../platform/node-errors.ts";
import { isSpiffeId } from "../trust/pattern.ts";
import { checkServer, type TlsIdentity } from "../trust/tls.ts";
import { parseHead, type ResponseHead } from "./http-head.ts";
import type { FetchLimits } from "./transport.ts";

/** What becomes of a response's body. Throwing ends the exchange and drops the connection. */
export interface BodySink {
  /** Refuses a response that is not the wanted one. */
  head(head: ResponseHead): void;
  /**
   * Where the next bytes of the body may be read to directly, which saves a copy of them. Asked for when
   * nothing waits to be looked at; what has landed there is told, and `body` does not see it.
   */
  readonly direct?: { room(): Buffer; landed(bytes: number): void } | undefined;
  /** Looks at the bytes that are there, in order, and returns how many it is done with. */
  body(bytes: Buffer): number;
  /** How many bytes of `body` it wants to see at once before it can go on; a hint for the next read. */
  readonly wantedBytes: number;
  end(): void;
}

/** Neither has a body. */
export type Method = "GET" | "POST";

/** What we show of ourselves to sources that speak TLS. */
export interface ClientIdentity {
  readonly identity: TlsIdentity;
  readonly context: SecureContext;
}

interface Exchange {
  readonly sink: BodySink;
  readonly done: PromiseWithResolvers<void>;
  head: ResponseHead | null;
  bodyLeft: number;
}

/** What was read is hashed next: it should still lie in a core's own cache. */
const readBytesMax = 512 * KiB;
/** A shorter rest goes to the front before the next read, so that small parts stay in few, hot lines. */
const movedBytesMax = 64 * KiB;
/** Parts this long are read to their exact end, so that their rest need not be moved. */
const exactReadBytesMin = 256 * KiB;

export class Connection {
  readonly endpoint: string;
  readonly #socket: net.Socket;
  readonly #buffer: Buffer;
  readonly #limits: FetchLimits;
  #start = 0;
  #end = 0;
  #exchange: Exchange | null = null;
  #failure: RelightError | null = null;
  #isConnected = false;
  #isClosing = false;
  /** The read under way goes where the sink wants it. */
  #isDirect = false;
  #hasAnswered = false;
  #wasStale = false;
  /** When the phase began: connecting, or waiting for the head. */
  #beganMs = performance.now();
  /** When the last bytes came. */
  #sinceMs = 0;
  #windowMs = 0;
  #windowBytes = 0;

  /** `buffer` belongs to the connection until `onClosed` is called; the longest part must fit into it. */
  constructor(
    endpoint: string,
    options: {
      buffer: Buffer;
      limits: FetchLimits;
      tls: ClientIdentity | null;
      onClosed: (buffer: Buffer) => void;
    },
  ) {
    this.endpoint = endpoint;
    this.#buffer = options.buffer;
    this.#limits = options.limits;
    const at = parseEndpoint(endpoint);
    if (at.peer === null && options.tls !== null)
      throw this.#unreachable("it speaks plaintext, and sources of a fleet do not");
    this.#socket = at.peer === null ? this.#openPlain(at) : this.#openTls(at, at.peer, options.tls);
    this.#socket.on(at.peer === null ? "connect" : "secureConnect", () => {
      this.#isConnected = true;
      this.#beganMs = performance.now();
    });
    this.#socket.on("end", () => this.#lost("closed the connection"));
    this.#socket.on("error", (error) => this.#broken(error));
    this.#socket.on("close", () => {
      this.#lost("closed the connection");
      options.onClosed(this.#buffer);
    });
  }

  /** Whether another exchange can follow. */
  get isUsable(): boolean {
    return this.#failure === null && !this.#isClosing && this.#exchange === null;
  }

  /** The source hung up before a byte of its answer came: what an idle connection's time-out looks like. */
  get wasStale(): boolean {
    return this.#wasStale;
  }

  /** @throws RelightError what the sink threw, or why the source's answer did not arrive whole. */
  async run(path: string, sink: BodySink, method: Method = "GET"): Promise<void> {
    if (this.#failure !== null) throw this.#failure;
    const done = Promise.withResolvers<void>();
    this.#exchange = { sink, done, head: null, bodyLeft: 0 };
    this.#hasAnswered = false;
    this.#beganMs = performance.now();
    const { host } = parseEndpoint(this.endpoint);
    const length = method === "POST" ? "Content-Length: 0\r\n" : "";
    const head = `${method} ${path} HTTP/1.1\r\nHost: ${host}\r\nUser-Agent: relight\r\n${length}\r\n`;
    this.#socket.write(head);
    await done.promise;
  }

  /** Ends the exchange under way, if any, and the connection. */
  fail(error: RelightError): void {
    this.#failure ??= error;
    this.#exchange?.done.reject(this.#failure);
    this.#exchange = null;
    this.#socket.destroy();
  }

  /** Called often while an exchange is under way. */
  checkDeadlines(nowMs: number): void {
    if (this.#exchange === null) return;
    const phaseMs = nowMs - this.#beganMs;
    const silentMs = nowMs - this.#sinceMs;
    const { connectMsMax, firstByteMsMax, silenceMsMax, progressBytesMin } = this.#limits;
    if (!this.#isConnected) {
      if (phaseMs > connectMsMax)
        this.fail(this.#unreachable(`no connection in ${connectMsMax} ms`));
    } else if (this.#exchange.head === null) {
      if (phaseMs > firstByteMsMax) this.fail(this.#stalled(`no answer in ${firstByteMsMax} ms`));
    } else if (silentMs > silenceMsMax) {
      this.fail(this.#stalled(`silent for ${silenceMsMax} ms`));
    } else if (nowMs - this.#windowMs > silenceMsMax) {
      if (this.#windowBytes < progressBytesMin) {
        this.fail(this.#stalled(`${this.#windowBytes} bytes in ${silenceMsMax} ms`));
      }
      this.#windowMs = nowMs;
      this.#windowBytes = 0;
    }
  }

  /** Judges the source again by what we believe now; one whose key was revoked is not read to the end. */
  judgeAgain(own: ClientIdentity): void {
    const { hostname, peer } = parseEndpoint(this.endpoint);
    if (peer === null || !this.#isConnected || !(this.#socket instanceof tls.TLSSocket)) return;
    const judge = checkServer(own.identity, { wanted: peer, now: Date.now });
    const error = judge(hostname, this.#socket.getPeerCertificate(true));
    if (error !== undefined) this.fail(error);
  }

  /** This thread was held up: time that the source is not to blame for. */
  forgive(ms: number): void {
    this.#beganMs += ms;
    this.#sinceMs += ms;
    this.#windowMs += ms;
  }

  #openPlain({ hostname, port }: Endpoint): net.Socket {
    if (!isLoopback(hostname)) {
      throw this.#unreachable("it speaks plaintext beyond loopback, want https and a certificate");
    }
    return net.connect({ host: hostname, port, noDelay: true, onread: this.#onread() });
  }

  #openTls({ hostname, port }: Endpoint, peer: string, own: ClientIdentity | null): net.Socket {
    if (own === null) throw this.#unreachable("we have no certificate to show to it");
    // Node hands `onread` on to the socket; its types do not say so. From "data" events the same bytes
    // took half as long again (bench/trust.ts).
    const options: tls.ConnectionOptions & Pick<net.SocketConstructorOpts, "onread"> = {
      host: hostname,
      port,
      onread: this.#onread(),
      secureContext: own.context,
      // OpenSSL looks at the chain, this at who it is; a host's name proves nothing here.
      checkServerIdentity: checkServer(own.identity, { wanted: peer, now: Date.now }),
    };
    const socket = tls.connect(options);
    socket.setNoDelay(true);
    return socket;
  }

  #onread(): net.OnReadOpts {
    return {
      buffer: () => this.#room(),
      callback: (bytes) => {
        this.#received(bytes);
        return true;
      },
    };
  }

  #broken(error: Error): void {
    // Our own judgement of whom we met, or OpenSSL's: its codes are words, those of sockets are not.
    if (error instanceof RelightError) this.fail(error);
    else if (/^(ERR_(SSL|TLS)_|[A-Z]+_)/.test(errnoOf(error)))
      this.fail(
        this.#error(
          "certificate_invalid",
          `Cannot agree on TLS with source ${this.endpoint}: ${errnoOf(error)}`,
          error,
        ),
      );
    else this.#lost(errnoOf(error) || "an error", error);
  }

  /** Where the next read goes. */
  #room(): Buffer {
    this.#isDirect = false;
    if (this.#start === this.#end) {
      this.#start = 0;
      this.#end = 0;
      const direct = this.#exchange?.head === null ? undefined : this.#exchange?.sink.direct;
      if (direct !== undefined && this.#exchange !== null) {
        this.#isDirect = true;
        return direct.room().subarray(0, this.#exchange.bodyLeft);
      }
    }
    const wanted = this.#exchange?.sink.wantedBytes ?? 0;
    const free = this.#buffer.length - this.#end;
    const isRestShort = this.#end - this.#start <= movedBytesMax && wanted < exactReadBytesMin;
    if (isRestShort || free === 0 || this.#buffer.length - this.#start < wanted)
      this.#moveToFront();
    const missing = wanted - (this.#end - this.#start);
    const isExact = wanted >= exactReadBytesMin && missing > 0;
    const limit = isExact ? Math.min(missing, readBytesMax) : readBytesMax;
    return this.#buffer.subarray(this.#end, Math.min(this.#end + limit, this.#buffer.length));
  }

  #moveToFront(): void {
    if (this.#start === 0) return;
    this.#buffer.copyWithin(0, this.#start, this.#end);
    this.#end -= this.#start;
    this.#start = 0;
  }

  #received(bytes: number): void {
    this.#hasAnswered = true;
    this.#windowBytes += bytes;
    this.#sinceMs = performance.now();
    try {
      if (this.#isDirect) this.#land(bytes);
      else {
        this.#end += bytes;
        this.#parse();
      }
    } catch (error) {
      this.fail(asRelightError(error));
    }
  }

  #parse(): void {
    const exchange = this.#exchange;
    if (exchange === null) throw this.#protocol("it sent bytes that nobody asked for");
    if (exchange.head === null && !this.#parseHead(exchange)) return;
    const there = Math.min(this.#end - this.#start, exchange.bodyLeft);
    const used = exchange.sink.body(this.#buffer.subarray(this.#start, this.#start + there));
    this.#start += used;
    exchange.bodyLeft -= used;
    if (exchange.bodyLeft > 0) {
      if (there - used === exchange.bodyLeft)
        throw this.#protocol("it ends in the middle of a part");
      if (there === this.#buffer.length) throw this.#protocol("a part of it does not fit");
      return;
    }
    if (this.#start !== this.#end) throw this.#protocol("it is longer than its Content-Length");
    this.#finish(exchange);
  }

  #land(bytes: number): void {
    const exchange = this.#exchange;
    if (exchange === null) throw this.#protocol("it sent bytes that nobody asked for");
    exchange.sink.direct?.landed(bytes);
    exchange.bodyLeft -= bytes;
    if (exchange.bodyLeft === 0) this.#finish(exchange);
  }

  #finish(exchange: Exchange): void {
    exchange.sink.end();
    this.#exchange = null;
    if (this.#isClosing) this.#socket.destroy();
    exchange.done.resolve();
  }

  #parseHead(exchange: Exchange): boolean {
    const bytes = this.#buffer.subarray(this.#start, this.#end);
    const head = parseHead(bytes, this.#limits.headBytesMax);
    if (head === null) return false;
    this.#start += head.bytes;
    this.#windowMs = performance.now();
    this.#windowBytes = 0;
    this.#isClosing = head.closes;
    exchange.sink.head(head);
    exchange.head = head;
    exchange.bodyLeft = head.contentLength;
    return true;
  }

  /** The connection ended from the other side. */
  #lost(text: string, cause?: unknown): void {
    this.#wasStale ||= this.#isConnected && !this.#hasAnswered && this.#failure === null;
    const reason = `${text} before the answer was complete`;
    this.fail(this.#isConnected ? this.#stalled(reason, cause) : this.#unreachable(text, cause));
  }

  #unreachable(text: string, cause?: unknown): RelightError {
    return this.#error(
      "source_unreachable",
      `Cannot reach source ${this.endpoint}: ${text}`,
      cause,
    );
  }

  #stalled(text: string, cause?: unknown): RelightError {
    return this.#error(
      "source_stalled",
      `Cannot read from source ${this.endpoint}: ${text}`,
      cause,
    );
  }

  #protocol(text: string): RelightError {
    return this.#error("source_protocol", `Cannot read the response of ${this.endpoint}: ${text}`);
  }

  #error(
    code: "source_unreachable" | "source_stalled" | "source_protocol" | "certificate_invalid",
    message: string,
    cause?: unknown,
  ): RelightError {
    return new RelightError(code, message, { details: { endpoint: this.endpoint }, cause });
  }
}

interface Endpoint {
  readonly hostname: string;
  /** For the Host header. */
  readonly host: string;
  readonly port: number;
  /** Whom to expect, as the coordinator told; null where plaintext is spoken. */
  readonly peer: string | null;
}

/**
 * `http://host:port`, or `https://host:port#ID` where ID is the SPIFFE id that the source must prove.
 * @throws RelightError `source_protocol` for anything else.
 */
export function parseEndpoint(endpoint: string): Endpoint {
  const url = URL.canParse(endpoint) ? new URL(endpoint) : null;
  const isForm =
    url !== null &&
    url.pathname === "/" &&
    url.search === "" &&
    url.username === "" &&
    url.password === "";
  const peer = url?.hash.slice(1) ?? "";
  const isPlain = url?.protocol === "http:" && peer === "";
  const isSecure = url?.protocol === "https:" && isSpiffeId(peer);
  if (!isForm || !(isPlain || isSecure)) {
    throw new RelightError(
      "source_protocol",
      `Cannot use endpoint "${endpoint.slice(0, 100)}": want http://host:port or https://host:port#ID`,
    );
  }
  const hostname = url.hostname.replace(/^\[(.*)\]$/, "$1");
  const port = Number(url.port || (isSecure ? "443" : "80"));
  return { hostname, host: url.host, port, peer: isSecure ? peer : null };
}
