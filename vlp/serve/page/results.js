// The pictures that were found: fetched a screen ahead, drawn as they come.

import { pictureUrl, send, whyHidden } from "./api.js";
import { byId, element, icon } from "./element.js";
import { addPicture } from "./terms.js";
import { choose, isChosen } from "./selection.js";
import { change, onChange, state, toQuery } from "./state.js";

const PAGE = 60;
const grid = byId("grid");

export const hits = [];
let total = 0; // pictures of the index
let asked = ""; // the query that the pictures answer
let hasMore = false;
let loading = null;
const watcher = new IntersectionObserver((seen) => seen.some(({ isIntersecting }) => isIntersecting) && more(), {
  rootMargin: "1200px",
});

export function startResults(pictures) {
  total = pictures;
  onChange(refresh);
}

/** Return the tiles' buttons in their order. */
export const tiles = () => [...grid.querySelectorAll(".open")];

/** Fetch the next pictures, where there are any. */
export async function more() {
  if (hasMore && !loading) await load(hits.length);
}

function refresh() {
  const query = JSON.stringify(toQuery(state));
  if (query === asked) return;
  asked = query;
  load(0);
}

async function load(offset) {
  loading?.abort();
  const own = (loading = new AbortController());
  grid.classList.toggle("stale", offset === 0);
  grid.setAttribute("aria-busy", "true");
  try {
    const query = { ...toQuery(state), k: PAGE, offset };
    const found = await send("/search", query, own.signal);
    if (loading !== own) return;
    show(found, offset);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (offset === 0) show({ hits: [], more: false }, 0);
    notice("That did not work", error.message, { "Try again": () => load(offset), ...showAll });
  } finally {
    if (loading === own) {
      loading = null;
      grid.classList.remove("stale");
      grid.setAttribute("aria-busy", "false");
    }
  }
}

function show(found, offset) {
  if (offset === 0) {
    hits.length = 0;
    grid.replaceChildren();
    window.scrollTo(0, 0);
  }
  hits.push(...found.hits);
  grid.append(...found.hits.map((hit, place) => tile(hit, offset + place)));
  hasMore = found.more;
  byId("summary").textContent = summary();
  byId("empty").hidden = true;
  if (!hits.length) notice("Nothing found", "Try other words, fewer filters, or move the slider to the left.", showAll);
  // A watcher tells changes only: on a large screen the end is in reach before and after.
  watcher.unobserve(byId("end"));
  watcher.observe(byId("end"));
}

function summary() {
  const shown = hits.length.toLocaleString();
  const isNarrowed = Object.keys(state.where).length > 0 || state.best < 100 || state.fold;
  if (hasMore && isNarrowed) return `The first ${shown} that fit`; // of how many, nobody has counted
  return `${hasMore ? "The first " : ""}${shown} of ${total.toLocaleString()} pictures`;
}

const showAll = {
  "Show all pictures": () => change({ terms: [], text: "", where: {}, best: 100, sort: "", fold: false }),
};

/** Say below the pictures why there are none, or no more, with what a person can do by its name. */
export function notice(title, why, actions) {
  const buttons = Object.entries(actions).map(([text, onclick]) => element("button", { type: "button", text, onclick }));
  byId("empty").replaceChildren(element("b", { text: title }), why, element("br"), ...buttons);
  byId("empty").hidden = false;
}

function tile(hit, place) {
  const name = hit.caption || hit.key;
  const rank = hit.percentile === null ? "" : `, nearer than ${percent(hit.percentile)} of all`;
  const open = element(
    "button",
    {
      type: "button",
      class: "open",
      "aria-label": `${name}${rank}`,
      tabindex: place === 0 ? "0" : "-1",
      "data-place": place,
      onclick: () => change({ open: hit.id }),
    },
    picture(hit, name),
  );
  const select = element("input", {
    type: "checkbox",
    class: "select",
    tabindex: "-1",
    "aria-label": `Select ${name}`,
    onclick: (event) => choose(place, event.target.checked, event.shiftKey),
  });
  const like = element(
    "button",
    {
      type: "button",
      class: "more",
      tabindex: "-1",
      title: "More like this (m)",
      "aria-label": `More like ${name}`,
      onclick: () => addPicture(hit, 1),
    },
    icon("like"),
  );
  const score = hit.percentile === null ? null : element("b", { text: percent(hit.percentile) });
  const about = element("div", { class: "about", "aria-hidden": "true" }, element("span", { text: name }), score);
  const others = hit.folded.length;
  const folded = others ? element("span", { class: "folded", title: `And ${others} that look like it`, text: `+${others}` }) : null;
  select.checked = isChosen(hit);
  const chosen = select.checked ? "tile chosen" : "tile";
  return element("li", { class: chosen }, open, about, select, like, folded);
}

/** Return a picture of the index; where it cannot be shown, what there is to say of it. */
export function picture(hit, name, size = "thumbnail") {
  const image = element("img", {
    src: pictureUrl(hit.id, size),
    alt: "",
    loading: "lazy",
    decoding: "async",
    onload: () => image.classList.add("here"),
    onerror: async () => {
      const missing = element("span", { class: "missing", text: name });
      image.replaceWith(missing);
      missing.title = await whyHidden(hit.id);
    },
  });
  return image;
}

/** Return a percentile as people read it: more digits, the nearer to 100. */
export function percent(value) {
  const digits = value >= 99 ? 2 : value >= 90 ? 1 : 0;
  return `${value.toFixed(digits)} %`;
}
