/** @file Signing in to the studio: a cookie that holds a key, readable only with a secret of the database. */
import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto";

export const COOKIE = "milora_studio";

/** How long a session lasts that nobody uses. */
export const SESSION_MS = 12 * 3_600_000;
/** Cookies younger than this are not renewed: else every answer would carry one. */
const RENEW_MS = 5 * 60_000;

const CIPHER = "aes-256-gcm";
const IV_BYTES = 12;
const TAG_BYTES = 16;
/** What the cipher text is for, so that it means nothing anywhere else. */
const PURPOSE = Buffer.from("milora studio session 1");
/** Of a cookie, in base64url: a key and a time are far shorter. */
const MOST_CHARACTERS = 1024;

export interface StudioCookie {
  readonly key: string;
  /** Whether it was used long enough ago that its time begins anew. */
  readonly renew: boolean;
}

/**
 * Seals and opens cookies (AES-256-GCM). The server keeps nothing: any server of the database reads them, and what the key
 * may do is asked with every request, so that a revoked key is out at once.
 */
export class Sessions {
  readonly #secret: Buffer;
  readonly #now: () => number;

  /** @param secret 32 bytes @param now milliseconds since 1970 */
  constructor(secret: Buffer, now: () => number = Date.now) {
    this.#secret = secret;
    this.#now = now;
  }

  seal(key: string): string {
    const iv = randomBytes(IV_BYTES);
    const cipher = createCipheriv(CIPHER, this.#secret, iv).setAAD(PURPOSE);
    const content = JSON.stringify({ key, expires: this.#now() + SESSION_MS });
    const sealed = [iv, cipher.update(content, "utf8"), cipher.final(), cipher.getAuthTag()];
    return Buffer.concat(sealed).toString("base64url");
  }

  /** What a cookie holds; undefined when it is not of this database, or has expired. */
  open(value: string): StudioCookie | undefined {
    if (value.length > MOST_CHARACTERS) return undefined;
    const bytes = Buffer.from(value, "base64url");
    if (bytes.length <= IV_BYTES + TAG_BYTES) return undefined;
    const decipher = createDecipheriv(CIPHER, this.#secret, bytes.subarray(0, IV_BYTES), { authTagLength: TAG_BYTES });
    decipher.setAAD(PURPOSE).setAuthTag(bytes.subarray(-TAG_BYTES));
    let content: string;
    try {
      const text = decipher.update(bytes.subarray(IV_BYTES, -TAG_BYTES));
      content = Buffer.concat([text, decipher.final()]).toString("utf8");
    } catch {
      return undefined;
    }
    // Authentic, so of our own making.
    const { key, expires } = JSON.parse(content) as { key: string; expires: number };
    const left = expires - this.#now();
    return left > 0 ? { key, renew: left < SESSION_MS - RENEW_MS } : undefined;
  }
}
