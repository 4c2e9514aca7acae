"use strict";
// The page over all reports: sorts, filters and rates; without this script the table stays as it is.
(() => {
  const MOST_IN_LINK = 100;  // reports before and after one that its link can lead on to
  const table = document.getElementById("subjects");
  const filters = document.getElementById("filters");
  const headers = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const failed = [...document.querySelectorAll("#failed tbody tr")];
  const say = (id, text) => { document.getElementById(id).textContent = text; };

  // --- ratings: in the rows, and in the browser where it keeps them ---
  const ratingOf = new Map(rows.map((row) => [row, { rating: "", comment: "" }]));

  function showRatings() {
    const counts = ratings.VALUES.map((value) => {
      const number = [...ratingOf.values()].filter(({ rating }) => rating === value).length;
      return number ? `${number} ${value}` : "";
    });
    say("rated", counts.filter(Boolean).join(", ") || "none");
    for (const [row, { rating, comment }] of ratingOf) {
      const cell = row.querySelector("td.rating");
      cell.dataset.key = rating;
      cell.querySelector("select").value = rating;
      cell.querySelector("span").textContent = comment;
    }
    filter();
  }

  function rate(row, changes) {
    const rating = { ...ratingOf.get(row), ...changes };
    ratingOf.set(row, rating);
    return ratings.write(row.dataset.subject, row.dataset.result, rating);
  }

  function recall() {
    for (const row of rows) {
      const kept = ratings.read(row.dataset.subject, row.dataset.result);
      if (kept) ratingOf.set(row, kept);
    }
    showRatings();
  }

  async function load(files) {
    let [found, others] = [0, 0];
    for (const file of files) {
      for (const { subject, result, rating, comment } of ratings.fromTable(await file.text())) {
        const row = rows.find(({ dataset }) => dataset.subject === subject && dataset.result === result);
        if (row) rate(row, { rating, comment });
        row ? found++ : others++;
      }
    }
    showRatings();
    say("ratings-status", `${found} added`
      + (others ? `, ${others} of other subjects or earlier results left out.` : "."));
  }

  // --- sorting and filtering ---
  const key = (row, column) => row.cells[column].dataset.key ?? row.cells[column].textContent;

  function sort(column, descending) {
    const numeric = headers[column].dataset.type === "number";
    const order = numeric
      ? (a, b) => Number(key(a, column)) - Number(key(b, column))
      : (a, b) => key(a, column).localeCompare(key(b, column), undefined, { numeric: true });
    rows.sort(order);
    if (descending) rows.reverse();
    body.append(...rows);
    headers.forEach((header, index) => {
      if (header.hasAttribute("aria-sort")) {
        const direction = descending ? "descending" : "ascending";
        header.setAttribute("aria-sort", index === column ? direction : "none");
      }
    });
  }

  function filter() {
    const wanted = Object.fromEntries(new FormData(filters));
    const text = wanted.text.trim().toLowerCase();
    const least = wanted.least === "" ? -Infinity : Number(wanted.least);
    const most = wanted.most === "" ? Infinity : Number(wanted.most);
    const fits = (row) => {
      const { rating, comment } = ratingOf.get(row) ?? { rating: "", comment: "" };
      const { subject, status, volume } = row.dataset;
      return `${subject}\n${comment}`.toLowerCase().includes(text)
        && (!wanted.status || wanted.status === status)
        && (!wanted.rating || (wanted.rating === "none" ? "" : wanted.rating) === rating)
        && (volume === undefined
          ? least === -Infinity && most === Infinity
          : volume >= least && volume <= most);
    };
    [...rows, ...failed].forEach((row) => { row.hidden = !fits(row); });
    const shown = rows.filter((row) => !row.hidden).length;
    const shownFailed = failed.filter((row) => !row.hidden).length;
    const section = document.getElementById("failed");
    if (section) section.hidden = !shownFailed;
    say("shown", `${shown} of ${rows.length} shown`
      + (failed.length ? `, ${shownFailed} of ${failed.length} failed` : ""));
  }

  // A report leads on to its neighbours as they stand here when its link is followed.
  function nameNeighbours(event) {
    const link = event.target.closest?.("a");
    if (!link) return;
    const links = rows.filter((row) => !row.hidden).map((row) => row.querySelector("a"));
    const at = links.indexOf(link);
    const first = Math.max(0, at - MOST_IN_LINK);
    const place = (each) => each.getAttribute("href").split("#")[0];
    const files = links.slice(first, at + MOST_IN_LINK + 1).map(place);
    const list = encodeURIComponent(JSON.stringify({ files, at: at - first }));
    link.setAttribute("href", `${place(link)}#list=${list}`);
  }

  headers.forEach((header, column) => {
    const button = header.querySelector("button");
    button?.addEventListener("click", () => {
      const now = header.getAttribute("aria-sort");
      const first = header.dataset.type === "number" ? "descending" : "ascending";
      const opposite = { ascending: "descending", descending: "ascending" };
      sort(column, (opposite[now] ?? first) === "descending");
    });
  });
  rows.forEach((row) => row.querySelector("select").addEventListener("change", (event) => {
    const kept = rate(row, { rating: event.target.value });
    say("ratings-status", kept
      ? "Kept in this browser."
      : "This browser keeps nothing for pages from the disk: save the table before leaving.");
    showRatings();
  }));
  ["focusin", "pointerdown"].forEach((event) => body.addEventListener(event, nameNeighbours));
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("input", filter);
  filters.addEventListener("reset", () => setTimeout(filter));  // after the fields are empty
  document.getElementById("ratings-load").addEventListener("change", (event) => load(event.target.files));
  document.getElementById("ratings-save").addEventListener("click", () =>
    ratings.save("ratings.tsv", rows.map((row) =>
      ({ subject: row.dataset.subject, result: row.dataset.result, ...ratingOf.get(row) }))));
  ["pageshow", "storage", "focus"].forEach((event) => addEventListener(event, recall));
  document.querySelectorAll("#subjects [hidden], .facts [hidden]").forEach((part) => { part.hidden = false; });
  filters.hidden = false;
  recall();
})();
