// Shows an image with its mask over it: zoom, pan, opacity, the brush's circle, the polygon that is drawn.
// The mask is kept as tiles of pixels, so that an edit draws again what it touches, and images may be very long.

const TILE = 512;

export class View {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.scale = 1;
    this.x = this.y = 0; // of the image's corner, in the page's pixels
    this.opacity = 0.55;
    this.pointer = null; // {x, y, size} on the image
    this.points = []; // of a polygon
    this.colours = new Uint32Array(256);
    new ResizeObserver(() => { this.resize(); }).observe(canvas);
  }

  /** Show another image (null for none) and its mask. */
  show(image, mask) {
    this.image = image;
    this.mask = mask;
    this.tiles = new Map();
    this.fit();
  }

  setColours(parts) {
    this.colours.fill(0);
    for (const part of parts.slice(1)) {
      const number = parseInt(part.colour.slice(1), 16);
      this.colours[part.value] = (0xff000000 | ((number & 255) << 16) | (number & 0xff00) | (number >> 16)) >>> 0;
    }
    this.colours[255] = 0xffffffff;
    this.tiles = new Map();
    this.draw();
  }

  /** Draw again what an edit has touched, {left, top, right, bottom}. */
  touch(box) {
    for (let row = Math.floor(box.top / TILE); row <= Math.floor(box.bottom / TILE); row += 1) {
      for (let column = Math.floor(box.left / TILE); column <= Math.floor(box.right / TILE); column += 1) {
        this.tiles.delete(`${column},${row}`);
      }
    }
    this.draw();
  }

  resize() {
    const ratio = window.devicePixelRatio || 1, { clientWidth, clientHeight } = this.canvas;
    if (!clientWidth) return;
    const first = !this.width;
    this.width = clientWidth;
    this.height = clientHeight;
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    if (first || this.fitted) this.fit();
    this.draw();
  }

  fit() {
    if (!this.mask || !this.width) return this.draw();
    this.scale = Math.min((this.width - 16) / this.mask.width, (this.height - 16) / this.mask.height);
    this.x = (this.width - this.mask.width * this.scale) / 2;
    this.y = (this.height - this.mask.height * this.scale) / 2;
    this.fitted = true;
    return this.draw();
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const scale = Math.max(0.01, Math.min(64, this.scale * factor));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.draw();
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.fitted = false;
    this.draw();
  }

  /** Return where on the image a pointer event is. */
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left - this.x) / this.scale, y: (event.clientY - box.top - this.y) / this.scale };
  }

  draw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.paint(); });
  }

  paint() {
    const { context, mask, scale } = this, ratio = window.devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!mask || !this.image) return;
    context.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * this.x, ratio * this.y);
    context.imageSmoothingEnabled = scale < 2;
    context.drawImage(this.image, 0, 0, mask.width, mask.height);
    context.globalAlpha = this.opacity;
    context.imageSmoothingEnabled = false;
    const first = (offset) => Math.max(0, Math.floor(-offset / scale / TILE));
    const last = (offset, shown, size) => Math.min(Math.ceil(size / TILE) - 1, Math.floor((shown - offset) / scale / TILE));
    for (let row = first(this.y); row <= last(this.y, this.height, mask.height); row += 1) {
      for (let column = first(this.x); column <= last(this.x, this.width, mask.width); column += 1) {
        context.drawImage(this.tile(column, row), column * TILE, row * TILE);
      }
    }
    context.globalAlpha = 1;
    this.marks(context);
  }

  /** Draw the polygon's points and the brush, dark and light, so that they show on every image. */
  marks(context) {
    const thin = 1 / this.scale;
    for (const [colour, width] of [["#000c", 3 * thin], ["#fff", 1.5 * thin]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      if (this.points.length) {
        context.beginPath();
        for (const point of [...this.points, ...(this.pointer ? [this.pointer] : [])]) context.lineTo(point.x, point.y);
        context.stroke();
        for (const point of this.points) context.strokeRect(point.x - 2 * thin, point.y - 2 * thin, 4 * thin, 4 * thin);
      } else if (this.pointer?.size) {
        context.beginPath();
        context.arc(this.pointer.x, this.pointer.y, Math.max(this.pointer.size / 2, 0.5), 0, 7);
        context.stroke();
      }
    }
  }

  tile(column, row) {
    const key = `${column},${row}`;
    if (this.tiles.has(key)) return this.tiles.get(key);
    const { mask } = this, left = column * TILE, top = row * TILE;
    const width = Math.min(TILE, mask.width - left), height = Math.min(TILE, mask.height - top);
    const made = document.createElement("canvas");
    made.width = width;
    made.height = height;
    const context = made.getContext("2d"), pixels = context.createImageData(width, height);
    const colours = new Uint32Array(pixels.data.buffer);
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) colours[y * width + x] = this.colours[mask.data[(top + y) * mask.width + left + x]];
    }
    context.putImageData(pixels, 0, 0);
    this.tiles.set(key, made);
    return made;
  }
}
