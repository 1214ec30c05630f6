/** @file Counts wrong keys by address, so that nobody can try many. */
import { isIPv6 } from "node:net";

const WINDOW_MS = 60_000;
const MOST_ADDRESSES = 10_000;

interface Failures {
  count: number;
  readonly until: number;
}

export class Attempts {
  readonly #most: number;
  readonly #now: () => number;
  readonly #failures = new Map<string, Failures>();

  /** @param most wrong keys of an address in a minute @param now milliseconds */
  constructor(most = 10, now: () => number = () => performance.now()) {
    this.#most = most;
    this.#now = now;
  }

  /** Seconds until the address may try again; 0: now. */
  waitOf(address: string): number {
    const failures = this.#failures.get(networkOf(address));
    if (!failures || failures.count < this.#most) return 0;
    return Math.max(0, Math.ceil((failures.until - this.#now()) / 1000));
  }

  failed(address: string): void {
    const network = networkOf(address);
    const now = this.#now();
    const known = this.#failures.get(network);
    if (known && known.until > now) {
      known.count++;
      return;
    }
    this.#failures.delete(network); // to the end: a Map is in the order of insertion
    this.#failures.set(network, { count: 1, until: now + WINDOW_MS });
    if (this.#failures.size > MOST_ADDRESSES) this.#failures.delete(this.#failures.keys().next().value!);
  }
}

/** Of IPv6 the first 64 bits: whoever has one such address has 2^64. */
function networkOf(address: string): string {
  if (!isIPv6(address) || address.includes(".")) return address;
  const [head = "", tail] = address.split("%")[0]!.split("::");
  const first = head === "" ? [] : head.split(":");
  const last = tail === undefined || tail === "" ? [] : tail.split(":");
  const zeros = tail === undefined ? 0 : 8 - first.length - last.length;
  return [...first, ...Array<string>(zeros).fill("0"), ...last].slice(0, 4).join(":");
}
