// The search box: words as they are typed, terms that stay, and pictures as terms.

import { base64, pictureUrl, send } from "./api.js";
import { byId, element, icon, say, settled } from "./element.js";
import { AWAY, change, onChange, signed, state } from "./state.js";

const box = byId("text");

export function startTerms() {
  box.addEventListener("input", settled(120, () => change({ text: box.value }, { step: false })));
  box.addEventListener("keydown", onKey);
  byId("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keepWords();
  });
  byId("choose").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", (event) => {
    if (event.target.files.length) addFile(event.target.files[0]);
    event.target.value = "";
  });
  onChange(show);
}

/** Search by a picture of the index, or away from it. */
export function addPicture(hit, weight) {
  const others = state.terms.filter(({ kind, value }) => kind !== "key" || value !== hit.key);
  const term = { kind: "key", value: hit.key, weight, id: hit.id, label: hit.caption };
  change({ terms: [...others, term], open: null });
}

/** Search by these pictures of the index alone: more like all of them. */
export function searchLike(hits) {
  const terms = hits.map(({ key, id, caption }) => ({ kind: "key", value: key, weight: 1, id, label: caption }));
  box.value = "";
  change({ terms, text: "", best: 100, sort: "", open: null });
}

/** Search by a file, which is sent to be embedded and not kept. */
export async function addFile(file) {
  const preview = URL.createObjectURL(file);
  try {
    const { images } = await send("/embed", { images: [await base64(file)] });
    const term = { kind: "picture", value: images[0], weight: 1, preview, label: file.name };
    change({ terms: [...state.terms, term], open: null });
  } catch (error) {
    say(error.message);
  }
}

function keepWords() {
  const { text, weight } = signed(box.value);
  if (!text) return;
  box.value = "";
  change({ terms: [...state.terms, { kind: "text", value: text, weight }], text: "" });
}

function onKey(event) {
  if (event.key === "Backspace" && !box.value && state.terms.length) {
    const last = state.terms.at(-1);
    event.preventDefault();
    if (last.kind === "text") box.value = (last.weight < 0 ? "-" : "") + last.value;
    change({ terms: state.terms.slice(0, -1), text: box.value });
  }
}

function show() {
  if (document.activeElement !== box || !state.text) box.value = state.text;
  byId("terms").replaceChildren(...state.terms.map(chip));
  byId("terms").scrollLeft = byId("terms").scrollWidth;
  const isFirst = !state.terms.length;
  box.placeholder = isFirst ? "Search your pictures" : "Add a term";
}

function chip(term) {
  const isMinus = term.weight < 0;
  const name = nameOf(term);
  const flip = element(
    "button",
    {
      type: "button",
      class: "sign",
      "aria-label": `${isMinus ? "Away from" : "Near"} ${name}. Turn around`,
      title: isMinus ? "Keeps away from this; press to turn around" : "Press to keep away from this",
      onclick: () => replace(term, [{ ...term, weight: isMinus ? 1 : AWAY }]),
    },
    sample(term),
    element("span", { text: `${isMinus ? "−" : "+"} ${name}` }),
  );
  const off = element(
    "button",
    {
      type: "button",
      class: "off",
      "aria-label": `Remove ${name}`,
      onclick: () => {
        replace(term, []);
        box.focus();
      },
    },
    icon("close"),
  );
  return element("li", { class: isMinus ? "term minus" : "term" }, flip, off);
}

function nameOf({ kind, value, label }) {
  if (kind === "text") return value;
  return label || (kind === "key" ? value : "a picture");
}

function sample({ kind, id, preview }) {
  if (kind === "text") return null;
  const source = preview ?? (id === undefined ? null : pictureUrl(id, "thumbnail"));
  return source ? element("img", { src: source, alt: "" }) : icon("picture");
}

function replace(term, others) {
  const at = state.terms.indexOf(term);
  change({ terms: [...state.terms.slice(0, at), ...others, ...state.terms.slice(at + 1)] });
}
