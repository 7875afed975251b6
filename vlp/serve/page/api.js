// The service, as the page asks it.

import { byId } from "./element.js";

/** An answer that is none; its message is the service's own sentence. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const ask = async (path, signal) => (await fetched(path, { signal })).json();

export const send = async (path, body, signal) => (await sent(path, body, signal)).json();

export const sendForFile = async (path, body) => (await sent(path, body)).blob();

export const pictureUrl = (id, size) => `/pictures/${id}/${size}`;

/** Return why a picture of the index is not shown. */
export async function whyHidden(id) {
  try {
    await fetched(pictureUrl(id, "thumbnail"));
    return "The picture cannot be shown.";
  } catch (error) {
    return error.message;
  }
}

/** Return the bytes of a file as base64. */
export function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("The file cannot be read."));
    reader.readAsDataURL(file);
  });
}

function sent(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return fetched(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

async function fetched(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The service does not answer. Is `vlp serve` still running?");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) byId("token-dialog").showModal();
  const said = await answer.json().catch(() => ({}));
  throw new Refusal(answer.status, said.error ?? `The service answered ${answer.status}.`);
}
