// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { blake3Hex, wholeDigest } from "../core/digest.ts";
import { isOfFamily } from "./family.ts";
import { customFamily } from "./kinds/custom.ts";
import { deepGemm } from "./kinds/deep-gemm.ts";
import { flashinferAutotune } from "./kinds/flashinfer.ts";
import { triton } from "./kinds/triton.ts";
import { checkSuffixes } from "./structure.ts";

const digest = wholeDigest(blake3Hex(Buffer.from("x")));
const manifestOf = (...paths: string[]) => ({
  family: "triton",
  files: paths.map((path) => {
    const kind = { mode: 0o644, form: "plain", chunks: [] } as const;
    return { path, size: 1, digest, ...kind };
  }),
});

describe("checkSuffixes()", () => {
  test("takes what Triton writes, and nothing that an interpreter or a loader would run by its name", () => {
    const written = ["k.source", "k.ttir", "k.ttgir", "k.llir", "k.ptx", "k.cubin", "k.json"];
    const launcher = "__triton_launcher.cpython-312-x86_64-linux-gnu.so";
    checkSuffixes(triton, manifestOf(...written, "__grp__k.json", launcher));
    for (const name of ["evil.pth", "sitecustomize.py", "k.so.1", "run.sh", "k", "k.cubin.py"]) {
      const asked = () => checkSuffixes(triton, manifestOf("k.cubin", `hash/${name}`));
      assert.throws(asked, { code: "structure_invalid" }, name);
      assert.equal(isOfFamily(triton, `hash/${name}`), false);
    }
  });

  test("takes sources and binaries of DeepGEMM, and JSON of FlashInfer's tuner, alone", () => {
    for (const name of ["kernel.cu", "kernel.cubin"]) {
      assert.equal(isOfFamily(deepGemm, `cache/kernel.gemm.0f/${name}`), true, name);
    }
    assert.equal(isOfFamily(deepGemm, "cache/kernel.gemm.0f/kernel.so"), false);
    const tuned = manifestOf("0.6.1/90a/0f/autotune_configs.json");
    checkSuffixes(flashinferAutotune, tuned);
    const asked = () => checkSuffixes(flashinferAutotune, manifestOf("0.6.1/90a/0f/configs.pkl"));
    assert.throws(asked, { code: "structure_invalid" });
  });

  test("takes anything where nothing is known of what the cache holds", () => {
    assert.equal(isOfFamily(customFamily("mine", "/x"), "anything"), true);
  });
});
