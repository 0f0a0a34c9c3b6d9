// Which pixels a tool paints, exactly: a mask is {width, height, data: Uint8Array}, a pixel (x, y) has its centre at
// (x + 0.5, y + 0.5). Nothing here knows of the page.

export const UNTOUCHED = 254; // in a patch: this pixel stays as it is
export const VOID = 255; // counts nowhere

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

/** Paint the pixels whose centres are within `size` / 2 of the line between two points, and those of the points. */
export function stroke(mask, from, to, size, value) {
  const radius = size / 2;
  const left = clamp(Math.floor(Math.min(from.x, to.x) - radius), 0, mask.width - 1);
  const right = clamp(Math.ceil(Math.max(from.x, to.x) + radius), 0, mask.width - 1);
  const top = clamp(Math.floor(Math.min(from.y, to.y) - radius), 0, mask.height - 1);
  const bottom = clamp(Math.ceil(Math.max(from.y, to.y) + radius), 0, mask.height - 1);
  const dx = to.x - from.x, dy = to.y - from.y, length = dx * dx + dy * dy;
  for (let y = top; y <= bottom; y += 1) {
    for (let x = left; x <= right; x += 1) {
      const px = x + 0.5 - from.x, py = y + 0.5 - from.y;
      const along = length ? clamp((px * dx + py * dy) / length, 0, 1) : 0;
      const ox = px - along * dx, oy = py - along * dy;
      if (ox * ox + oy * oy <= radius * radius) mask.data[y * mask.width + x] = value;
    }
  }
  const steps = Math.max(1, Math.ceil(Math.max(Math.abs(dx), Math.abs(dy))));
  for (let step = 0; step <= steps; step += 1) { // thin lines have no gaps
    const x = Math.floor(from.x + (dx * step) / steps), y = Math.floor(from.y + (dy * step) / steps);
    if (x >= 0 && y >= 0 && x < mask.width && y < mask.height) mask.data[y * mask.width + x] = value;
  }
  return { left, top, right, bottom };
}

/** Paint the pixels whose centres are inside a polygon, by the even-odd rule. */
export function polygon(mask, points, value) {
  const ys = points.map((point) => point.y);
  const top = clamp(Math.floor(Math.min(...ys)), 0, mask.height - 1);
  const bottom = clamp(Math.ceil(Math.max(...ys)), 0, mask.height - 1);
  for (let y = top; y <= bottom; y += 1) {
    const middle = y + 0.5, crossings = [];
    points.forEach((one, index) => {
      const other = points[(index + 1) % points.length];
      if ((one.y <= middle) !== (other.y <= middle)) {
        crossings.push(one.x + ((middle - one.y) * (other.x - one.x)) / (other.y - one.y));
      }
    });
    crossings.sort((a, b) => a - b);
    for (let pair = 0; pair + 1 < crossings.length; pair += 2) {
      const first = clamp(Math.ceil(crossings[pair] - 0.5), 0, mask.width);
      const last = clamp(Math.ceil(crossings[pair + 1] - 0.5), 0, mask.width); // not painted itself
      if (last > first) mask.data.fill(value, y * mask.width + first, y * mask.width + last);
    }
  }
  return { left: 0, right: mask.width - 1, top, bottom };
}

/** Paint the pixels that hang together with one, side by side, and have its value. */
export function flood(mask, x, y, value) {
  const { width, height, data } = mask, old = data[y * width + x];
  const box = { left: x, right: x, top: y, bottom: y };
  if (old === value) return box;
  const rows = [[x, y]];
  while (rows.length) {
    const [startX, row] = rows.pop(), base = row * width;
    if (data[base + startX] !== old) continue;
    let first = startX, last = startX;
    while (first > 0 && data[base + first - 1] === old) first -= 1;
    while (last < width - 1 && data[base + last + 1] === old) last += 1;
    data.fill(value, base + first, base + last + 1);
    box.left = Math.min(box.left, first);
    box.right = Math.max(box.right, last);
    box.top = Math.min(box.top, row);
    box.bottom = Math.max(box.bottom, row);
    for (const next of [row - 1, row + 1]) {
      if (next < 0 || next >= height) continue;
      for (let at = first; at <= last; at += 1) {
        if (data[next * width + at] === old && (at === first || data[next * width + at - 1] !== old)) rows.push([at, next]);
      }
    }
  }
  return box;
}

/** Return what changed between two states of a mask: {x, y, w, h, before, after}, or null. */
export function difference(before, mask, box) {
  const { width, data } = mask;
  let left = Infinity, right = -1, top = Infinity, bottom = -1;
  for (let y = box.top; y <= box.bottom; y += 1) {
    for (let x = box.left; x <= box.right; x += 1) {
      if (before[y * width + x] !== data[y * width + x]) {
        if (x < left) left = x;
        if (x > right) right = x;
        if (y < top) top = y;
        bottom = y;
      }
    }
  }
  if (right < 0) return null;
  const w = right - left + 1, h = bottom - top + 1;
  const edit = { x: left, y: top, w, h, before: new Uint8Array(w * h), after: new Uint8Array(w * h) };
  for (let y = 0; y < h; y += 1) {
    for (let x = 0; x < w; x += 1) {
      const at = (top + y) * width + left + x, place = y * w + x;
      const same = before[at] === data[at];
      edit.before[place] = same ? UNTOUCHED : before[at];
      edit.after[place] = same ? UNTOUCHED : data[at];
    }
  }
  return edit;
}

/** Put the values of a patch {x, y, w, h} into a mask. */
export function apply(mask, patch, values) {
  for (let y = 0; y < patch.h; y += 1) {
    for (let x = 0; x < patch.w; x += 1) {
      const value = values[y * patch.w + x];
      if (value !== UNTOUCHED) mask.data[(patch.y + y) * mask.width + patch.x + x] = value;
    }
  }
  return { left: patch.x, top: patch.y, right: patch.x + patch.w - 1, bottom: patch.y + patch.h - 1 };
}
