// SPDX-License-Identifier: Apache-2.0
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { describe, test } from "node:test";
import { loadKey, loadOrCreateKey } from "./key-file.ts";

function folder() {
  const name = fs.mkdtempSync(path.join(os.tmpdir(), "relight-key-"));
  return { name, [Symbol.dispose]: () => fs.rmSync(name, { recursive: true }) };
}

describe("key file", () => {
  test("loadOrCreateKey() makes one key, readable by its owner alone, and finds it again", () => {
    using place = folder();
    const file = path.join(place.name, "state", "author.pem");
    const made = loadOrCreateKey(file);
    assert.equal(fs.statSync(file).mode & 0o777, 0o600);
    assert.equal(loadOrCreateKey(file).publicKey.keyId, made.publicKey.keyId);
    assert.deepEqual(fs.readdirSync(path.dirname(file)), ["author.pem"]);
  });

  test("loadKey() refuses a key that does not exist", () => {
    using place = folder();
    assert.throws(() => loadKey(path.join(place.name, "none.pem")), { code: "key_unsafe" });
  });

  for (const mode of [0o640, 0o604, 0o620, 0o602, 0o644, 0o660]) {
    test(`loadKey() refuses a key of mode ${mode.toString(8)}`, () => {
      using place = folder();
      const file = path.join(place.name, "author.pem");
      loadOrCreateKey(file);
      fs.chmodSync(file, mode);
      assert.throws(() => loadOrCreateKey(file), { code: "key_unsafe", message: /want 600/ });
    });
  }

  test("loadOrCreateKey() refuses a link, a folder, a pipe and a huge file in the key's place", () => {
    using place = folder();
    const real = path.join(place.name, "real.pem");
    loadOrCreateKey(real);
    const at = (name: string) => path.join(place.name, name);
    fs.symlinkSync(real, at("link.pem"));
    fs.mkdirSync(at("folder.pem"), { mode: 0o700 });
    execFileSync("mkfifo", ["-m", "600", at("pipe.pem")]);
    fs.writeFileSync(at("huge.pem"), Buffer.alloc(5_000), { mode: 0o600 });
    fs.writeFileSync(at("garbage.pem"), "garbage", { mode: 0o600 });
    for (const name of ["link.pem", "folder.pem", "pipe.pem", "huge.pem", "garbage.pem"]) {
      assert.throws(() => loadOrCreateKey(at(name)), { code: "key_unsafe" }, name);
    }
  });
});
