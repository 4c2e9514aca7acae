"use strict";
// Sorts the table by the column whose header is pressed; without this script the order stays.
(() => {
  const table = document.getElementById("subjects");
  if (!table) return;
  const headers = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const key = (row, column) => row.cells[column].dataset.key ?? row.cells[column].textContent;

  function sort(column, descending) {
    const numeric = headers[column].dataset.type === "number";
    const order = numeric
      ? (a, b) => Number(key(a, column)) - Number(key(b, column))
      : (a, b) => key(a, column).localeCompare(key(b, column), undefined, { numeric: true });
    const rows = [...body.rows].sort(order);
    body.append(...(descending ? rows.reverse() : rows));
    headers.forEach((header, index) => {
      if (header.hasAttribute("aria-sort")) {
        const direction = descending ? "descending" : "ascending";
        header.setAttribute("aria-sort", index === column ? direction : "none");
      }
    });
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
})();
