// ONNX Runtime and ONNX files: fetched, checked, run.

import { Problem } from "./problem.js";

// Each place is tried in turn, the folder beside this page first. The digests are those of the npm
// package's files, so neither place can serve others; a new version needs new ones.
const PLACES = ["ort/", "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/"];
const CODE = ["ort.wasm.bundle.min.mjs", "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG"];
const WASM = ["ort-wasm-simd-threaded.wasm", "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM"];

let runtime; // a promise of ONNX Runtime; a failed one is forgotten, so that it can be tried again

function startRuntime() {
  runtime ??= fetchRuntime().catch((error) => {
    runtime = undefined;
    throw error;
  });
  return runtime;
}

async function fetchRuntime() {
  for (const place of PLACES) {
    const files = await Promise.all(
      [CODE, WASM].map(([name, integrity]) => fetchFile(place + name, integrity)),
    ).catch(() => null);
    if (files) return await begin(...files);
  }
  throw new Problem(
    "ONNX Runtime could not be fetched: its folder “ort” is not beside this page, and " +
      `${new URL(PLACES[1]).host} does not answer or serves another version. ` +
      "Connect to the network and choose the picture again, or put the folder there.",
  );
}

async function fetchFile(address, integrity) {
  const response = await fetch(address, integrity ? { integrity } : {});
  if (!response.ok) throw new Error(`HTTP status ${response.status}`);
  return response.arrayBuffer();
}

async function begin(code, wasm) {
  const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  try {
    const ort = await import(address);
    ort.env.wasm.wasmBinary = wasm;
    ort.env.wasm.numThreads = 1; // more need headers that plain file hosts do not send
    ort.env.logLevel = "error";
    return ort;
  } catch (error) {
    throw new Problem(`ONNX Runtime does not start in this browser (${error.message}). Use a newer one.`);
  } finally {
    URL.revokeObjectURL(address);
  }
}

/** Fetch the model that lies beside this page. */
export async function fetchModel(name) {
  try {
    return await fetchFile(name);
  } catch (error) {
    throw new Problem(
      `The model ${name} could not be fetched (${error.message}). ` +
        "Put it beside this page, or open one of your own below.",
    );
  }
}

/** A model that is ready to run, made by `Model.open`. */
export class Model {
  /**
   * @param {string} file name to call it by
   * @param {ArrayBuffer} content an ONNX file with one input, images (B, 3, H, W)
   * @param {string[] | null} names class names; null takes those in the file's metadata
   */
  static async open(file, content, names) {
    const ort = await startRuntime();
    const bytes = new Uint8Array(content);
    let session;
    try {
      session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    } catch (error) {
      throw new Problem(
        `“${file}” is no model that ONNX Runtime can run (${firstLine(error)}). ` +
          "Open an .onnx file, such as export_onnx writes.",
      );
    }
    return new Model(file, ort, session, names ?? classesIn(bytes));
  }

  constructor(file, ort, session, names) {
    const [input] = session.inputMetadata;
    const [output] = session.outputMetadata;
    const [, channels, height, width] = input.shape ?? [];
    if (session.inputNames.length !== 1 || input.shape?.length !== 4 || channels !== 3
        || !["uint8", "float32"].includes(input.type)
        || output.shape?.length !== 2 || output.type !== "float32") {
      throw new Problem(
        `“${file}” does not go from one batch of images, (B, 3, H, W) in uint8 or float32, to a ` +
          "number for each class, (B, K) in float32. Export it from a Predictor with export_onnx.",
      );
    }
    this.file = file;
    this.ort = ort;
    this.session = session;
    this.type = input.type;
    /** [height, width] if it takes no other size, else null. */
    this.size = typeof height === "number" && typeof width === "number" ? [height, width] : null;
    this.classes = names;
    this.count = typeof output.shape[1] === "number" ? output.shape[1] : null;
    this.checkNames(this.count);
  }

  checkNames(count) {
    if (this.classes && count !== null && this.classes.length !== count) {
      throw new Problem(
        `“${this.file}” has ${count} classes, and ${this.classes.length} names were given. ` +
          "Choose it together with a text file of as many names, one a line.",
      );
    }
  }

  /**
   * @param {ImageData} pixels of the size that the model takes
   * @returns {Promise<{probabilities: Float32Array, softmax: boolean, view: ImageData | null}>}
   */
  async run(pixels) {
    const images = new this.ort.Tensor(this.type, planes(pixels, this.type), [1, 3, pixels.height, pixels.width]);
    let found;
    try {
      found = await this.session.run({ [this.session.inputNames[0]]: images });
    } catch (error) {
      throw new Problem(
        `The model failed on this picture of ${pixels.width} x ${pixels.height} pixels ` +
          `(${firstLine(error)}). Try a smaller picture or another model.`,
      );
    }
    const outputs = found[this.session.outputNames[0]];
    this.checkNames(outputs.data.length);
    if (!outputs.data.every(Number.isFinite)) {
      throw new Problem(
        `“${this.file}” gives NaN or infinity for this picture, and so no class. ` +
          "Look for it with the model that the file was made from: its training may have failed, " +
          "or its weights are of a half type and overflow.",
      );
    }
    const [probabilities, softmax] = normalised(Float32Array.from(outputs.data));
    return { probabilities, softmax, view: found.views?.dims.length === 4 ? image(found.views) : null };
  }
}

/** The RGB planes of a picture, as bytes or as floats in [0, 1]. */
function planes({ data, width, height }, type) {
  const area = width * height;
  const [values, scale] = type === "uint8" ? [new Uint8Array(3 * area), 1] : [new Float32Array(3 * area), 255];
  for (let at = 0; at < area; at++) {
    for (let channel = 0; channel < 3; channel++) {
      values[channel * area + at] = data[4 * at + channel] / scale;
    }
  }
  return values;
}

/** A picture of planes (1, 3, h, w) in [0, 1]. */
function image({ data, dims: [, , height, width] }) {
  const picture = new ImageData(width, height);
  const area = width * height;
  for (let at = 0; at < area; at++) {
    for (let channel = 0; channel < 3; channel++) {
      picture.data[4 * at + channel] = 255 * data[channel * area + at]; // rounds and clamps
    }
    picture.data[4 * at + 3] = 255;
  }
  return picture;
}

/** The outputs if they are probabilities, else their softmax; and which it was. */
function normalised(outputs) {
  const sum = outputs.reduce((total, value) => total + value, 0);
  if (Math.abs(sum - 1) < 1e-3 && outputs.every((value) => value >= 0)) return [outputs, false];
  const largest = outputs.reduce((best, value) => Math.max(best, value), -Infinity);
  const powers = outputs.map((value) => Math.exp(value - largest));
  const total = powers.reduce((sum, value) => sum + value, 0);
  return [powers.map((value) => value / total), true];
}

/** The class names that export_onnx left in the file's metadata, or null. */
function classesIn(bytes) {
  const decoder = new TextDecoder();
  for (const [field, entry] of fields(bytes)) {
    if (field !== 14) continue; // ModelProto.metadata_props
    const { 1: key, 2: value } = Object.fromEntries(fields(entry));
    if (decoder.decode(key) === "classes") return parseNames(decoder.decode(value));
  }
  return null;
}

/** Names by line, or a JSON list of them. */
export function parseNames(text) {
  if (/^\s*\[/.test(text)) {
    try {
      return JSON.parse(text).map(String);
    } catch (error) {
      throw new Problem(`The list of names is no JSON (${error.message}). Write one name a line.`);
    }
  }
  return text.split(/\r?\n/).map((name) => name.trim()).filter(Boolean);
}

/** The number and content of each field of a protobuf message that holds bytes. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (!(byte > 127)) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const kind = tag % 8;
    if (kind === 2) {
      const size = varint();
      yield [(tag - kind) / 8, bytes.subarray(at, at + size)];
      at += size;
    } else if (kind === 0) {
      varint();
    } else {
      at += kind === 1 ? 8 : 4;
    }
  }
}

function firstLine(error) {
  return String(error?.message ?? error).split("\n")[0].slice(0, 200);
}
