// Elements with labels that a screen reader can say: buttons, legends, the table of layers, the strip of thumbnails.

/** Return an element; text becomes text nodes, never markup. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Return a button with a symbol on it and a label for screen readers. */
export const button = (text, label) => make("button", {type: "button", "aria-label": label, title: label}, text);
/** Return a slider from 0 to `max`. */
export const range = (label, max, step) => make("input", {type: "range", min: 0, max, step, "aria-label": label});

const number = (v) => (Math.abs(v) >= 100 ? v.toFixed(0) : Number(v.toPrecision(2)).toString());

/**
 * Return what the colours of a layer mean: a scale, a wheel of directions or a list of classes. A class is a button:
 * `onChoose` is called with its colour, and those in `chosen` are pressed.
 */
export function legendElement(title, legend, chosen = [], onChoose = () => {}) {
  const box = make("div", {class: "cups-legend"}, make("b", {}, title));
  if (legend.kind === "bar") {
    const bar = make("span", {class: "cups-scale"});
    bar.style.background = `linear-gradient(to right, ${legend.colours.join(",")})`;
    box.append(`${number(legend.low)} ${legend.unit}`, bar, `${number(legend.high)} ${legend.unit}`);
  } else if (legend.kind === "wheel") {
    const wheel = make("span", {class: "cups-wheel"});
    wheel.style.background = `radial-gradient(closest-side, #c8c8c8, #c8c8c800), conic-gradient(from 90deg, ${legend.colours.join(",")})`;
    box.append(wheel, `direction; full colour at ${number(legend.high)} ${legend.unit}`);
  } else if (legend.kind === "classes") {
    for (const [name, colour] of legend.entries) {
      const patch = make("span", {class: colour === "transparent" ? "cups-patch cups-void" : "cups-patch"});
      if (colour !== "transparent") patch.style.background = colour;
      const pressed = chosen.includes(colour);
      const entry = make("button", {type: "button", class: "cups-entry", "aria-pressed": pressed}, patch, name);
      entry.title = pressed ? "show all again" : "show nothing else (with Shift: this one, too)";
      entry.setAttribute("aria-label", `Show only ${name} of ${title}`);
      entry.addEventListener("click", (event) => onChoose(colour, event.shiftKey));
      box.append(entry);
    }
  }
  return box;
}

/** The opacity of every layer in stack A and in stack B, the top layer first. */
export class LayerTable {
  constructor(titles, keys, onChange) {
    this.rows = {};
    this.element = make("div", {class: "cups-layers", role: "group", "aria-label": "Layers"});
    this.element.append(
      make("b", {}, ""),
      make("b", {}, "layer"),
      make("b", {title: "opacity in stack A"}, "A"),
      make("b", {class: "cups-b", title: "opacity in stack B"}, "B"),
    );
    for (const [name, title] of Object.entries(titles).toReversed()) {
      const key = keys.indexOf(name) + 1;
      const sliders = {};
      const label = make("button", {type: "button", class: "cups-name", "aria-label": `Show ${title}`}, title);
      label.addEventListener("click", (event) => onChange(event.shiftKey ? "B" : "A", name, null));
      for (const stack of ["A", "B"]) {
        sliders[stack] = range(`Opacity of ${title} in stack ${stack}`, 1, 0.05);
        if (stack === "B") sliders[stack].className = "cups-b";
        sliders[stack].addEventListener("input", () => onChange(stack, name, Number(sliders[stack].value)));
      }
      this.element.append(make("kbd", {}, key ? String(key) : ""), label, sliders.A, sliders.B);
      this.rows[name] = {label, sliders};
    }
  }

  show(opacities, available) {
    for (const [name, {label, sliders}] of Object.entries(this.rows)) {
      const there = available.includes(name);
      label.disabled = !there;
      for (const stack of ["A", "B"]) {
        const value = opacities[stack][name] || 0;
        sliders[stack].disabled = !there;
        if (Number(sliders[stack].value) !== value) sliders[stack].value = value;
        sliders[stack].setAttribute("aria-valuetext", `${Math.round(100 * value)} %`);
      }
      label.classList.toggle("cups-on", there && (opacities.A[name] || 0) > 0);
    }
  }
}

/** Width of a thumbnail with its margin in CSS pixels, as in `frame_view.css`. */
const TILE = 100;

/** Thumbnails of all frames; tiles exist, and pictures are asked for, only where they can be seen. */
export class Strip {
  constructor(count, names, onAsk, onChoose) {
    Object.assign(this, {count, names, onAsk, onChoose, files: new Map(), asked: new Set(), tiles: new Map()});
    this.element = make("div", {class: "cups-strip", role: "group", "aria-label": "Thumbnails of the frames"});
    this.inner = this.element.appendChild(make("div"));
    this.inner.style.width = `${count * TILE}px`;
    this.element.addEventListener("scroll", () => this.update());
    this.current = 0;
  }

  update() {
    const from = Math.max(0, Math.floor(this.element.scrollLeft / TILE) - 1);
    const to = Math.min(this.count, Math.ceil((this.element.scrollLeft + this.element.clientWidth) / TILE) + 1);
    for (const [index, tile] of this.tiles)
      if (index < from || index >= to) {
        tile.remove();
        this.tiles.delete(index);
      }
    for (let index = from; index < to; index++) if (!this.tiles.has(index)) this.tiles.set(index, this.tile(index));
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      const missing = [...this.tiles.keys()].filter((index) => !this.asked.has(index)).toSorted((a, b) => a - b);
      for (const index of missing) this.asked.add(index);
      if (missing.length) this.onAsk(missing);
    }, 250);
  }

  tile(index) {
    const tile = make("button", {
      type: "button",
      tabindex: -1,
      "aria-label": `Frame ${index + 1}: ${this.names[index]}`,
      title: this.names[index],
    });
    tile.style.left = `${index * TILE}px`;
    tile.append(String(index + 1));
    tile.classList.toggle("cups-on", index === this.current);
    tile.addEventListener("click", () => this.onChoose(index));
    this.inner.append(tile);
    if (this.files.has(index)) this.fill(tile, this.files.get(index));
    return tile;
  }

  fill(tile, url) {
    tile.replaceChildren(url ? make("img", {src: url, alt: ""}) : "damaged");
  }

  receive(index, bytes) {
    this.files.set(index, bytes ? URL.createObjectURL(new Blob([bytes], {type: "image/jpeg"})) : null);
    if (this.tiles.has(index)) this.fill(this.tiles.get(index), this.files.get(index));
  }

  choose(index) {
    this.current = index;
    for (const [k, tile] of this.tiles) tile.classList.toggle("cups-on", k === index);
    const left = index * TILE;
    const seen = this.element.scrollLeft;
    const wide = this.element.clientWidth;
    if (left < seen || left + TILE > seen + wide) this.element.scrollLeft = left - wide / 2 + TILE / 2;
    this.update();
  }

  remove() {
    for (const url of this.files.values()) if (url) URL.revokeObjectURL(url);
  }
}
