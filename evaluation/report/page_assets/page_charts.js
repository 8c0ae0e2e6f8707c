"use strict";
// The charts: specifications are the page's own (made where the files for a paper are made too).
const MOST_ROWS = 24; // of a chart with a point a layer
const ERRORS_ALONE = 1; // the number of vega.Error
const darkness = window.matchMedia("(prefers-color-scheme: dark)");
const drawn = new Set(); // sections that have been looked at

function looks() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const [ink, quiet, line] = [colour("--ink"), colour("--quiet"), colour("--line")];
  const text = { labelColor: quiet, titleColor: ink, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500 };
  return {
    background: "transparent", font: getComputedStyle(document.body).fontFamily, view: { stroke: null },
    axis: { ...text, gridColor: line, domainColor: line, tickColor: line, labelLimit: 200 },
    legend: { ...text, labelLimit: 240, symbolLimit: 0, symbolBaseFillColor: quiet, symbolBaseStrokeColor: quiet }, header: { labelColor: ink, titleColor: ink },
  };
}

const narrow = () => window.innerWidth < 700;

async function draw(place, spec, values) {
  const whole = { ...structuredClone(spec), data: { values }, config: looks() };
  const wide = place.clientWidth || 600;
  if (spec.facet) {
    whole.columns = Math.max(1, Math.min(values.length ? 6 : 1, Math.floor(wide / 285)));
  } else {
    whole.width = "container";
    whole.autosize = { type: "fit", contains: "padding", resize: true };
    if (narrow()) {
      whole.config.legend = { ...whole.config.legend, orient: "bottom", columns: 2, labelLimit: 130, layout: { bottom: { anchor: "start", direction: "vertical" } } };
      const marks = values.length ? unique(values.map((value) => value.method)).length + unique(values.map((value) => value.bits)).length : 0;
      whole.height = spec.height + 8 * marks + 60;
    }
  }
  place.replaceChildren();
  if (!values.length) {
    place.append(element("p", { class: "quiet" }, "Nothing to draw with these filters."));
    return;
  }
  const renderer = values.length > 400 ? "canvas" : "svg";
  await window.vegaEmbed(place, whole, { actions: false, renderer, logLevel: ERRORS_ALONE, tooltip: { theme: darkness.matches ? "dark" : "light" } });
}

function choice(title, options, value, change) {
  const select = element("select", { onchange: () => change(select.value) },
    ...options.map(([key, shown]) => element("option", { value: key }, shown)));
  select.value = value;
  return element("label", {}, title, select);
}

function section(name) {
  const home = document.getElementById(name);
  return { home, controls: home.querySelector(".controls"), chart: home.querySelector(".chart"), beside: home.querySelector(".beside") };
}

function modelChoice(state, redraw) {
  return models.length < 2 ? null : choice("model", models.map((one) => [one, one]), state.model, (value) => { state.model = value; redraw(); });
}

const brief = (value) => (value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(2) : value.toPrecision(3));
const named = (row) => `${row.method} ${row.bits}`;
function notDrawn(left) {
  if (!left.length) return element("p", { class: "quiet" }, "");
  const shown = left.slice(0, 40).map(([row, why]) => `${named(row)} (${why})`);
  const more = left.length > 40 ? ` and ${left.length - 40} more` : "";
  return element("p", { class: "quiet" }, `Not drawn: ${shown.join(", ")}${more}.`);
}

// quality and cost ------------------------------------------------------------------------------
function pareto() {
  const at = section("pareto");
  if (!page.charts.axes) { at.chart.append(element("p", { class: "quiet" }, "No row has a number.")); return; }
  const state = { x: page.charts.axes[0], y: page.charts.axes[1], model: models[0] };
  const known = Object.fromEntries(page.axes.map((axis) => [axis.key, axis]));
  const options = page.axes.map((axis) => [axis.key, axis.title]);
  const redraw = () => {
    const [x, y] = [known[state.x], known[state.y]];
    const values = [], left = [];
    for (const row of shownRows().filter((one) => one.model === state.model)) {
      const ends = { x: row.numbers[state.x], y: row.numbers[state.y] };
      const lost = ["x", "y"].filter((name) => {
        const value = ends[name] ? numeric(ends[name][0]) : NaN;
        return !Number.isFinite(value) || (known[state[name]].log && value <= 0);
      });
      if (lost.length) {
        const why = row.status !== "ok" ? row.status : lost.map((name) => `${known[state[name]].title} ${ends[name] ? ends[name][3] : "n/a"}`).join(", ");
        left.push([row, why]);
        continue;
      }
      const value = { model: row.model, method: row.method, bits: row.bits };
      for (const name of ["x", "y"]) {
        const [middle, low, high, text] = ends[name];
        const whole = [low, high].every((end) => end !== null && Number.isFinite(numeric(end)));
        const drawable = whole && !(known[state[name]].log && low <= 0); // of a logarithm
        Object.assign(value, { [name]: middle, [`${name}_text`]: text, [`${name}_low`]: drawable ? low : null, [`${name}_high`]: drawable ? high : null });
      }
      values.push(value);
    }
    draw(at.chart, withAxes(page.charts.pareto, { x, y }), values);
    at.beside.replaceChildren(notDrawn(left), element("p", { class: "quiet" },
      "The broken line joins the rows that no other row of the model beats on both axes, by their values alone: where intervals overlap, the order is not told."));
  };
  at.controls.append(...[
    choice("across", options, state.x, (value) => { state.x = value; redraw(); }),
    choice("up", options, state.y, (value) => { state.y = value; redraw(); }),
    modelChoice(state, redraw),
  ].filter(Boolean));
  listeners.push(redraw);
  redraw();
}

function withAxes(spec, axes) {
  const whole = structuredClone(spec);
  const words_ = { higher: " (higher is better)", lower: " (lower is better)", "": "" };
  for (const name of ["x", "y"]) {
    const axis = axes[name];
    const change = (encoding) => Object.assign(encoding, { title: axis.title + words_[axis.better], scale: axis.log ? { type: "log" } : { zero: false } });
    change(whole.encoding[name]);
    whole.layer.filter((layer) => layer.encoding[name]).forEach((layer) => change(layer.encoding[name]));
    whole.layer.flatMap((layer) => layer.encoding.tooltip ?? []).filter((told) => told.field === `${name}_text`).forEach((told) => { told.title = axis.title; });
  }
  const line = whole.layer[0];
  const order = (axis) => (axis.better === "higher" ? "descending" : "ascending");
  line.transform[0].window[0].op = axes.y.better === "higher" ? "max" : "min";
  line.transform[0].sort = [{ field: "x", order: order(axes.x) }, { field: "y", order: order(axes.y) }];
  line.encoding.order.sort = order(axes.x);
  return whole;
}

// error over steps ------------------------------------------------------------------------------
function steps() {
  const at = section("steps");
  const state = { model: models[0] };
  const redraw = () => {
    const values = [], left = [];
    for (const row of shownRows().filter((one) => one.model === state.model)) {
      const whole = row.steps.length && row.steps.every(([mean]) => Number.isFinite(numeric(mean)) && mean > 0);
      if (!whole) { left.push([row, row.status !== "ok" ? row.status : row.steps.length ? "no error at all at some step" : "not in the store"]); continue; }
      row.steps.forEach(([error, low, high], step) => values.push({
        model: row.model, method: row.method, bits: row.bits, step: step + 1, error,
        low: low > 0 ? low : error, high: high ?? error,
        text: `${error}${low === null ? "" : ` [${low}, ${high}]`}`,
      }));
    }
    draw(at.chart, page.charts.steps, values);
    at.beside.replaceChildren(notDrawn(left), element("p", { class: "quiet" },
      "Teacher-forced: at each step the quantized denoiser gets the unquantized one's latents. Mean over prompts, band: 95 % interval."));
  };
  const model = modelChoice(state, redraw);
  if (model) at.controls.append(model);
  listeners.push(redraw);
  redraw();
}

// layers ----------------------------------------------------------------------------------------
function layers() {
  const at = section("layers");
  const state = { model: models[0], bits: null };
  let turn = 0;
  const redraw = async () => {
    const mine = ++turn;
    const candidates = shownRows().filter((row) => row.model === state.model && row.has_layers);
    const widths = unique(candidates.map((row) => row.bits));
    if (!widths.includes(state.bits)) state.bits = widths[0] ?? null;
    const taken = candidates.filter((row) => row.bits === state.bits).slice(0, MOST_ROWS);
    const found = await Promise.all(taken.map((row) => details(row.row)));
    if (mine !== turn) return; // a later choice has overtaken this one
    const values = [], facts = new Map();
    taken.forEach((row, index) => found[index].layers.forEach(([name, error, shape, kind, output, input, dual], place) => {
      const seen = page.inputs[row.inputs]?.[name];
      const fact = facts.get(name) ?? { name, shape, place, output: "", input: "", dual: "", negative: seen ? `${(100 * seen[0]).toFixed(1)} %` : "-", range: seen ? `${seen[1].toPrecision(3)} to ${seen[2].toPrecision(3)}` : "-", errors: {} };
      facts.set(name, Object.assign(fact, { output: fact.output || output, input: fact.input || input, dual: fact.dual || dual }));
      fact.errors[row.method] = error;
      if (error > 0) values.push({
        place: place + 1, layer: name, method: row.method, bits: row.bits, error, error_text: brief(error), shape, kind,
        output: output || "one", input: input || "one", dual: dual || "no", negative: fact.negative, range: fact.range,
      });
    }));
    controls(widths);
    draw(at.chart, page.charts.layers, values);
    const left = shownRows().filter((row) => row.model === state.model && !row.has_layers)
      .map((row) => [row, row.status !== "ok" ? row.status : "nothing quantized, or no error kept"]);
    const cut = candidates.filter((row) => row.bits === state.bits).slice(MOST_ROWS).map((row) => [row, "filter to see it"]);
    at.beside.replaceChildren(notDrawn([...left, ...cut]), layerTable([...facts.values()], taken));
  };
  const controls = (widths) => at.controls.replaceChildren(...[
    modelChoice(state, redraw),
    widths.length ? choice("bits", widths.map((one) => [one, one]), state.bits, (value) => { state.bits = value; redraw(); }) : null,
  ].filter(Boolean));
  listeners.push(redraw);
  redraw();
}

function layerTable(facts, taken) {
  if (!facts.length) return element("p", { class: "quiet" }, "The store holds no layer's error of these rows.");
  const heads_ = ["Linear", "in → out", "output segments", "input segments", "DualScale", "negative inputs", "input range", ...taken.map((row) => row.method)];
  const lines_ = facts.map((fact) => element("tr", {}, ...[
    fact.name, fact.shape, fact.output || "-", fact.input || "-", fact.dual || "-", fact.negative, fact.range,
    ...taken.map((row) => (fact.errors[row.method] === undefined || fact.errors[row.method] === null ? "-" : brief(fact.errors[row.method]))),
  ].map((text) => element("td", {}, text))));
  const whole = element("table", {}, element("thead", {}, element("tr", {}, ...heads_.map((text) => element("th", {}, text)))), element("tbody", {}, ...lines_));
  return fold(`All ${facts.length} Linears`, element("div", { class: "scroll", tabindex: "0" }, whole));
}

// weights and activations -----------------------------------------------------------------------
function bars(shown) {
  return shown.flatMap(([layer, low, high, shares], order) => {
    const step = (high - low) / shares.length;
    return shares.map((share, index) => ({
      layer, order, share, low: low + index * step, high: low + (index + 1) * step,
      text: `${(low + index * step).toPrecision(3)} to ${(low + (index + 1) * step).toPrecision(3)}: ${share} %`,
    }));
  });
}

function values() {
  const at = section("values");
  const kinds = Object.keys(page.activations).map((key) => {
    const row = rows.find((one) => one.inputs === key);
    return [`inputs ${key}`, `inputs of the Linears, ${row ? row.model : key}`];
  });
  rows.filter((row) => row.has_codes).forEach((row) => kinds.push([`codes ${row.row}`, `weight codes, ${models.length > 1 ? `${row.model} ` : ""}${named(row)}`]));
  if (!kinds.length) {
    at.chart.append(element("p", { class: "quiet" }, "The store holds neither a calibration nor a checkpoint of these rows."));
    return;
  }
  const state = { what: kinds[0][0] };
  const redraw = async () => {
    const [kind, key] = state.what.split(" ");
    const shown = kind === "inputs" ? page.activations[key] : (await details(Number(key))).codes;
    draw(at.chart, page.charts[kind === "inputs" ? "activations" : "codes"], bars(shown));
    at.beside.replaceChildren(element("p", { class: "quiet" }, kind === "inputs"
      ? "From the calibration's sampled rows, before any smoothing. Shown: the Linears with the largest errors, those with segments and with DualScale."
      : "The values that the stored codes stand for, in steps of the scale: an unused end of the grid is lost range."));
  };
  at.controls.append(choice("of", kinds, state.what, (value) => { state.what = value; redraw(); }));
  redraw();
}
