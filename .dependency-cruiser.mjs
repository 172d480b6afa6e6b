/**
 * Which folder may import which (docs/architecture.md). Imports point one way; what stands on top of
 * everything is imported by nothing.
 */

const foundation = ["context", "store", "responses", "tools"];

/**
 * @param {string} folder
 * @param {string[]} allowed folders and files of src beside the folder's own
 */
function mayImport(folder, allowed) {
  const targets = [folder, ...allowed].map((name) =>
    name.includes(".") ? `${name}$` : `${name}/`,
  );
  return {
    name: `${folder}-imports`,
    comment: `src/${folder} imports, of ours, only ${["itself", ...allowed].join(", ")}`,
    severity: "error",
    from: { path: `^src/${folder}(/|\\.ts$)` },
    to: { path: "^(src|test|bench|crash|setup)/", pathNot: `^src/(${targets.join("|")})` },
  };
}

/** @type {import("dependency-cruiser").IConfiguration} */
export default {
  forbidden: [
    mayImport("turn", []),
    mayImport("workflows", ["turn", "activities"]),
    ...foundation.map((folder) => mayImport(folder, ["turn"])),
    mayImport("events", ["turn", "store"]),
    mayImport("simulator", ["turn"]),
    mayImport("activities", ["turn", "events", ...foundation]),
    mayImport("client", [
      "turn",
      "store",
      "events",
      "engine.ts",
      "temporal.ts",
      "turns.ts",
      "clientParts.ts",
    ]),
    mayImport("turns", ["turn", "store", "clientParts.ts", "turnEvents.ts", "turnHandle.ts"]),
    mayImport("turnHandle", ["turn", "turns.ts"]),
    mayImport("turnEvents", ["turn", "store", "events", "clientParts.ts"]),
    mayImport("clientParts", ["turn", "store", "events", "engine.ts"]),
    {
      name: "workflows-see-only-types-of-activities",
      comment: "an activity's code does not belong into the workflow bundle",
      severity: "error",
      from: { path: "^src/workflows/" },
      to: { path: "^src/activities/", dependencyTypesNot: ["type-only"] },
    },
    {
      name: "workflows-are-deterministic",
      comment: "no Node built-ins and no packages but Temporal's own for workflows",
      severity: "error",
      from: { path: "^src/workflows/" },
      to: { pathNot: "^src/|^node_modules/@temporalio/(workflow|common)/" },
    },
    {
      name: "pure",
      comment: "turn and context do no I/O; hashes and random ids are all they take from Node",
      severity: "error",
      from: { path: "^src/(turn|context)/" },
      to: { dependencyTypes: ["core"], pathNot: "^(node:)?crypto$" },
    },
    {
      name: "top-is-imported-by-nothing",
      comment: "worker, gateway, cli and dev stand on top; the command line starts them",
      severity: "error",
      from: { path: "^src/", pathNot: "^src/(cli|index|build|commands/|dev/|gateway/)" },
      to: { path: "^src/(cli|commands|gateway|worker|dev|index)(/|\\.ts$)" },
    },
    {
      name: "product-without-tests",
      severity: "error",
      from: { path: "^(src|setup)/" },
      to: { path: "^(test|bench|crash)/" },
    },
    {
      name: "setup-stands-alone",
      comment: "it runs before anything is installed, under a Node that cannot run TypeScript",
      severity: "error",
      from: { path: "^setup/" },
      to: { pathNot: "^setup/", dependencyTypesNot: ["core"] },
    },
    {
      name: "no-development-packages",
      severity: "error",
      from: { path: "^(src|setup)/" },
      to: {
        dependencyTypes: ["npm-dev", "npm-no-pkg", "npm-unknown"],
        dependencyTypesNot: ["type-only"],
      },
    },
    {
      name: "no-cycles",
      severity: "error",
      from: {},
      to: { circular: true, viaOnly: { dependencyTypesNot: ["type-only"] } },
    },
    {
      name: "no-unresolvable",
      severity: "error",
      from: {},
      to: { couldNotResolve: true },
    },
    {
      name: "named-for-what-it-does",
      comment: "utils, helpers, common, lib and misc mean that a thing has not been named yet",
      severity: "error",
      from: {},
      to: { path: "/(utils?|helpers?|common|lib|misc)[/.]", pathNot: "^node_modules/" },
    },
  ],
  options: {
    parser: "swc",
    doNotFollow: { path: "node_modules" },
    exclude: { path: "^(dist|node_modules/.*/node_modules)/" },
    tsPreCompilationDeps: true,
    enhancedResolveOptions: {
      exportsFields: ["exports"],
      conditionNames: ["import", "node", "default", "types"],
      extensions: [".ts", ".mjs", ".js", ".json"],
    },
  },
};
