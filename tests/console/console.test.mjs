// The console in a browser: each page against a real server under load.
//
// Started by `scripts/test-console`, with what it needs in the environment:
//   ESKER         the binary
//   NODE_MODULES  where playwright-core and axe-core are
//   CHROMIUM      the browser
//   SCREENSHOTS   where pictures of the pages go; none are taken if it is not set
import assert from "node:assert/strict";
import { spawn, execFile } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { promisify } from "node:util";

const require = createRequire(join(process.env.NODE_MODULES, "x.js"));
const { chromium } = require("playwright-core");
const axe = await readFile(require.resolve("axe-core/axe.min.js"), "utf8");
const run = promisify(execFile);
const { ESKER, CHROMIUM, SCREENSHOTS } = process.env;

// Generous: the machine may be slow, and what is awaited is an event, not a time.
const WAIT_TIMEOUT = 60_000;
const SCRIPT = `<script>document.title="owned"</script><b>bold</b>`;

async function freePort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

class Server {
  constructor(dir, port, args) {
    Object.assign(this, { dir, port, args, url: `http://127.0.0.1:${port}` });
  }

  async start() {
    const args = ["server", "--data-dir", join(this.dir, "data"), "--listen", `127.0.0.1:${this.port}`,
      "--set", "partitions=4", "--set", `snapshots.destination=${join(this.dir, "backups")}`, ...this.args];
    this.log = "";
    this.process = spawn(ESKER, args, { stdio: ["ignore", "pipe", "pipe"] });
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

async function newServer(args = []) {
  const dir = await mkdtemp(join(tmpdir(), "esker-console-"));
  const server = new Server(dir, await freePort(), args);
  await server.start();
  return server;
}

// Every page of a server that has one stream, one agent and snapshots.
const PAGES = {
  overview: "/",
  snapshots: "/dashboard/snapshots?partition=1",
  prune: "/dashboard/prune?partition=1&keep=1",
  basins: "/dashboard/streams",
  streams: "/dashboard/streams?basin=my-basin",
  stream: "/dashboard/stream?basin=my-basin&name=orders&format=json",
  record: "/dashboard/record?basin=my-basin&name=orders&seq_num=3",
  state: "/dashboard/state",
  keys: "/dashboard/state?namespace=default&agent=agent-1",
  key: "/dashboard/key?namespace=default&agent=agent-1&key=memory&old=1&new=3",
  cluster: "/dashboard/cluster",
};

let browser;
before(async () => {
  browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync"],
  });
});
after(() => browser.close());

// A page of a context of its own. Whatever the browser complains about fails the test.
async function newPage(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(WAIT_TIMEOUT);
  page.complaints = [];
  page.on("pageerror", (error) => page.complaints.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error" && !/Failed to load resource|ERR_CONNECTION|ERR_INCOMPLETE/.test(message.text())) {
      page.complaints.push(message.text());
    }
  });
  return page;
}

describe("without tokens", () => {
  let server;
  before(async () => {
    server = await newServer();
    await server.esker("stream", "create", "my-basin/orders");
    const orders = Array.from({ length: 200 }, (_, at) => JSON.stringify({ id: at, customer: `c${at % 7}`, price: 1.10 }));
    await server.pipe(orders.join("\n") + "\n", "stream", "append", "my-basin/orders");
    for (const value of ['{"fact":"water is wet","n":1}', '{"fact":"water is wet","n":2}', '{"fact":"ice is not","n":2}']) {
      await server.esker("state", "put", "agent-1", "memory", value);
    }
    for (let number = 0; number < 2; number += 1) await server.esker("snapshot", "create");
    await server.pipe(orders.join("\n") + "\n", "stream", "append", "my-basin/orders");
  });
  after(async () => {
    await server.stop();
    await rm(server.dir, { recursive: true });
  });

  for (const [name, path] of Object.entries(PAGES)) {
    it(`the page ${name} is small, accessible, and asks nobody else`, async () => {
      const page = await newPage();
      const elsewhere = [];
      page.on("request", (request) => {
        if (!request.url().startsWith(server.url)) elsewhere.push(request.url());
      });
      const answer = await page.goto(server.url + path);
      assert.equal(answer.status(), 200, await page.textContent("body"));
      assert.ok((await answer.body()).length < 150_000);
      assert.match(answer.headers()["content-security-policy"], /^default-src 'none'/);
      assert.deepEqual(elsewhere, []);
      // By the protocol of the browser's tools: the policy of the page lets no other script in.
      const session = await page.context().newCDPSession(page);
      const inject = (expression) => session.send("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
      await inject(axe);
      const found = await inject("axe.run(document, { resultTypes: ['violations'] })");
      const serious = found.result.value.violations.filter((it) => ["serious", "critical"].includes(it.impact));
      assert.deepEqual(serious.map((it) => `${it.id}: ${it.nodes[0].html}`), []);
      assert.deepEqual(page.complaints, []);
      if (SCREENSHOTS) await page.screenshot({ path: join(SCREENSHOTS, `${name}.png`) });
      // Nothing sticks out on a phone.
      await page.setViewportSize({ width: 390, height: 800 });
      const width = await page.evaluate(() => document.documentElement.scrollWidth);
      assert.ok(width <= 400, `${width} wide`);
      await page.context().close();
    });
  }

  it("numbers are those of the commands", async () => {
    const page = await newPage();
    const status = JSON.parse(await server.esker("status", "--json"));
    await page.goto(`${server.url}/?find=1`);
    const of = status.partitions.find((it) => it.partition === 1);
    const shown = (await page.textContent(".positions")).replaceAll(",", "");
    for (const name of ["durable", "applied"]) assert.match(shown, new RegExp(`${name} ${of[name]}\\b`));
    assert.match(shown, new RegExp(`tail ${of.last}\\b`));
    const list = JSON.parse(await server.esker("snapshot", "list", "--json", "--partition", "1"));
    const [inventory] = list.partitions;
    await page.goto(`${server.url}/dashboard/snapshots?partition=1`);
    const rows = page.locator("table tbody tr");
    assert.equal(await rows.count(), inventory.snapshots.length);
    assert.ok((await rows.first().textContent()).includes(inventory.snapshots[0].snapshot_id));
    await page.context().close();
  });

  it("every command on a page is one that the command line takes", async () => {
    const page = await newPage();
    const commands = new Set();
    for (const path of Object.values(PAGES)) {
      await page.goto(server.url + path);
      const copied = await page.locator("[data-copy]").evaluateAll((all) => all.map((it) => it.dataset.copy));
      copied.forEach((command) => commands.add(command));
    }
    assert.ok(commands.size > 15, [...commands].join("\n"));
    for (const command of commands) {
      // With help, the arguments are read, and nothing is done; a command or option that is not there is refused.
      const words = command.split(" ").filter((word) => !/^[A-Z/]+$/.test(word));
      const known = words.filter((word) => word.startsWith("--"));
      const names = words.slice(1).filter((word) => /^[a-z-]+$/.test(word) && !word.startsWith("-"));
      const help = await server.esker(...names.slice(0, 2), "--help").catch(() => server.esker(names[0], "--help"));
      for (const option of known) assert.ok(help.includes(option), `${command}: ${option} is not in\n${help}`);
    }
    await page.context().close();
  });

  it("the live tail shows a record within a second of its append", async () => {
    const page = await newPage();
    await page.goto(`${server.url}/dashboard/stream?basin=my-basin&name=orders`);
    await page.waitForFunction(() => document.getElementById("live-state").textContent === "live");
    await page.evaluate(() => {
      window.seen = new Promise((resolve) => {
        new MutationObserver(() => {
          if (document.querySelector("table.records").textContent.includes("just-appended")) resolve(performance.now());
        }).observe(document.querySelector("table.records tbody"), { childList: true });
      });
    });
    const answer = await fetch(`${server.url}/v1/streams/orders/records`, {
      method: "POST",
      headers: { "content-type": "application/json", "s2-basin": "my-basin" },
      body: JSON.stringify({ records: [{ body: "just-appended" }] }),
    });
    assert.equal(answer.status, 200);
    const acknowledged = await page.evaluate(() => performance.now());
    const took = await page.evaluate((since) => window.seen.then((at) => at - since), acknowledged);
    assert.ok(took < 1000, `${took} ms`);
    assert.deepEqual(page.complaints, []);
    await page.context().close();
  });

  it("time travel shows the value as it was", async () => {
    const page = await newPage();
    await page.goto(`${server.url}/dashboard/key?namespace=default&agent=agent-1&key=memory`);
    assert.match(await page.textContent("pre.body"), /ice is not/);
    // The slider leads there by itself.
    await page.evaluate(() => {
      const slider = document.querySelector("[data-slider]");
      slider.value = "2";
      slider.dispatchEvent(new Event("input"));
      slider.dispatchEvent(new Event("change"));
    });
    await page.waitForURL(/commit_ts=2/);
    const shown = await page.textContent("pre.body");
    assert.match(shown, /water is wet/);
    assert.match(shown, /"n": 2/);
    await page.goto(`${server.url}/dashboard/key?namespace=default&agent=agent-1&key=memory&old=2&new=3`);
    assert.match(await page.textContent(".diff del"), /water is wet/);
    assert.match(await page.textContent(".diff ins"), /ice is not/);
    await page.context().close();
  });

  it("names and bodies are text, whatever is in them", async () => {
    const page = await newPage();
    const stream = `x/${SCRIPT}\u202e`;
    await server.esker("stream", "create", `my-basin/${stream}`);
    const path = `/v1/streams/${encodeURIComponent(stream)}/records`;
    const answer = await fetch(server.url + path, {
      method: "POST",
      headers: { "content-type": "application/json", "s2-basin": "my-basin" },
      body: JSON.stringify({ records: [
        { body: SCRIPT.repeat(1000), headers: [[SCRIPT, SCRIPT]] },
        { body: "a\u202eb\u0000c" },
        { body: "x".repeat(900_000) },
      ] }),
    });
    assert.equal(answer.status, 200, await answer.text());
    await server.esker("state", "put", SCRIPT, SCRIPT, JSON.stringify({ [SCRIPT]: SCRIPT }));
    const named = (path, query) => `${server.url}${path}?${new URLSearchParams(query)}`;
    for (const target of [
      named("/dashboard/streams", { basin: "my-basin", prefix: "x/" }),
      named("/dashboard/stream", { basin: "my-basin", name: stream }),
      named("/dashboard/record", { basin: "my-basin", name: stream, seq_num: 0 }),
      named("/dashboard/record", { basin: "my-basin", name: stream, seq_num: 2 }),
      named("/dashboard/state", { namespace: "default", agent: SCRIPT }),
      named("/dashboard/key", { namespace: "default", agent: SCRIPT, key: SCRIPT }),
      named("/dashboard/why", { partition: 1, key: SCRIPT }),
      named("/dashboard/stream", { basin: SCRIPT, name: SCRIPT, from: SCRIPT }),
    ]) {
      const shown = await page.goto(target);
      assert.ok((await shown.body()).length < 150_000, target);
      assert.notEqual(await page.title(), "owned", target);
      assert.equal(await page.locator("main b", { hasText: /^bold$/ }).count(), 0, target);
      assert.ok(!(await page.textContent("body")).includes("\u202e"), target);
    }
    assert.deepEqual(page.complaints, []);
    await page.context().close();
  });

  it("everything is reached by the keyboard alone", async () => {
    const page = await newPage();
    await page.goto(server.url);
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
    const reached = new Set();
    for (let step = 0; step < 60; step += 1) {
      await page.keyboard.press("Tab");
      const name = await page.evaluate(() => document.activeElement.textContent.trim());
      reached.add(name);
      if (name === "Streams") break;
    }
    assert.ok(reached.has("Snapshots") && reached.has("Streams"), [...reached].join(", "));
    await page.keyboard.press("Enter");
    await page.waitForURL(/dashboard\/streams/);
    await page.locator("#prefix").focus();
    await page.keyboard.type("my-");
    await page.keyboard.press("Enter");
    await page.waitForURL(/prefix=my-/);
    assert.match(await page.textContent("tbody"), /my-basin/);
    await page.context().close();
  });

  it("a page of another site is refused, and so is another name for the server", async () => {
    const refused = async (headers, options = {}) => {
      const answer = await fetch(server.url, { headers, ...options });
      return answer.status;
    };
    assert.equal(await refused({ origin: "http://evil.example" }), 403);
    // `fetch` does not set Host; curl does.
    const { stdout } = await run("curl", ["-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: evil.example", server.url]);
    assert.equal(stdout, "403");
    const own = await run("curl", ["-s", "-o", "/dev/null", "-w", "%{http_code}", server.url]);
    assert.equal(own.stdout, "200");
  });

  it("a view goes on after a restart of the server", async () => {
    const page = await newPage();
    await page.goto(server.url);
    await page.waitForFunction(() => document.getElementById("live-state").textContent === "live");
    await server.stop();
    await page.waitForFunction(() => document.getElementById("live-state").classList.contains("lost"));
    await server.start();
    await page.waitForFunction(() => document.getElementById("live-state").textContent === "live");
    assert.deepEqual(page.complaints, []);
    await page.context().close();
  });
});

describe("with tokens", () => {
  let server;
  let root;
  before(async () => {
    const dir = await mkdtemp(join(tmpdir(), "esker-console-"));
    const file = join(dir, "root.token");
    server = new Server(dir, await freePort(), ["--root-token-file", file, "--create-root-token"]);
    await server.start();
    root = (await readFile(file, "utf8")).trim();
    server.env = { ESKER_TOKEN: root };
    await server.esker("stream", "create", "my-basin/orders");
    await server.pipe("one\n", "stream", "append", "my-basin/orders");
  });
  after(async () => {
    await server.stop();
    await rm(server.dir, { recursive: true });
  });

  async function signIn(page, token) {
    await page.goto(`${server.url}/dashboard/stream?basin=my-basin&name=orders`);
    await page.fill("#token", token);
    await page.keyboard.press("Enter");
    await page.waitForLoadState();
  }

  it("whoever has no token sees the form, and a wrong token is refused", async () => {
    const page = await newPage();
    await page.goto(server.url);
    assert.match(page.url(), /sign-in/);
    await signIn(page, "x".repeat(40));
    await page.waitForSelector(".problem");
    const live = await page.evaluate(() => fetch("/dashboard/live/overview").then((it) => it.status));
    assert.equal(live, 401);
    await page.context().close();
  });

  it("signing in leads to the page that was wanted, by a cookie that no script sees", async () => {
    const page = await newPage();
    await signIn(page, root);
    await page.waitForURL(/name=orders/);
    assert.match(await page.textContent("table.records"), /one/);
    const [cookie] = await page.context().cookies();
    assert.equal(cookie.httpOnly, true);
    assert.equal(cookie.sameSite, "Strict");
    assert.equal(await page.evaluate(() => document.cookie), "");
    assert.ok(!cookie.value.includes(root));
    await page.click("text=Sign out");
    await page.waitForURL(/sign-in/);
    await page.goto(server.url);
    assert.match(page.url(), /sign-in/);
    await page.context().close();
  });

  it("pages show what the token permits, and a revoked one shows nothing more", async () => {
    const issued = await server.esker("token", "issue", "reader", "--basins", "=my-basin", "--streams", "", "--op-group-perms", "stream=r,basin=r");
    const page = await newPage();
    await signIn(page, issued.trim());
    await page.waitForURL(/name=orders/);
    await page.waitForFunction(() => document.getElementById("live-state").textContent === "live");
    const overview = await page.goto(server.url);
    assert.equal(overview.status(), 403);
    const state = await page.goto(`${server.url}/dashboard/state`);
    assert.equal(state.status(), 403);
    await page.goto(`${server.url}/dashboard/stream?basin=my-basin&name=orders`);
    await page.waitForFunction(() => document.getElementById("live-state").textContent === "live");
    await server.esker("token", "revoke", "reader", ...(await server.esker("token", "revoke", "--help")).includes("--yes") ? ["--yes"] : []);
    await page.waitForFunction(() => document.getElementById("live-state").textContent.startsWith("signed out"));
    await page.goto(server.url);
    assert.match(page.url(), /sign-in/);
    await page.context().close();
  });

  it("a session does not survive the server, and a form of another site signs nobody in", async () => {
    const page = await newPage();
    await signIn(page, root);
    await page.waitForURL(/name=orders/);
    await server.stop();
    await server.start();
    await page.goto(server.url);
    assert.match(page.url(), /sign-in/);
    const answer = await fetch(`${server.url}/dashboard/sign-in`, {
      method: "POST",
      headers: { origin: "http://evil.example", "content-type": "application/x-www-form-urlencoded" },
      body: `token=${root}`,
      redirect: "manual",
    });
    assert.equal(answer.status, 403);
    assert.equal(answer.headers.get("set-cookie"), null);
    await page.context().close();
  });
});
