// anywidget gives up on a widget that takes over two seconds to load, in a slow or busy browser: the widget is drawn, but
// never hears of the kernel again. Plots stay empty then, and controls have no effect, without a word.

const HANDLE = "_handle_comm_msg"; // the method of a widget's model that takes a message of the kernel
const NOTHING = {content: {data: {method: "nothing"}}};

/** Return a promise, kept when a widget hears the kernel: one that anywidget gave up on listens itself, and asks for its state. */
export async function heard(model) {
  const whole = model.set({}); // `model` is a part of it
  if (!whole?.comm) return;
  try {
    await whole[HANDLE](NOTHING);
  } catch {
    const handle = Object.getPrototypeOf(Object.getPrototypeOf(whole))[HANDLE]; // that of all widgets
    await new Promise((answered) => {
      whole.comm.on_msg(async (message) => {
        await handle.call(whole, message);
        if ("_esm" in (message.content.data.state ?? {})) answered(); // all of it, not a change
      });
      whole.comm.send({method: "request_state"}, whole.callbacks());
    });
  }
}

/** Let a widget hear the kernel: what anywidget is to call first. */
export function listen({model}) {
  heard(model);
}
