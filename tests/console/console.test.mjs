// The console in a browser: each page against a real server under load.
//
// Started by `scripts/test-console`, with what it needs in the environment:
//   ESKER         the binary
//   NODE_MODULES  where playwright-core and axe-core are
//   CHROMIUM      the browser
//   SCREENSHOTS   where pictures of the pages go; none are taken if it is not set
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtemp, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";

import { Server, WAIT_TIMEOUT, freePort, newServer, run } from "./kit.mjs";

const require = createRequire(join(process.env.NODE_MODULES, "x.js"));
const { chromium } = require("playwright-core");
const axe = await readFile(require.resolve("axe-core/axe.min.js"), "utf8");
const { ESKER, CHROMIUM, SCREENSHOTS } = process.env;

const SCRIPT = `<script>document.title="owned"</script><b>bold</b>`;

// Every page of a server that has one stream, one agent and snapshots.
const PAGES = {
  overview: "/",
  repository: "/dashboard/snapshots",
  snapshots: "/dashboard/snapshots?partition=1",
  snapshot: "/dashboard/snapshot?partition=1&snapshot=newest",
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
    server = await newServer(["--set", "snapshots.num-retained=3"]);
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

  async function post(path, body) {
    const answer = await fetch(server.url + path, {
      method: "POST",
      headers: { "content-type": "application/json", "s2-basin": "my-basin" },
      body: JSON.stringify(body),
    });
    const text = await answer.text();
    assert.ok(answer.ok, `${path}: ${answer.status} ${text}`);
  }

  const create = (stream) => post("/v1/streams", { stream });
  const append = (stream, bodies, headers = []) => post(`/v1/streams/${encodeURIComponent(stream)}/records`,
    { records: bodies.map((body) => ({ body, headers })) });

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
    const positions = async () => {
      const status = JSON.parse(await server.esker("status", "--json"));
      return status.partitions.find((it) => it.partition === 1);
    };
    let of, shown, later;
    do {
      // What is written to the disk meanwhile moves the positions.
      of = await positions();
      await page.goto(`${server.url}/?find=1`);
      shown = (await page.textContent(".positions")).replaceAll(",", "");
      later = await positions();
    } while (["durable", "applied", "last"].some((name) => of[name] !== later[name]));
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

  it("a copied command means the stream that the page shows, whatever its name", async () => {
    const page = await newPage();
    for (const name of ["a; echo owned", "it's $(echo owned) `echo owned` \"x\" !", "two\nlines\u001b[201~\necho owned", "\u202etxt"]) {
      await create(name);
      await append(name, ["in it"]);
      await page.goto(`${server.url}/dashboard/stream?${new URLSearchParams({ basin: "my-basin", name })}`);
      const commands = await page.locator("[data-copy]").evaluateAll((all) => all.map((it) => it.dataset.copy));
      const read = commands.find((it) => it.startsWith("esker stream read"));
      // eslint-disable-next-line no-control-regex
      assert.doesNotMatch(read, /[\u0000-\u001f\u202e]/);
      const script = `esker() { "$ESKER" "$@"; }\n${read} --format text`;
      const env = { ...process.env, ESKER_SERVER: server.url, LC_ALL: "C.UTF-8" };
      const ran = await run("bash", ["-c", script], { env }).catch((error) => error);
      assert.match(ran.stdout, /in it/, `${read}\n${ran.stderr}`);
      assert.doesNotMatch(ran.stdout, /owned/, read);
    }
    await page.context().close();
  });

  it("the live tail shows a record within a second of its append", async () => {
    const page = await newPage();
    await page.goto(`${server.url}/dashboard/stream?basin=my-basin&name=orders`);
    await page.waitForFunction(() => document.getElementById("live-state").textContent === "live");
    // A machine that stands still for a second spoils one attempt; a live tail that is slow spoils all.
    const late = [];
    for (let number = 0; number < 5; number += 1) {
      const body = `just-appended-${number}`;
      await page.evaluate((text) => {
        window.seen = new Promise((resolve) => {
          new MutationObserver(() => {
            if (document.querySelector("table.records").textContent.includes(text)) resolve(performance.now());
          }).observe(document.querySelector("table.records tbody"), { childList: true });
        });
      }, body);
      await append("orders", [body]);
      const acknowledged = await page.evaluate(() => performance.now());
      const took = await page.evaluate((since) => window.seen.then((at) => at - since), acknowledged);
      if (took < 1000) break;
      late.push(took);
    }
    assert.ok(late.length < 5, `${late.join(" ms, ")} ms`);
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
    await create(stream);
    for (const body of [SCRIPT.repeat(1000), "a\u202eb\u0000c", "x".repeat(900_000), `"<&`.repeat(300_000),
      "[".repeat(400_000) + "]".repeat(400_000), "\u0000".repeat(100_000)]) {
      await append(stream, [body], [[SCRIPT, SCRIPT]]);
    }
    await server.esker("state", "put", SCRIPT, SCRIPT, JSON.stringify({ [SCRIPT]: SCRIPT }));
    const named = (path, query) => `${server.url}${path}?${new URLSearchParams(query)}`;
    for (const target of [
      named("/dashboard/streams", { basin: "my-basin", prefix: "x/" }),
      named("/dashboard/stream", { basin: "my-basin", name: stream }),
      named("/dashboard/record", { basin: "my-basin", name: stream, seq_num: 0 }),
      ...[2, 3, 4, 5].flatMap((seq_num) => ["text", "json", "hex"].flatMap((format) => [
        named("/dashboard/record", { basin: "my-basin", name: stream, seq_num, format }),
        named("/dashboard/stream", { basin: "my-basin", name: stream, format }),
      ])),
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

  it("a stream with a cipher says that only the holder of its key reads it", async () => {
    await post("/v1/basins", { basin: "secret-basin", config: { stream_cipher: "aes-256-gcm" } });
    await server.esker("stream", "create", "secret-basin/letters");
    const page = await newPage();
    const shown = await page.goto(`${server.url}/dashboard/stream?basin=secret-basin&name=letters`);
    assert.equal(shown.status(), 200);
    const text = await page.textContent("main");
    assert.match(text, /encrypted \(aes-256-gcm\) and cannot be shown here/);
    assert.match(text, /--encryption-key-file FILE secret-basin\/letters/);
    assert.equal(await page.locator("table.records").count(), 0);
    await page.context().close();
  });

  it("what was focused stays focused while its part changes", async () => {
    const page = await newPage();
    await page.goto(server.url);
    await page.waitForFunction(() => document.getElementById("live-state").textContent === "live");
    const link = page.locator(".partitions a").first();
    await link.focus();
    const href = await link.getAttribute("href");
    await page.evaluate(() => { document.querySelector(".partitions").dataset.old = "true"; });
    await server.pipe("one more\n", "stream", "append", "my-basin/orders");
    await page.waitForFunction(() => !document.querySelector(".partitions").dataset.old);
    assert.equal(await page.evaluate(() => document.activeElement.getAttribute("href")), href);
    await page.context().close();
  });

  it("files name who shares them, and the last sweep what it found", async () => {
    const page = await newPage();
    await page.goto(`${server.url}/dashboard/snapshot?partition=1&snapshot=newest`);
    const files = page.locator("table tbody tr");
    assert.ok(await files.count() > 0);
    const shared = await files.first().locator("td").last().textContent();
    assert.match(shared, /no other|LSN/);
    await page.goto(`${server.url}/dashboard/snapshots?partition=1`);
    assert.match(await page.textContent("main"), /among \d+ objects? of/);
    await page.context().close();
  });

  it("a damaged description, a missing one and a missing repository look different", async () => {
    const page = await newPage();
    const of = join(server.dir, "backups", "2");
    const dirs = (await readdir(of)).filter((it) => it.startsWith("lsn_")).sort();
    const description = join(of, dirs.at(-1), "metadata.json");
    const whole = await readFile(description);
    const shown = async () => {
      await page.goto(`${server.url}/dashboard/snapshots?partition=2`);
      return page.textContent("main");
    };
    await writeFile(description, "{");
    assert.match(await shown(), /damaged: /);
    const one = await page.goto(`${server.url}/dashboard/snapshot?partition=2&snapshot=newest`);
    assert.ok(one.status() >= 400);
    assert.equal(await page.textContent("h1"), "Damaged");
    await rm(description);
    assert.match(await shown(), /missing: /);
    await writeFile(description, whole);
    assert.doesNotMatch(await shown(), /damaged: |missing: /);
    const absent = await page.goto(`${server.url}/dashboard/snapshot?partition=2&snapshot=999`);
    assert.equal(absent.status(), 404);
    assert.equal(await page.textContent("h1"), "Not found");
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
    // What a page of another site embeds is refused; a link to here is not.
    const embedded = ["-H", "Sec-Fetch-Site: cross-site", "-H", "Sec-Fetch-Mode: no-cors", "-H", "Sec-Fetch-Dest: image"];
    for (const path of ["/dashboard/prune?partition=1", "/dashboard/live/overview"]) {
      const answer = await run("curl", ["-s", "-m", "9", "-o", "/dev/null", "-w", "%{http_code}", ...embedded, server.url + path]);
      assert.equal(answer.stdout, "403", path);
    }
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
    // Another one replaces it.
    await page.goto(`${server.url}/dashboard/sign-in`);
    await page.fill("#token", root);
    await page.keyboard.press("Enter");
    await page.waitForURL(server.url + "/");
    const replaced = await fetch(server.url, { headers: { cookie: `${cookie.name}=${cookie.value}` }, redirect: "manual" });
    assert.equal(replaced.status, 303);
    const [present] = await page.context().cookies();
    assert.notEqual(present.value, cookie.value);
    // In another window, the live view ends with the session.
    const other = await page.context().newPage();
    await other.goto(server.url);
    await other.waitForFunction(() => document.getElementById("live-state").textContent === "live");
    await page.click("text=Sign out");
    await page.waitForURL(/sign-in/);
    await other.waitForFunction(() => document.getElementById("live-state").textContent.startsWith("signed out"));
    await page.goto(server.url);
    assert.match(page.url(), /sign-in/);
    await page.context().close();
  });

  it("over TLS that ends at a proxy, the cookie is for TLS alone", async () => {
    const host = `127.0.0.1:${server.port}`;
    const { stdout } = await run("curl", ["-s", "-i", "-H", `Origin: https://${host}`, "-H", "Sec-Fetch-Site: same-origin",
      "--data-urlencode", `token=${root}`, "--data-urlencode", "next=//evil.example/", `${server.url}/dashboard/sign-in`]);
    assert.match(stdout, /set-cookie: __Host-esker-session-\d+=[^;]+; Path=\/; HttpOnly; SameSite=Strict; Secure/i);
    assert.match(stdout, /location: \/\r/i);
    assert.match(stdout, /cache-control: no-store/i);
  });

  it("whoever guesses tokens is slowed down, and others are not", async () => {
    const guess = () => run("curl", ["-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", `Origin: ${server.url}`,
      "--data-urlencode", "token=wrong", `${server.url}/dashboard/sign-in`]);
    // At the same time: an address may guess once a second, however long one takes.
    const guesses = await Promise.all(Array.from({ length: 40 }, guess));
    const answers = guesses.map(({ stdout }) => stdout);
    assert.ok(answers.includes("401") && answers.includes("429"), answers.join(" "));
    const page = await newPage();
    await signIn(page, root);
    await page.waitForURL(/name=orders/);
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
    // Signing in leads back to the page that was wanted.
    await page.goto(`${server.url}/dashboard/state`);
    assert.match(page.url(), /sign-in\?next=%2Fdashboard%2Fstate/);
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

describe("a cluster of three", () => {
  const nodes = [];
  let dir;
  let trial;
  before(async () => {
    dir = await mkdtemp(join(tmpdir(), "esker-console-"));
    const base = 20_000 + Math.floor(Math.random() * 5000) * 2;
    trial = spawn(ESKER, ["cluster", "try", "--base-port", String(base), "--dir", join(dir, "trial")], { stdio: ["ignore", "pipe", "pipe"] });
    let log = "";
    for (const out of [trial.stdout, trial.stderr]) out.on("data", (text) => { log += text; });
    const until = Date.now() + 2 * WAIT_TIMEOUT;
    for (let at = 0; at < 3; at += 1) {
      const node = new Server(dir, base + at, []);
      nodes.push(node);
      for (;;) {
        const answer = await fetch(`${node.url}/health`).catch(() => null);
        if (answer?.ok) break;
        assert.ok(trial.exitCode === null && Date.now() < until, log);
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
    }
    // Leaders and replicas are spread after the nodes have joined.
    const isSettled = async (node) => {
      const answer = await fetch(`${node.url}/esker/v1/cluster`).catch(() => null);
      const view = answer?.ok ? await answer.json() : null;
      const isActive = (one) => one.state === "active";
      const isWhole = (one) => Number.isInteger(one.leader) && one.replicas.length === 3
        && one.replicas.every(({ role }) => ["leader", "follower"].includes(role));
      return view?.nodes.length === 3 && view.nodes.every(isActive) && view.partitions.every(isWhole);
    };
    while (Date.now() < until && !(await Promise.all(nodes.map(isSettled))).every(Boolean)) {
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    await nodes[0].esker("stream", "create", "my-basin/orders");
    await nodes[0].pipe("one\ntwo\n", "stream", "append", "my-basin/orders");
    await nodes[0].esker("state", "put", "agent-1", "memory", '{"n":1}');
  });
  after(async () => {
    const ended = new Promise((resolve) => trial.once("exit", resolve));
    trial.kill("SIGINT");
    await ended;
    await rm(dir, { recursive: true });
  });

  it("every page of every node shows the same data, whoever leads", async () => {
    const page = await newPage();
    for (const node of nodes) {
      for (const [path, expected] of [
        ["/", /Partition 1/],
        ["/dashboard/snapshots?partition=1", /The last sweep/],
        ["/dashboard/streams?basin=my-basin", /orders/],
        ["/dashboard/stream?basin=my-basin&name=orders", /two/],
        ["/dashboard/state?namespace=default&agent=agent-1", /memory/],
        ["/dashboard/key?namespace=default&agent=agent-1&key=memory", /"n": 1/],
        ["/dashboard/cluster", /every partition has a leader/],
      ]) {
        const answer = await page.goto(node.url + path);
        assert.equal(answer.status(), 200, `${node.url}${path}: ${await page.textContent("main")}`);
        assert.match(await page.textContent("main"), expected, path);
        // Each node of a trial has a repository of its own, which has the partitions that it leads.
        const problems = await page.locator("main > .problem, section > .problem").allTextContents();
        assert.deepEqual(problems.filter((it) => !/no_repository/.test(it)), [], path);
      }
    }
    if (SCREENSHOTS) {
      await page.goto(`${nodes[0].url}/dashboard/cluster`);
      await page.screenshot({ path: join(SCREENSHOTS, "cluster.png") });
    }
    assert.deepEqual(page.complaints, []);
    await page.context().close();
  });

  it("the live tail of each node shows a record that another one took", async () => {
    const pages = await Promise.all(nodes.map(async (node) => {
      const page = await newPage();
      await page.goto(`${node.url}/dashboard/stream?basin=my-basin&name=orders`);
      await page.waitForFunction(() => document.getElementById("live-state").textContent === "live");
      return page;
    }));
    for (const [at, node] of nodes.entries()) {
      await node.pipe(`appended at ${at}\n`, "stream", "append", "my-basin/orders");
      for (const page of pages) {
        await page.waitForFunction((text) => document.querySelector("table.records").textContent.includes(text), `appended at ${at}`);
      }
    }
    for (const page of pages) await page.context().close();
  });
});
