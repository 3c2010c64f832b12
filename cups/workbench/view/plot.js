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
      return plot.render(parts);
    },
  };
};
