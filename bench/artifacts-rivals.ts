// SPDX-License-Identifier: Apache-2.0
// The tools that one would use instead: nginx and curl, tar over a socket, an rsync daemon, a tar file; and
// what the kernel alone would take.
// A tool that is not installed makes its lines absent, with a word on the terminal.

import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import net from "node:net";
import path from "node:path";

export interface Rival {
  readonly name: string;
  /** Programs that it needs. */
  readonly needs: readonly string[];
  /** A shell command; it runs in the fresh target folder, the sources lie in `$BASE`. */
  readonly command: string;
}

const curl = (files: readonly number[]) =>
  `curl -sf ${files.map((file) => `-o f${file} http://127.0.0.1:$HTTP/big/f${file}`).join(" ")}`;

export const rivals = {
  nginxCurl: { name: "nginx_curl", needs: ["nginx", "curl"], command: curl([0, 1, 2, 3]) },
  nginxTwoCurls: {
    name: "nginx_two_curls",
    needs: ["nginx", "curl"],
    command: `${curl([0, 1])} & ${curl([2, 3])} & wait`,
  },
  tarNc: {
    name: "tar_nc",
    needs: ["tar", "nc"],
    command:
      "(tar -C $BASE -cf - tree | nc -N -l 127.0.0.1 $NC) & until nc -d 127.0.0.1 $NC 2>/dev/null | tar -xf - 2>/dev/null; do :; done; wait",
  },
  rsync: {
    name: "rsync",
    needs: ["rsync"],
    command: "rsync -a --whole-file rsync://127.0.0.1:$RSYNC/base/tree/ .",
  },
  /** A bound rather than a rival: the system calls alone, in C (bench/artifacts_floor.c). */
  cFloor: { name: "c_floor", needs: ["cc"], command: "$BASE/floor $BASE/tree $PWD 2" },
  tarFile: {
    name: "tar_file",
    needs: ["tar", "nginx", "curl", "sha256sum"],
    command:
      "tar -C $BASE -cf $BASE/a.tar tree && sha256sum $BASE/a.tar >$BASE/a.sum && curl -sf -o $BASE/b.tar http://127.0.0.1:$HTTP/a.tar && sha256sum $BASE/b.tar >$BASE/b.sum && tar -xf $BASE/b.tar; rm -f $BASE/a.tar $BASE/b.tar",
  },
} as const satisfies Record<string, Rival>;

/** Daemons that the rivals need, on free ports; stops them when disposed. */
export class RivalDaemons implements AsyncDisposable {
  readonly #environment: NodeJS.ProcessEnv;
  readonly #base: string;

  private constructor(base: string, environment: NodeJS.ProcessEnv) {
    this.#base = base;
    this.#environment = environment;
  }

  static async start(base: string): Promise<RivalDaemons> {
    const [http, nc, rsync] = await Promise.all([freePort(), freePort(), freePort()]);
    const environment = {
      ...process.env,
      BASE: base,
      HTTP: `${http}`,
      NC: `${nc}`,
      RSYNC: `${rsync}`,
    };
    const daemons = new RivalDaemons(base, environment);
    if (has("cc")) compileFloor(base);
    if (has("nginx")) daemons.#startNginx(http);
    if (has("rsync")) daemons.#startRsync(rsync);
    return daemons;
  }

  /** How long the rival took, in seconds. */
  async time(rival: Rival, target: string): Promise<number> {
    fs.mkdirSync(target);
    const began = performance.now();
    const child = spawn("/bin/bash", ["-c", rival.command], {
      cwd: target,
      env: this.#environment,
      stdio: ["ignore", "ignore", "inherit"],
    });
    const [code] = await once(child, "exit");
    const seconds = (performance.now() - began) / 1_000;
    if (code !== 0) throw new Error(`${rival.name} ended with ${code}`);
    return seconds;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const name of ["nginx.pid", "rsync.pid"]) {
      const file = path.join(this.#base, name);
      if (fs.existsSync(file)) process.kill(Number(fs.readFileSync(file, "utf8")));
    }
  }

  #startNginx(port: number): void {
    const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
      .map((kind) => `${kind}_temp_path ${this.#base}/nginx-${kind};`)
      .join(" ");
    const user = process.getuid?.() === 0 ? "user root;" : "";
    const config = `${user} worker_processes 2; pid ${this.#base}/nginx.pid; error_log /dev/null; events {}
      http { access_log off; sendfile on; ${temporary}
      server { listen 127.0.0.1:${port}; root ${this.#base}; } }`;
    fs.writeFileSync(path.join(this.#base, "nginx.conf"), config);
    start("nginx", ["-c", `${this.#base}/nginx.conf`, "-p", this.#base]);
  }

  #startRsync(port: number): void {
    const owner = process.getuid?.() === 0 ? "uid = 0\ngid = 0\n" : "";
    const config = `port = ${port}\naddress = 127.0.0.1\nuse chroot = no\npid file = ${this.#base}/rsync.pid\n[base]\npath = ${this.#base}\nread only = yes\n${owner}`;
    fs.writeFileSync(path.join(this.#base, "rsyncd.conf"), config);
    start("rsync", ["--daemon", `--config=${this.#base}/rsyncd.conf`]);
  }
}

function compileFloor(base: string): void {
  const source = path.join(import.meta.dirname, "artifacts_floor.c");
  start("cc", ["-O2", "-o", path.join(base, "floor"), source]);
}

const streamTool = "iperf3";

/** GiB/s of a raw stream over loopback with two connections; null without iperf3. */
export async function loopbackSpeed(): Promise<number | null> {
  if (!has(streamTool)) return null;
  const port = `${await freePort()}`;
  start(streamTool, ["-s", "-1", "-D", "-p", port]);
  const words = ["-c", "127.0.0.1", "-p", port, "-P", "2", "-t", "2", "-J"];
  for (let attempt = 0; attempt < 20; attempt++) {
    const { status, stdout } = spawnSync(streamTool, words, { encoding: "utf8" });
    if (status !== 0) continue;
    return JSON.parse(stdout).end.sum_received.bits_per_second / 8 / 2 ** 30;
  }
  return null;
}

/** Names of programs that are not installed. */
export function missing(needs: readonly string[]): string[] {
  return needs.filter((program) => !has(program));
}

function has(program: string): boolean {
  return spawnSync("/bin/sh", ["-c", `command -v ${program}`], { env: environment() }).status === 0;
}

/** Closed standard input: a daemon that finds a socket there takes itself for started by inetd. */
function start(program: string, words: readonly string[]): void {
  const { status } = spawnSync(program, words, { stdio: "ignore", env: environment() });
  if (status !== 0) throw new Error(`${program} ended with ${status}`);
}

/** System daemons lie outside the search path of an ordinary user. */
function environment(): NodeJS.ProcessEnv {
  return { ...process.env, PATH: `${process.env["PATH"]}:/usr/sbin:/sbin` };
}

async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  return address !== null && typeof address === "object" ? address.port : 0;
}
