// The view: what the keys, the pointer and the kernel do.

import {LayerTable, Strip, button, legendElement, make, range} from "./controls.js";
import {Frames} from "./frames.js";
import {listen} from "./hearing.js";
import {Picture} from "./picture.js";
import {outlinePath, pixelText, segmentMask} from "./pixels.js";

const HELP =
  "← → frame · Space play · 1–9 layer (with Shift in stack B) · c compare · + − 0 zoom · f full screen · drag to move · click a segment, or a class in the legend";
const MODES = {one: "one stack", side: "side by side", swipe: "swipe"};
/** Milliseconds without an answer after which the kernel counts as gone. */
const PATIENCE = 8000;
const SILENCE =
  "No answer from the kernel. If it was restarted, run all cells again; if it is busy, wait; if nothing helps, reload the page.";

/** Share of the window's height that the picture takes at most; and in pixels, what stands around it in full screen. */
const TALLEST = 0.6;
const AROUND = 270;

/** Return a line of pixels without those between two others that lie on a straight line with them. */
export const corners = (points) =>
  points.filter(([x, y], k) => {
    if (k === 0 || k === points.length - 1) return true;
    const [[ax, ay], [bx, by]] = [points[k - 1], points[k + 1]];
    return (x - ax) * (by - y) !== (y - ay) * (bx - x) || (x - ax) * (bx - x) < 0 || (y - ay) * (by - y) < 0;
  });

const on = (element, name, act, options) => element.addEventListener(name, act, options);

/** The whole widget: it asks the kernel for frames, and joins picture, controls and texts. */
class View {
  constructor(model, el) {
    this.model = model;
    this.frames = new Frames();
    this.number = 0;
    this.wanted = model.get("frame");
    this.token = Math.random().toString(36).slice(2);
    this.build(el);
    this.listen();
    this.showTexts();
    this.controls();
    this.picture.brush = model.get("brush");
    if (this.count) this.go(this.wanted);
  }

  get count() {
    return this.model.get("names").length;
  }
  get mode() {
    return this.model.get("mode");
  }

  build(el) {
    const m = this.model;
    const titles = m.get("titles");
    this.root = make("div", {
      class: "cups-view",
      tabindex: 0,
      "data-lm-suppress-shortcuts": "true",
      role: "application",
      "aria-label": "Frame view",
    });
    this.back = button("◀", "Previous frame");
    this.play = button("▶", "Play");
    this.next = button("▶|", "Next frame");
    this.slider = range("Frame", Math.max(0, this.count - 1), 1);
    this.place = make("span", {class: "cups-place"});
    this.frameName = make("bdi", {dir: "ltr"});
    this.name = make("output", {class: "cups-frame-name"}, this.place, make("span", {}, this.frameName));
    this.select = make("select", {"aria-label": "Comparison"});
    for (const [value, text] of Object.entries(MODES)) this.select.append(make("option", {value}, text));
    this.reset = button("whole frame", "Show the whole frame");
    this.full = button("", "Full screen");
    this.full.className = "cups-full";
    this.bar = make(
      "div",
      {class: "cups-bar"},
      this.back,
      this.play,
      this.next,
      this.slider,
      this.name,
      this.select,
      this.reset,
      this.full,
    );
    if (m.get("compact")) this.select.remove();
    this.stage = make("div", {class: "cups-stage"});
    this.picture = new Picture(this.stage, Object.keys(titles));
    this.divider = this.stage.appendChild(
      make("div", {
        class: "cups-divider",
        role: "slider",
        tabindex: 0,
        "aria-label": "Swipe bar",
        "aria-valuemin": 0,
        "aria-valuemax": 100,
      }),
    );
    this.message = this.stage.appendChild(make("div", {class: "cups-message", role: "alert"}));
    this.notice = make("div", {class: "cups-notice", role: "status"});
    this.status = this.stage.appendChild(make("div", {class: "cups-status", role: "status"}));
    this.table = new LayerTable(titles, m.get("layer_keys"), (stack, name, value) =>
      this.setOpacity(stack, name, value),
    );
    this.hover = make("div", {class: "cups-hover", "aria-label": "Values of the pixel"});
    this.legends = make("div", {class: "cups-legends", "aria-label": "Legend"});
    this.strip = new Strip(
      this.count,
      m.get("names"),
      (indices) => this.send({kind: "thumbs", indices}),
      (k) => this.go(k),
    );
    this.panel = make("div", {class: "cups-panel", role: "region", "aria-label": "Segment"});
    this.report = make("div", {class: "cups-report", role: "region", "aria-label": "Report"});
    this.help = make("div", {class: "cups-help"}, m.get("help") || HELP);
    const values = [this.hover, this.legends];
    const compact = m.get("compact");
    const side = make("div", {class: "cups-side"}, ...(compact ? [this.table.element, ...values] : [this.panel, this.table.element]));
    const under = compact ? [] : [...values, this.strip.element];
    this.main = make("div", {class: "cups-main"}, make("div", {class: "cups-left"}, this.stage, ...under), side);
    this.root.append(this.bar, this.notice, this.main, this.help, ...(compact ? [] : [this.report]));
    el.append(this.root);
    if (this.count < 2)
      for (const part of [this.back, this.play, this.next, this.slider, this.strip.element])
        part.style.display = "none";
  }

  listen() {
    const m = this.model;
    on(this.back, "click", () => this.step(-1));
    on(this.next, "click", () => this.step(1));
    on(this.play, "click", () => this.togglePlay());
    on(this.reset, "click", () => {
      this.picture.whole();
      this.draw();
    });
    on(this.full, "click", () => this.toggleFull());
    on(document, "fullscreenchange", (this.onFull = () => this.layout()));
    on(this.slider, "input", () => this.go(Number(this.slider.value)));
    on(this.select, "change", () => this.set("mode", this.select.value));
    on(this.root, "keydown", (event) => this.key(event));
    on(this.stage, "wheel", (event) => this.wheel(event), {passive: false});
    on(this.stage, "pointerdown", (event) => this.down(event));
    on(this.stage, "pointermove", (event) => this.move(event));
    on(this.stage, "pointerup", (event) => this.up(event));
    on(this.stage, "pointercancel", () => this.dropStroke());
    on(this.stage, "pointerleave", () => {
      this.hover.textContent = "";
      this.picture.brushAt = null;
      this.draw();
    });
    on(this.divider, "pointerdown", (event) => this.swipeDown(event));
    on(this.divider, "pointermove", (event) => this.swipeMove(event));
    on(this.divider, "pointerup", () => {
      this.swiping = false;
      this.model.save_changes();
    });
    this.observer = new ResizeObserver(() => {
      this.layout();
      this.draw();
      this.strip.update();
      this.join();
    });
    this.observer.observe(this.root);
    this.onMessage = (message, buffers) => this.receive(message, buffers);
    this.handlers = {
      "msg:custom": this.onMessage,
      "change:frame": () => {
        if (m.get("frame") !== this.wanted) this.go(m.get("frame"));
      },
      "change:outlined": () => this.outlineSelected(),
      "change:opacities": () => this.show(),
      "change:mode": () => this.show(),
      "change:swipe": () => this.draw(),
      "change:panel": () => this.showTexts(),
      "change:report": () => this.showTexts(),
      "change:message": () => this.showTexts(),
      "change:notice": () => this.showTexts(),
      "change:marks": () => {
        this.picture.marks = m.get("marks");
        this.draw();
      },
      "change:selected": () => this.outlineSelected(),
      "change:brush": () => this.showBrush(),
      "change:edition": () => {
        this.frames.clear();
        this.go(this.wanted);
      },
      comm_live_update: () => {
        if (m.comm_live === false) this.silent();
      },
    };
    for (const [name, handler] of Object.entries(this.handlers)) m.on(name, handler);
  }

  join() {
    // keys that are pressed on a control beside the view are the view's too
    const lab = this.model.get("lab") && !this.lab ? this.root.closest(`.${this.model.get("lab")}`) : null;
    if (!lab) return;
    this.lab = lab;
    lab.dataset.lmSuppressShortcuts = "true";
    lab.addEventListener("keydown", (event) => this.key(event));
    lab.addEventListener("focusin", (event) => {
      this.focused = event.target;
    });
    this.disabling = new MutationObserver(() => {
      // a control that is disabled hears no keys, but keeps the focus
      if (this.focused?.disabled && [this.focused, document.body].includes(document.activeElement))
        this.root.focus({preventScroll: true});
    });
    this.disabling.observe(lab, {subtree: true, attributeFilter: ["disabled"]});
  }

  remove() {
    for (const [name, handler] of Object.entries(this.handlers)) this.model.off(name, handler);
    this.observer.disconnect();
    document.removeEventListener("fullscreenchange", this.onFull);
    this.disabling?.disconnect();
    clearTimeout(this.timer);
    clearTimeout(this.playTimer);
    this.strip.remove();
  }

  set(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
  }

  send(content) {
    try {
      this.model.send({...content, view: this.token});
    } catch {
      this.silent();
    }
  }

  silent() {
    this.fault = SILENCE;
    this.stop();
    this.showTexts();
  }

  // ---- frames

  go(index) {
    index = Math.max(0, Math.min(this.count - 1, index));
    if (index !== this.wanted) this.picture.strokes = [];
    this.wanted = index;
    if (this.model.get("frame") !== index) this.set("frame", index);
    this.controls();
    this.strip.choose(index);
    const kept = this.frames.get(index);
    this.number += 1;
    this.error = "";
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.silent(), PATIENCE);
    this.status.textContent = kept ? "" : "loading …";
    this.send({kind: "frame", number: this.number, index, kept: Boolean(kept?.content.done)});
    if (kept) this.show();
  }

  step(by) {
    this.go(this.wanted + by);
  }

  receive(message, buffers) {
    if (message.edition !== undefined && message.edition !== this.model.get("edition")) return;
    if (message.kind === "thumb") return this.strip.receive(message.index, buffers[0]);
    if (message.view !== this.token && message.index !== this.wanted) return;
    clearTimeout(this.timer);
    if (this.fault) {
      this.fault = "";
      this.showTexts();
    }
    if (message.kind === "frame") this.frames.receive(message, buffers);
    if (message.index !== this.wanted || (message.view === this.token && message.number < this.number)) return;
    if (message.kind === "error") {
      this.error = message.text;
      this.status.textContent = "";
      this.picture.clear();
      this.shown(message.index, true);
      this.showTexts();
    }
    if (message.kind === "status") this.status.textContent = message.text;
    if (message.kind === "frame") this.showing = this.show();
    if (message.kind === "painted")
      Promise.resolve(this.showing).then(() => {
        this.picture.strokes.shift(); // the label shows it by now, or the line below the buttons says why not
        this.draw();
      });
  }

  async show() {
    const index = this.wanted;
    const entry = this.frames.get(index);
    const turn = (this.turn || 0) + 1;
    this.turn = turn;
    this.controls();
    if (!entry) return;
    const o = this.model.get("opacities");
    const layers = Object.keys(entry.layers);
    await this.frames.decode(
      entry,
      layers.filter((name) => o.A[name] > 0 || (this.mode !== "one" && o.B[name] > 0)),
    );
    if (turn !== this.turn || index !== this.wanted) return;
    if (this.picture.entry !== entry) this.picture.outline = null;
    this.picture.entry = entry;
    this.layout();
    this.draw();
    this.shown(index, entry.content.done);
    this.status.textContent = entry.content.done ? "" : this.status.textContent || "working …";
    this.showTexts();
    await this.frames.inflate(entry);
    if (this.picture.entry !== entry) return;
    if (this.pointer) this.read(this.pointer);
    this.outlineSelected();
  }

  outlineSelected() {
    const entry = this.picture.entry;
    const selected = this.model.get("selected");
    if (!selected || !entry) return;
    const {step, width, height} = entry.content;
    const masks = selected.map(([x, y]) => segmentMask(entry, Math.floor(x / step), Math.floor(y / step)));
    const outlined = this.model.get("outlined");
    if (outlined && entry.arrays.instance) masks.push(entry.arrays.instance.map((n) => (n === outlined ? 1 : 0)));
    this.picture.outline = masks.length ? new Path2D() : null;
    for (const mask of masks) this.picture.outline.addPath(outlinePath(mask, width, height));
    this.draw();
  }

  shown(index, done) {
    this.root.dataset.frame = index;
    this.root.dataset.done = Boolean(done);
    clearTimeout(this.playTimer);
    if (this.playing && done)
      this.playTimer = setTimeout(
        () => (this.wanted + 1 < this.count ? this.step(1) : this.stop()),
        1000 / this.model.get("play_fps"),
      );
  }

  togglePlay() {
    if (this.playing) return this.stop();
    this.playing = true;
    this.play.textContent = "❚❚";
    this.play.setAttribute("aria-label", "Pause");
    this.step(1);
  }

  stop() {
    this.playing = false;
    clearTimeout(this.playTimer);
    this.play.textContent = "▶";
    this.play.setAttribute("aria-label", "Play");
  }

  // ---- layers

  setOpacity(stack, name, value) {
    const all = this.model.get("opacities");
    const chosen = value === null ? {left: 1, [name]: name === "left" ? 1 : 0.75} : {...all[stack], [name]: value};
    this.set("opacities", {...all, [stack]: chosen});
  }

  draw() {
    const {A, B} = this.model.get("opacities");
    const swipe = this.model.get("swipe");
    this.picture.draw({mode: this.mode, stacks: [A, B], swipe});
    this.divider.style.display = this.mode === "swipe" ? "" : "none";
    this.divider.style.left = `${100 * swipe}%`;
    this.divider.setAttribute("aria-valuenow", Math.round(100 * swipe));
  }

  layout() {
    const entry = this.picture.entry;
    const wide = this.stage.clientWidth / (this.mode === "side" ? 2 : 1);
    const share = entry ? entry.content.height / entry.content.width : 0.5;
    const room = this.isFull ? window.innerHeight - AROUND : TALLEST * window.innerHeight;
    const tallest = this.model.get("compact") && !this.isFull ? 460 : Math.max(300, room);
    this.stage.style.height = `${Math.max(160, Math.min(wide * share, tallest))}px`;
    const says = this.isFull ? "Leave full screen" : "Full screen";
    this.full.title = says;
    this.full.setAttribute("aria-label", says);
  }

  controls() {
    const names = this.model.get("names");
    const o = this.model.get("opacities");
    const entry = this.frames.get(this.wanted);
    this.slider.value = this.wanted;
    this.slider.setAttribute("aria-valuetext", names[this.wanted] || "");
    this.place.textContent = this.count ? `${this.wanted + 1} / ${this.count}` : "";
    this.frameName.textContent = names[this.wanted] || "";
    this.name.title = names[this.wanted] || "";
    this.select.value = this.mode;
    this.root.dataset.mode = this.mode;
    this.table.show(o, entry ? Object.keys(entry.layers) : []);
    if (!entry) return;
    const titles = this.model.get("titles");
    const second = this.mode === "one" ? {} : o.B;
    const seen = Object.keys(titles).filter(
      (name) =>
        (o.A[name] > 0 || second[name] > 0) && (entry.content.legends[name] || {kind: "image"}).kind !== "image",
    );
    const chosen = this.picture.chosen;
    const legend = (name) =>
      legendElement(titles[name], entry.content.legends[name], chosen[name], (colour, add) =>
        this.isolate(name, colour, add),
      );
    const focus = this.legends.contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
    this.legends.replaceChildren(...seen.map(legend));
    if (focus) [...this.legends.querySelectorAll("button")].find((b) => b.getAttribute("aria-label") === focus)?.focus();
  }

  /** Leave only a class of a layer, by its colour; all of them again if it was the only one. */
  isolate(name, colour, add) {
    const before = this.picture.chosen[name] || [];
    const others = add ? before.filter((c) => c !== colour) : [];
    this.picture.chosen[name] = before.includes(colour) ? others : [...others, colour];
    this.controls();
    this.draw();
  }

  get isFull() {
    return document.fullscreenElement === this.root;
  }

  toggleFull() {
    if (this.isFull) document.exitFullscreen();
    else this.root.requestFullscreen();
  }

  showTexts() {
    this.notice.textContent = this.model.get("notice");
    const text = this.fault || this.error || this.model.get("message");
    this.message.textContent = text;
    this.message.style.display = text ? "" : "none";
    const rows = this.model
      .get("panel")
      .map(([name, value]) => make("tr", {}, make("th", {scope: "row"}, name), make("td", {}, value)));
    this.panel.replaceChildren(
      make("b", {}, "Segment"),
      rows.length ? make("table", {}, ...rows) : make("p", {}, "Click one to see what is known of it."),
    );
    this.panel.classList.toggle("cups-empty", !rows.length);
    this.report.innerHTML = this.model.get("report");
  }

  // ---- pointer and keys

  at(event) {
    const box = this.stage.getBoundingClientRect();
    return {x: event.clientX - box.left, y: event.clientY - box.top};
  }

  down(event) {
    if (event.target === this.divider) return;
    this.root.focus({preventScroll: true});
    const p = this.at(event);
    this.stage.setPointerCapture(event.pointerId);
    const held = event.shiftKey || event.altKey || event.ctrlKey || event.metaKey || event.button;
    if (this.model.get("brush") && this.picture.entry && !held) this.beginStroke(p);
    else this.press = {...p, startX: p.x, startY: p.y};
  }

  beginStroke(p) {
    this.stroke = {...this.model.get("brush"), points: [this.picture.fullPixel(this.mode, p.x, p.y)], index: this.wanted};
    this.picture.strokes.push(this.stroke);
    this.draw();
  }

  extendStroke(p, last = false) {
    const {points, radius} = this.stroke;
    const [x, y] = this.picture.fullPixel(this.mode, p.x, p.y);
    const way = Math.hypot(x - points.at(-1)[0], y - points.at(-1)[1]);
    if (way >= (last ? 1 : Math.max(1, radius / 4))) points.push([x, y]);
  }

  endStroke(p) {
    this.extendStroke(p, true);
    this.send({kind: "stroke", index: this.stroke.index, points: corners(this.stroke.points)});
    this.stroke = null;
  }

  dropStroke() {
    if (this.stroke) this.picture.strokes.pop();
    this.stroke = this.press = null;
    this.draw();
  }

  showBrush() {
    this.picture.brush = this.model.get("brush");
    if (!this.picture.brush) this.dropStroke();
    this.draw();
  }

  move(event) {
    const p = this.at(event);
    this.pointer = p;
    if (this.press) {
      this.picture.pan(this.mode, p.x - this.press.x, p.y - this.press.y);
      Object.assign(this.press, p);
      this.draw();
    }
    if (this.stroke) this.extendStroke(p);
    if (this.picture.brush && this.picture.entry) {
      this.picture.brushAt = this.picture.fullPixel(this.mode, p.x, p.y);
      this.draw();
    }
    this.read(p);
  }

  read(p) {
    const pixel = this.picture.pixel(this.mode, p.x, p.y);
    this.hover.textContent = pixel ? pixelText(this.picture.entry, pixel.x, pixel.y) : "";
  }

  up(event) {
    const p = this.at(event);
    const press = this.press;
    this.press = null;
    if (this.stroke) return this.endStroke(p);
    if (!press || Math.hypot(p.x - press.startX, p.y - press.startY) > 4) return;
    const pixel = this.picture.pixel(this.mode, p.x, p.y);
    const entry = this.picture.entry;
    if (!pixel) return;
    const {step, width, height} = entry.content;
    if (!this.model.get("selected"))
      this.picture.outline = outlinePath(segmentMask(entry, pixel.x, pixel.y), width, height);
    this.draw();
    this.send({kind: "select", index: this.wanted, x: pixel.x * step, y: pixel.y * step, add: event.shiftKey});
  }

  wheel(event) {
    if (!(event.ctrlKey || event.metaKey || this.root.contains(document.activeElement))) return;
    event.preventDefault();
    const p = this.at(event);
    this.picture.zoomBy(this.mode, Math.exp(-event.deltaY / 400), p.x, p.y);
    this.draw();
  }

  swipeDown(event) {
    this.swiping = true;
    this.divider.setPointerCapture(event.pointerId);
    event.stopPropagation();
    this.divider.focus();
  }

  swipeMove(event) {
    if (!this.swiping) return;
    event.stopPropagation();
    this.setSwipe(this.at(event).x / this.stage.clientWidth);
  }

  setSwipe(value) {
    this.model.set("swipe", Math.max(0, Math.min(1, value)));
    this.draw();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const digit = /^(Digit|Numpad)([1-9])$/.exec(event.code);
    const own = event.target.matches("input, select");
    const centre = [this.stage.clientWidth / 2, this.stage.clientHeight / 2];
    const acts = {
      ArrowLeft: () => this.step(event.shiftKey ? -10 : -1),
      ArrowRight: () => this.step(event.shiftKey ? 10 : 1),
      " ": () => this.togglePlay(),
      f: () => this.toggleFull(),
      c: () => this.set("mode", {one: "side", side: "swipe", swipe: "one"}[this.mode]),
      "+": () => {
        this.picture.zoomBy(this.mode, 1.5, ...centre);
        this.draw();
      },
      "-": () => {
        this.picture.zoomBy(this.mode, 1 / 1.5, ...centre);
        this.draw();
      },
      0: () => {
        this.picture.whole();
        this.draw();
      },
    };
    if (event.target === this.divider && event.key.startsWith("Arrow")) {
      this.setSwipe(this.model.get("swipe") + (event.key === "ArrowRight" || event.key === "ArrowUp" ? 0.02 : -0.02));
      this.model.save_changes();
    } else if (digit) {
      const name = this.model.get("layer_keys")[Number(digit[2]) - 1];
      if (name) this.setOpacity(event.shiftKey ? "B" : "A", name, null);
    } else if (acts[event.key] && !own && !(event.key === " " && event.target.matches("button"))) {
      if (this.playing && event.key.startsWith("Arrow")) this.stop();
      acts[event.key]();
    } else if (this.model.get("sent_keys").includes(event.key) && !own) {
      this.send({kind: "key", index: this.wanted, key: event.key});
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

export default {
  initialize: listen,
  render({model, el}) {
    const view = new View(model, el);
    return () => view.remove();
  },
};
