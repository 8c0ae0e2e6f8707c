"use strict";
// What a row unfolds to. Records are compressed, sixteen in a part, and read when they are asked for.
let packed = null; // read when the first row unfolds
const parts = new Map();
const ROWS_IN_PART = 16;

async function unpack(text) {
  const raw = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

async function details(row) {
  packed ??= read("packed");
  const part = Math.floor(row / ROWS_IN_PART);
  if (!parts.has(part)) parts.set(part, unpack(packed[part]));
  return (await parts.get(part))[row % ROWS_IN_PART];
}

const said = (value) =>
  value === null ? "-" : typeof value === "object" ? JSON.stringify(value) : String(value);

function pairs(content) {
  const lines_ = Object.entries(content).map(([key, value]) =>
    element("tr", {}, element("td", {}, key), element("td", {}, said(value))));
  return element("div", { class: "part" }, element("table", {}, element("tbody", {}, ...lines_)));
}

function fold(title, content, open = false) {
  return element("details", open ? { open: true } : {}, element("summary", {}, title), content);
}

function keptLayers(kept) {
  const list = element("ul", { class: "legend" });
  for (const [reason, names] of Object.entries(kept)) {
    list.append(element("li", {}, `${names.length}: ${reason} `, fold("which", element("p", { class: "quiet" }, names.join(", ")))));
  }
  return list;
}

function metricsTable(metrics) {
  const head = ["metric", "value", "interval", "n", "against", "note"];
  const lines_ = Object.entries(metrics).map(([name, metric]) =>
    element("tr", {}, ...[
      name, said(metric.value),
      metric.interval ? `${metric.interval_kind} [${metric.interval.map(said).join(", ")}]` : "-",
      String(metric.n), metric.against, metric.note,
    ].map((text) => element("td", {}, text))));
  return element("div", { class: "part" }, element("table", {},
    element("thead", {}, element("tr", {}, ...head.map((text) => element("th", {}, text)))),
    element("tbody", {}, ...lines_)));
}

function describe(row, found) {
  const record = found.record;
  const inside = element("div", { class: "inside" });
  if (record.status !== "ok") {
    inside.append(element("p", {}, element("b", {}, `${record.status}: `), record.reason));
    if (record.traceback) inside.append(fold("Traceback", element("pre", {}, record.traceback)));
  }
  if (found.command) {
    inside.append(element("p", { class: "quiet" }, "Made by"), element("pre", { class: "command" }, found.command));
  }
  if (record.status === "missing") return inside;
  const draws = found.draws.length > 1 ? `${found.draws.length} calibration draws: ${found.draws.join(", ")}; the record below is of the first, its metrics of all` : record.run_id;
  const keptCount = Object.values(found.kept).reduce((sum, names) => sum + names.length, 0);
  inside.append(element("p", { class: "quiet" },
    `Record ${draws}. ${found.quantized} Linears quantized, ${keptCount} left in 16 bit; execution: ${record.execution}.`));
  if (keptCount) inside.append(fold(`Left in 16 bit, and why (${keptCount})`, keptLayers(found.kept), keptCount < 40));
  const elements_ = record.method_elements || { included: [], left_out: [] };
  if (elements_.included.length + elements_.left_out.length) {
    inside.append(fold("Elements of the method", pairs({ done: elements_.included.join("; ") || "-", "left out": elements_.left_out.join("; ") || "-" })));
  }
  inside.append(fold(`Metrics (${Object.keys(record.metrics).length})`, metricsTable(record.metrics)));
  if (Object.keys(record.settings).length) inside.append(fold("Settings that are not conf/'s own", pairs(record.settings)));
  inside.append(fold("Protocol", pairs(record.protocol)));
  const costs = {};
  for (const key of ["effective_bits_per_weight", "weight_bytes", "extra_macs_fraction", "calibration_forwards", "search_candidates", "peak_memory_bytes"]) costs[key] = record[key];
  for (const [name, value] of Object.entries(record.seconds)) costs[`seconds: ${name}`] = value;
  inside.append(fold("Costs", pairs(costs)), fold("Environment", pairs(record.environment)));
  inside.append(fold("The record, whole but for its layers", element("pre", {}, JSON.stringify(record, null, 1))));
  return inside;
}

async function unfold(row, line, button) {
  if (button.getAttribute("aria-expanded") === "true") {
    button.setAttribute("aria-expanded", "false");
    button.textContent = "▸";
    if (line.nextElementSibling?.classList.contains("detail")) line.nextElementSibling.remove();
    return;
  }
  button.setAttribute("aria-expanded", "true");
  button.textContent = "▾";
  const cell = element("td", { colspan: heads.length });
  line.after(element("tr", { class: "detail" }, cell));
  try {
    cell.append(describe(row, await details(row)));
  } catch (error) {
    cell.append(element("p", { class: "inside" }, `This browser cannot unpack the record (${error}).`));
  }
}
