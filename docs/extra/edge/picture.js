// Pictures: decoded as lowres_vision.data.decode_image does, and drawn.

import { Problem } from "./problem.js";

const LARGEST_SIDE = 4096; // of export_onnx

/**
 * Decode a file: EXIF orientation is applied, a colour profile is not, transparency is on white.
 *
 * @returns {Promise<ImageBitmap>}
 */
export async function decode(blob, name) {
  try {
    return await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch {
    const what = blob.size === 0 ? "empty" : "no picture that this browser can read";
    throw new Problem(`“${name}” is ${what}. Choose a PNG, JPEG or WebP file.`);
  }
}

/**
 * Draw a bitmap at its own size, at `size` [height, width], or within the largest side.
 *
 * @returns {{pixels: ImageData, note: string}} what was drawn, and what the browser did to it
 */
export function draw(canvas, bitmap, size) {
  const shrink = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const [height, width] = size
    ?? [bitmap.height, bitmap.width].map((side) => Math.max(1, Math.round(side * shrink)));
  const context = start(canvas, width, height);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  let note = `${bitmap.width} x ${bitmap.height} pixels`;
  if (width !== bitmap.width || height !== bitmap.height) {
    note += `, resized by the browser to ${width} x ${height}`;
    note += size ? ", the only size this model takes" : "";
  }
  return { pixels: context.getImageData(0, 0, width, height), note };
}

/** Put pixels onto a canvas of their size. */
export function put(canvas, pixels) {
  start(canvas, pixels.width, pixels.height).putImageData(pixels, 0, 0);
}

function start(canvas, width, height) {
  canvas.width = width;
  canvas.height = height;
  canvas.classList.toggle("small", Math.max(width, height) <= 256);
  return canvas.getContext("2d", { willReadFrequently: true });
}
