// A picture that says which of its pixels was clicked.

import {listen} from "./hearing.js";

export default {
  initialize: listen,
  render({model, el}) {
    const picture = document.createElement("img");
    picture.className = "cups-click-picture";
    const show = () => {
      URL.revokeObjectURL(picture.src);
      picture.src = URL.createObjectURL(new Blob([model.get("value")], {type: "image/png"}));
      picture.alt = model.get("about");
      picture.title = model.get("about");
    };
    const click = (event) => {
      const box = picture.getBoundingClientRect();
      const x = Math.floor(((event.clientX - box.left) / box.width) * picture.naturalWidth);
      const y = Math.floor(((event.clientY - box.top) / box.height) * picture.naturalHeight);
      model.send({x, y});
    };
    picture.addEventListener("click", click);
    model.on("change:value", show);
    model.on("change:about", show);
    show();
    el.append(picture);
    return () => {
      URL.revokeObjectURL(picture.src);
      model.off("change:value", show);
      model.off("change:about", show);
    };
  },
};
