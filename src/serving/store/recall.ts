/** @file A bounded memory of answers of the database that forgets all of them at every change. */

/**
 * Remembers answers by key, the least recently used first to go. An answer that was asked for before a change and
 * arrives after it is not kept.
 */
export class Recall<T> {
  readonly #answers = new Map<string, T>();
  readonly #most: number;
  #changes = 0;
  #trusted = true;

  constructor(most: number) {
    this.#most = most;
  }

  async get(key: string, ask: () => Promise<T>): Promise<T> {
    const known = this.#answers.get(key);
    if (known !== undefined) {
      this.#answers.delete(key); // to the end: a Map is in the order of insertion
      this.#answers.set(key, known);
      return known;
    }
    const before = this.#changes;
    const answer = await ask();
    if (this.#trusted && before === this.#changes) {
      this.#answers.set(key, answer);
      if (this.#answers.size > this.#most) this.#answers.delete(this.#answers.keys().next().value!);
    }
    return answer;
  }

  /** Whether all changes are heard of; while they are not, nothing is remembered. */
  trust(on: boolean): void {
    this.#trusted = on;
    this.forget();
  }

  /** To be called when a change is in the database. */
  forget(): void {
    this.#changes++;
    this.#answers.clear();
  }
}
