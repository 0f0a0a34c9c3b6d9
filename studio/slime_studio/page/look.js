// The third step: the images as a segmenter sees them, the least certain first; one click corrects a mask.
import { getMask, post } from "./api.js";
import { button, fill, h, trying, unchanged } from "./dom.js";

const looks = (state) => state.jobs.filter((job) => job.kind === "look").map((job) => [job.state, job.progress?.step]);

export class Look {
  constructor(root, page) {
    this.page = page;
    this.head = h("div", { class: "panel" });
    this.grid = h("ul", { class: "grid", "aria-label": "Images, the least certain first" });
    root.append(h("div", { class: "column wide" }, this.head, this.grid));
  }

  show(state) {
    const names = state.segmenters.map((each) => each.name);
    if (unchanged(this.grid, names, this.chosen, state.images, state.segmenters, state.parts, looks(state))) return;
    if (!names.includes(this.chosen) || this.followed !== names[0]) this.chosen = names[0];
    this.followed = names[0];
    const segmenter = state.segmenters.find((each) => each.name === this.chosen);
    if (!segmenter) {
      fill(this.head, h("h2", {}, "Look and correct"), h("p", {}, "Once a segmenter is learned, the images are shown here as it segments them."));
      fill(this.grid);
      return;
    }
    const missing = state.images.filter((image) => !(image.id in segmenter.looks)).length;
    const looking = state.jobs.find((job) => job.kind === "look" && ["queued", "running"].includes(job.state));
    const fits = segmenter.parts.join("\n") === state.parts.map((part) => part.name).join("\n");
    fill(this.head, h("h2", {}, "Look and correct"),
      h("p", { class: "row" },
        h("label", {}, "Segmenter ", h("select", { id: "segmenter", onchange: (event) => { this.chosen = event.target.value; this.show(state); } },
          state.segmenters.map((each) => h("option", { value: each.name, selected: each.name === this.chosen }, each.name)))),
        h("span", { class: "hint" }, `from ${segmenter.images} image${segmenter.images === 1 ? "" : "s"}${segmenter.begun_from ? `, on from ${segmenter.begun_from}` : ""}; mean IoU on them ${segmenter.iou.toFixed(1)} %`),
        missing > 0 && !looking && button(`Segment ${missing} more`, () => trying(async () => { await post(`/api/looks/${segmenter.name}`); await this.page.refresh(); }), { id: "look-more" }),
        looking && h("span", { class: "state" }, `segmenting, ${looking.progress?.step || 0} of ${looking.progress?.steps || "…"}`),
        fits && button(`Learn on from ${segmenter.name}`, () => trying(async () => {
          await post("/api/learn", { begin: segmenter.name });
          this.page.go("learn");
          await this.page.refresh();
        }), { class: "main", id: "look-learn-on" })),
      h("p", { class: "hint" }, "Correct the worst ones with the brush: each becomes a further example. Then learn on. Certainty is how clearly the best part wins over the second, averaged over the pixels."));
    const shown = state.images.filter((image) => image.id in segmenter.looks).sort((a, b) => segmenter.looks[a.id] - segmenter.looks[b.id]);
    fill(this.grid, shown.map((image) => h("li", { class: "card" },
      h("button", { type: "button", class: "picture", "aria-label": `Correct ${image.name}`, onclick: () => this.correct(segmenter, image), id: `look-${image.id}` },
        h("img", { src: `/api/looks/${segmenter.name}/${image.id}?${segmenter.created}`, alt: `${image.name} as ${segmenter.name} segments it`, loading: "lazy" })),
      h("p", {}, image.name, h("small", {}, `certainty ${Math.round(100 * segmenter.looks[image.id])} %${image.example ? ", learned from" : ""}`)))));
  }

  async correct(segmenter, image) {
    await trying(async () => {
      if (image.example) return this.page.paint(image.id);
      const mask = await getMask(`/api/looks/${segmenter.name}/${image.id}/mask`);
      return this.page.paint(image.id, mask);
    });
  }
}
