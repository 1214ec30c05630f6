/** @file Work with its progress: what it tells on the way, then what comes of it. */

/**
 * Follows work that tells of its steps by a callback. Steps that nobody has asked for in time give way to later ones; left
 * early, it waits for the work to end, which whoever leaves has to see to.
 */
export async function* followed<S, R>(start: (tell: (step: S) => void) => Promise<R>): AsyncGenerator<S, R> {
  let latest: S | undefined;
  let over = false;
  let wake = (): void => {};
  const work = start((step) => {
    latest = step;
    wake();
  });
  const end = work.then(
    () => {},
    () => {},
  );
  void end.then(() => {
    over = true;
    wake();
  });
  try {
    for (;;) {
      if (latest === undefined && !over) {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
      const step = latest;
      latest = undefined;
      if (step !== undefined) yield step;
      else if (over) break;
    }
  } finally {
    await end;
  }
  return work;
}
