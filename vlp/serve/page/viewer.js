// One picture, large, with all that is known of it.

import { ask, pictureUrl, whyHidden } from "./api.js";
import { isNaming, nameThis, toggleClassify } from "./classify.js";
import { byId, element, icon, meter, say } from "./element.js";
import { hits, more, percent, tiles } from "./results.js";
import { choose, isChosen } from "./selection.js";
import { AWAY, change, onChange, state } from "./state.js";
import { addPicture } from "./terms.js";

const viewer = byId("viewer");
let shown = null; // id

export function startViewer() {
  viewer.addEventListener("cancel", (event) => {
    event.preventDefault();
    if (isNaming()) toggleClassify(false);
    else close();
  });
  // A second Escape in a row is not asked about: the browser closes by itself.
  viewer.addEventListener("close", () => state.open !== null && close());
  viewer.addEventListener("keydown", onKey);
  onChange(refresh);
}

export const close = () => change({ open: null });

async function refresh() {
  if (state.open === shown) return;
  const before = shown;
  shown = state.open;
  if (shown === null || !viewer.open) toggleClassify(false); // it names what one looks at
  if (shown === null) {
    viewer.close();
    tiles()[placeOf(before)]?.focus();
    return;
  }
  if (!viewer.open) viewer.showModal();
  const place = placeOf(shown);
  try {
    show(hits[place] ?? (await ask(`/pictures/${shown}`)), place);
  } catch (error) {
    say(error.message);
    close();
  }
}

const placeOf = (id) => hits.findIndex((hit) => hit.id === id);

function turn(steps) {
  const next = hits[placeOf(shown) + steps];
  if (next) change({ open: next.id }, { step: false });
  if (placeOf(shown) > hits.length - 6) more();
}

const SWIPE = 50; // pixels
let finger = null; // where it came down

const onTouch = ({ touches }) => (finger = touches.length === 1 ? touches[0].clientX : null);

function onLift({ changedTouches }) {
  const moved = finger === null ? 0 : changedTouches[0].clientX - finger;
  finger = null;
  if (Math.abs(moved) > SWIPE) turn(moved < 0 ? 1 : -1);
}

function onKey(event) {
  if (event.target.matches("input, textarea, select")) return;
  const act = {
    ArrowLeft: () => turn(-1),
    ArrowRight: () => turn(1),
    " ": () => byId("select-this").click(),
    m: () => byId("more-this").click(),
    l: () => byId("less-this").click(),
    n: () => byId("name-this").click(),
  }[event.key];
  const pressesButton = event.key === " " && event.target.matches("button:not(.close)");
  if (!act || pressesButton || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  event.stopPropagation();
  act();
}

function show(hit, place) {
  const name = hit.caption || hit.key;
  const arrow = (side, steps, label) =>
    element(
      "button",
      {
        type: "button",
        class: `round turn ${side}`,
        "aria-label": label,
        disabled: place < 0 || !hits[place + steps],
        onclick: () => turn(steps),
      },
      icon(side),
    );
  const shut = element("button", { type: "button", class: "round close", "aria-label": "Close", onclick: close }, icon("close"));
  const touched = { class: "stage", ontouchstart: onTouch, ontouchend: onLift };
  const stage = element("div", touched, shut, large(hit, name), arrow("left", -1, "Previous"), arrow("right", 1, "Next"));
  viewer.replaceChildren(stage, facts(hit, place, name));
  shut.focus();
  if (isNaming()) nameThis({ key: hit.key, id: hit.id }); // the panel, too, follows to the next picture
}

function large(hit, name) {
  const image = element("img", { src: pictureUrl(hit.id, "thumbnail"), alt: name });
  const whole = new Image();
  whole.onload = () => {
    image.src = whole.src;
    // A small picture is made larger, but not until it is a blur.
    image.style.maxWidth = image.style.maxHeight = `${Math.max(480, 3 * whole.naturalWidth)}px`;
  };
  whole.onerror = async () => image.replaceWith(element("p", { class: "missing", text: await whyHidden(hit.id) }));
  whole.src = pictureUrl(hit.id, "large");
  return image;
}

function facts(hit, place, name) {
  const selected = place >= 0 && isChosen(hit);
  const select = action("select-this", "check", selected ? "Selected" : "Select", () => {
    choose(place, !isChosen(hit));
    show(hit, place);
  });
  select.setAttribute("aria-pressed", selected);
  if (place < 0) select.hidden = true;
  const rows = Object.entries(hit.metadata).filter(([, value]) => value !== null && value !== "");
  return element(
    "div",
    { class: "facts", tabindex: "0", role: "region", "aria-label": "About the picture" },
    element("h2", { text: name }),
    ...score(hit),
    element(
      "div",
      { class: "actions" },
      action("more-this", "like", "More like this", () => addPicture(hit, 1)),
      action("less-this", "unlike", "Less like this", () => addPicture(hit, AWAY)),
      select,
      action("name-this", "tag", "Name it", () => nameThis({ key: hit.key, id: hit.id })),
    ),
    element("dl", {}, ...[["Key", hit.key], ...rows].map(([title, value]) => fact(title, value))),
  );
}

function score(hit) {
  if (hit.percentile === null) return [];
  const text = `Nearer than ${percent(hit.percentile)} of all pictures · cosine ${hit.score.toFixed(3)}`;
  return [meter(hit.percentile / 100), element("p", { class: "score", text })];
}

function action(id, symbol, text, onclick) {
  return element("button", { type: "button", class: "pill", id, onclick }, icon(symbol), element("span", { text }));
}

const fact = (title, value) =>
  element("div", {}, element("dt", { text: title }), element("dd", { text: written(value) }));

/** Return data as people read it. */
function written(value) {
  if (Array.isArray(value)) return value.map(written).join(", ");
  if (value === null || typeof value !== "object") return String(value);
  return Object.entries(value).map(([name, one]) => `${name}: ${written(one)}`).join(" · ");
}
