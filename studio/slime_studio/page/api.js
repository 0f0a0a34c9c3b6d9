// Asks the studio's server. Errors carry its one line.

export const tab = Math.random().toString(36).slice(2);

async function request(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { "X-Tab": tab, ...options.headers } });
  } catch {
    throw Object.assign(new Error("The studio does not answer; start it again with the same command."), { status: 0 });
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(told.error || `The studio answered ${answer.status}.`), { status: answer.status });
}

export const get = async (path) => (await request(path)).json();
export const post = async (path, facts = {}) =>
  (await request(path, { method: "POST", body: JSON.stringify(facts), headers: { "Content-Type": "application/json" } })).json();
export const send = async (path, body, keepalive = false) =>
  (await request(path, { method: "POST", body, keepalive, headers: { "Content-Type": "application/octet-stream" } })).json();

async function values(answer) {
  const number = (name) => Number(answer.headers.get(name));
  return {
    width: number("X-Width"),
    height: number("X-Height"),
    revision: answer.headers.get("X-Revision"),
    data: new Uint8Array(await answer.arrayBuffer()),
  };
}
/** A mask: {width, height, revision, data: Uint8Array of part values, row by row}. */
export const getMask = async (path) => values(await request(path));
export const sendForMask = async (path, body) => values(await request(path, { method: "POST", body }));

/** Call `on(what, facts)` for every event of the server, and `on("open")` whenever the connection is there again. */
export function listen(on) {
  const source = new EventSource("/api/events");
  source.onopen = () => on("open", {});
  source.onerror = () => on("lost", {});
  for (const what of ["state", "mask", "job", "server"]) {
    source.addEventListener(what, (event) => on(what, JSON.parse(event.data)));
  }
}
