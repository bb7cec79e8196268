// A server for tests, and its commands. Environment: ESKER is the binary.
import assert from "node:assert/strict";
import { spawn, execFile } from "node:child_process";
import { mkdtemp } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

export const run = promisify(execFile);
const { ESKER } = process.env;

// Generous: the machine may be slow, and what is awaited is an event, not a time.
export const WAIT_TIMEOUT = 60_000;

// Below the ports that Linux gives to connections that go out (32768 to 60999): until the server listens there, and while
// it is stopped, no connection of the browser takes it.
export async function freePort() {
  for (;;) {
    const port = 10_000 + Math.floor(Math.random() * 22_000);
    const server = createServer();
    const isFree = await new Promise((resolve) => {
      server.once("error", () => resolve(false));
      server.listen(port, "127.0.0.1", () => resolve(true));
    });
    if (!isFree) continue;
    await new Promise((resolve) => server.close(resolve));
    return port;
  }
}

export class Server {
  constructor(dir, port, args) {
    Object.assign(this, { dir, port, args, url: `http://127.0.0.1:${port}` });
  }

  async start() {
    const partitions = this.args.some((it) => it.startsWith("partitions=")) ? [] : ["--set", "partitions=4"];
    const args = ["server", "--data-dir", join(this.dir, "data"), "--listen", `127.0.0.1:${this.port}`,
      ...partitions, "--set", `snapshots.destination=${this.destination ?? join(this.dir, "backups")}`, ...this.args];
    this.log = "";
    const env = { ...process.env, ...this.serverEnv };
    this.process = spawn(ESKER, args, { stdio: ["ignore", "pipe", "pipe"], env });
    for (const out of [this.process.stdout, this.process.stderr]) out.on("data", (text) => { this.log += text; });
    const until = Date.now() + WAIT_TIMEOUT;
    for (;;) {
      const answer = await fetch(`${this.url}/health`).catch(() => null);
      if (answer?.ok) return;
      assert.ok(this.process.exitCode === null && Date.now() < until, `the server does not start:\n${this.log}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  async stop() {
    const ended = new Promise((resolve) => this.process.once("exit", resolve));
    this.process.kill("SIGTERM");
    await ended;
  }

  // A command, against this server.
  async esker(...args) {
    const env = { ...process.env, ESKER_SERVER: this.url, NO_COLOR: "1", ...this.env };
    const { stdout } = await run(ESKER, args, { env, maxBuffer: 1 << 26 });
    return stdout;
  }

  // The same with standard input.
  async pipe(input, ...args) {
    const env = { ...process.env, ESKER_SERVER: this.url, ...this.env };
    const child = spawn(ESKER, args, { env, stdio: ["pipe", "ignore", "inherit"] });
    child.stdin.end(input);
    const code = await new Promise((resolve) => child.once("exit", resolve));
    assert.equal(code, 0, `esker ${args.join(" ")}`);
  }
}

export async function newServer(args = []) {
  const dir = await mkdtemp(join(tmpdir(), "esker-console-"));
  const server = new Server(dir, await freePort(), args);
  await server.start();
  return server;
}
