/** @file Several streams as one: what each yields as it comes, what each returns at the end. */

type Step<T, R> = { readonly index: number; readonly step: IteratorResult<T, R> };

interface Live<T, R> {
  readonly generator: AsyncGenerator<T, R>;
  next: Promise<Step<T, R>>;
}

/**
 * Runs `count` generators, at most `width` at a time. Leaving early, or an error of one, ends all.
 * @returns what they returned, in their order
 */
export async function* merge<T, R>(
  count: number,
  width: number,
  open: (index: number) => AsyncGenerator<T, R>,
): AsyncGenerator<{ readonly index: number; readonly value: T }, R[]> {
  const results = new Array<R>(count);
  const live = new Map<number, Live<T, R>>();
  let opened = 0;
  const advance = (index: number, generator: AsyncGenerator<T, R>): Promise<Step<T, R>> => {
    const next = generator.next().then((step) => ({ index, step }));
    next.catch(() => {}); // whoever awaits it hears of it; the others are given up
    return next;
  };
  const fill = (): void => {
    while (live.size < width && opened < count) {
      const index = opened++;
      const generator = open(index);
      live.set(index, { generator, next: advance(index, generator) });
    }
  };
  try {
    fill();
    while (live.size > 0) {
      const { index, step } = await Promise.race([...live.values()].map(({ next }) => next));
      if (step.done) {
        results[index] = step.value;
        live.delete(index);
        fill();
      } else {
        const one = live.get(index)!;
        one.next = advance(index, one.generator);
        yield { index, value: step.value };
      }
    }
    return results;
  } finally {
    // Awaited: what they use, such as an adapter, may go once this is over.
    await Promise.allSettled([...live.values()].map(({ generator }) => generator.return(undefined as R)));
  }
}

/** What `change` makes of each item, save undefined. Leaving it leaves `stream`. */
export async function* mapped<T, U, R>(
  stream: AsyncGenerator<T, R>,
  change: (item: T) => U | undefined,
): AsyncGenerator<U, R> {
  try {
    for (;;) {
      const step = await stream.next();
      if (step.done) return step.value;
      const made = change(step.value);
      if (made !== undefined) yield made;
    }
  } finally {
    await stream.return(undefined as R);
  }
}

/** Takes all of a stream for what it returns. */
export async function drained<R>(stream: AsyncGenerator<unknown, R>): Promise<R> {
  for (;;) {
    const step = await stream.next();
    if (step.done) return step.value;
  }
}
