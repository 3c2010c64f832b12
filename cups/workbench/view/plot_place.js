// Plots fill the width of their place: they are drawn before it has one, and hear only of a resized window.

/** Tell the plots beside an element to take a new width when their place has one. */
class Place {
  constructor(el) {
    this.el = el;
    this.told = new WeakMap();
    el.className += " cups-plot-place";
    this.sizes = new ResizeObserver(() => this.fit());
    this.sizes.observe(el);
    this.drawn = new MutationObserver(() => this.fit());
    requestAnimationFrame(() => {
      if (el.parentElement) this.drawn.observe(el.parentElement, {childList: true, subtree: true});
      this.fit();
    });
  }

  fit() {
    const narrow = [...(this.el.parentElement?.querySelectorAll(".js-plotly-plot") || [])].filter((plot) => {
      const width = plot.clientWidth;
      // each width is told once: a plot that has one of its own would never take another
      const picture = plot.querySelector(".main-svg");
      if (!width || !picture || this.told.get(plot) === width) return false;
      this.told.set(plot, width);
      return Math.abs(picture.getBoundingClientRect().width - width) > 1;
    });
    if (narrow.length) window.dispatchEvent(new Event("resize"));
  }

  remove() {
    this.sizes.disconnect();
    this.drawn.disconnect();
  }
}

export default {
  render({el}) {
    const place = new Place(el);
    return () => place.remove();
  },
};
