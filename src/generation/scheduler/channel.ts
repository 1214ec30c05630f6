/** @file A request's way back: what the loop gives waits here until its consumer takes it. */

/**
 * An async generator that is fed from outside. Giving never waits, so that a slow consumer holds nobody up; what waits is
 * bounded by what its producer has to give. Unlike that of a generator function, leaving it counts even before the first `next`.
 */
export class Channel<T, R> implements AsyncGenerator<T, R, unknown> {
  readonly #items: T[] = [];
  readonly #left: () => void;
  #end: { readonly value: R } | { readonly error: unknown } | undefined;
  #hasLeft = false;
  /** Resolves when the producer is through. */
  readonly #through: Promise<void>;
  #isThrough!: () => void;
  #taker: { resolve(result: IteratorResult<T, R>): void; reject(error: unknown): void } | undefined;

  /** @param left told when the consumer leaves before the end */
  constructor(left: () => void) {
    this.#left = left;
    this.#through = new Promise((resolve) => {
      this.#isThrough = resolve;
    });
  }

  /** Gives the next item; without effect after the end. */
  give(item: T): void {
    if (this.#end || this.#hasLeft) return;
    const taker = this.#taker;
    this.#taker = undefined;
    if (taker) taker.resolve({ done: false, value: item });
    else this.#items.push(item);
  }

  /** Ends it; what was given before is still taken first. */
  close(value: R): void {
    this.#finish({ value });
  }

  /** Fails it; what was given before is still taken first. */
  fail(error: unknown): void {
    this.#finish({ error });
  }

  next(): Promise<IteratorResult<T, R>> {
    if (this.#items.length > 0) return Promise.resolve({ done: false, value: this.#items.shift()! });
    if (this.#end) return this.#takeEnd(this.#end);
    if (this.#taker) throw new Error("a token was asked for while another was still awaited");
    return new Promise((resolve, reject) => {
      this.#taker = { resolve, reject };
    });
  }

  /** Leaves it; resolves when nothing is done for it any more. */
  async return(value: R | PromiseLike<R>): Promise<IteratorResult<T, R>> {
    await this.#leave();
    return { done: true, value: await value };
  }

  async throw(error: unknown): Promise<IteratorResult<T, R>> {
    await this.#leave();
    throw error;
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#leave();
  }

  async #leave(): Promise<void> {
    this.#items.length = 0;
    if (!this.#hasLeft && !this.#end) {
      this.#hasLeft = true;
      this.#left();
    }
    await this.#through;
    this.#end = { value: undefined as R };
  }

  #finish(end: { readonly value: R } | { readonly error: unknown }): void {
    if (this.#end) return;
    this.#end = end;
    this.#isThrough();
    const taker = this.#taker;
    this.#taker = undefined;
    if (taker) this.#takeEnd(end).then(taker.resolve, taker.reject);
  }

  /** The end is told once; after it there is nothing more. */
  #takeEnd(end: { readonly value: R } | { readonly error: unknown }): Promise<IteratorResult<T, R>> {
    this.#end = { value: undefined as R };
    return "error" in end ? Promise.reject(end.error) : Promise.resolve({ done: true, value: end.value });
  }
}
