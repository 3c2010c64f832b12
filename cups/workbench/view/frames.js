// Frames as the kernel sends them: files of the layers, compressed maps of numbers, titles and legends.

/** Frames the browser keeps, as files; and those of them it keeps decoded, each layer 4 bytes a pixel. */
const KEPT_FRAMES = 12;
const KEPT_BITMAPS = 3;
const ARRAYS = {uint8: Uint8Array, uint16: Uint16Array, int16: Int16Array};

/** The frames that the browser keeps, the one used last at the end. */
export class Frames {
  constructor() {
    this.entries = new Map();
  }

  get(index) {
    const entry = this.entries.get(index);
    if (entry) {
      this.entries.delete(index);
      this.entries.set(index, entry);
    }
    return entry;
  }

  clear() {
    this.entries.clear();
  }

  /** Take in a part of a frame; null if it belongs to one that is no longer kept. */
  receive(message, buffers) {
    const entry = message.first ? {layers: {}, packed: {}, arrays: {}, bitmaps: {}} : this.get(message.index);
    if (!entry) return null;
    message.parts.forEach((part, k) => {
      const bytes = buffers[k];
      if (part.dtype) {
        entry.packed[part.name] = {...part, bytes};
        delete entry.arrays[part.name];
      } else {
        entry.layers[part.name] = new Blob([bytes], {type: part.type});
        delete entry.bitmaps[part.name];
      }
    });
    const content = {...message};
    delete content.parts;
    entry.content = {...entry.content, ...content, legends: {...entry.content?.legends, ...message.legends}};
    this.entries.delete(message.index);
    this.entries.set(message.index, entry);
    const indices = [...this.entries.keys()];
    for (const old of indices.slice(0, -KEPT_FRAMES)) this.entries.delete(old);
    for (const old of indices.slice(0, -KEPT_BITMAPS)) if (this.entries.has(old)) Object.assign(this.entries.get(old), {bitmaps: {}, isolated: {}});
    return entry;
  }

  /** Decode layers to bitmaps, which the canvas can draw. */
  async decode(entry, names) {
    await Promise.all(
      names.map(async (name) => {
        const blob = entry.layers[name];
        if (blob && !entry.bitmaps[name]) entry.bitmaps[name] = await createImageBitmap(blob);
      }),
    );
  }

  /** Decompress the maps of numbers. */
  async inflate(entry) {
    await Promise.all(
      Object.values(entry.packed).map(async (part) => {
        if (entry.arrays[part.name]) return;
        const stream = new Blob([part.bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
        const data = await new Response(stream).arrayBuffer();
        if (entry.packed[part.name] === part) entry.arrays[part.name] = new ARRAYS[part.dtype](data);
      }),
    );
  }
}
