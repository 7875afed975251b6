// What is asked for: the one place that knows it, and its form in the page's address.

/**
 * terms: [{kind: "text"|"key"|"picture", value, weight, id?, preview?}]; a picture's value is its
 * feature, so that an address holds the query whole and the picture stays where it is.
 */
export const state = {
  terms: [],
  text: "",
  where: {}, // field -> [values] or {least, most}
  best: 100, // percent of all pictures
  sort: "",
  fold: false, // whether pictures that look alike are shown as one
  open: null, // id of the picture that is looked at
};

/** Cosine from which clip-retrieval, too, takes two pictures for the same. */
const ALIKE = 0.94;
/**
 * Weight of what is kept away from. Texts have much in common, whatever they say; at -1 that would
 * cancel out, and with it that texts are asked for.
 */
export const AWAY = -0.5;
const listeners = [];

export const onChange = (listener) => listeners.push(listener);

/** Change what is asked for. `step` makes it a step that the browser's Back undoes. */
export function change(values, { step = true } = {}) {
  Object.assign(state, values);
  const address = toAddress(state);
  if (step) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
  for (const listener of listeners) listener(state);
}

/** Take what is asked for from the page's address. */
export function readAddress() {
  Object.assign(state, fromAddress(location.search));
  for (const listener of listeners) listener(state);
}

export const hasTerms = ({ terms, text }) => terms.length > 0 || signed(text).text !== "";

/** Return words and their weight: a minus in front keeps away from them. */
export function signed(text) {
  const trimmed = text.trim();
  const isMinus = /^[-−–]\s*\S/.test(trimmed);
  return { text: isMinus ? trimmed.slice(1).trim() : trimmed, weight: isMinus ? AWAY : 1 };
}

/** Return the query as /search takes it. */
export function toQuery({ terms, text, where, best, sort, fold }) {
  const asked = terms.map(({ kind, value, weight }) => ({
    [kind === "picture" ? "vector" : kind]: value,
    weight,
  }));
  const live = signed(text);
  if (live.text) asked.push({ text: live.text, weight: live.weight });
  const query = { terms: asked, where: toConditions(where) };
  if (asked.length && best < 100) query.min_percentile = 100 - best;
  if (asked.length && fold) query.fold = ALIKE;
  if (sort) query.sort = sort;
  return query;
}

/** Return the filters as `vlp search --where` writes them: `lot=["a","b"]`, `width>=512`. */
function toConditions(where) {
  return Object.entries(where).flatMap(([field, wanted]) => {
    if (Array.isArray(wanted)) return [`${field}=${JSON.stringify(wanted)}`];
    const ends = [
      [">=", wanted.least],
      ["<=", wanted.most],
    ];
    return ends.filter(([, end]) => end !== undefined).map(([sign, end]) => `${field}${sign}${end}`);
  });
}

function toAddress({ terms, text, where, best, sort, fold, open }) {
  const address = new URLSearchParams();
  for (const { kind, value, weight } of terms) {
    const name = { text: "q", key: "like", picture: "picture" }[kind];
    address.append(weight < 0 ? `not-${name}` : name, kind === "picture" ? packed(value) : value);
  }
  if (text) address.set("text", text);
  if (Object.keys(where).length) address.set("where", JSON.stringify(where));
  if (best < 100) address.set("best", best);
  if (sort) address.set("sort", sort);
  if (fold) address.set("fold", "1");
  if (open !== null) address.set("open", open);
  const query = address.toString();
  return query ? `?${query}` : location.pathname;
}

function fromAddress(search) {
  const address = new URLSearchParams(search);
  const found = { terms: [], text: address.get("text") ?? "", where: {}, sort: "", open: null };
  for (const [name, value] of address) {
    const weight = name.startsWith("not-") ? AWAY : 1;
    const kind = { q: "text", like: "key", picture: "picture" }[name.replace(/^not-/, "")];
    const read = kind === "picture" ? unpacked(value) : value;
    if (kind && read) found.terms.push({ kind, value: read, weight });
  }
  found.where = conditions(address.get("where"));
  const best = Number(address.get("best") ?? 100);
  found.best = best > 0 && best <= 100 ? best : 100;
  found.sort = address.get("sort") ?? "";
  found.fold = address.get("fold") === "1";
  const open = address.get("open");
  found.open = open !== null && /^\d+$/.test(open) ? Number(open) : null;
  return found;
}

function conditions(written) {
  try {
    const read = JSON.parse(written ?? "{}");
    return read && typeof read === "object" && !Array.isArray(read) ? read : {};
  } catch {
    return {};
  }
}

const STEPS = 32767;

/** Return a feature as 16-bit numbers in base64url: its direction is all that counts. */
function packed(vector) {
  const largest = Math.max(...vector.map(Math.abs)) || 1;
  const numbers = Int16Array.from(vector, (value) => Math.round((STEPS * value) / largest));
  const text = String.fromCharCode(...new Uint8Array(numbers.buffer));
  return btoa(text).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
}

function unpacked(text) {
  try {
    const binary = atob(text.replace(/-/g, "+").replace(/_/g, "/"));
    const bytes = Uint8Array.from(binary, (sign) => sign.charCodeAt(0));
    return Array.from(new Int16Array(bytes.buffer), (value) => value / STEPS);
  } catch {
    return null;
  }
}
