// SPDX-License-Identifier: Apache-2.0
// `npm run sim -- [--seed=N|commit] [--seeds=N] [--replicas=N] [--no-relay] [--fan-out] [--elastic]`:
// plays fleets, or with --elastic expert groups, in virtual time. Without a seed it takes a random one
// and says which. Exit code 1 when a checker objected.

import { randomInt } from "node:crypto";
import { playElastic } from "./elastic.ts";
import { seedOfCommit } from "./seed.ts";
import { playFanOut, playSwarm } from "./simulate.ts";

const words = process.argv.slice(2);
const known = ["--seed", "--seeds", "--replicas", "--no-relay", "--fan-out", "--elastic"];
const unknown = words.find((word) => !known.includes(word.split("=")[0] ?? ""));
if (unknown !== undefined) {
  console.error(`error: no such flag: ${unknown}; known are ${known.join(", ")}`);
  process.exit(2);
}
const seed = words.includes("--seed=commit")
  ? seedOfCommit()
  : numberOf("--seed", randomInt(2 ** 31));
const seedCount = numberOf("--seeds", 1);
const isRelaying = !words.includes("--no-relay");
const isFanOut = words.includes("--fan-out");
const isElastic = words.includes("--elastic");
const replicas = numberOf("--replicas", isFanOut ? 100 : 20);

let failed = 0;
for (let offset = 0; offset < seedCount; offset++) {
  const violations = await play(seed + offset);
  for (const violation of violations) console.log(`  ${violation}`);
  if (violations.length > 0) {
    failed++;
    console.log(`  again: ${command(seed + offset)}`);
  }
}
console.log(failed === 0 ? `${seedCount} seeds, all is well` : `${failed} of ${seedCount} failed`);
process.exitCode = failed === 0 ? 0 : 1;

function play(one: number): Promise<readonly string[]> {
  if (isElastic) return elastic(one);
  return isFanOut ? fanOut(one) : swarm(one);
}

async function elastic(one: number): Promise<readonly string[]> {
  const { faults, goodSteps, faultySteps, epochs, violations } = await playElastic({ seed: one });
  const steps = `${goodSteps} good steps, ${faultySteps} faulty, ${epochs} epochs`;
  console.log(`seed ${one}: faults ${faults.join(" ") || "none"}; ${steps}`);
  return violations;
}

async function swarm(one: number): Promise<readonly string[]> {
  const result = await playSwarm({ seed: one, replicas, isRelaying });
  const faults = result.faults.join(" ") || "none";
  const outcomes = Object.entries(result.outcomes).map(([what, count]) => `${count} ${what}`);
  console.log(`seed ${one}: faults ${faults}; boots ${outcomes.join(", ")}`);
  return result.violations;
}

async function fanOut(one: number): Promise<readonly string[]> {
  const { seconds, warm, events, violations } = await playFanOut({
    seed: one,
    replicas,
    isRelaying,
  });
  console.log(`seed ${one}: ${warm} of ${replicas} warm after ${seconds} s, ${events} events`);
  return warm === replicas ? violations : [...violations, "not everybody is warm"];
}

function command(one: number): string {
  const rest = [isRelaying ? "" : " --no-relay", isFanOut ? " --fan-out" : ""].join("");
  if (isElastic) return `npm run sim -- --elastic --seed=${one}`;
  return `npm run sim -- --seed=${one} --replicas=${replicas}${rest}`;
}

function numberOf(flag: string, fallback: number): number {
  const text = words.find((word) => word.startsWith(`${flag}=`))?.slice(flag.length + 1);
  const value = text === undefined ? fallback : Number(text);
  if (Number.isSafeInteger(value) && value >= 0) return value;
  console.error(`error: cannot read ${flag}=${text}: want a whole number`);
  process.exit(2);
}
