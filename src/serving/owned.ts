/** @file What a part of the server has opened and has to close again. */

/** Disposes what it was given, the last first, unless it was moved away before. */
export class Owned implements AsyncDisposable {
  #things: (Disposable | AsyncDisposable)[] = [];

  add<T extends Disposable | AsyncDisposable>(thing: T): T {
    this.#things.push(thing);
    return thing;
  }

  /** Two that start at the same time; if one fails the other is disposed as well. */
  async both<A extends Disposable | AsyncDisposable, B extends Disposable | AsyncDisposable>(
    a: Promise<A>,
    b: Promise<B>,
  ): Promise<[A, B]> {
    const [first, second] = await Promise.allSettled([a, b]);
    if (first.status === "fulfilled") this.add(first.value);
    if (second.status === "fulfilled") this.add(second.value);
    if (first.status === "rejected") throw first.reason;
    if (second.status === "rejected") throw second.reason;
    return [first.value, second.value];
  }

  move(): Owned {
    const other = new Owned();
    other.#things = this.#things;
    this.#things = [];
    return other;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const thing of this.#things.splice(0).reverse()) {
      if (Symbol.asyncDispose in thing) await thing[Symbol.asyncDispose]();
      else thing[Symbol.dispose]();
    }
  }
}
