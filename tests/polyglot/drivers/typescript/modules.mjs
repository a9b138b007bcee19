// Puts the packages in place that client and driver are built with. `node modules.mjs FOLDER` takes those of the client in
// FOLDER, where another tree has them already, so that building a copy of the tree downloads nothing.

import { execSync } from "node:child_process";
import { existsSync, mkdirSync, rmSync, symlinkSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const driver = fileURLToPath(new URL(".", import.meta.url));
const client = resolve(driver, "../../../../stubs/typescript");
const shared = resolve(process.argv[2] ?? client);

for (const [folder, needed] of [
  [shared, "@grpc/grpc-js"],
  [shared, "typescript"],
]) {
  if (!existsSync(join(folder, "node_modules", needed))) {
    execSync("npm install --ignore-scripts --no-audit --no-fund --no-package-lock", { cwd: folder, stdio: "inherit" });
  }
}
if (!existsSync(join(client, "node_modules"))) {
  symlinkSync(join(shared, "node_modules"), join(client, "node_modules"));
}
rmSync(join(driver, "node_modules"), { recursive: true, force: true });
mkdirSync(join(driver, "node_modules"));
symlinkSync(client, join(driver, "node_modules", "credentialbroker"));
symlinkSync(join(client, "node_modules", "@grpc"), join(driver, "node_modules", "@grpc"));
