// A plot of plotly, drawn when it has its data. The five megabytes of plotly are read once for all plots of a page.

import {heard} from "./hearing.js";

/** Return plotly's own widget, of a version and from its source. */
async function plotlyWidget(version, source) {
  globalThis.cupsPlotly ??= {};
  const address = URL.createObjectURL(new Blob([source], {type: "text/javascript"}));
  globalThis.cupsPlotly[version] ??= import(address);
  try {
    const plotly = await globalThis.cupsPlotly[version];
    return plotly.default();
  } finally {
    URL.revokeObjectURL(address);
  }
}

/** Return a promise, kept when the page has shown what else is new: a cloud of points takes a second to draw. */
const nextPicture = () => new Promise((shown) => requestAnimationFrame(() => setTimeout(shown)));

export default () => {
  let plot, state;
  return {
    async initialize(parts) {
      plot = await plotlyWidget(parts.model.get("plotly_version"), parts.model.get("plotly_source"));
      state = heard(parts.model);
      plot.initialize(parts);
    },
    async render(parts) {
      parts.el.classList.add("cups-plot");
      await state;
      await nextPicture();
      return plot.render(parts);
    },
  };
};
