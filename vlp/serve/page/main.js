// Starts the page: asks what the index holds, then follows the keyboard and pictures that come in.

import { ask } from "./api.js";
import { isNaming, nameThis, startClassify, toggleClassify } from "./classify.js";
import { byId, say } from "./element.js";
import { startFilters, toggleFilters } from "./filters.js";
import { hits, notice, startResults, tiles } from "./results.js";
import { choose, clearSelection, hasSelection, isChosen, startSelection } from "./selection.js";
import { AWAY, readAddress } from "./state.js";
import { addFile, addPicture, startTerms } from "./terms.js";
import { startViewer } from "./viewer.js";

async function start() {
  let about;
  try {
    about = await ask("/about");
  } catch (error) {
    if (error.status !== 401) notice("That did not work", error.message, { "Try again": () => location.reload() });
    return;
  }
  document.title = `${about.name} · pictures`;
  startTerms();
  startFilters(about.fields);
  startClassify();
  startResults(about.pictures);
  startSelection();
  startViewer();
  readAddress();
}

byId("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = new URLSearchParams({ token: byId("token").value });
  const answer = await fetch(`/?${given}`, { redirect: "manual" });
  if (answer.type === "opaqueredirect") location.reload();
  else byId("token-error").textContent = "That is another token.";
});

for (const dialog of document.querySelectorAll("dialog.sheet")) {
  dialog.querySelector("[data-close]")?.addEventListener("click", () => dialog.close());
}
byId("help-button").addEventListener("click", () => byId("help").showModal());
window.addEventListener("popstate", readAddress);

// Pictures that are dropped or pasted: to be named where the panel for that is open.
const take = (file) => (isNaming() ? nameThis(file) : addFile(file));
const pictureOf = (data) => [...(data?.files ?? [])].find(({ type }) => type.startsWith("image/"));
let depth = 0;

window.addEventListener("dragenter", (event) => {
  if (![...event.dataTransfer.types].includes("Files")) return;
  depth += 1;
  byId("drop").firstElementChild.textContent = isNaming()
    ? "Drop a picture to name it"
    : "Drop a picture to search by it";
  byId("drop").hidden = false;
});
window.addEventListener("dragleave", () => {
  depth = Math.max(0, depth - 1);
  byId("drop").hidden = depth === 0;
});
window.addEventListener("dragover", (event) => event.preventDefault());
window.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  byId("drop").hidden = true;
  const file = pictureOf(event.dataTransfer);
  if (file) take(file);
  else say("That is no picture file.");
});
window.addEventListener("paste", (event) => {
  const file = pictureOf(event.clipboardData);
  if (file) take(file);
});

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input:not([type=checkbox]):not([type=range]), textarea, select");
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") escape(event, isTyping);
  else if (!isTyping) onKey(event);
  else if (event.key === "ArrowDown" && event.target === byId("text")) focusTile(event, 0);
});

function escape(event, isTyping) {
  if (isTyping) event.target.blur();
  else if (byId("download").open) byId("download").open = false;
  else if (isNaming()) toggleClassify(false);
  else if (!byId("filters").hidden) toggleFilters(false);
  else if (hasSelection()) clearSelection();
}

function onKey(event) {
  const place = Number(document.activeElement?.dataset.place ?? -1);
  const hit = hits[place];
  const act = {
    "/": () => byId("text").focus(),
    "?": () => byId("help").showModal(),
    f: () => toggleFilters(),
    n: () => (hit ? nameThis({ key: hit.key, id: hit.id }) : toggleClassify()),
  }[event.key];
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() }[event.key];
  if (act) {
    event.preventDefault();
    act();
  } else if (step && (hit || document.activeElement === document.body)) {
    focusTile(event, hit ? place + step : 0);
  } else if (hit) {
    onTile(event, hit, place);
  }
}

function onTile(event, hit, place) {
  if (event.key === " ") {
    event.preventDefault();
    choose(place, event.shiftKey || !isChosen(hit), event.shiftKey);
  } else if (event.key === "m") addPicture(hit, 1);
  else if (event.key === "l") addPicture(hit, AWAY);
}

function focusTile(event, place) {
  const all = tiles();
  const next = all[place];
  if (!next) return;
  event.preventDefault();
  for (const tile of all) tile.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  next.scrollIntoView({ block: "nearest" });
}

/** Return how many pictures stand in a row. */
function columns() {
  const all = tiles();
  const top = all[0]?.getBoundingClientRect().top;
  const end = all.findIndex((tile) => tile.getBoundingClientRect().top > top + 1);
  return end < 0 ? Math.max(1, all.length) : end;
}

start();
