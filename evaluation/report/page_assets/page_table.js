"use strict";
// The table: sorting, filters, columns. Text reaches the page as text nodes alone.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const page = read("data");
const rows = page.rows;
const listeners = []; // of what is drawn again when the filters change
const chosen = { model: null, method: null, bits: null, status: null }; // null: all
let words = "";

function element(name, given = {}, ...inside) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null) made.setAttribute(key, value);
  }
  made.append(...inside.filter((part) => part !== null));
  return made;
}

const unique = (values) => [...new Set(values)];
const models = unique(rows.map((row) => row.model));
const numeric = (value) => (value === null || value === undefined ? NaN : Number(value));
const isShown = (row) =>
  Object.entries(chosen).every(([key, allowed]) => allowed === null || allowed.has(row[key])) &&
  words
    .toLowerCase()
    .split(/\s+/)
    .every((word) => `${row.model} ${row.method} ${row.bits} ${row.status} ${row.reason}`.toLowerCase().includes(word));
const shownRows = () => rows.filter(isShown);

const table = document.getElementById("rows");
const body = table.tBodies[0];
const heads = [...table.tHead.rows[0].cells];
const lines = [...body.rows]; // as the table has them

const NAMED = ["model", "method", "bits", "status"];
function valueOf(line, column) {
  const { key, numeric: isNumber } = page.columns[column];
  if (NAMED.includes(key)) return rows[line.dataset.row][key];
  if (!isNumber) return line.cells[column].textContent;
  const held = rows[line.dataset.row].numbers[page.columns[column].key];
  return held === undefined ? NaN : numeric(held[0]);
}

function sortBy(column, direction) {
  heads.forEach((head, index) => head.setAttribute("aria-sort", index === column ? direction : "none"));
  closeDetails();
  const sign = direction === "descending" ? -1 : 1;
  const isNumber = page.columns[column].numeric;
  const keyed = lines.map((line, place) => ({ line, place, value: valueOf(line, column) }));
  if (direction !== "none") {
    keyed.sort((a, b) => {
      if (isNumber) {
        const [lost, other] = [Number.isNaN(a.value), Number.isNaN(b.value)];
        if (lost || other) return lost - other || a.place - b.place; // without a number: at the end
        return a.value === b.value ? a.place - b.place : sign * (a.value < b.value ? -1 : 1);
      }
      return sign * a.value.localeCompare(b.value, undefined, { numeric: true }) || a.place - b.place;
    });
  }
  body.append(...keyed.map((item) => item.line));
}

heads.forEach((head, column) => {
  head.querySelector("button").addEventListener("click", () => {
    const next = { none: "ascending", ascending: "descending", descending: "none" };
    sortBy(column, next[head.getAttribute("aria-sort")]);
  });
});

function closeDetails() {
  body.querySelectorAll("tr.detail").forEach((line) => line.remove());
  body.querySelectorAll(".unfold").forEach((button) => {
    button.setAttribute("aria-expanded", "false");
    button.textContent = "▸";
  });
}

function applyFilters() {
  closeDetails();
  let count = 0;
  for (const line of lines) {
    const visible = isShown(rows[line.dataset.row]);
    line.classList.toggle("hidden", !visible);
    count += visible;
  }
  const hidden = hiddenColumns.size ? `; ${hiddenColumns.size} of ${heads.length} columns hidden` : "";
  document.getElementById("shown").textContent =
    `${count === rows.length ? `all ${count}` : `${count} of ${rows.length}`} rows${hidden}. ` +
    "A title sorts, ▸ unfolds a row: its record, its command, the layers left in 16 bit.";
  listeners.forEach((tell) => tell());
}

// columns ---------------------------------------------------------------------------------------
const hiddenColumns = new Set(page.columns.filter((column) => column.hidden).map((column) => column.key));
function showColumns() {
  page.columns.forEach((column, index) => {
    const hide = hiddenColumns.has(column.key);
    if (heads[index].classList.contains("hidden") === hide) return;
    heads[index].classList.toggle("hidden", hide);
    lines.forEach((line) => line.cells[index].classList.toggle("hidden", hide));
  });
}

// filters ---------------------------------------------------------------------------------------
function picker(title, options, isOn, change, all) {
  const choices = element("div", { class: "choices" });
  const holder = element("details", {}, element("summary", {}, title), choices);
  const boxes = options.map(([value, shown]) => {
    const box = element("input", { type: "checkbox", value });
    box.checked = isOn(value);
    box.addEventListener("change", () => {
      change(boxes.filter((one) => one.checked).map((one) => one.value));
      holder.classList.toggle("on", boxes.some((one) => !one.checked));
    });
    choices.append(element("label", {}, box, element("span", {}, shown)));
    return box;
  });
  const set = (value) => () => {
    boxes.forEach((box) => (box.checked = value));
    boxes[0].dispatchEvent(new Event("change"));
  };
  choices.prepend(
    element("button", { type: "button", class: "plain", onclick: set(true) }, all), " ",
    element("button", { type: "button", class: "plain", onclick: set(false) }, "None"),
  );
  holder.classList.toggle("on", boxes.some((one) => !one.checked));
  holder.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    holder.open = false;
    holder.firstElementChild.focus();
  });
  return holder;
}

function makeFilters() {
  const place = document.getElementById("filters");
  for (const [key, title] of [["model", "Model"], ["method", "Method"], ["bits", "Bits"], ["status", "Status"]]) {
    const options = unique(rows.map((row) => row[key]));
    if (options.length < 2) continue;
    const take = (values) => {
      chosen[key] = values.length === options.length ? null : new Set(values);
      applyFilters();
    };
    place.append(picker(title, options.map((value) => [value, value]), () => true, take, "All"));
  }
  const takeColumns = (values) => {
    page.columns.forEach((column) => {
      if (values.includes(column.key)) hiddenColumns.delete(column.key);
      else hiddenColumns.add(column.key);
    });
    showColumns();
    applyFilters();
  };
  const titles = page.columns.map((column) => [column.key, column.title]);
  place.append(picker("Columns", titles, (key) => !hiddenColumns.has(key), takeColumns, "All"));
  let wait;
  const search = element("input", {
    type: "search", placeholder: "Search rows", "aria-label": "search rows",
    oninput: () => {
      clearTimeout(wait);
      wait = setTimeout(() => { words = search.value.trim(); applyFilters(); }, 120);
    },
  });
  place.append(search);
  document.addEventListener("click", (event) => {
    place.querySelectorAll("details[open]").forEach((one) => { if (!one.contains(event.target)) one.open = false; });
  });
}

body.addEventListener("click", (event) => {
  const button = event.target.closest(".unfold");
  if (button) unfold(Number(button.closest("tr").dataset.row), button.closest("tr"), button);
});
