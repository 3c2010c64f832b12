// The layers of a frame on a canvas, with zoom and comparison.

import {make} from "./controls.js";

const MAX_ZOOM = 24;
/** Screen pixels a pixel of the frame must have to be drawn as a square instead of smoothed. */
const SQUARE = 3;
/** Screen pixels between two stacks side by side. */
const GAP = 4;

/** Return a layer in which only pixels of some colours are left, and white outlines beside them. */
export function isolated(bitmap, colours) {
  const {width, height} = bitmap;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(bitmap, 0, 0);
  const image = context.getImageData(0, 0, width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const wanted = new Set(
    colours.map((colour) => {
      if (colour === "transparent") return 0;
      const rgb = parseInt(colour.slice(1), 16);
      return ((0xff << 24) | ((rgb & 0xff) << 16) | (rgb & 0xff00) | (rgb >> 16)) >>> 0;
    }),
  );
  const kept = pixels.map((value) => (wanted.has(value) ? 1 : 0));
  const beside = (i) => kept[i - 1] || kept[i + 1] || kept[i - width] || kept[i + width];
  for (let i = 0; i < pixels.length; i++)
    if (!kept[i] && !(pixels[i] === 0xffffffff && beside(i))) pixels[i] = 0;
    else if (pixels[i] === 0) pixels[i] = 0xffffb0ff; // void has no colour of its own: show where it is
  context.putImageData(image, 0, 0);
  return canvas;
}

/** The canvas: one stack of layers, two side by side, or two parted by a bar; zoomed to `zoom` around (`x`, `y`). */
export class Picture {
  constructor(stage, order) {
    this.stage = stage;
    this.order = order;
    this.canvas = stage.appendChild(make("canvas", {role: "img", "aria-label": "Layers of the frame"}));
    this.zoom = 1;
    this.x = 0;
    this.y = 0;
    this.entry = null;
    this.outline = null;
    this.marks = [];
    /** Radius and colour of the brush, where it is, and the strokes that the label does not show yet. */
    this.brush = null;
    this.brushAt = null;
    this.strokes = [];
    /** By layer, the colours that are left of it; all if there are none. */
    this.chosen = {};
  }

  /** Return what to draw of a layer: all of it, or the chosen colours alone. */
  drawn(name) {
    const {bitmaps} = this.entry;
    const colours = this.chosen[name];
    if (!bitmaps[name] || !colours?.length) return bitmaps[name];
    const known = (this.entry.isolated ??= {});
    const key = colours.join();
    if (known[name]?.key !== key || known[name].of !== bitmaps[name])
      known[name] = {key, of: bitmaps[name], canvas: isolated(bitmaps[name], colours)};
    return known[name].canvas;
  }

  /** Return where the stacks are on the canvas. */
  rects(mode) {
    const w = this.stage.clientWidth;
    const h = this.stage.clientHeight;
    if (mode !== "side") return [{x: 0, y: 0, w, h}];
    const half = (w - GAP) / 2;
    return [
      {x: 0, y: 0, w: half, h},
      {x: half + GAP, y: 0, w: half, h},
    ];
  }

  fit(rect) {
    const {width, height} = this.entry.content;
    return Math.min(rect.w / width, rect.h / height);
  }

  /** Return the scale, and where pixel (0, 0) of the frame is. */
  origin(rect) {
    const {width, height} = this.entry.content;
    const s = this.fit(rect) * this.zoom;
    return {s, x: rect.x + rect.w / 2 - (width / 2 + this.x) * s, y: rect.y + rect.h / 2 - (height / 2 + this.y) * s};
  }

  /** Return the pixel of the frame at a point of the canvas, null outside. */
  pixel(mode, px, py) {
    if (!this.entry) return null;
    const rect = this.rects(mode).find((r) => px >= r.x && px < r.x + r.w);
    if (!rect) return null;
    const o = this.origin(rect);
    const x = Math.floor((px - o.x) / o.s);
    const y = Math.floor((py - o.y) / o.s);
    const {width, height} = this.entry.content;
    return x >= 0 && y >= 0 && x < width && y < height ? {x, y} : null;
  }

  /** Return the pixel of the full-size frame at a point of the canvas, also outside of it. */
  fullPixel(mode, px, py) {
    const o = this.origin(this.rects(mode)[0]);
    const {step} = this.entry.content;
    return [Math.floor(((px - o.x) / o.s) * step), Math.floor(((py - o.y) / o.s) * step)];
  }

  place(mode, x, y) {
    const o = this.origin(this.rects(mode)[0]);
    return {x: o.x + (x + 0.5) * o.s, y: o.y + (y + 0.5) * o.s};
  }

  pan(mode, dx, dy) {
    if (!this.entry) return;
    const {width, height} = this.entry.content;
    const s = this.fit(this.rects(mode)[0]) * this.zoom;
    const room = (1 - 1 / this.zoom) / 2;
    this.x = Math.max(-room * width, Math.min(room * width, this.x - dx / s));
    this.y = Math.max(-room * height, Math.min(room * height, this.y - dy / s));
  }

  /** Zoom so that the pixel under the pointer stays there. */
  zoomBy(mode, factor, px, py) {
    if (!this.entry) return;
    const rect = this.rects(mode).find((r) => px >= r.x && px < r.x + r.w) || this.rects(mode)[0];
    const before = this.origin(rect);
    const fx = (px - before.x) / before.s;
    const fy = (py - before.y) / before.s;
    this.zoom = Math.max(1, Math.min(MAX_ZOOM, this.zoom * factor));
    const after = this.origin(rect);
    this.pan(mode, px - (after.x + fx * after.s), py - (after.y + fy * after.s));
  }

  whole() {
    this.zoom = 1;
    this.x = this.y = 0;
  }

  clear() {
    this.entry = null;
    this.draw({mode: "one", stacks: [{}], swipe: 0.5});
  }

  draw({mode, stacks, swipe}) {
    const scale = window.devicePixelRatio || 1;
    const w = this.stage.clientWidth;
    const h = this.stage.clientHeight;
    if (this.canvas.width !== Math.round(w * scale) || this.canvas.height !== Math.round(h * scale)) {
      this.canvas.width = Math.round(w * scale);
      this.canvas.height = Math.round(h * scale);
    }
    const context = this.canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, w, h);
    if (!this.entry) return;
    const [first, second] = this.rects(mode);
    if (mode === "one") this.stack(context, stacks[0], first, first);
    if (mode === "side") {
      this.stack(context, stacks[0], first, first);
      this.stack(context, stacks[1], second, second);
    }
    if (mode === "swipe") {
      this.stack(context, stacks[0], first, {...first, w: w * swipe});
      this.stack(context, stacks[1], first, {...first, x: w * swipe, w: w * (1 - swipe)});
    }
  }

  /** Draw a stack of layers, the outline of a segment and marks into a part of the canvas. */
  stack(context, opacities, rect, clip) {
    const {width, height} = this.entry.content;
    const o = this.origin(rect);
    context.save();
    context.beginPath();
    context.rect(clip.x, clip.y, clip.w, clip.h);
    context.clip();
    context.translate(o.x, o.y);
    context.scale(o.s, o.s);
    context.imageSmoothingEnabled = o.s < SQUARE;
    for (const name of this.order) {
      if (!(opacities[name] > 0)) continue;
      const bitmap = this.drawn(name);
      if (!bitmap) continue;
      context.globalAlpha = opacities[name];
      context.drawImage(bitmap, 0, 0, width, height);
    }
    context.globalAlpha = 1;
    if (this.outline)
      for (const [colour, wide] of [
        ["#000", 4],
        ["#fff", 1.8],
      ]) {
        context.strokeStyle = colour;
        context.lineWidth = wide / o.s;
        context.stroke(this.outline);
      }
    this.drawMarks(context, o.s);
    this.drawBrush(context, o.s);
    context.restore();
  }

  /** Draw strokes as the label will show them, and the rim of the brush where the pointer is. */
  drawBrush(context, s) {
    const {step} = this.entry.content;
    const centre = ([x, y]) => [(x + 0.5) / step, (y + 0.5) / step];
    context.lineCap = context.lineJoin = "round";
    context.globalAlpha = 0.6;
    for (const {points, radius, colour} of this.strokes) {
      context.strokeStyle = colour;
      context.lineWidth = (2 * radius + 1) / step;
      context.beginPath();
      context.moveTo(...centre(points[0]));
      for (const point of points) context.lineTo(...centre(point));
      context.stroke();
    }
    context.globalAlpha = 1;
    if (!this.brush || !this.brushAt) return;
    for (const [colour, wide] of [
      ["#000", 3.5],
      [this.brush.colour, 1.5],
    ]) {
      context.strokeStyle = colour;
      context.lineWidth = wide / s;
      context.beginPath();
      context.arc(...centre(this.brushAt), (this.brush.radius + 0.5) / step, 0, 7);
      context.stroke();
    }
  }

  drawMarks(context, s) {
    const step = this.entry.content.step;
    const points = this.marks.map(([x, y]) => [x / step + 0.5, y / step + 0.5]);
    for (const [colour, wide] of [
      ["#000", 5],
      ["#e69f00", 2.5],
    ]) {
      context.strokeStyle = context.fillStyle = colour;
      context.lineWidth = wide / s;
      context.beginPath();
      for (const [x, y] of points) context.lineTo(x, y);
      context.stroke();
      for (const [x, y] of points) {
        context.beginPath();
        context.arc(x, y, wide / s, 0, 7);
        context.fill();
      }
    }
  }
}
