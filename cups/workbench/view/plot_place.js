// Plots fill the width of their place: they are drawn before it has one, and hear only of a resized window.

const AGAIN_MS = 300; // a plot hears of the window only some time after it is drawn
const MOST_TIMES = 20; // a plot that does not size itself never takes another width

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
    if (this.later) return;
    const narrow = [...(this.el.parentElement?.querySelectorAll(".js-plotly-plot") || [])].filter((plot) => {
      const width = plot.clientWidth;
      const picture = plot.querySelector(".main-svg");
      if (!width || !picture || Math.abs(picture.getBoundingClientRect().width - width) <= 1) return false;
      const before = this.told.get(plot);
      const times = before?.width === width ? before.times + 1 : 1;
      this.told.set(plot, {width, times});
      return times <= MOST_TIMES;
    });
    if (!narrow.length) return;
    // the width that was drawn while there was none has become the plot's own, if its layout was set since
    for (const plot of narrow) if (plot.layout?.autosize) delete plot.layout.width;
    window.dispatchEvent(new Event("resize"));
    this.later = setTimeout(() => {
      this.later = 0;
      this.fit();
    }, AGAIN_MS);
  }

  remove() {
    clearTimeout(this.later);
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
