// What is known of a pixel, and the segment around it.

/** The class of a pixel without one, as in `cups.core.records`. */
const VOID = 255;

const named = (k, names) => (k === VOID ? "void" : (names[k] ?? `class ${k}`));

/** Return the values of all maps at pixel (x, y) in a line. */
export function pixelText(entry, x, y) {
  const {width, height, step, classes, truth_classes} = entry.content;
  const a = entry.arrays;
  const i = y * width + x;
  const n = width * height;
  const text = [`x ${x * step}, y ${y * step}`];
  if (a.semantic) text.push(named(a.semantic[i], classes));
  if (a.instance) text.push(a.instance[i] ? `object ${a.instance[i]}` : "no object");
  if (a.depth_cm) text.push(a.depth_cm[i] ? `depth ${(a.depth_cm[i] / 100).toFixed(1)} m` : "depth unknown");
  if (a.flow_16) text.push(`flow (${(a.flow_16[i] / 16).toFixed(1)}, ${(a.flow_16[n + i] / 16).toFixed(1)}) px`);
  if (a.top_classes) {
    const count = a.top_classes.length / n;
    const scores = [];
    for (let k = 0; k < count; k++)
      scores.push(`${named(a.top_classes[k * n + i], classes)} ${(a.top_probabilities[k * n + i] / 255).toFixed(2)}`);
    text.push(`scores ${scores.join(", ")}`);
  }
  for (const [name, title] of [
    ["network", "network"],
    ["self_trained", "self-trained"],
  ])
    if (a[`${name}_semantic`]) text.push(`${title} ${named(a[`${name}_semantic`][i], entry.content[`${name}_classes`])}`);
  if (a.truth_semantic)
    text.push(
      `truth ${named(a.truth_semantic[i], truth_classes)}${a.truth_instance[i] ? ` ${a.truth_instance[i]}` : ""}`,
    );
  return text.join(" · ");
}

/** Return the mask of the object at pixel (x, y), or of the connected part of its class there. */
export function segmentMask(entry, x, y) {
  const {width, height} = entry.content;
  const {instance, semantic} = entry.arrays;
  const start = y * width + x;
  const mask = new Uint8Array(width * height);
  if (!instance && !semantic) return mask;
  if (instance?.[start]) return mask.map((_, i) => (instance[i] === instance[start] ? 1 : 0));
  const same = (i) => !instance?.[i] && (!semantic || semantic[i] === semantic[start]);
  const queue = [start];
  mask[start] = 1;
  while (queue.length) {
    const i = queue.pop();
    const cx = i % width;
    const cy = (i - cx) / width;
    for (let dy = -1; dy <= 1; dy++)
      for (let dx = -1; dx <= 1; dx++) {
        const px = cx + dx;
        const py = cy + dy;
        const j = py * width + px;
        if (px >= 0 && py >= 0 && px < width && py < height && !mask[j] && same(j)) {
          mask[j] = 1;
          queue.push(j);
        }
      }
  }
  return mask;
}

/** Return the edges between the pixels of a mask and those outside, as a path in pixels. */
export function outlinePath(mask, width, height) {
  const path = new Path2D();
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      if (!mask[y * width + x]) continue;
      const open = (px, py) => px < 0 || py < 0 || px >= width || py >= height || !mask[py * width + px];
      if (open(x - 1, y)) {
        path.moveTo(x, y);
        path.lineTo(x, y + 1);
      }
      if (open(x + 1, y)) {
        path.moveTo(x + 1, y);
        path.lineTo(x + 1, y + 1);
      }
      if (open(x, y - 1)) {
        path.moveTo(x, y);
        path.lineTo(x + 1, y);
      }
      if (open(x, y + 1)) {
        path.moveTo(x, y + 1);
        path.lineTo(x + 1, y + 1);
      }
    }
  return path;
}
