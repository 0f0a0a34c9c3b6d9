// The first step: images on the left, the one that is open in the middle, parts on the right.
import { post, send, sendForMask } from "./api.js";
import { View } from "./canvas.js";
import { ask, button, choosing, dropping, fill, h, say, trying, unchanged } from "./dom.js";
import { VOID } from "./raster.js";
import { Painter } from "./tools.js";

const TOOLS = [
  ["brush", "Brush", "B"], ["eraser", "Eraser", "E"], ["polygon", "Polygon", "P"], ["fill", "Fill", "G"], ["hand", "Move", "H"],
];
const KEYS = [
  ["B E P G H", "brush, eraser, polygon, fill, move"], ["0 … 9", "choose a part"], ["[ ]", "smaller, larger brush"],
  ["Ctrl Z, Ctrl Shift Z", "undo, redo"], ["+ − F", "zoom in, zoom out, fit; or the mouse wheel"],
  ["Space and drag", "move the image; two fingers do it on a touch screen"], [", .", "image before, image after"],
  ["Enter", "paint at the cursor; close a polygon"], ["arrow keys", "move the cursor, when the image has the focus"],
  ["Escape", "give up a polygon"],
];

export class Paint {
  constructor(root, page) {
    this.page = page;
    this.images = h("ul", { class: "images", "aria-label": "Images" });
    this.canvas = h("canvas", { tabindex: 0, role: "application", "aria-label": "Image to paint on: arrow keys move the brush, Enter paints" });
    this.view = new View(this.canvas);
    this.painter = new Painter(this.view, () => this.showTools());
    this.tools = h("div", { class: "tools", role: "toolbar", "aria-label": "Tools" });
    this.parts = h("ul", { class: "parts", "aria-label": "Parts" });
    this.about = h("p", { class: "about" });
    // Over the image, so that nothing moves under the pointer when it appears.
    this.closing = button("Close the polygon", () => this.painter.close(), { class: "main closing", hidden: true });
    this.empty = h("div", { class: "empty" }, h("h2", {}, "Paint the parts of one image"),
      h("p", {}, "Drop images here, or press Add images. Name the parts, and paint them over one image. Everything is saved as you paint."));
    const add = (files) => this.add(files);
    const [pick, pickButton] = choosing("Add images", add, { accept: "image/*,.heic,.heif,.avif,.tif,.tiff", id: "add-images" }, { class: "main" });
    const [folder, folderButton] = choosing("Add a folder of images", add, { webkitdirectory: true, id: "add-folder" });
    const [opened, openedButton] = choosing("Open an annotated folder", (files) => this.openFolder(files), { webkitdirectory: true, id: "open-folder" });
    this.new = h("input", { id: "new-part", placeholder: "a part, such as wheel", "aria-label": "Name of a new part", maxlength: 60, autocomplete: "off" });
    root.append(
      h("aside", { class: "side left" }, h("h2", {}, "Images"), pick, pickButton, this.images,
        h("details", {}, h("summary", {}, "More ways to add"), folder, folderButton, opened, openedButton,
          h("p", { class: "hint" }, "Annotated: COCO, LabelMe, YOLO outlines, what CVAT and Label Studio export, or masks beside images."))),
      h("div", { class: "middle" }, this.tools, h("div", { class: "stage" }, this.canvas, this.closing, this.empty), this.about),
      h("aside", { class: "side right" }, h("h2", {}, "Parts"), this.parts,
        h("form", { class: "row", onsubmit: (event) => { event.preventDefault(); this.addPart(); } }, this.new, h("button", {}, "Add")),
        h("p", { class: "hint" }, "The background is what you leave unpainted. Void is for pixels that are to count nowhere."),
        h("details", {}, h("summary", {}, "Keys"), h("dl", { class: "keys" }, KEYS.map(([key, text]) => [h("dt", {}, key), h("dd", {}, text)])))));
    dropping(root, add);
    document.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("keyup", (event) => { if (event.key === " ") this.painter.panning = false; });
  }

  entered() {
    requestAnimationFrame(() => this.view.resize());
  }

  show(state) {
    this.state = state;
    if (unchanged(this.images, state.parts, state.images.map(({ id, name, example, revision }) => [id, name, example, Boolean(revision)]), this.painter.image?.id)) return;
    this.view.setColours(state.parts);
    const painted = (image) => image.example ? "learned from" : image.revision ? "painted" : "";
    fill(this.images, state.images.map((image) => h("li", {},
      h("button", { type: "button", class: "image", "aria-current": this.painter.image?.id === image.id ? "true" : null, onclick: () => this.open(image.id), id: `image-${image.id}` },
        h("img", { src: `/api/images/${image.id}/small`, alt: "", loading: "lazy" }),
        h("span", {}, image.name, h("small", {}, painted(image)))))));
    this.showParts();
    this.showTools();
    if (this.painter.image && !state.images.some((image) => image.id === this.painter.image.id)) this.painter.open(null);
    if (!this.painter.image && state.images.length) this.open(this.wanted() || state.images[0].id);
    this.empty.hidden = state.images.length > 0;
  }

  wanted() {
    const kept = sessionStorage.getItem("image");
    return this.state.images.some((image) => image.id === kept) ? kept : null;
  }

  async open(id, mask) {
    const image = this.state.images.find((each) => each.id === id);
    sessionStorage.setItem("image", id);
    const opened = await trying(() => this.painter.open(image));
    if (mask && opened) {
      const free = !image.revision || await ask(`${image.name} is painted already. Replace its mask? You can undo it.`, "Replace");
      if (free) this.replace(image, mask);
    }
    this.show(this.state);
  }

  /** Put a whole mask in place of an image's, unless another image was opened while it was fetched. */
  replace(image, mask) {
    if (this.painter.mask && this.painter.image?.id === image.id) this.painter.replace(mask);
    else say(`Another image was opened meanwhile: the mask of ${image.name} is as it was.`);
  }

  showTools() {
    const { painter, view, state } = this;
    if (!state) return;
    this.closing.hidden = view.points.length < 3;
    const image = state.images.find((each) => each.id === painter.image?.id);
    const size = h("input", { type: "range", min: 1, max: 100, value: painter.size, id: "size", "aria-label": "Size of the brush, in pixels of the image",
      oninput: (event) => { painter.size = Number(event.target.value); event.target.nextSibling.textContent = `${painter.size} px`; } });
    const opacity = h("input", { type: "range", min: 0, max: 100, value: Math.round(view.opacity * 100), id: "opacity", "aria-label": "Opacity of the mask",
      oninput: (event) => { view.opacity = event.target.value / 100; view.draw(); } });
    fill(this.tools,
      h("span", { class: "group" }, TOOLS.map(([name, text, key]) => button(text, () => painter.choose(name),
        { "aria-pressed": String(painter.tool === name), title: `${text} (${key})`, id: `tool-${name}` }))),
      h("span", { class: "group" },
        button("Undo", () => painter.undo(), { disabled: !painter.done?.length, title: "Undo (Ctrl Z)", id: "undo" }),
        button("Redo", () => painter.redo(), { disabled: !painter.undone?.length, title: "Redo (Ctrl Shift Z)", id: "redo" })),
      h("label", { class: "slide" }, "Brush ", size, h("output", {}, `${painter.size} px`)),
      h("label", { class: "slide" }, "Mask ", opacity),
      h("span", { class: "group" },
        button("−", () => view.zoom(0.8), { "aria-label": "Zoom out" }), button("+", () => view.zoom(1.25), { "aria-label": "Zoom in" }),
        button("Fit", () => view.fit(), { title: "Fit (F)" })));
    const [file, fileButton] = choosing("Open a mask", (files) => trying(async () => {
      this.replace(image, await sendForMask(`/api/images/${image.id}/open-mask?name=${encodeURIComponent(files[0].name)}`, files[0]));
    }), { accept: ".png,.tif,.tiff,.bmp,.gif,.npy", multiple: false, id: "open-mask" });
    fill(this.about, image && [
      h("label", {}, h("input", { type: "checkbox", id: "example", checked: image.example, onchange: (event) => this.setExample(image, event.target.checked) }), " Learn from this image"),
      h("span", { class: "hint" }, `${image.name}, ${image.width} × ${image.height}`),
      file, fileButton,
      button("Remove", async () => {
        if (await ask(`Remove ${image.name} and its mask from the project?`, "Remove")) await trying(() => post(`/api/images/${image.id}/remove`));
      }, { "aria-label": `Remove ${image.name}` }),
    ]);
    if (image && painter.done?.length && !image.example && !image.revision) { // what is painted first is learned from
      image.revision = "painted";
      this.setExample(image, true);
    }
  }

  async setExample(image, example) {
    image.example = example;
    await trying(() => post(`/api/images/${image.id}`, { example }));
    await this.page.refresh();
  }

  showParts() {
    const { painter, state } = this;
    const added = state.parts.find((part) => part.name === this.adding);
    if (added) { // it is chosen as it appears, and not by an answer that may come later than the next choice
      painter.value = added.value;
      this.adding = null;
    }
    const all = [...state.parts, { value: VOID, name: "void", colour: "#ffffff" }];
    if (!all.some((part) => part.value === painter.value)) painter.value = state.parts[1]?.value ?? 0;
    fill(this.parts, all.map((part, number) => {
      const fixed = part.value === 0 || part.value === VOID;
      const change = (facts) => this.changeParts(`/${part.value}`, facts);
      return h("li", { class: painter.value === part.value ? "chosen" : null },
        h("input", { type: "color", value: part.colour, "aria-label": `Colour of ${part.name}`, disabled: fixed, id: `colour-${part.value}`,
          onchange: (event) => change({ colour: event.target.value }) }),
        button(part.name, () => { painter.value = part.value; if (painter.tool === "eraser") painter.choose("brush"); this.showParts(); },
          { class: "part", "aria-pressed": String(painter.value === part.value), id: `part-${part.value}`, title: number < 10 ? `Key ${number}` : null }),
        !fixed && button("✎", () => this.rename(part, change), { class: "small", "aria-label": `Rename ${part.name}` }),
        !fixed && button("×", async () => {
          if (await ask(`Remove the part ${part.name}? What is painted of it becomes background.`, "Remove")) this.changeParts(`/${part.value}/remove`);
        }, { class: "small", "aria-label": `Remove ${part.name}` }));
    }));
  }

  rename(part, change) {
    const input = h("input", { value: part.name, maxlength: 60, "aria-label": `New name of ${part.name}`,
      onkeydown: (event) => {
        if (event.key === "Escape") this.showParts();
        if (event.key === "Enter") change({ name: input.value });
      },
      onblur: () => { if (input.isConnected && input.value !== part.name) change({ name: input.value }); } });
    document.getElementById(`part-${part.value}`).replaceWith(input);
    input.select();
  }

  async changeParts(which, facts) {
    await trying(() => post(`/api/parts${which}`, facts));
    await this.page.refresh();
  }

  async addPart() {
    const name = this.new.value.trim();
    if (!name) return;
    this.adding = name;
    this.new.value = ""; // at once: the next name may be typed before the studio has answered
    this.new.focus();
    if (await trying(() => post("/api/parts", { name }))) {
      await this.page.refresh();
    } else {
      this.adding = null;
      this.new.value ||= name;
    }
  }

  async add(files) {
    const images = files.filter((file) => file.type.startsWith("image/") || /\.(heic|heif|avif|tiff?)$/i.test(file.name));
    const left = files.length - images.length, problems = [];
    let last;
    for (const [index, file] of images.entries()) {
      say(`Adding ${file.name} (${index + 1} of ${images.length})`, false);
      try {
        last = (await send(`/api/images?name=${encodeURIComponent(file.name)}`, file)).id;
      } catch (error) {
        problems.push(error.message);
      }
    }
    await this.page.refresh();
    if (last && images.length === 1) await this.open(last);
    if (problems.length) say(problems.slice(0, 3).join(" ") + (problems.length > 3 ? ` And ${problems.length - 3} more.` : ""));
    else say(`${images.length} images added${left ? `, ${left} files are no images` : ""}.`, false);
  }

  async openFolder(files) {
    const batch = `b${Date.now()}`;
    await trying(async () => {
      for (const [index, file] of files.entries()) {
        say(`Opening ${file.name} (${index + 1} of ${files.length})`, false);
        const path = file.webkitRelativePath.split("/").slice(1).join("/") || file.name;
        await send(`/api/opened/${batch}?path=${encodeURIComponent(path)}`, file);
      }
      const found = await post(`/api/opened/${batch}/read`);
      await this.page.refresh();
      say(`${found.images} annotated images opened${found.kept ? `; ${found.kept} that were painted here keep their masks` : ""}.`
        + (found.by_number ? ` Nothing there names the parts: the masks' numbers were taken for ${found.parts.map((name, number) => `${number} ${name}`).join(", ")}.` : ""), found.by_number);
    });
  }

  changedElsewhere(image) {
    if (!image || image === this.painter.image?.id) trying(() => this.painter.reload());
  }

  key(event) {
    const { painter, view, state } = this;
    if (document.body.dataset.step !== "paint" || document.querySelector("dialog[open]") || !state) return;
    if (event.target.matches("input:not([type=range], [type=checkbox]), textarea, select")) return;
    const key = event.key.toLowerCase(), command = event.ctrlKey || event.metaKey;
    const tool = TOOLS.find((each) => each[2].toLowerCase() === key);
    const arrows = { arrowleft: [-1, 0], arrowright: [1, 0], arrowup: [0, -1], arrowdown: [0, 1] };
    const onCanvas = document.activeElement === this.canvas;
    const other = (step) => {
      const at = state.images.findIndex((image) => image.id === painter.image?.id) + step;
      if (state.images[at]) this.open(state.images[at].id);
    };
    if (command && key === "z") event.shiftKey ? painter.redo() : painter.undo();
    else if (command && key === "y") painter.redo();
    else if (command || event.altKey) return;
    else if (tool) painter.choose(tool[0]);
    else if (/^\d$/.test(key) && state.parts[key]) { painter.value = state.parts[key].value; this.showParts(); }
    else if (key === "[" || key === "]") { painter.size = Math.max(1, Math.min(100, painter.size + (key === "]" ? 1 : -1) * Math.ceil(painter.size / 6))); this.showTools(); }
    else if (key === "+" || key === "=") view.zoom(1.25);
    else if (key === "-") view.zoom(0.8);
    else if (key === "f") view.fit();
    else if (key === "," || key === ".") other(key === "." ? 1 : -1);
    else if (key === "escape") { view.points = []; view.draw(); this.showTools(); }
    else if (key === " " && (onCanvas || event.target === document.body)) painter.panning = true;
    else if (onCanvas && arrows[key]) painter.key(...arrows[key]);
    else if (onCanvas && key === "enter") painter.tool === "polygon" && view.points.length > 2 ? painter.close() : painter.key(0, 0);
    else return;
    event.preventDefault();
  }
}
