// What people see in the console while the repository cannot be reached: a store that takes connections and never
// answers, and one at which nobody listens.
//
// Started by `scripts/test-console`, with what it needs in the environment (see `console.test.mjs`).
import assert from "node:assert/strict";
import { readFile, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { createRequire } from "node:module";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";

import { WAIT_TIMEOUT, freePort, newServer } from "./kit.mjs";

const require = createRequire(join(process.env.NODE_MODULES, "x.js"));
const { chromium } = require("playwright-core");
const axe = await readFile(require.resolve("axe-core/axe.min.js"), "utf8");
const { CHROMIUM } = process.env;

let browser;
before(async () => {
  browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", "--disable-gpu", "--disable-quic"] });
});
after(() => browser.close());

// A store that takes connections and answers nothing. Closed, its port refuses them.
async function silentStore() {
  const taken = new Set();
  const store = createServer((socket) => {
    taken.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => taken.delete(socket));
  });
  const port = await freePort();
  await new Promise((resolve) => store.listen(port, "127.0.0.1", resolve));
  const close = () => new Promise((resolve) => {
    store.close(resolve);
    for (const socket of taken) socket.destroy();
  });
  return { url: `http://127.0.0.1:${port}`, close };
}

for (const [what, isClosed] of [["a store that answers nothing", false], ["a store at which nobody listens", true]]) {
  describe(`with ${what}`, () => {
    let server, store;
    before(async () => {
      // The directory is made with a repository that works; later starts do not need one.
      server = await newServer();
      await server.esker("stream", "create", "my-basin/orders");
      await server.stop();
      store = await silentStore();
      if (isClosed) await store.close();
      server.destination = "s3://bucket/esker";
      server.args = ["--set", `snapshots.aws-endpoint-url=${store.url}`, "--set", "snapshots.aws-allow-http=true"];
      server.serverEnv = { AWS_ACCESS_KEY_ID: "a", AWS_SECRET_ACCESS_KEY: "b", AWS_REGION: "us-east-1" };
      await server.start();
    });
    after(async () => {
      await server.stop();
      if (!isClosed) await store.close();
      await rm(server.dir, { recursive: true });
    });

    async function open(path) {
      const page = await browser.newPage();
      page.setDefaultTimeout(WAIT_TIMEOUT);
      page.complaints = [];
      page.on("pageerror", (error) => page.complaints.push(String(error)));
      const answer = await page.goto(server.url + path);
      return { page, answer };
    }

    async function assertAccessible(page) {
      // The policy of the pages permits no script but their own, so this one is evaluated.
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => globalThis.axe.run(document));
      assert.deepEqual(violations.map((it) => `${it.id}: ${it.nodes[0].html}`), []);
      assert.deepEqual(page.complaints, []);
    }

    it("the snapshots of a partition cannot be read now, and the rest of the page is there", async () => {
      const { page, answer } = await open("/dashboard/snapshots?partition=1");
      assert.equal(answer.status(), 200);
      const problem = page.getByRole("alert");
      assert.match(await problem.textContent(), /^Not readable now: /);
      const text = await page.textContent("main");
      // Neither that there are none, nor that something is damaged.
      assert.doesNotMatch(text, /damaged|no snapshot|server has not answered/i);
      assert.match(text, /The last sweep/);
      assert.match(text, /esker snapshot list --partition 1/);
      await assertAccessible(page);
      // From here one can go on.
      await page.getByRole("link", { name: "Streams", exact: true }).click();
      assert.match(await page.textContent("main"), /my-basin/);
      await page.close();
    });

    for (const [name, path] of Object.entries({
      "a snapshot": "/dashboard/snapshot?partition=1&snapshot=newest",
      "what a prune would delete": "/dashboard/prune?partition=1&keep=1",
      "why an object is kept": "/dashboard/why?partition=1&key=1%2Flatest.json",
    })) {
      it(`${name}: the page names the repository, and nothing of it is known`, async () => {
        const { page, answer } = await open(path);
        assert.equal(answer.status(), 502);
        const text = await page.textContent("main");
        assert.match(text, /Not readable now/);
        assert.doesNotMatch(text, /server has not answered/);
        await assertAccessible(page);
        await page.close();
      });
    }

    it("pages that do not read it are there, and the overview names the cause", async () => {
      for (const path of ["/dashboard/snapshots", "/dashboard/streams?basin=my-basin", "/dashboard/state"]) {
        const { page, answer } = await open(path);
        assert.equal(answer.status(), 200, path);
        await page.close();
      }
      const { page } = await open("/");
      await page.getByText("s3://bucket/esker").first().waitFor();
      await assertAccessible(page);
      await page.close();
    });
  });
}
