/** @file Safety net under explicit disposal: what was forgotten is released when collected, and said once per kind. */

interface Releasable {
  readonly kind: "Tensor" | "Session" | "Binding" | "PrepackedWeights";
  release(): void;
}

const warned = new Set<string>();

const registry = new FinalizationRegistry<Releasable>((resource) => {
  if (!warned.has(resource.kind)) {
    warned.add(resource.kind);
    process.emitWarning(
      `a ${resource.kind} was garbage collected without dispose(); its native memory is released only now. ` +
        "Declare it with `using` or call dispose() (said once per kind)",
      { code: "MILORA_LEAK" },
    );
  }
  resource.release();
});

/** Watches `owner`; `resource` must not refer to it, or it would never be collected. */
export function watchLeak(owner: object, resource: Releasable): void {
  registry.register(owner, resource, resource);
}

export function unwatchLeak(resource: Releasable): void {
  registry.unregister(resource);
}
