// Builds what the page shows. Text only ever becomes text: nothing here parses markup, and the
// page's policy (Trusted Types) refuses whoever tries.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Return an element.
 * @param {string} tag
 * @param {object} options  attributes; `on*` are listeners, `text` is its text, and a value that is
 *     false, null or undefined leaves the attribute out
 * @param {...(Node|string)} children
 */
export function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "text") made.textContent = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** Return one of the icons that index.html holds. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** Return a bar that is filled to a share from 0 to 1. */
export function meter(share) {
  const fill = element("i");
  fill.style.width = `${(100 * share).toFixed(1)}%`;
  return element("div", { class: "meter", "aria-hidden": "true" }, fill);
}

export const byId = (id) => document.getElementById(id);

/** Return a function that runs once nobody has called it for so many milliseconds. */
export function settled(milliseconds, run) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...given), milliseconds);
  };
}

let fading = 0;

/** Say something that went wrong, or that is done, for some seconds. */
export function say(text) {
  const toast = byId("toast");
  toast.textContent = text;
  toast.hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => (toast.hidden = true), 6000);
}
