import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import ts from "typescript";

const snippets = [...readFileSync("README.md", "utf8").matchAll(/```ts\n([\s\S]*?)```/g)].map(([, code = ""]) => code);

test("the quickstart is the example that is run", () => {
  const [, example] = readFileSync("examples/quickstart.ts", "utf8").split(/^(?=import)/m);
  assert.equal(snippets[0], example);
});

/** What the snippets take for granted. */
const CONTEXT = `
import type { CallCredentials, ChannelCredentials } from "@grpc/grpc-js";
import type { BrokerClient } from "credentialbroker";
declare global {
  const client: BrokerClient;
  const [thread, another, url, target]: [string, string, string, string];
  const conversation: { id: string };
  const request: { setHeader(name: string, value: string): void };
  const callback: () => void;
  class Backend {
    constructor(target: string, credentials: ChannelCredentials);
    call(request: unknown, options: { credentials: CallCredentials }, callback: () => void): void;
  }
}
`;

const WS = `
declare module "ws" {
  export default class WebSocket {
    constructor(url: string, options: { headers: Record<string, string> });
    close(): void;
  }
}
`;

test("the snippets are TypeScript that compiles", () => {
  const files = new Map(snippets.slice(1).map((code, index) => [`snippet${String(index)}.ts`, `${code}\nexport {};`]));
  assert.equal(files.size, 4);
  files.set("context.d.ts", CONTEXT).set("ws.d.ts", WS);

  const { config } = ts.readConfigFile("tsconfig.dev.json", (path) => ts.sys.readFile(path)) as { config: unknown };
  const { options } = ts.parseJsonConfigFileContent(config, ts.sys, process.cwd());
  const host = ts.createCompilerHost(options);
  const disk = { ...host };
  host.fileExists = (path) => files.has(path) || disk.fileExists(path);
  host.getSourceFile = (path, version) => {
    const code = files.get(path);
    return code === undefined ? disk.getSourceFile(path, version) : ts.createSourceFile(path, code, version);
  };
  const program = ts.createProgram([...files.keys()], { ...options, noEmit: true, types: ["node"] }, host);
  const problems = ts
    .getPreEmitDiagnostics(program)
    .map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, "\n"));
  assert.deepEqual(problems, []);
});
