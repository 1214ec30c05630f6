/** @file Does all that README.md, the guides and the examples say, on the bundled model, each in a directory of its own. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { NO_OBJECT_STORE, ObjectStore } from "../../src/serving/adapters/storage/testing.ts";
import { Cluster } from "../../src/serving/store/testing/cluster.ts";
import { NO_POSTGRES } from "../../src/serving/store/testing.ts";
import { blocksOf, follow, isRun, NEEDS, type Services } from "./documents.ts";
import { root, scratch } from "./project.ts";

const guides = readdirSync(join(root, "docs/guides")).filter((name) => name.endsWith(".md"));
const documents = ["README.md", ...guides.map((name) => `docs/guides/${name}`)];

/** A few steps of training instead of all: a look at whether everything fits together. */
const quick = process.env.MILORA_QUICK === "1";

/** What readers of a page have already. */
const BEFORE: Readonly<Record<string, string>> = {
  "docs/guides/scale-out.md": "npx milora tenants create bob --tokens-per-day 1000000",
};

let cluster: Cluster | undefined;
let objects: ObjectStore | undefined;
beforeAll(async () => {
  if (!NO_POSTGRES) cluster = await Cluster.start();
  if (cluster && !NO_OBJECT_STORE) objects = await ObjectStore.start();
  await objects?.bucket("adapters");
});
afterAll(async () => {
  await objects?.[Symbol.asyncDispose]();
  await cluster?.[Symbol.asyncDispose]();
});

/** What there is for one page: a database that nobody has used. */
function servicesAt(database: string | undefined): Services {
  if (database === undefined) return {};
  const postgres = { "postgres://milora:PASSWORD@db.internal:5432/milora": database };
  if (!objects) return { postgres };
  const { AWS_ENDPOINT_URL: url, AWS_ACCESS_KEY_ID: id, AWS_SECRET_ACCESS_KEY: secret } = objects.environment;
  const store = {
    "https://s3.internal:9000": url!,
    "AWS_ACCESS_KEY_ID=milora": `AWS_ACCESS_KEY_ID="${id}"`,
    "AWS_SECRET_ACCESS_KEY=SECRET": `AWS_SECRET_ACCESS_KEY="${secret}"`,
  };
  return { postgres, objects: { ...postgres, ...store } };
}

test.each(documents)("%s", async (document) => {
  const { path, remove } = scratch();
  const database = await cluster?.create();
  const services = servicesAt(database);
  try {
    let done = 0;
    const report = ({ place, seconds }: { readonly place: string; readonly seconds: number }): void => {
      done++;
      console.log(`${place}  ${seconds.toFixed(1)} s`);
    };
    await follow(path, document, { quick, services, report, before: BEFORE[document] });
    expect(done).toBe(blocksOf(document).filter((block) => isRun(block, services)).length);
  } finally {
    if (database !== undefined) await cluster?.drop(database);
    remove();
  }
});

afterAll(() => {
  const services = { ...(cluster && { postgres: {} }), ...(objects && { objects: {} }) };
  const left = documents.flatMap((document) => blocksOf(document)).filter((block) => !isRun(block, services));
  console.log(`not run: ${left.length} blocks`);
  for (const { document, line, needs } of left) console.log(`${document}:${line}  needs ${NEEDS[needs!]}`);
});
