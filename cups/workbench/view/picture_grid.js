// Pictures in a grid, each a button with a caption: a click chooses one, a double click opens it.

import {listen} from "./hearing.js";

const make = (tag, name, text = "") => {
  const element = document.createElement(tag);
  element.className = name;
  element.textContent = text;
  return element;
};

/** The grid: it shows what the kernel sends, and tells it which picture is chosen. */
class Grid {
  constructor(model, el) {
    this.model = model;
    this.urls = [];
    this.root = make("div", "cups-grid");
    this.root.dataset.lmSuppressShortcuts = "true";
    this.root.addEventListener("keydown", (event) => this.key(event));
    el.append(this.root);
    this.later = () => {
      // several traits change at once: they are shown once
      this.waiting ??= requestAnimationFrame(() => {
        this.waiting = null;
        this.show();
      });
    };
    this.choose = () => this.mark();
    for (const name of ["files", "captions", "columns"]) model.on(`change:${name}`, this.later);
    model.on("change:chosen", this.choose);
    this.show();
  }

  remove() {
    for (const name of ["files", "captions", "columns"]) this.model.off(`change:${name}`, this.later);
    this.model.off("change:chosen", this.choose);
    this.forget();
  }

  forget() {
    for (const url of this.urls) URL.revokeObjectURL(url);
    this.urls = [];
  }

  show() {
    const files = this.model.get("files");
    const captions = this.model.get("captions");
    if (files.length !== captions.length) return; // the other half is on its way
    this.forget();
    this.root.style.setProperty("--columns", this.model.get("columns"));
    this.root.style.setProperty("--tallest", this.model.get("tallest"));
    const cells = captions.map((caption, place) => {
      const cell = make("button", "cups-grid-cell");
      const picture = document.createElement("img");
      const url = URL.createObjectURL(new Blob([files[place]]));
      this.urls.push(url);
      picture.src = url;
      picture.alt = "";
      cell.title = caption;
      cell.append(picture, make("span", "cups-grid-caption", caption));
      cell.addEventListener("click", () => this.set(place));
      cell.addEventListener("dblclick", () => this.model.send({kind: "open", place}));
      return cell;
    });
    this.root.replaceChildren(...cells);
    this.mark();
  }

  set(place) {
    this.model.set("chosen", place);
    this.model.save_changes();
    this.mark();
  }

  mark() {
    const chosen = this.model.get("chosen");
    for (const [place, cell] of [...this.root.children].entries()) cell.ariaPressed = String(place === chosen);
  }

  key(event) {
    const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.model.get("columns"), ArrowDown: this.model.get("columns")};
    const place = [...this.root.children].indexOf(document.activeElement) + (step[event.key] || 0);
    if (!step[event.key] || !this.root.children[place]) return;
    event.preventDefault();
    event.stopPropagation();
    this.root.children[place].focus();
    this.set(place);
  }
}

export default {
  initialize: listen,
  render({model, el}) {
    const grid = new Grid(model, el);
    return () => grid.remove();
  },
};
