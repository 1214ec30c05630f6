/** @file Door of the parts that all pages are made of. */
export { Chart, type ChartTable, heatColor, type Legend, seriesColor } from "./chart.tsx";
export { Button, Checkbox, CopyButton, DownloadButton, Field, SelectField, TextArea, TextField } from "./controls.tsx";
export { ConfirmDialog, Dialog } from "./dialog.tsx";
export { ago, bytes, duration, expertName, milliseconds, number, percent, time } from "./format.ts";
export { Badge, Card, Page, PageTabs, Stats } from "./page.tsx";
export { type GridLayer, RouteGrid } from "./route-grid.tsx";
export { Empty, ErrorNote, Loaded, Loading, Note } from "./states.tsx";
export { type Column, DataTable, type Sort } from "./table.tsx";
