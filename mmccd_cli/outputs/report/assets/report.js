"use strict";
// The report of one subject: its viewer, its rating, and the way to the reports beside it.
function copyText(element) {
  const range = document.createRange();
  range.selectNodeContents(element);
  getSelection().removeAllRanges();
  getSelection().addRange(range);  // also shows what was copied, and allows to copy it by hand
  const done = () => { document.getElementById("viewer-copied").textContent = "copied"; };
  const byHand = () => document.execCommand("copy") && done();
  if (!navigator.clipboard) return byHand();
  return navigator.clipboard.writeText(element.textContent).then(done, byHand);
}

// A rating is kept whenever it changes.
function connectRating(form) {
  const { subject, result } = JSON.parse(document.getElementById("mmccd-summary").textContent);
  const status = document.getElementById("rating-status");
  const now = () => ({ rating: form.elements.rating.value, comment: form.elements.comment.value });
  const kept = ratings.read(subject, result);
  form.elements.rating.value = kept?.rating ?? "";
  form.elements.comment.value = kept?.comment ?? "";
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    status.textContent = ratings.write(subject, result, now())
      ? "Kept in this browser."
      : "This browser keeps nothing for pages from the disk: save the table before leaving.";
  });
  document.getElementById("rating-save").addEventListener("click", () =>
    ratings.save(`${subject}_rating.tsv`, [{ subject, result, ...now() }]));
}

// The index names in a link's #list= the reports that it shows, in its order, and which one this is.
function connectNeighbours(nav) {
  const parse = (text) => {
    try {
      const { files, at } = JSON.parse(decodeURIComponent(text));
      return Array.isArray(files) && Number.isInteger(at) ? { files: files.map(String), at } : null;
    } catch {
      return null;
    }
  };
  const found = location.hash.startsWith("#list=")
    ? parse(location.hash.slice(6))
    : history.state?.neighbours ?? null;
  if (!found) return;
  // Links within the page would forget it.
  const keep = () => history.replaceState({ neighbours: found }, "");
  keep();
  addEventListener("hashchange", keep);
  const folder = new URL(".", new URL(nav.querySelector("a").getAttribute("href"), location.href)).href;
  for (const [step, id] of [[-1, "previous"], [1, "next"]]) {
    const file = found.files[found.at + step];
    if (!file) continue;
    const target = new URL(file, folder);
    if (!target.href.startsWith(folder) || !target.pathname.endsWith("_report.html")) continue;
    target.hash = `list=${encodeURIComponent(JSON.stringify({ ...found, at: found.at + step }))}`;
    const link = document.getElementById(id);
    link.href = target.href;
    link.hidden = false;
  }
}

(() => {
  const nav = document.getElementById("neighbours");
  if (nav) connectNeighbours(nav);
  connectRating(document.getElementById("rating"));
  const panel = document.getElementById("viewer");
  const stepAside = (reason) => {
    const message = document.getElementById("viewer-message");
    panel.hidden = true;
    panel.dataset.state = "fallback";
    message.textContent = `The interactive viewer could not start: ${reason}. `
      + "The still pictures below show the same.";
    message.hidden = false;
  };
  const missing = [
    [document.createElement("canvas").getContext("2d"), "the browser draws no pictures"],
    [globalThis.DecompressionStream, "the browser is too old to unpack it"],
    [globalThis.OffscreenCanvas, "the browser is too old to draw it"],
  ].find(([there]) => !there);
  if (missing) stepAside(missing[1]);
  else startViewer(panel).catch((problem) => stepAside(problem.message));
})();
