// One bar a track over the frames of a clip: a click goes to a frame and selects the track there.

import {listen} from "./hearing.js";

const make = (tag, name, text = "") => {
  const element = document.createElement(tag);
  element.className = name;
  element.textContent = text;
  return element;
};

/** Frames between two marks of the ruler, so that their numbers have room; and that room in CSS pixels. */
const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000];
const ROOM = 44;

/** What the bar of a track looks like, and how that is called. */
const STATES = {moving: "moves", standing: "stands", carried: "carried on unseen"};

/** Bars, ruler and cursor. */
class Bars {
  constructor(model, el) {
    this.model = model;
    this.root = make("div", "cups-bars");
    this.root.dataset.lmSuppressShortcuts = "true";
    this.root.setAttribute("aria-label", "Tracks");
    this.inner = this.root.appendChild(make("div", "cups-bars-inner"));
    this.ruler = make("div", "cups-bars-ruler");
    this.lane = make("div", "cups-bars-lane");
    this.ruler.append(make("span", "cups-bars-label"), this.lane);
    this.rows = make("div", "cups-bars-rows");
    this.over = make("div", "cups-bars-over");
    this.cursor = this.over.appendChild(make("div", "cups-bars-cursor"));
    this.inner.append(this.ruler, this.rows, this.over);
    this.legend = make("div", "cups-bars-legend");
    el.append(this.root, this.legend);
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.root.addEventListener("pointerdown", (event) => this.down(event));
    this.root.addEventListener("pointermove", (event) => this.drag(event));
    for (const name of ["pointerup", "pointercancel"]) this.root.addEventListener(name, () => (this.dragging = null));
    this.sizes = new ResizeObserver(() => this.marks());
    this.sizes.observe(this.root);
    this.handlers = {
      "change:rows": () => this.later(),
      "change:count": () => this.later(),
      "change:frame": () => this.move(),
      "change:selected": () => this.mark(true),
    };
    for (const [name, handler] of Object.entries(this.handlers)) model.on(name, handler);
    this.show();
  }

  remove() {
    for (const [name, handler] of Object.entries(this.handlers)) this.model.off(name, handler);
    this.sizes.disconnect();
  }

  get count() {
    return Math.max(1, this.model.get("count"));
  }

  later() {
    // several traits change at once: they are shown once
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.show();
    });
  }

  show() {
    this.inner.style.setProperty("--count", this.count);
    this.rows.replaceChildren(...this.model.get("rows").map((row) => this.row(row)));
    const found = new Set(this.model.get("rows").flatMap((row) => row.runs.map(([, , state]) => state)));
    const entries = Object.entries(STATES).filter(([state]) => found.has(state));
    this.legend.replaceChildren(
      ...entries.map(([state, text]) => this.entry(`cups-bars-run cups-bars-${state}`, text)),
      this.entry("cups-bars-run cups-bars-hidden", "hidden: no bar"),
      this.entry("cups-bars-doubt", "identity may change"),
    );
    this.marks();
    this.mark(false);
    this.move();
  }

  entry(name, text) {
    const entry = make("span", "cups-bars-entry");
    entry.append(make("span", name), text);
    return entry;
  }

  row(row) {
    const element = make("div", "cups-bars-row");
    element.dataset.track = row.track;
    element.style.setProperty("--colour", row.colour);
    const label = make("button", "cups-bars-label");
    label.type = "button";
    label.title = row.name;
    label.append(make("span", "cups-bars-patch"), make("span", "cups-bars-name", row.name));
    const lane = make("div", "cups-bars-lane");
    for (const [first, last, state] of row.runs) {
      const run = make("div", `cups-bars-run cups-bars-${state}`);
      run.style.left = `${(100 * first) / this.count}%`;
      run.style.width = `${(100 * (last - first + 1)) / this.count}%`;
      const when = first === last ? `frame ${first + 1}` : `frames ${first + 1} to ${last + 1}`;
      run.title = `${row.name}: ${STATES[state] || state}, ${when}`;
      lane.append(run);
    }
    for (const frame of row.doubts) {
      const doubt = make("div", "cups-bars-doubt");
      doubt.style.left = `${(100 * frame) / this.count}%`;
      doubt.title = `${row.name}: its identity may change at frame ${frame + 1}`;
      lane.append(doubt);
    }
    element.append(label, lane);
    return element;
  }

  /** Number the frames on the ruler, as many as there is room for. */
  marks() {
    const wide = this.lane.clientWidth / this.count;
    const step = STEPS.find((frames) => frames * wide >= ROOM) || STEPS.at(-1);
    if (!wide || (step === this.step && this.count === this.marked)) return;
    this.step = step;
    this.marked = this.count;
    const numbers = [1];
    for (let number = step; number <= this.count; number += step) if (number > 1) numbers.push(number);
    this.lane.replaceChildren(
      ...numbers.map((number) => {
        const mark = make("span", "cups-bars-mark", String(number));
        mark.style.left = `${(100 * (number - 0.5)) / this.count}%`;
        return mark;
      }),
    );
  }

  move() {
    const frame = this.model.get("frame");
    this.over.dataset.frame = frame;
    this.cursor.style.left = `${(100 * frame) / this.count}%`;
    this.cursor.style.width = `${100 / this.count}%`;
    const from = this.cursor.offsetLeft;
    const seen = this.root.scrollLeft;
    const wide = this.root.clientWidth - this.over.offsetLeft;
    if (from < seen || from + this.cursor.offsetWidth > seen + wide) this.root.scrollLeft = from - wide / 2;
  }

  mark(bringIntoView) {
    const selected = this.model.get("selected");
    for (const row of this.rows.children) {
      const isSelected = Number(row.dataset.track) === selected;
      row.classList.toggle("cups-on", isSelected);
      row.firstChild.ariaPressed = String(isSelected);
      if (!isSelected || !bringIntoView) continue;
      const top = row.offsetTop - this.ruler.offsetHeight; // the notebook itself must not scroll
      const bottom = row.offsetTop + row.offsetHeight;
      if (top < this.root.scrollTop) this.root.scrollTop = top;
      else if (bottom > this.root.scrollTop + this.root.clientHeight)
        this.root.scrollTop = bottom - this.root.clientHeight;
    }
  }

  set(values) {
    for (const [name, value] of Object.entries(values)) this.model.set(name, value);
    this.model.save_changes();
  }

  at(event) {
    const box = this.lane.getBoundingClientRect();
    const frame = Math.floor(((event.clientX - box.left) / box.width) * this.count);
    return Math.max(0, Math.min(this.count - 1, frame));
  }

  down(event) {
    if (event.button !== 0) return;
    const row = event.target.closest(".cups-bars-row");
    const isLane = event.target.closest(".cups-bars-lane");
    if (row) this.set({selected: Number(row.dataset.track), ...(isLane ? {frame: this.at(event)} : {})});
    else if (isLane) {
      this.dragging = event.pointerId;
      this.root.setPointerCapture(event.pointerId);
      this.set({frame: this.at(event)});
    }
  }

  drag(event) {
    const frame = this.at(event);
    if (this.dragging === event.pointerId && frame !== this.model.get("frame")) this.set({frame});
  }

  key(event) {
    const by = {ArrowUp: -1, ArrowDown: 1}[event.key];
    const label = event.target.closest("button.cups-bars-label");
    if (event.key === "Enter" && label) this.set({selected: Number(label.parentElement.dataset.track)});
    else if (by) {
      const tracks = this.model.get("rows").map((row) => row.track);
      const place = Math.max(0, Math.min(tracks.length - 1, tracks.indexOf(this.model.get("selected")) + by));
      if (tracks.length) this.set({selected: tracks[place]});
      this.rows.children[place]?.firstChild.focus({preventScroll: true});
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

export default {
  initialize: listen,
  render({model, el}) {
    const bars = new Bars(model, el);
    return () => bars.remove();
  },
};
