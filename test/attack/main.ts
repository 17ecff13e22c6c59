// SPDX-License-Identifier: Apache-2.0
// `npm run attack`: every attack, one line each, and with --json one document at the end. Fails when one
// is accepted, and also when the canary is not: it must get through where trust is switched off.

import { runAttacks } from "./suite.ts";

const isJson = process.argv.includes("--json");
const { outcomes, canary } = await runAttacks({
  isQuick: process.argv.includes("--quick"),
  onOutcome: ({ name, accepted }) => {
    if (!isJson || accepted !== null)
      console.error(accepted === null ? `refused   ${name}` : `ACCEPTED  ${name}: ${accepted}`);
  },
});
const accepted = outcomes.filter((outcome) => outcome.accepted !== null).length;
const refused = outcomes.length - accepted;
if (canary !== null) console.error(`CANARY    ${canary}`);
console.log(JSON.stringify({ name: "attacks", total: outcomes.length, refused, accepted }));
process.exitCode = accepted === 0 && canary === null ? 0 : 1;
