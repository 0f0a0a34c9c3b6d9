// The fourth step: publish a segmenter, serve it, try it on images, take the masks away.
import { get, post, send } from "./api.js";
import { button, choosing, dropping, fill, h, say, trying, unchanged } from "./dom.js";

const FORMS = [["palette", "PNG"], ["coco", "COCO"], ["geojson", "GeoJSON"], ["npz", "NPZ"]];
const SERVER = { stopped: "No server runs here.", starting: "The server is starting …", ready: "The server answers at", failed: "The server failed:" };

export class Publish {
  constructor(root, page) {
    this.page = page;
    this.results = [];
    this.make = h("div", { class: "panel" });
    this.server = h("div", { class: "panel" });
    this.list = h("div", { class: "panel" });
    this.try = h("div", { class: "panel" });
    this.clips = h("div", { class: "panel" });
    this.masks = h("ul", { class: "grid", "aria-label": "Masks of the served segmenter" });
    this.lines = h("div", { class: "panel" });
    this.name = h("input", { id: "publish-name", maxlength: 60, autocomplete: "off" });
    this.url = h("input", { id: "publish-url", placeholder: "the studio's own", autocomplete: "off" });
    this.force = h("input", { id: "publish-force", type: "checkbox" });
    root.append(h("div", { class: "column" }, this.make, this.server, this.list, this.try, this.clips, this.masks, this.lines));
    dropping(root, (files) => this.segment(files));
    this.url.addEventListener("change", () => this.show(this.state));
  }

  async show(state) {
    this.state = state;
    if (!this.name.value && !this.named) { this.name.value = state.project.toLowerCase().replace(/[^a-z0-9_]+/g, "_") || "segmenter"; this.named = true; }
    const publishing = state.jobs.find((job) => ["publish", "rollback"].includes(job.kind));
    const busy = publishing && ["queued", "running"].includes(publishing.state);
    if (!unchanged(this.make, state.segmenters.map((each) => each.name), state.repository, publishing?.number, publishing?.state)) this.showMake(state, publishing, busy);
    this.showServer(state.server);
    this.showTry();
    this.showClips(state.jobs.filter((job) => job.kind === "clip"));
    const done = state.jobs.filter((job) => ["publish", "rollback"].includes(job.kind) && job.state === "done").length;
    if (this.counted !== done) {
      this.counted = done;
      this.published = await trying(() => get("/api/published")) || [];
      this.showPublished();
      this.showTry();
    }
  }

  showMake(state, publishing, busy) {
    fill(this.make, h("h2", {}, "Publish"),
      state.segmenters.length ? [
        h("div", { class: "fields" },
          h("label", { class: "field" }, "Segmenter", h("select", { id: "publish-segmenter" }, state.segmenters.map((each) => h("option", { value: each.name, selected: each.name === this.picked }, each.name)))),
          h("label", { class: "field" }, "Name to serve it under", this.name),
          h("label", { class: "field" }, "Server, HOST:PORT of gRPC", this.url)),
        h("p", {}, h("label", {}, this.force, " Also if it failed on its own training images")),
        h("p", { class: "row" }, button("Publish", () => this.publish(), { class: "main", disabled: busy, id: "publish-now" }),
          busy && h("span", { class: "state" }, `${publishing.title}: ${publishing.state === "queued" ? "waiting" : "compared with PyTorch, then published …"}`)),
        publishing?.state === "failed" && h("p", { class: "error" }, publishing.error),
        h("p", { class: "hint" }, `Goes into ${state.repository}, once it equals PyTorch. A running server switches over without losing a request.`),
      ] : h("p", {}, "Learn a segmenter first."));
    this.make.querySelector("select")?.addEventListener("change", (event) => { this.picked = event.target.value; });
  }

  entered() {
    this.counted = null; // another program may have published since
  }

  showServer(server) {
    const act = (wanted) => () => trying(async () => { this.showServer(await post(`/api/server/${wanted}`)); });
    this.running = server;
    fill(this.server, h("h2", {}, "Server"),
      h("p", { class: "row", role: "status" }, h("span", { class: server.state === "failed" ? "error" : null }, `${SERVER[server.state]} ${server.url || server.error || ""}`),
        ["stopped", "failed"].includes(server.state) && button("Start a server here", act("start"), { id: "server-start" }),
        ["ready", "starting"].includes(server.state) && button("Stop it", act("stop"), { id: "server-stop" })));
    clearTimeout(this.asking);
    if (server.state === "starting") {
      this.asking = setTimeout(() => trying(async () => { this.showServer(await get("/api/server")); this.showTry(); }), 1000);
    }
    this.showLines();
  }

  showPublished() {
    fill(this.list, h("h2", {}, "Published"), this.published.length ? this.published.map((row) => h("article", {},
      h("h3", {}, `${row.name}, version ${row.version}${row.rolled_back_to ? ` (the content of version ${row.rolled_back_to})` : ""}`),
      h("p", { class: "hint" }, `${row.parts.join(", ")}; ${row.precision}, published ${row.published.slice(0, 16).replace("T", " ")} UTC`),
      row.parity && parity(row.parity),
      row.versions.length > 1 && h("p", { class: "row" }, "Versions kept: ", row.versions.map((version) => version === row.version ? h("b", {}, version)
        : button(`Serve ${version} again`, () => trying(async () => {
          await post("/api/rollback", { name: row.name, version, url: this.url.value.trim() || null });
          await this.page.refresh();
        }), { id: `rollback-${row.name}-${version}` })))))
      : h("p", { class: "hint" }, "Nothing yet."));
  }

  async publish() {
    const segmenter = this.make.querySelector("#publish-segmenter").value;
    await trying(() => post("/api/publish", { segmenter, name: this.name.value.trim(), url: this.url.value.trim() || null, force: this.force.checked }));
    await this.page.refresh();
  }

  get address() {
    return this.url.value.trim() || this.running?.url;
  }

  showTry() {
    const names = (this.published || []).map((row) => row.name), { state } = this;
    const ready = this.address && names.length;
    const [input, choose] = choosing("Choose images or a clip", (files) => this.segment(files), { accept: "image/*,video/*,.mkv", id: "try-images" }, { class: "main", disabled: !ready });
    fill(this.try, h("h2", {}, "Try it"),
      h("p", {}, ready ? "Drop images or a video here, or choose some: the running server segments them." : "Publish a segmenter and start a server; then images can be tried here."),
      h("p", { class: "row" }, names.length > 1 && h("label", {}, "Segmenter ", h("select", { id: "try-name", onchange: (event) => { this.tried = event.target.value; this.showLines(); } },
        names.map((name) => h("option", { value: name, selected: name === this.tried }, name)))),
        input, choose,
        button(`The project's ${state.images.length} images`, () => this.segment(state.images), { disabled: !ready || !state.images.length, id: "try-project" })),
      this.results.length > 1 && h("p", { class: "row" }, "Download all as", FORMS.map(([form, text]) => button(text, () => this.downloadAll(form), { "aria-label": `Download all as ${text}` }))));
    if (!names.includes(this.tried)) [this.tried] = names;
    this.showLines();
  }

  showClips(jobs) {
    this.clips.hidden = !jobs.length;
    // Left alone while nothing changed, so that a film that is looked at goes on.
    if (unchanged(this.clips, jobs.map((job) => [job.number, job.state, job.progress?.step, job.progress?.film]))) return;
    fill(this.clips, h("h2", {}, "Clips"), jobs.map((job) => h("article", { "aria-label": `${job.title}: ${job.state}` },
      h("h3", {}, job.title),
      ["queued", "running"].includes(job.state) && h("p", { class: "hint" }, job.progress?.step ? `${job.progress.step} of ${job.progress.steps || "?"} frames` : "waiting"),
      job.error && h("p", { class: "error" }, job.error),
      job.progress?.film && h("video", { controls: true, src: `/api/jobs/${job.number}/${job.progress.film}`, "aria-label": `${job.name} with its masks` }))));
  }

  async segment(files) {
    const problems = [];
    let clips = 0;
    for (const [index, file] of files.entries()) {
      say(`Segmenting ${file.name} (${index + 1} of ${files.length})`, false);
      const query = new URLSearchParams({ segmenter: this.tried || "", url: this.url.value.trim() });
      if (file instanceof File) query.set("name", file.name);
      else query.set("image", file.id);
      try {
        if (file instanceof File && (file.type.startsWith("video/") || /\.(mkv|ts|avi|mov)$/i.test(file.name))) {
          await send(`/api/clips?${query}`, file);
          await this.page.refresh();
          clips += 1;
          continue;
        }
        this.results.unshift(await send(`/api/segment?${query}`, file instanceof File ? file : null));
        this.showResults();
      } catch (error) {
        problems.push(error.message);
        if (error.status === 409) break;
      }
    }
    this.showTry();
    say(problems.length ? problems.slice(0, 3).join(" ") : [files.length > clips && `${files.length - clips} images segmented.`, clips && `${clips} clips received; they stand below.`].filter(Boolean).join(" "), problems.length > 0);
  }

  showResults() {
    fill(this.masks, this.results.map((result) => h("li", { class: "card" },
      h("img", { src: `/api/results/${result.id}`, alt: `${result.name} with its mask` }),
      h("p", {}, result.name, h("small", {}, Object.entries(result.shares).filter(([, share], index) => index && share > 0).map(([part, share]) => `${part} ${(100 * share).toFixed(1)} %`).join(", "))),
      h("p", { class: "row" }, FORMS.map(([form, text]) => h("a", { class: "button", href: `/api/results/${result.id}/${form}`, download: true, "aria-label": `Download ${result.name} as ${text}` }, text))))));
  }

  async downloadAll(form) {
    for (const result of this.results) {
      const link = h("a", { href: `/api/results/${result.id}/${form}`, download: "" });
      document.body.append(link);
      link.click();
      link.remove();
      await new Promise((resolve) => setTimeout(resolve, 150)); // browsers drop downloads that come too fast
    }
  }

  showLines() {
    const name = this.tried || this.name.value || "NAME", url = this.address || "localhost:8001";
    const python = `from slime_client import Segmenter\n\nwith Segmenter("${url}", "${name}") as segmenter:\n    mask = segmenter.segment("photo.jpg")\n    mask.save("photo-parts.png")\n    mask.overlay().save("photo-overlay.jpg")\n`;
    const shell = `slime segment photos --url ${url} --segmenter ${name} --out masks\n`;
    fill(this.lines, h("h2", {}, "From your own programs"), [["In Python", python], ["In a terminal", shell]].map(([title, text]) => h("figure", { class: "code" },
      h("figcaption", { class: "row" }, title, button("Copy", async (event) => {
        await navigator.clipboard?.writeText(text);
        event.target.textContent = "Copied";
      }, { "aria-label": `Copy the lines: ${title}` })),
      h("pre", { tabindex: 0 }, text))));
  }
}

function parity(report) {
  const agreement = Math.min(...report.comparisons.map((each) => each.mask_agreement));
  const largest = {};
  for (const each of report.comparisons) {
    for (const [name, gap] of Object.entries(each.tensors)) largest[name] = Math.max(largest[name] || 0, gap.largest);
  }
  return h("details", {}, h("summary", {}, `Compared with PyTorch: ${(100 * agreement).toFixed(3)} % of the mask's pixels agree`),
    h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "tensor"), h("th", { scope: "col" }, "largest difference, as a share of its largest value"), h("th", { scope: "col" }, "limit"))),
      h("tbody", {}, Object.entries(largest).map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value.toExponential(1)),
        h("td", {}, report.limits?.[name] == null ? "none" : report.limits[name].toExponential(1)))))));
}
