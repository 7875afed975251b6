// Filters by the metadata of the pictures, relevance and order.

import { byId, element, settled } from "./element.js";
import { change, hasTerms, onChange, state } from "./state.js";

/** Percent of all pictures at each stop of the slider. */
const CUTS = [100, 50, 25, 10, 5, 2, 1, 0.5, 0.1];
const panel = byId("filters");
let fields = [];

export function startFilters(known) {
  fields = known;
  byId("filters-button").addEventListener("click", () => toggleFilters());
  byId("cut").addEventListener(
    "input",
    settled(60, (event) => change({ best: CUTS[event.target.value] }, { step: false })),
  );
  const orders = [
    ["", "Best first"],
    ["key", "Key A–Z"],
    ["caption", "Caption A–Z"],
    ...fields.filter(({ kind }) => kind === "number").flatMap(({ name }) => [
      [name, `${name} ↑`],
      [`-${name}`, `${name} ↓`],
    ]),
  ];
  byId("sort").replaceChildren(...orders.map(([value, text]) => element("option", { value, text })));
  byId("sort").addEventListener("change", (event) => change({ sort: event.target.value }));
  onChange(show);
}

export function toggleFilters(isOpen = panel.hidden) {
  panel.hidden = !isOpen;
  byId("filters-button").setAttribute("aria-expanded", String(isOpen));
  if (isOpen) draw();
}

function show() {
  const count = Object.keys(state.where).length + state.fold;
  byId("filters-count").textContent = count;
  byId("filters-count").hidden = !count;
  const stop = CUTS.findIndex((cut) => cut <= state.best);
  byId("cut").value = stop < 0 ? CUTS.length - 1 : stop;
  const text = state.best < 100 ? `Best ${state.best} %` : "All";
  byId("cut-name").textContent = text;
  byId("cut").setAttribute("aria-valuetext", text);
  byId("cut-label").classList.toggle("idle", !hasTerms(state));
  byId("sort").options[0].text = hasTerms(state) ? "Best first" : "As indexed";
  byId("sort").value = state.sort;
  if (!panel.hidden && !panel.contains(document.activeElement)) draw();
}

function draw() {
  const clear = element("button", {
    type: "button",
    class: "text-button",
    text: "Clear all filters",
    onclick: () => {
      change({ where: {}, fold: false });
      draw();
    },
  });
  const fold = element("input", {
    type: "checkbox",
    checked: state.fold,
    onchange: (event) => change({ fold: event.target.checked }),
  });
  const alike = element("label", { class: "choice" }, fold, element("span", { text: "Pictures that look alike as one" }));
  const groups = fields.map((field) => (field.kind === "number" ? between(field) : choices(field)));
  panel.replaceChildren(...groups, element("div", { class: "ends" }, alike, clear));
}

function choices({ name, values }) {
  const wanted = Array.isArray(state.where[name]) ? state.where[name] : [];
  const boxes = values.map(({ value, count }) => {
    const input = element("input", {
      type: "checkbox",
      checked: wanted.includes(value),
      "aria-label": `${value} (${count} pictures)`,
      onchange: (event) => {
        const now = Array.isArray(state.where[name]) ? state.where[name] : [];
        const rest = now.filter((other) => other !== value);
        set(name, event.target.checked ? [...rest, value] : rest);
      },
    });
    const text = element("span", { text: String(value) }, element("small", { text: count.toLocaleString() }));
    return element("label", { class: "choice" }, input, text);
  });
  return element("fieldset", {}, element("legend", { text: name }), element("div", { class: "choices" }, ...boxes));
}

function between({ name, least, most }) {
  const now = state.where[name] ?? {};
  const end = (side, label, bound) =>
    element("input", {
      type: "number",
      class: "field",
      step: "any",
      placeholder: String(bound),
      value: now[side] ?? null,
      "aria-label": `${name}, ${label}`,
      oninput: settled(300, (event) => {
        const { [side]: _, ...rest } = state.where[name] ?? {};
        const value = event.target.value;
        set(name, value === "" ? rest : { ...rest, [side]: Number(value) });
      }),
    });
  const ends = [end("least", "at least", least), "–", end("most", "at most", most)];
  return element("fieldset", {}, element("legend", { text: name }), element("div", { class: "between" }, ...ends));
}

function set(name, wanted) {
  const { [name]: _, ...rest } = state.where;
  const isNone = Array.isArray(wanted) ? !wanted.length : !Object.keys(wanted).length;
  change({ where: isNone ? rest : { ...rest, [name]: wanted } });
}
