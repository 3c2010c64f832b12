// Figures take the colours of the page, also when light and dark are switched.
function recolour() {
  const colour = getComputedStyle(document.body).color;
  document.querySelectorAll(".js-plotly-plot").forEach((figure) => {
    const changes = { "font.color": colour };
    if (figure.layout.scene) {
      for (const axis of ["xaxis", "yaxis", "zaxis"]) changes[`scene.${axis}.color`] = colour;
    }
    Plotly.relayout(figure, changes);
  });
}
window.addEventListener("load", () => {
  recolour();
  new MutationObserver(recolour).observe(document.documentElement, { attributeFilter: ["data-theme"] });
});
