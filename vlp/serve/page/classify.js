// What a picture shows, among names that a person writes: answers follow while they type.

import { base64, pictureUrl, send } from "./api.js";
import { byId, element, icon, meter, settled } from "./element.js";

const panel = byId("classify");
const SHOWN = 12;
const SUGGESTED = ["person", "animal", "food", "plant", "vehicle", "building", "landscape", "text"];
let subject = null; // {key, id} or {image, preview}
let asked = null;
let names, template, answers, frame, told;

export function startClassify() {
  byId("classify-button").addEventListener("click", () => toggleClassify());
}

/** Name a picture: of the index as {key, id}, or a File. */
export async function nameThis(picture) {
  const isFile = picture instanceof File;
  subject = isFile
    ? { image: await base64(picture), preview: URL.createObjectURL(picture) }
    : picture;
  toggleClassify(true);
  showSubject();
  answer();
}

export function toggleClassify(isOpen = panel.hidden) {
  if (isOpen && !names) build();
  const hadFocus = panel.contains(document.activeElement);
  const host = isOpen ? byId("viewer") : null;
  // A modal dialog makes all outside it inert, so the panel moves into the one that is open.
  if (host?.open) host.append(panel);
  else if (panel.parentElement !== document.body) document.body.append(panel);
  panel.hidden = !isOpen;
  byId("classify-button").setAttribute("aria-expanded", String(isOpen));
  if (isOpen && !host?.open) names.focus();
  if (!isOpen && hadFocus) byId(byId("viewer").open ? "name-this" : "classify-button").focus();
}

export const isNaming = () => !panel.hidden;

function build() {
  const file = element("input", {
    type: "file",
    accept: "image/*",
    class: "unseen",
    tabindex: "-1",
    "aria-hidden": "true",
    onchange: () => file.files.length && nameThis(file.files[0]),
  });
  frame = element("button", { type: "button", class: "subject", id: "classify-subject", onclick: () => file.click() });
  answers = element("ol", { class: "answers", id: "answers", "aria-label": "Names, the likeliest first", "aria-live": "polite" });
  told = element("p", { class: "quiet kind", role: "status" });
  names = element("textarea", { id: "names", spellcheck: "false", maxlength: "20000", oninput: settled(250, answer) });
  names.value = SUGGESTED.join("\n");
  template = element("input", { type: "text", class: "field", maxlength: "500", value: "a photo of a {}", oninput: settled(250, answer) });
  const shut = element("button", { type: "button", class: "round", "aria-label": "Close", onclick: () => toggleClassify(false) }, icon("close"));
  panel.replaceChildren(
    element("header", {}, element("h2", { text: "What is it?" }), shut),
    frame,
    file,
    told,
    answers,
    element("label", { text: "Names, one a line" }, names),
    element("label", { text: "Said as ({} is the name)" }, template),
  );
  panel.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key !== "Escape") return;
    event.preventDefault(); // what it lies over stays open
    toggleClassify(false);
  });
  showSubject();
}

function showSubject() {
  frame.classList.toggle("filled", subject !== null);
  if (!subject) {
    frame.replaceChildren(element("p", { text: "Drop a picture here, or press to choose one" }));
    return;
  }
  const source = subject.preview ?? pictureUrl(subject.id, "thumbnail");
  frame.replaceChildren(element("img", { src: source, alt: "The picture to name; press to choose another" }));
}

async function answer() {
  if (!subject) return;
  asked?.abort();
  const own = (asked = new AbortController());
  const lines = names.value.split("\n").map((name) => name.trim());
  const classes = [...new Set(lines.filter(Boolean))];
  const picture = subject.image ? { image: subject.image } : { key: subject.key };
  try {
    if (!classes.length) throw new Error("Write a name, one a line.");
    const query = { ...picture, classes, templates: [template.value] };
    show(await send("/classify", query, own.signal));
  } catch (error) {
    if (error.name === "AbortError") return;
    answers.replaceChildren();
    told.className = "error";
    told.textContent = error.message;
  }
}

function show({ classes, kind }) {
  told.className = "quiet kind";
  told.textContent = kind === "softmax" ? "The names share one probability." : "Each name has its own probability.";
  answers.replaceChildren(
    ...classes.slice(0, SHOWN).map(({ class: name, probability }) =>
      element(
        "li",
        {},
        element("span", { text: name }),
        element("b", { text: `${(100 * probability).toFixed(1)} %` }),
        meter(probability),
      ),
    ),
  );
}
