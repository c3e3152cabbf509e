/** Asking for JSON. */

const TIMEOUT_MS = 8_000;

/**
 * The JSON at a URL.
 * @param {string} url
 * @returns {Promise<any>}
 * @throws {Error} with a sentence for people, where there is none
 */
export async function getJson(url) {
  let response;
  try {
    response = await fetch(url, { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
  } catch (error) {
    const late = error instanceof DOMException && error.name === "TimeoutError";
    throw new Error(late ? "There was no answer within 8 s." : "There is no connection.");
  }
  const answer = await response.json().catch(() => null);
  if (!response.ok) {
    const said = typeof answer?.error === "string" ? `: ${answer.error}` : "";
    throw new Error(`The answer was ${response.status}${said}.`);
  }
  if (answer === null) throw new Error("The answer was no JSON.");
  return answer;
}
