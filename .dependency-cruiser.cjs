// The import rule of ARCHITECTURE.md: a folder imports only from the layers before its own, and never from
// a sibling of its layer. `allow` names the few exceptions, each with its reason.
const layers = [
  ["core"],
  ["protocol", "config", "platform", "observe", "trust"],
  ["store", "gpu"],
  ["transport"],
  ["artifacts", "weights", "elastic"],
  ["coordinator", "agent"],
  ["dashboard", "cli"],
];
const folder = (name) => `^src/${name}/`;
const rules = layers.flatMap((layer, depth) =>
  layer.map((name) => ({
    name: `layer-${name}`,
    severity: "error",
    from: { path: folder(name) },
    to: {
      path: layers
        .slice(depth)
        .flat()
        .filter((other) => other !== name)
        .map(folder),
      // platform/ is the only code that touches clock, files and sockets; its siblings may use it.
      ...(depth === 1 && name !== "platform" ? { pathNot: [folder("platform")] } : {}),
    },
  })),
);
module.exports = {
  forbidden: [
    ...rules,
    { name: "no-cycles", severity: "error", from: {}, to: { circular: true } },
    {
      name: "coordinator-carries-no-bytes",
      severity: "error",
      from: { path: folder("coordinator") },
      to: { path: [folder("gpu"), folder("transport")] },
    },
    {
      name: "ffi-stays-in-gpu",
      comment: "And in the one file that sends past Node's streams (docs/adr/0011-sendfile.md).",
      severity: "error",
      from: { path: "^src/", pathNot: [folder("gpu"), "^src/platform/socket-sender\\.ts$"] },
      to: { path: "node_modules/koffi" },
    },
    {
      name: "domain-sees-only-contracts",
      comment: "Only the composition roots name an implementation of a port.",
      severity: "error",
      from: { path: "^src/(artifacts|weights|elastic)/", pathNot: "\\.test\\.ts$" },
      to: {
        path: "^src/(store|transport|gpu)/",
        pathNot: "^src/(store/store|transport/transport|gpu/driver)\\.ts$",
      },
    },
  ],
  options: {
    tsPreCompilationDeps: true,
    exclude: { path: ["\\.test\\.ts$"] },
    doNotFollow: { path: "node_modules" },
  },
};
