// The second step: what is learned from, one click, and how the runs get on.
import { post } from "./api.js";
import { button, duration, fill, h, trying, unchanged } from "./dom.js";

const STATES = { queued: "waiting", running: "running", done: "done", failed: "failed", cancelled: "cancelled", stopped: "stopped" };

export class Learn {
  constructor(root, page) {
    this.page = page;
    this.from = h("div", { class: "panel" });
    this.jobs = h("div", { class: "jobs", "aria-live": "off" });
    this.steps = h("input", { id: "steps", type: "number", min: 1, max: 100000, placeholder: "as the preset has", "aria-describedby": "steps-hint" });
    root.append(h("div", { class: "column" }, this.from, h("h2", {}, "Runs"), this.jobs));
  }

  show(state) {
    const examples = state.images.filter((image) => image.example), parts = state.parts.slice(1);
    const newest = state.segmenters[0];
    const fits = newest && newest.parts.join("\n") === state.parts.map((part) => part.name).join("\n");
    if (!unchanged(this.from, examples, state.parts, state.segmenters.map((each) => each.name), state.backbone)) this.showFrom(state, examples, parts, newest, fits);
    fill(this.jobs, state.jobs.length ? state.jobs.map((job) => this.job(job)) : h("p", { class: "hint" }, "None yet."));
  }

  showFrom(state, examples, parts, newest, fits) {
    const count = `${examples.length} image${examples.length === 1 ? "" : "s"}`;
    fill(this.from, h("h2", {}, "Learn"),
      h("p", {}, examples.length ? `Learns ${parts.map((part) => part.name).join(", ") || "no part yet"} from ${count}, on the backbone ${state.backbone}.`
        : "Paint the parts of an image first; it is then learned from."),
      h("div", { class: "strip" }, examples.map((image) => h("img", { src: `/api/images/${image.id}/small`, alt: image.name, title: image.name }))),
      h("label", { class: "field" }, "Steps", this.steps, h("small", { id: "steps-hint" }, "Empty: as the preset has (200 on the embedded backbone), a third of it when learning on.")),
      h("p", { class: "row" },
        button("Learn", () => this.learn(null), { class: "main", disabled: !examples.length, id: "learn-anew" }),
        fits && button(`Learn on from ${newest.name}`, () => this.learn(newest.name), { disabled: !examples.length, id: "learn-on" })),
      fits && h("p", { class: "hint" }, `Learning on starts from what ${newest.name} knows: after correcting a mask or two it takes a third of the time.`));
  }

  async learn(begin) {
    const steps = Number(this.steps.value) || null;
    await trying(() => post("/api/learn", { steps, begin }));
    await this.page.refresh();
  }

  job(job) {
    const { progress = {} } = job, share = progress.steps ? progress.step / progress.steps : 0;
    const act = (what) => () => trying(async () => { await post(`/api/jobs/${job.number}/${what}`); await this.page.refresh(); });
    const active = job.state === "running", pictures = progress.pictures || [];
    return h("article", { class: `panel job ${job.state}`, "aria-label": `${job.title}: ${STATES[job.state]}` },
      h("header", { class: "row" },
        h("h3", {}, job.title), h("span", { class: "state" }, STATES[job.state]),
        (active || job.state === "queued") && button("Cancel", act("cancel"), { "aria-label": `Cancel: ${job.title}`, id: `cancel-${job.number}` }),
        ["stopped", "cancelled", "failed"].includes(job.state) && button(job.kind === "learn" && progress.step ? "Go on" : "Try again", act("resume"),
          { "aria-label": `Go on: ${job.title}`, id: `resume-${job.number}` })),
      active && h("progress", { max: 1, value: share || null, "aria-label": `Progress of ${job.title}` }),
      active && h("p", { class: "hint" }, progress.steps
        ? `${progress.step} of ${progress.steps}${progress.seconds_left ? `, about ${duration(progress.seconds_left)} left` : ""}` : "loading"),
      job.error && h("p", { class: "error" }, job.error),
      progress.losses && h("dl", { class: "losses" }, Object.entries(progress.losses).map(([name, value]) => [
        h("dt", {}, { ce: "cross entropy", was: "WAS loss", diffusion: "diffusion loss" }[name] || name), h("dd", {}, value.toFixed(3))])),
      progress.curve?.length > 1 && curve(progress.curve),
      pictures.length > 0 && h("div", { class: "strip large", id: `pictures-${job.number}`, tabindex: 0, role: "group", "aria-label": "As the first image was segmented on the way" }, pictures.map((each) => h("figure", {},
        h("img", { src: `/api/jobs/${job.number}/${each.file}`, alt: `The first image as segmented after step ${each.step}` }), h("figcaption", {}, `step ${each.step}`)))),
      h("details", { id: `details-${job.number}` }, h("summary", {}, "Details"), job.words && h("pre", { tabindex: 0 }, command(job)),
        h("a", { href: `/api/jobs/${job.number}/log.txt`, target: "_blank", rel: "noopener" }, "What it printed")));
  }
}

function command(job) {
  const program = { learn: "slime optimize", publish: "slime export", rollback: "slime repository" }[job.kind];
  return [program, ...job.words].map((word) => (/^[\w./:@=-]+$|^slime /.test(word) ? word : `'${word}'`)).join(" ");
}

/** Draw the total loss over the run. */
function curve(values) {
  const name = "http://www.w3.org/2000/svg", svg = document.createElementNS(name, "svg"), line = document.createElementNS(name, "polyline");
  const low = Math.min(...values), high = Math.max(...values), span = high - low || 1;
  line.setAttribute("points", values.map((value, index) => `${(300 * index) / (values.length - 1)},${56 - (52 * (value - low)) / span}`).join(" "));
  svg.setAttribute("viewBox", "0 0 300 60");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `Total loss, from ${values[0].toFixed(2)} to ${values[values.length - 1].toFixed(2)}`);
  svg.append(line);
  return h("figure", { class: "curve" }, svg, h("figcaption", {}, `total loss ${values[0].toFixed(2)} → ${values[values.length - 1].toFixed(2)}`));
}
