/** @file Table 4: speed and memory of decoding with adapters that are not merged. */
import { TABLE4, TITLES } from "../paper.ts";
import type { CellOf, Scope, Study, Value } from "../study.ts";

const METHODS = ["lora", "dora", "moelora", "milora"];
const BEAMS = [1, 3];

const cellOf = (scope: Scope, method: string, beams: number): CellOf<"speed"> => ({
  kind: "speed",
  training: { method, data: [scope.tasks[0]!], seed: 0 },
  beams,
});

export const study: Study = {
  name: "table4",
  title: "Table 4: efficiency",
  about: "Single sequences are continued by one adapter at a time, each in a fresh process.",
  cells: (scope) => METHODS.flatMap((method) => BEAMS.map((beams) => cellOf(scope, method, beams))),
  render(scope, results) {
    const rows = METHODS.flatMap((method) =>
      BEAMS.map((beams): Record<string, Value> => {
        const found = results.get(cellOf(scope, method, beams));
        const base = results.get(cellOf(scope, "lora", beams));
        const paper = TABLE4[method]?.[beams];
        return {
          method: TITLES[method],
          beams,
          speed: found && {
            value: found.tokensPerSecond,
            low: Math.min(...found.rounds),
            high: Math.max(...found.rounds),
            seeds: found.rounds.length,
          },
          relative: found && base && (100 * found.tokensPerSecond) / base.tokensPerSecond,
          paper_speed: paper?.tokensPerSecond,
          prompt: found?.prefillMs,
          peak: found?.peakMib,
          paper_peak: paper?.peakMib,
        };
      }),
    );
    return {
      tables: [
        {
          name: "table4",
          title: "Decoding",
          columns: [
            { key: "method", title: "method" },
            { key: "beams", title: "beams", digits: 0 },
            { key: "speed", title: "tokens/s" },
            { key: "relative", title: "% of LoRA" },
            { key: "paper_speed", title: "paper, A40" },
            { key: "prompt", title: "prompt, ms" },
            { key: "peak", title: "peak MiB", digits: 0 },
            { key: "paper_peak", title: "paper, A40", digits: 0 },
          ],
          rows,
          notes: [
            "Median of the rounds, in brackets the slowest and the fastest. The peak is the resident memory of the whole process; the paper's is that of its GPU.",
            "What else runs on the machine changes these numbers: nothing should.",
          ],
        },
      ],
      charts: [],
    };
  },
};
