// The page: which step is shown, and what the server knows, asked for again whenever it says that something changed.
import { get, listen, tab } from "./api.js";
import { say } from "./dom.js";
import { Learn } from "./learn.js";
import { Look } from "./look.js";
import { Paint } from "./paint.js";
import { Publish } from "./publish.js";

const steps = ["paint", "learn", "look", "publish"];
let asked = 0, shown = 0; // refreshes, by their turn
const page = {
  state: null,
  /** Ask the server for everything, and show it. */
  async refresh() {
    const turn = ++asked, state = await get("/api/state");
    if (turn < shown) return; // what was asked later has been shown
    shown = turn;
    page.state = state;
    document.getElementById("project").textContent = page.state.project;
    views[document.body.dataset.step].show(page.state);
  },
  go(step) {
    window.location.hash = step;
  },
  /** Open an image in the painter; `mask`: one to be corrected there. */
  async paint(id, mask) {
    page.go("paint");
    await views.paint.open(id, mask);
  },
};
const views = {
  paint: new Paint(document.getElementById("paint"), page),
  learn: new Learn(document.getElementById("learn"), page),
  look: new Look(document.getElementById("look"), page),
  publish: new Publish(document.getElementById("publish"), page),
};

function route() {
  const wanted = window.location.hash.slice(1), step = steps.includes(wanted) ? wanted : "paint";
  for (const each of steps) document.getElementById(each).hidden = each !== step;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${step}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.body.dataset.step = step;
  views[step].entered?.();
  if (page.state) views[step].show(page.state);
}

let asking = null, again = false;
async function refreshSoon() {
  if (asking) { again = true; return; }
  asking = page.refresh().catch((error) => say(error.message));
  await asking;
  asking = null;
  if (again) { again = false; refreshSoon(); }
}

let lost = false;
listen((what, facts) => {
  if (what === "lost") { lost = true; return; }
  if (what === "mask") {
    if (facts.tab !== tab) views.paint.changedElsewhere(facts.image);
    return;
  }
  if (what === "open" && lost) {
    lost = false;
    say("The studio answers again.", false);
    views.paint.changedElsewhere(null);
  }
  refreshSoon();
});
window.addEventListener("hashchange", route);
route();
refreshSoon();
