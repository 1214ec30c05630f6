/** @file What came of a plan: finished cells as studies ask for them, and the sections that they draw. */
import { basename } from "node:path";
import { type Difference, differencesOf } from "./differences.ts";
import type { Plan } from "./plan.ts";
import type { Failure } from "./run.ts";
import { type CellStore, machineName } from "./store.ts";
import { type CellOf, canonical, type Kind, type Results, type Section, type Values } from "./study.ts";

export function resultsOf(plan: Plan, store: CellStore): Results {
  return {
    get<K extends Kind>(cell: CellOf<K>): Values[K] | undefined {
      const planned = plan.byKey.get(canonical(cell));
      return planned && (store.get(planned.id)?.value as Values[K] | undefined);
    },
  };
}

export interface ReportedStudy extends Section {
  readonly name: string;
  readonly title: string;
  readonly about: string;
  readonly cells: number;
  readonly done: number;
  /** Reasons why cells were left out. */
  readonly skipped: readonly string[];
}

/** All that a report says, in no format yet. */
export interface Report {
  readonly preset: string;
  readonly model: string;
  readonly seeds: number;
  /** How many there are. */
  readonly methods: number;
  readonly machine: string;
  readonly made: string;
  readonly studies: readonly ReportedStudy[];
  readonly differences: readonly Difference[];
  readonly failures: readonly Failure[];
}

export function reportOf(plan: Plan, store: CellStore, failures: readonly Failure[]): Report {
  const results = resultsOf(plan, store);
  const studies = plan.studies.map((study): ReportedStudy => {
    const cells = plan.needs.get(study.name)!;
    return {
      name: study.name,
      title: study.title,
      about: study.about,
      ...study.render(plan.scope, results),
      cells: cells.length,
      done: cells.filter(({ id }) => store.get(id)).length,
      skipped: [...new Set(cells.flatMap(({ skipped, label }) => (skipped ? [`${label}: ${skipped}`] : [])))],
    };
  });
  const { name, model, seeds } = plan.scope;
  return {
    preset: name,
    model: basename(model),
    seeds,
    methods: plan.scope.methods.length,
    machine: machineName(),
    made: new Date().toISOString(),
    studies,
    differences: differencesOf(plan.scope),
    failures,
  };
}
