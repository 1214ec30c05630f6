/** @file report.html of a reproduction: one page without scripts and without requests. */
import { sum } from "../../base/index.ts";
import { differencesTable, doneText, type Report, type Table, valueText } from "../../evaluation/index.ts";
import { style } from "../report/style.ts";
import { escapeHtml } from "../report/svg.ts";
import { chartSvg } from "./charts.ts";

const STYLE = `${style}
td.text, th.text { text-align: left; white-space: normal; max-width: 34rem; overflow-wrap: anywhere; } td.paper { color: var(--soft); }
nav a { color: var(--c1); margin-right: .8rem; } h3 { font-size: .95rem; margin: 1.2rem 0 .4rem; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
`;

function tableHtml({ title, columns, rows, notes = [] }: Table): string {
  const isText = (key: string) => rows.every((row) => row[key] == null || typeof row[key] === "string");
  const kinds = columns.map(({ key }) =>
    isText(key) ? "text" : key.endsWith("paper") || key.startsWith("paper") ? "paper" : "",
  );
  const cells = (tag: string, texts: readonly string[]) =>
    texts
      .map((text, i) => `<${tag}${tag === "th" ? ' scope="col"' : ""} class="${kinds[i]}">${escapeHtml(text)}</${tag}>`)
      .join("");
  const head = `<thead><tr>${cells(
    "th",
    columns.map((column) => column.title),
  )}</tr></thead>`;
  const body = rows.map(
    (row) =>
      `<tr>${cells(
        "td",
        columns.map((column) => valueText(row[column.key], column)),
      )}</tr>`,
  );
  const below = notes.map((note) => `<p>${escapeHtml(note)}</p>`).join("");
  if (rows.length === 0) return below;
  return `<div class="wide"><table><caption>${escapeHtml(title)}</caption>${head}<tbody>${body.join("")}</tbody></table></div>${below}`;
}

const list = (lines: readonly string[]): string =>
  `<ul>${lines.map((line) => `<li>${escapeHtml(line)}</li>`).join("")}</ul>`;

export function page(report: Report): string {
  const { preset, model, seeds, machine, made, studies, differences, failures, methods } = report;
  const title = "The paper's tables and figures, measured";
  const facts: [string, string][] = [
    ["preset", preset],
    ["backbone", model],
    ["seeds", String(seeds)],
    ["cells", `${sum(studies.map(({ done }) => done))} of ${sum(studies.map(({ cells }) => cells))}`],
    ["machine", machine],
    ["made", made],
  ];
  const cards = facts.map(([name, value]) => `<li><b>${escapeHtml(value)}</b>${name}</li>`).join("");
  const links = studies
    .map(({ name, title: text }) => `<a href="#${escapeHtml(name)}">${escapeHtml(text)}</a>`)
    .join("");
  const sections = studies.map((study) => {
    const charts = study.charts.map(chartSvg).join("");
    return [
      `<section id="${escapeHtml(study.name)}"><h2>${escapeHtml(study.title)}</h2>`,
      `<p>${escapeHtml(`${study.about} ${doneText(study)}.`)}</p>`,
      charts === "" ? "" : `<div class="charts">${charts}</div>`,
      ...study.tables.map(tableHtml),
      study.skipped.length ? `<p>Left out:</p>${list(study.skipped)}` : "",
      "</section>",
    ].join("");
  });
  const table = differencesTable(differences, methods);
  const differs = differences.length ? tableHtml({ ...table, title: "" }) : "<p>None.</p>";
  const failed = failures.length
    ? `<section><h2>Failed</h2>${list(failures.map(({ label, code, reason }) => `${label}: ${reason} (${code})`))}</section>`
    : "";
  const policy = "default-src 'none'; style-src 'unsafe-inline'";
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy" content="${policy}">
<title>${title}</title><style>${STYLE}</style></head>
<body><header><h1>${title}</h1><p>Zhang et al. 2024, MiLoRA, arXiv 2410.18035</p><ul class="cards">${cards}</ul></header>
<nav aria-label="Tables and figures"><p>${links}</p></nav>
${failed}${sections.join("\n")}
<section><h2>${escapeHtml(table.title)}</h2>${differs}</section></body></html>
`;
}
