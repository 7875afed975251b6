// The pictures that were selected: they stay while other queries are tried, until cleared.

import { sendForFile } from "./api.js";
import { byId, say } from "./element.js";
import { hits } from "./results.js";
import { onChange } from "./state.js";
import { searchLike } from "./terms.js";

const chosen = new Map(); // id -> hit, in the order of selecting
const NAMES = { pictures: "pictures.zip", json: "pictures.json", keep_list: "keep.parquet" };
let last = 0; // place of the picture that was selected before

export function startSelection() {
  byId("clear").addEventListener("click", clearSelection);
  byId("like-selected").addEventListener("click", () => {
    searchLike([...chosen.values()].slice(0, 16));
    clearSelection();
  });
  for (const button of byId("download").querySelectorAll("button")) {
    button.addEventListener("click", () => {
      byId("download").open = false;
      download(button.dataset.kind);
    });
  }
  onChange(show);
}

export const isChosen = ({ id }) => chosen.has(id);
export const hasSelection = () => chosen.size > 0;

/** Select a picture, or no more; `through` does the same to all from the last one to it. */
export function choose(place, isWanted, through = false) {
  const from = through ? Math.min(last, place) : place;
  const to = through ? Math.max(last, place) : place;
  for (const hit of hits.slice(from, to + 1)) {
    if (isWanted) chosen.set(hit.id, hit);
    else chosen.delete(hit.id);
  }
  last = place;
  show();
}

export function clearSelection() {
  chosen.clear();
  show();
}

function show() {
  byId("selection").hidden = !chosen.size;
  byId("selected-count").textContent = `${chosen.size} selected`;
  byId("grid").classList.toggle("selecting", chosen.size > 0);
  for (const tile of byId("grid").children) {
    const isIn = isChosen(hits[tile.querySelector(".open").dataset.place]);
    tile.classList.toggle("chosen", isIn);
    tile.querySelector(".select").checked = isIn;
  }
}

async function download(kind) {
  try {
    const file = await sendForFile("/download", { ids: [...chosen.keys()], kind });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = NAMES[kind];
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  } catch (error) {
    say(error.message);
  }
}
