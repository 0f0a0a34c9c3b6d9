// Sends what was painted, edit by edit, in order, and again until it is saved.
import { send } from "./api.js";
import { UNTOUCHED, apply } from "./raster.js";

const status = document.getElementById("saving");
const waiting = []; // {image, edit, values, number}
let sending = false, failed = "", last = 0;

function show() {
  status.textContent = failed ? `Not saved yet: ${failed}` : waiting.length ? "Saving…" : "All saved";
  status.classList.toggle("error", Boolean(failed));
}

const path = ({ image, edit, number }) =>
  `/api/images/${image}/patch?x=${edit.x}&y=${edit.y}&w=${edit.w}&h=${edit.h}&number=${number}`;

async function work() {
  if (sending) return;
  sending = true;
  while (waiting.length) {
    const first = waiting[0];
    try {
      await send(path(first), first.values);
      failed = "";
      waiting.shift();
    } catch (error) {
      if (error.status === 404) waiting.shift(); // the image was removed
      else {
        failed = error.message;
        show();
        await new Promise((resolve) => setTimeout(resolve, 1000));
      }
    }
  }
  sending = false;
  show();
}

/** Save the values of an edit of an image. */
export function save(image, edit, values) {
  last += 1;
  waiting.push({ image, edit, values, number: last });
  show();
  work();
}

/** Return what is not saved yet of an image: it lies on top of what the server has. */
export const unsaved = (image) => waiting.filter((each) => each.image === image);

/** Resolve once everything is saved. */
export async function saved() {
  while (waiting.length) await new Promise((resolve) => setTimeout(resolve, 50));
}

/** Return several edits of an image as one, with the number of the last. */
function join(edits) {
  const right = Math.max(...edits.map(({ edit }) => edit.x + edit.w)), x = Math.min(...edits.map(({ edit }) => edit.x));
  const bottom = Math.max(...edits.map(({ edit }) => edit.y + edit.h)), y = Math.min(...edits.map(({ edit }) => edit.y));
  const whole = { width: right - x, height: bottom - y, data: new Uint8Array((right - x) * (bottom - y)).fill(UNTOUCHED) };
  for (const { edit, values } of edits) apply(whole, { ...edit, x: edit.x - x, y: edit.y - y }, values);
  const { image, number } = edits[edits.length - 1];
  return { image, number, edit: { x, y, w: whole.width, h: whole.height }, values: whole.data };
}

window.addEventListener("pagehide", () => {
  // What is under way may be cut off with the page, so that all is sent again as one edit. The server leaves out what
  // comes after a later number. A browser lets 64 kB outlive a page.
  for (const image of new Set(waiting.map((each) => each.image))) {
    const joined = join(unsaved(image));
    if (joined.values.length < 60000) send(path(joined), joined.values, true).catch(() => {});
  }
});
window.addEventListener("beforeunload", (event) => { if (failed && waiting.length) event.preventDefault(); });
