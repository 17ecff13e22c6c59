// SPDX-License-Identifier: Apache-2.0
// dependency-cruiser reads TypeScript with the compiler's own API, which version 7 does not have yet;
// without it, it sees no module and finds no fault. This gives it version 6, for this one purpose.
// Ends when dependency-cruiser supports the compiler that `npm run types` uses.

import { registerHooks } from "node:module";

registerHooks({
  resolve: (specifier, context, nextResolve) =>
    nextResolve(specifier.replace(/^typescript(?=\/|$)/, "layers-typescript"), context),
});
