// Builds dist/ when the package is installed from a folder: `npm install PATH` links the folder and runs this script in
// it, but installs nothing below it, so on the first time the package's own dependencies are installed here.

import { execFileSync, execSync } from "node:child_process";
import { existsSync } from "node:fs";
import { createRequire } from "node:module";

process.chdir(import.meta.dirname ?? new URL(".", import.meta.url).pathname);
if (!existsSync("node_modules/typescript") || !existsSync("node_modules/@grpc/grpc-js")) {
  execSync("npm install --ignore-scripts --include=dev --no-audit --no-fund --no-package-lock", { stdio: "inherit" });
}
const compiler = createRequire(import.meta.url).resolve("typescript/bin/tsc");
execFileSync(process.execPath, [compiler], { stdio: "inherit" });
