// The API as its schema tells it: drawn here, since FastAPI's own page loads scripts of other hosts.

import { ask } from "./api.js";
import { byId, element } from "./element.js";

const schema = await ask("/openapi.json");
const named = ({ $ref }) => schema.components.schemas[$ref.split("/").at(-1)];
const resolved = (type) => (type?.$ref ? named(type) : (type ?? {}));

function section(path, method, route) {
  const body = resolved(route.requestBody?.content?.["application/json"]?.schema);
  const answer = resolved(route.responses?.["200"]?.content?.["application/json"]?.schema);
  const verb = method.toUpperCase();
  return element(
    "section",
    {},
    element("h2", {}, element("b", { text: verb }), path),
    element("p", { text: route.description ?? route.summary }),
    fields("Takes", body),
    body.properties ? example(path, body) : null,
    fields("Gives", answer),
  );
}

function fields(title, { properties, required = [] }) {
  if (!properties) return null;
  const rows = Object.entries(properties).map(([name, type]) =>
    element(
      "div",
      {},
      element("dt", { text: name + (required.includes(name) ? "" : "?") }),
      element("dd", { text: [kind(type), type.description].filter(Boolean).join(". ") }),
    ),
  );
  return element("div", {}, element("h3", { text: title }), element("dl", {}, ...rows));
}

function kind(type) {
  if (type.$ref) return type.$ref.split("/").at(-1) + fieldsOf(named(type));
  if (type.enum) return type.enum.join(" | ");
  if (type.anyOf) return type.anyOf.filter((one) => one.type !== "null").map(kind).join(" or ");
  if (type.type === "array") return `list of ${kind(type.items ?? {})}`;
  const limits = [
    type.minimum !== undefined && `from ${type.minimum}`,
    type.maximum !== undefined && `to ${type.maximum}`,
    type.maxLength !== undefined && `at most ${type.maxLength} signs`,
  ].filter(Boolean);
  return [type.type ?? "anything", ...limits].join(" ");
}

const fieldsOf = ({ properties }) => (properties ? ` {${Object.keys(properties).join(", ")}}` : "");

function example(path, { examples }) {
  if (!examples) return null;
  const command = `curl ${location.origin}${path} -H 'Content-Type: application/json' \\\n  -d '${JSON.stringify(examples[0])}'`;
  return element("pre", { text: command });
}

for (const [path, methods] of Object.entries(schema.paths)) {
  for (const [method, route] of Object.entries(methods)) byId("routes").append(section(path, method, route));
}
