/** @file Writes a report in all its formats. */
import { join } from "node:path";
import { writeFileAtomic } from "../../base/index.ts";
import { csvTable, markdownReport, markdownTable, type Report } from "../../evaluation/index.ts";
import { chartFile } from "./charts.ts";
import { page } from "./page.ts";

/** results.json, report.md, report.html, and each table and chart as files of their own. Returns the path of the page. */
export function writeReports(directory: string, report: Report): string {
  const write = (name: string, text: string) => writeFileAtomic(join(directory, name), text);
  write("results.json", `${JSON.stringify(report, null, 2)}\n`);
  write("report.md", markdownReport(report));
  for (const { tables, charts } of report.studies) {
    for (const table of tables) {
      write(`${table.name}.md`, `${markdownTable(table)}\n`);
      write(`${table.name}.csv`, csvTable(table));
    }
    for (const chart of charts) write(`${chart.name}.svg`, chartFile(chart));
  }
  write("report.html", page(report));
  return join(directory, "report.html");
}
