// Weights of what a search finds, for Sphinx: what is written for users comes before chapters and the reference.
const GUIDES = /^(index|gallery|compare|explore|(guide|data_cards)\/)/;
const REFERENCE = /^reference\//;
const asked = new URLSearchParams(window.location.search).get("q")?.trim().toLowerCase() || "?";
var Scorer = {
  score: ([page, title, , , score]) =>
    score +
    (GUIDES.test(page) ? 15 : 0) +
    (GUIDES.test(page) && title.toLowerCase().includes(asked) ? 15 : 0) -
    (REFERENCE.test(page) ? 5 : 0),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: {0: 15, 1: 5, 2: -5},
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
