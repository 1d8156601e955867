// The page: what is chosen, dropped, pasted or shot is classified, and faults become sentences.

import { Model, fetchModel, parseNames } from "./model.js";
import { decode, draw, put } from "./picture.js";
import { Problem } from "./problem.js";

const TOY = "model.onnx";
const part = (id) => document.getElementById(id);

let model; // a promise of the model in use; undefined before the first picture
let shown; // the last bitmap and its name, for another model to classify
let latest = 0; // number of the last request; the answers to earlier ones are dropped

/** Do `work` as the latest request, with what it does or why it failed on the page. */
async function attempt(doing, work) {
  const number = ++latest;
  part("error").textContent = "";
  part("result").hidden = true;
  part("status").textContent = doing;
  const still = () => number === latest;
  try {
    await work(still);
  } catch (error) {
    if (still()) complain(error);
  } finally {
    if (still()) part("status").textContent = "";
  }
}

function complain(error) {
  part("status").textContent = "";
  part("error").textContent =
    error instanceof Problem ? error.message : `This page met an error of its own: ${error?.message ?? error}`;
  if (!(error instanceof Problem)) console.error(error);
}

function classify(blob, name) {
  return attempt(`Reading ${name} …`, async (still) => {
    const bitmap = await decode(blob, name);
    if (still()) await answer((shown = { bitmap, name }), still);
  });
}

async function answer({ bitmap, name }, still) {
  if (!model) part("status").textContent = "Fetching ONNX Runtime and the model …";
  model ??= fetchModel(TOY).then((content) => Model.open(TOY, content, null));
  const ready = await model.catch((error) => {
    model = undefined; // so that the next picture tries again
    throw error;
  });
  if (!still()) return;
  part("status").textContent = `Classifying ${name} …`;
  await new Promise(requestAnimationFrame); // lets the browser show it
  const { pixels, note } = draw(part("picture"), bitmap, ready.size);
  const found = await ready.run(pixels);
  if (!still()) return;
  part("picture").setAttribute("role", "img");
  part("picture").setAttribute("aria-label", name);
  part("picture-note").textContent = note;
  showView(found.view);
  showBest(found, ready);
  part("result").hidden = false;
  part("result").scrollIntoView({ block: "nearest" });
}

function showView(view) {
  part("view").hidden = !view;
  if (view) {
    put(part("view"), view);
    part("view").setAttribute("role", "img");
    part("view").setAttribute("aria-label", "The resized picture");
  }
  part("view-note").textContent = view
    ? `${view.width} x ${view.height} pixels, as the model's own resize gives them`
    : "not shown: the file has no output “views”";
}

function showBest({ probabilities, softmax }, { classes }) {
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
  part("best").replaceChildren(
    ...order.slice(0, 5).map((index) => {
      const share = probabilities[index];
      const meter = Object.assign(document.createElement("meter"), { value: share });
      meter.setAttribute("aria-hidden", "true"); // the share is beside it
      const line = document.createElement("li");
      line.append(
        span("name", classes?.[index] ?? `class ${index}`),
        span("share", `${(100 * share).toFixed(1)} %`),
        meter,
      );
      return line;
    }),
  );
  part("best-note").textContent =
    `The best ${Math.min(5, order.length)} of ${order.length} classes.` +
    (softmax ? " The file gives no probabilities: these are the softmax of its outputs." : "");
}

function span(kind, text) {
  return Object.assign(document.createElement("span"), { className: kind, textContent: text });
}

function openModel(files) {
  return attempt("Opening the model …", async (still) => {
    const file = files.find(({ name }) => name.endsWith(".onnx"));
    const list = files.find(({ name }) => name.endsWith(".txt"));
    if (!file) throw new Problem("No .onnx file was chosen. Choose one, and with it a text file of names if it has none.");
    const names = list ? parseNames(await list.text()) : null;
    const opened = await Model.open(file.name, await file.arrayBuffer(), names);
    if (!still()) return void opened.session.release();
    model?.then(({ session }) => session.release(), () => {});
    model = Promise.resolve(opened);
    part("toy").hidden = part("samples").hidden = true;
    part("own").hidden = false;
    part("own").textContent = describe(opened);
    if (shown) await answer(shown, still);
  });
}

function describe({ file, classes, count, size }) {
  const named = classes ? `${classes.length} classes` : `${count ?? "some"} classes without names`;
  const read = size ? `pictures of ${size[1]} x ${size[0]} pixels only` : "pictures of any size";
  return `${file}: ${named}, takes ${read}.`;
}

// Files: chosen, dropped, pasted.

part("file").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  if (file) classify(file, file.name);
  target.value = ""; // the same file can be chosen again
});
part("model").addEventListener("change", ({ target }) => {
  const files = [...target.files];
  if (files.length) openModel(files);
  target.value = "";
});

function take({ files }) {
  const list = [...files];
  if (list.some(({ name }) => name.endsWith(".onnx"))) openModel(list);
  else if (list.length) classify(list[0], list[0].name);
  return list.length > 0;
}
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
}
document.addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) document.body.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  if (!take(event.dataTransfer)) complain(new Problem("What was dropped is no file. Drop a picture that lies on this device."));
});
document.addEventListener("paste", ({ clipboardData }) => take(clipboardData));

for (const button of part("samples").querySelectorAll("button")) {
  button.addEventListener("click", () => {
    const { src, alt } = button.firstElementChild;
    const fetched = fetch(src).then((response) => response.blob());
    fetched.then((blob) => classify(blob, alt), complain);
  });
}

// The camera.

const REFUSALS = {
  NotAllowedError: "The camera was not allowed. Allow it for this page in the browser's settings, or choose a file.",
  NotFoundError: "No camera was found. Connect one, or choose a file.",
  NotReadableError: "The camera is in use elsewhere. Close the other program, or choose a file.",
};

async function startCamera() {
  part("error").textContent = "";
  if (!navigator.mediaDevices) {
    throw new Problem("The browser gives cameras only to pages from https or localhost. Open this page from there, or choose a file.");
  }
  const video = part("video");
  part("camera").disabled = true;
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    part("camera").disabled = false;
    throw new Problem(REFUSALS[error.name] ?? `The camera does not start (${error.message}). Choose a file.`);
  }
  part("live").hidden = false;
  part("shoot").focus();
  await video.play().catch((error) => {
    if (video.srcObject) throw error; // else it was stopped before it showed anything
  });
}

function stopCamera() {
  for (const track of part("video").srcObject?.getTracks() ?? []) track.stop();
  part("video").srcObject = null;
  part("live").hidden = true;
  part("camera").disabled = false;
  part("camera").focus();
}

part("camera").addEventListener("click", () => startCamera().catch(complain));
part("stop").addEventListener("click", stopCamera);
part("shoot").addEventListener("click", () => {
  if (part("video").readyState < HTMLMediaElement.HAVE_CURRENT_DATA) {
    complain(new Problem("The camera shows no picture yet. Wait until it does, then take it again."));
    return;
  }
  classify(part("video"), "the camera's picture").then(stopCamera);
});

// The site's own light or dark, where its reader chose one.
try {
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is switched off: the system's choice stands.
}

addEventListener("unhandledrejection", ({ reason }) => complain(reason));
part("unstarted").remove();
