/** @file Which bucket the settings and the environment name. */
import { describe, expect, test } from "vitest";
import { bucketLocation, isBucketName } from "./location.ts";

const KEY = { AWS_ACCESS_KEY_ID: "id", AWS_SECRET_ACCESS_KEY: "secret" };

describe("the bucket", () => {
  test.each<[string, Record<string, string>, { url: string; prefix: string; region: string }]>([
    ["s3://adapters", {}, { url: "https://adapters.s3.us-east-1.amazonaws.com/", prefix: "", region: "us-east-1" }],
    ["s3://adapters/a/b/", { AWS_REGION: "eu-west-1" }, { url: "https://adapters.s3.eu-west-1.amazonaws.com/", prefix: "a/b/", region: "eu-west-1" }], // biome-ignore format: one line
    ["s3://with.dots", { AWS_DEFAULT_REGION: "cn-north-1" }, { url: "https://s3.cn-north-1.amazonaws.com.cn/with.dots/", prefix: "", region: "cn-north-1" }], // biome-ignore format: one line
    ["s3://adapters", { AWS_ENDPOINT_URL: "http://10.0.0.1:9000" }, { url: "http://10.0.0.1:9000/adapters/", prefix: "", region: "us-east-1" }], // biome-ignore format: one line
    ["s3://adapters/x", { AWS_ENDPOINT_URL: "http://no", AWS_ENDPOINT_URL_S3: "https://s3.example.org/way/" }, { url: "https://s3.example.org/way/adapters/", prefix: "x/", region: "us-east-1" }], // biome-ignore format: one line
    ["s3://adapters", { AWS_ENDPOINT_URL: "https://s3.example.org", AWS_S3_FORCE_PATH_STYLE: "false" }, { url: "https://adapters.s3.example.org/", prefix: "", region: "us-east-1" }], // biome-ignore format: one line
    ["s3://adapters", { AWS_S3_FORCE_PATH_STYLE: "true" }, { url: "https://s3.us-east-1.amazonaws.com/adapters/", prefix: "", region: "us-east-1" }], // biome-ignore format: one line
  ])("%s, %o", (name, env, wanted) => {
    expect(isBucketName(name)).toBe(true);
    expect(bucketLocation(name, { ...KEY, ...env })).toEqual({
      ...{ name, ...wanted, accessKeyId: "id", secretAccessKey: "secret" },
    });
  });

  test("with a session's token", () => {
    expect(bucketLocation("s3://adapters", { ...KEY, AWS_SESSION_TOKEN: "t" }).sessionToken).toBe("t");
  });

  test.each([
    "",
    "adapters",
    "s3://",
    "s3://A",
    "s3://ab",
    "https://x",
    "s3://adapters/a b",
    "s3://adapters//a",
    "s3://adapters/../b",
    "s3://u:p@adapters",
  ])("%j is none", (name) => {
    // biome-ignore format: one line
    expect(isBucketName(name)).toBe(false);
    expect(() => bucketLocation(name, KEY)).toThrow("s3://BUCKET/PREFIX");
  });

  test("what is missing or wrong in the environment is told, and no secret", () => {
    expect(() => bucketLocation("s3://adapters", {})).toThrow(/AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY/);
    const endpoint = { ...KEY, AWS_ENDPOINT_URL: "http://user:pass@host" };
    expect(() => bucketLocation("s3://adapters", endpoint)).toThrow(/AWS_ENDPOINT_URL is no URL(?!.*pass)/);
  });
});
