/** @file `s3://BUCKET/PREFIX` and the environment's AWS_* variables: which bucket, where, and who asks. */
import { InputError } from "../../../base/index.ts";

type Environment = Readonly<Record<string, string | undefined>>;

/** A bucket and the right to use it. */
export interface BucketLocation {
  /** As it was named. */
  readonly name: string;
  /** Of the bucket, ending with a slash. */
  readonly url: string;
  /** Begins every key; empty, or ending with a slash. */
  readonly prefix: string;
  readonly region: string;
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string;
}

const FORM = /^s3:\/\/([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:\/[A-Za-z0-9!_.*'()-]+)*)\/?$/;

/** Whether a text names a bucket, and what is in it has plain names. */
export function isBucketName(text: string): boolean {
  return FORM.test(text) && !/\/\.{1,2}(\/|$)/.test(text);
}

/** @throws InputError FLAG_INVALID with all that is missing */
export function bucketLocation(name: string, env: Environment): BucketLocation {
  const [, bucket = "", path = ""] = isBucketName(name) ? (FORM.exec(name) ?? []) : [];
  const problems: string[] = [];
  if (bucket === "") problems.push(`${JSON.stringify(name)} is not of the form s3://BUCKET/PREFIX`);
  const { AWS_ACCESS_KEY_ID: accessKeyId, AWS_SECRET_ACCESS_KEY: secretAccessKey } = env;
  if (!accessKeyId || !secretAccessKey) {
    problems.push("needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment");
  }
  const region = env.AWS_REGION || env.AWS_DEFAULT_REGION || "us-east-1";
  const endpoint = env.AWS_ENDPOINT_URL_S3 || env.AWS_ENDPOINT_URL || undefined;
  if (endpoint !== undefined && !/^https?:\/\/[^/?#@]+(\/[^?#]*)?$/.test(endpoint)) {
    problems.push("AWS_ENDPOINT_URL is no URL such as https://HOST:PORT");
  }
  if (problems.length > 0) throw new InputError("FLAG_INVALID", "--adapter-store", problems);
  const { AWS_SESSION_TOKEN: sessionToken } = env;
  return {
    ...{ name, url: urlOf(bucket, region, endpoint, env.AWS_S3_FORCE_PATH_STYLE) },
    ...{ prefix: path === "" ? "" : `${path.slice(1)}/`, region },
    ...{ accessKeyId: accessKeyId!, secretAccessKey: secretAccessKey! },
    ...(sessionToken && { sessionToken }),
  };
}

/** Endpoints of one's own rarely have a name for each bucket; no certificate is for one with dots. */
function urlOf(bucket: string, region: string, endpoint: string | undefined, forced: string | undefined): string {
  const base = endpoint ?? `https://s3.${region}.amazonaws.com${region.startsWith("cn-") ? ".cn" : ""}`;
  const pathStyle = forced ? /^(true|1)$/i.test(forced) : endpoint !== undefined || bucket.includes(".");
  const url = new URL(base.replace(/\/*$/, "/"));
  if (pathStyle) return new URL(`${bucket}/`, url).href;
  url.hostname = `${bucket}.${url.hostname}`;
  return url.href;
}
