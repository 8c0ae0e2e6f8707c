"use strict";
// Images by prompt, the worst first; and what starts everything.
function pictures() {
  const at = section("pictures");
  const held = read("pictured");
  const candidates = rows.filter((row) => row.has_pictures);
  if (!candidates.length) {
    at.chart.append(element("p", { class: "quiet" }, "The store holds no images of these rows any more, or none of them is done."));
    return;
  }
  const first = candidates.find((row) => row.quantized) ?? candidates[0];
  const state = { row: first.row, prompt: null };
  const title = (row) => `${models.length > 1 ? `${row.model} ` : ""}${named(row)}`;
  const redraw = () => {
    const row = rows[state.row];
    const shown = held.rows[state.row].slice().sort((a, b) => b[4] - a[4]);
    const index = Math.max(0, shown.findIndex((one) => one[0] === state.prompt));
    state.prompt = shown[index][0];
    const references = held.references[row.references];
    const list = element("ul", { class: "prompts" }, ...shown.map(([id, image]) => {
      const button = element("button", {
        type: "button", "aria-pressed": String(id === state.prompt), title: references[id][0],
        onclick: () => { state.prompt = id; redraw(); at.beside.querySelector(`[data-prompt="${CSS.escape(id)}"]`)?.focus(); },
      }, element("img", { src: image, alt: references[id][0], class: "small-image", loading: "lazy" }), element("span", {}, references[id][0]));
      button.dataset.prompt = id;
      return element("li", {}, button);
    }));
    at.beside.replaceChildren(element("div", { class: "viewer" }, element("div", {}, list), comparison(row, shown[index], references[state.prompt])));
  };
  at.controls.append(choice("row", candidates.map((row) => [row.row, title(row)]), state.row, (value) => { state.row = Number(value); redraw(); }));
  at.chart.append(element("p", { class: "quiet" }, page.ordered_by));
  redraw();
}

function comparison(row, [id, image, difference, gain, , scores], [prompt, reference]) {
  const top = element("img", { src: image, alt: `${named(row)}: ${prompt}`, class: "small-image" });
  const edge = element("div", { class: "edge" });
  const slider = element("input", { type: "range", min: "0", max: "100", value: "50", "aria-label": "where the reference ends and the row begins" });
  const slide = () => {
    top.style.clipPath = `inset(0 0 0 ${slider.value}%)`;
    edge.style.left = `calc(${slider.value}% - 1px)`;
  };
  slider.addEventListener("input", slide);
  slide();
  const figure = (source, text) => element("figure", {}, element("img", { src: source, alt: text, class: "small-image" }), element("figcaption", {}, text));
  return element("div", {},
    element("p", {}, prompt),
    element("div", { class: "slide" }, element("img", { src: reference, alt: `reference: ${prompt}`, class: "small-image" }), top, edge),
    slider, element("div", { class: "ends" }, element("span", {}, "reference"), element("span", {}, named(row))),
    element("div", { class: "trio" }, figure(reference, "reference"), figure(image, named(row)), figure(difference, `|difference| x ${gain}`)),
    element("p", { class: "quiet" }, `${id}: ${Object.entries(scores).map(([name, text]) => `${name} ${text}`).join(", ") || "no score"}`));
}

// ------------------------------------------------------------------------------------------------
const draws = { pareto, steps, layers, values, pictures };
function begin(name) {
  if (drawn.has(name)) return;
  drawn.add(name);
  draws[name]();
}

// Charts are drawn when they come near; Vega is there by then.
function startDrawing() {
  const watch = new IntersectionObserver((entries) => {
    entries.filter((entry) => entry.isIntersecting).forEach((entry) => begin(entry.target.id));
  }, { rootMargin: "300px" });
  Object.keys(draws).forEach((name) => watch.observe(document.getElementById(name)));
  window.addEventListener("beforeprint", () => Object.keys(draws).forEach(begin));
  darkness.addEventListener("change", () => listeners.forEach((tell) => tell()));
}

makeFilters();
applyFilters();
document.documentElement.dataset.ready = "yes";
