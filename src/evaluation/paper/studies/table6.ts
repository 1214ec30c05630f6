/** @file Table 6: rows of the data sets, counted in the files. */
import { TABLE6, taskTitle } from "../paper.ts";
import type { Study, Value } from "../study.ts";

const PARTS = ["train", "dev", "test"] as const;

export const study: Study = {
  name: "table6",
  title: "Table 6: data sets",
  about: "Rows of the files that training and measuring read, and test rows that training rows give away.",
  cells: (scope) => scope.counted.map((source) => ({ kind: "rows", source })),
  render(scope, results) {
    const rows = scope.counted.map((source): Record<string, Value> => {
      const found = results.get({ kind: "rows", source });
      const paper = TABLE6[source];
      const same = PARTS.map((part) => !paper || paper[part] === null || paper[part] === (found?.[part] ?? null));
      return {
        source: taskTitle(source),
        ...Object.fromEntries(
          PARTS.flatMap((part) => [
            [part, found?.[part]],
            [`${part}_paper`, paper?.[part]],
          ]),
        ),
        overlap: found?.overlap,
        same:
          found && paper ? (same.every(Boolean) ? "yes" : `no: ${PARTS.filter((_, i) => !same[i]).join(", ")}`) : null,
      };
    });
    const counts = PARTS.flatMap((part) => [
      { key: part, title: part, digits: 0 },
      { key: `${part}_paper`, title: "paper", digits: 0 },
    ]);
    return {
      tables: [
        {
          name: "table6",
          title: "Rows",
          columns: [
            { key: "source", title: "data set" },
            ...counts,
            { key: "same", title: "as the paper" },
            { key: "overlap", title: "test rows in training", digits: 0 },
          ],
          rows,
          notes: ["A test row is in training where 13 words in a row of it are in a training row."],
        },
      ],
      charts: [],
    };
  },
};
