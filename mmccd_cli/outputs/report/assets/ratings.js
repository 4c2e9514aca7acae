"use strict";
// What a reader thinks of a result: "good", "doubtful" or "bad", with a comment. It stays in the
// browser until it is saved as a table. A rating belongs to one map and mask of a subject.
const ratings = {
  COLUMNS: ["subject", "result", "rating", "comment"],
  VALUES: ["good", "doubtful", "bad"],

  // Null where none is kept.
  read(subject, result) {
    try {
      const { rating, comment } = JSON.parse(memory.get(`rating/${result}/${subject}`));
      return { rating: this.VALUES.includes(rating) ? rating : "", comment: String(comment ?? "") };
    } catch {
      return null;
    }
  },

  write(subject, result, { rating, comment }) {
    return memory.set(`rating/${result}/${subject}`, JSON.stringify({ rating, comment }));
  },

  toTable(rows) {
    const cell = (text) => String(text).replace(/[\t\r\n]+/g, " ").trim() || "n/a";
    const lines = rows.map((row) => this.COLUMNS.map((name) => cell(row[name])).join("\t"));
    return [this.COLUMNS.join("\t"), ...lines, ""].join("\n");
  },

  // Rows of a table that `toTable` wrote; none where it is no such table.
  fromTable(text) {
    const [header, ...lines] = text.replace(/\r/g, "").split("\n").map((line) => line.split("\t"));
    if (this.COLUMNS.some((name) => !header.includes(name))) return [];
    const value = (cells, name) => {
      const found = cells[header.indexOf(name)] ?? "";
      return found === "n/a" ? "" : found;
    };
    return lines
      .map((cells) => Object.fromEntries(this.COLUMNS.map((name) => [name, value(cells, name)])))
      .filter((row) => row.subject && (row.rating === "" || this.VALUES.includes(row.rating)));
  },

  save(name, rows) {
    const link = document.createElement("a");
    link.download = name;
    link.href = `data:text/tab-separated-values;charset=utf-8,${encodeURIComponent(this.toTable(rows))}`;
    link.click();
  },
};
