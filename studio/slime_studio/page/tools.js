// Painting on the image that is open: tools, pointers, undo and redo. Every edit is shown, saved, and can be undone.
import { getMask } from "./api.js";
import { apply, difference, flood, polygon, stroke } from "./raster.js";
import { save, saved, unsaved } from "./saving.js";

const MOST_BYTES = 128e6; // of edits that can be undone

export class Painter {
  constructor(view, changed) {
    this.view = view;
    this.changed = changed; // called whenever what the toolbar shows is another
    this.tool = "brush";
    this.value = 1;
    this.size = 12;
    this.pointers = new Map();
    this.opened = 0; // how often an image was opened: what an earlier opening fetches comes too late
    const { canvas } = view;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.up(event));
    canvas.addEventListener("pointerleave", () => { view.pointer = null; view.draw(); });
    canvas.addEventListener("dblclick", () => this.close());
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = canvas.getBoundingClientRect();
      view.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX - box.left, event.clientY - box.top);
    }, { passive: false });
    window.addEventListener("pagehide", () => this.finish());
  }

  /** Open an image of the project, or none (null); resolve to whether it is open, and no other was opened meanwhile. */
  async open(image) {
    this.finish();
    const turn = ++this.opened, { canvas } = this.view;
    this.image = image;
    this.mask = null; // nothing can be painted until this image's own is there
    canvas.setAttribute("aria-busy", String(Boolean(image)));
    this.done = [];
    this.undone = [];
    this.view.points = [];
    if (!image) {
      this.view.show(null, null);
      return false;
    }
    const picture = new Image();
    picture.src = `/api/images/${image.id}`;
    const [mask] = await Promise.all([getMask(`/api/images/${image.id}/mask`), picture.decode()]);
    if (turn !== this.opened) return false;
    for (const { edit, values } of unsaved(image.id)) apply(mask, edit, values);
    this.mask = mask;
    this.view.show(picture, mask);
    canvas.setAttribute("aria-busy", "false");
    this.changed();
    return true;
  }

  /** Take over what another tab has painted on this image. */
  async reload() {
    await saved();
    if (!this.image || this.before) return;
    const mask = await getMask(`/api/images/${this.image.id}/mask`);
    if (!this.mask || mask.data.length !== this.mask.data.length || this.before) return;
    for (const { edit, values } of unsaved(this.image.id)) apply(mask, edit, values);
    this.mask.data.set(mask.data);
    this.view.touch({ left: 0, top: 0, right: mask.width - 1, bottom: mask.height - 1 });
  }

  choose(tool) {
    if (tool !== "polygon") this.view.points = [];
    this.tool = tool;
    this.view.draw();
    this.changed();
  }

  get paints() {
    return this.tool === "eraser" ? 0 : this.value;
  }

  down(event) {
    if (!this.mask || !this.image) return;
    const { view } = this;
    view.canvas.focus({ preventScroll: true });
    view.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, event);
    if (this.pointers.size === 2) { // two fingers move the image; what the first has begun to paint is taken back
      if (this.before) this.takeBack();
      this.tapped = null;
      return;
    }
    if (this.pointers.size > 2) return;
    const point = view.at(event);
    if (event.button === 1 || this.tool === "hand" || this.panning) {
      this.moving = event;
    } else if (event.button === 0 && ["polygon", "fill"].includes(this.tool)) {
      if (event.pointerType === "touch") this.tapped = event; // a second finger may follow
      else this.place(point);
    } else if (event.button === 0) {
      this.begin();
      this.last = point;
      this.stamp(point, point);
    }
  }

  /** Put a corner of the polygon there, or fill from there. */
  place(point) {
    const { view } = this;
    if (this.tool === "polygon") {
      const near = view.points.length > 2 && Math.hypot(point.x - view.points[0].x, point.y - view.points[0].y) * view.scale < 10;
      if (near) this.close();
      else view.points.push(point);
      view.draw();
      this.changed();
    } else {
      const x = Math.floor(point.x), y = Math.floor(point.y);
      if (x >= 0 && y >= 0 && x < this.mask.width && y < this.mask.height) this.edit(() => flood(this.mask, x, y, this.value));
    }
  }

  move(event) {
    const { view } = this, point = view.at(event);
    const old = this.pointers.get(event.pointerId);
    if (old && this.pointers.size === 2) this.pinch(old, event);
    if (old) this.pointers.set(event.pointerId, event);
    view.pointer = { ...point, size: ["brush", "eraser"].includes(this.tool) ? this.size : 0 };
    if (this.moving && old) {
      view.pan(event.clientX - old.clientX, event.clientY - old.clientY);
    } else if (this.before) {
      for (const each of event.getCoalescedEvents?.() || []) this.line(view.at(each));
      this.line(point);
    }
    view.draw();
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    this.moving = null;
    if (this.tapped && event.type === "pointerup") this.place(this.view.at(this.tapped));
    this.tapped = null;
    this.finish();
  }

  pinch(old, event) {
    const [other] = [...this.pointers.values()].filter((each) => each.pointerId !== event.pointerId);
    const box = this.view.canvas.getBoundingClientRect();
    const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1;
    this.view.pan((event.clientX - old.clientX) / 2, (event.clientY - old.clientY) / 2);
    const x = (event.clientX + other.clientX) / 2 - box.left, y = (event.clientY + other.clientY) / 2 - box.top;
    this.view.zoom(apart(event) / apart(old), x, y);
  }

  line(point) {
    this.stamp(this.last, point);
    this.last = point;
  }

  stamp(from, to) {
    const box = stroke(this.mask, from, to, this.size, this.paints);
    const { union } = this;
    this.union = union ? {
      left: Math.min(union.left, box.left), right: Math.max(union.right, box.right),
      top: Math.min(union.top, box.top), bottom: Math.max(union.bottom, box.bottom),
    } : box;
    this.view.touch(box);
  }

  begin() {
    this.before = this.mask.data.slice();
    this.union = null;
  }

  takeBack() {
    this.mask.data.set(this.before);
    if (this.union) this.view.touch(this.union);
    this.before = null;
  }

  /** End a stroke: show it, save it, and make it one that can be undone. */
  finish() {
    if (!this.before) return;
    const edit = this.union && difference(this.before, this.mask, this.union);
    this.before = null;
    if (!edit) return;
    this.done.push(edit);
    this.undone = [];
    let bytes = 0;
    for (const each of this.done) bytes += 2 * each.before.length;
    while (bytes > MOST_BYTES && this.done.length > 1) bytes -= 2 * this.done.shift().before.length;
    this.view.touch({ left: edit.x, top: edit.y, right: edit.x + edit.w - 1, bottom: edit.y + edit.h - 1 });
    save(this.image.id, edit, edit.after);
    this.changed();
  }

  /** Make a change that `work` makes to the mask; it returns the rectangle that it touched. */
  edit(work) {
    this.begin();
    this.union = work();
    this.finish();
  }

  /** Close the polygon and paint it. */
  close() {
    const { points } = this.view;
    if (this.tool !== "polygon" || points.length < 3) return;
    this.view.points = [];
    this.edit(() => polygon(this.mask, points, this.value));
    this.changed();
  }

  /** Put a whole mask, as a file or a segmenter has it, in place of this one. */
  replace(mask) {
    this.edit(() => {
      this.mask.data.set(mask.data);
      return { left: 0, top: 0, right: mask.width - 1, bottom: mask.height - 1 };
    });
  }

  undo() {
    this.step(this.done, this.undone, "before");
  }

  redo() {
    this.step(this.undone, this.done, "after");
  }

  step(from, to, which) {
    this.finish();
    const edit = from?.pop();
    if (!edit) return;
    to.push(edit);
    this.view.touch(apply(this.mask, edit, edit[which]));
    save(this.image.id, edit, edit[which]);
    this.changed();
  }

  /** Move the brush by the keyboard, by steps of half its size, or stamp it. */
  key(dx, dy) {
    if (!this.mask) return;
    const { view } = this, step = Math.max(1, Math.round(this.size / 2));
    const middle = (value) => Math.floor(value) + 0.5; // of a pixel
    const { x, y } = view.pointer || { x: this.mask.width / 2, y: this.mask.height / 2 };
    const at = { x: middle(x), y: middle(y) };
    view.pointer = {
      x: Math.max(0, Math.min(this.mask.width - 0.5, at.x + dx * step)),
      y: Math.max(0, Math.min(this.mask.height - 0.5, at.y + dy * step)),
      size: this.size,
    };
    if (!dx && !dy) {
      if (this.tool === "fill") this.edit(() => flood(this.mask, Math.floor(at.x), Math.floor(at.y), this.value));
      else if (this.tool === "polygon") view.points.push({ x: at.x, y: at.y });
      else { this.begin(); this.stamp(at, at); this.finish(); }
    }
    view.draw();
  }
}
