// Headings of tables become buttons that sort by their column: numbers by value, texts by letters. Without it the
// tables stand in their first order.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  if (body.rows.length < 2) continue;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [key(row.cells[column].textContent), row]);
      rows.sort(([a], [b]) => compare(a, b) * (down ? -1 : 1));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

// "1,234", "-0.5 to 1", "12.3 MB", "1:02:03" and "< 0.001" sort as numbers, "–" behind them all.
function key(text) {
  const trimmed = text.trim().replace("−", "-");
  if (trimmed === "–" || trimmed === "") return Infinity;
  const clock = trimmed.match(/^(\d+):(\d\d)(?::(\d\d))?$/);
  if (clock) return clock.slice(1).filter(Boolean).reduce((sum, part) => 60 * sum + Number(part), 0);
  const number = trimmed.match(/^[<+]?\s*(-?[\d,]*\.?\d+(?:e[-+]?\d+)?)\s*(kB|MB|GB|B)?/i);
  if (!number) return trimmed;
  const scale = { kb: 1e3, mb: 1e6, gb: 1e9 }[(number[2] || "").toLowerCase()] || 1;
  return Number(number[1].replaceAll(",", "")) * scale;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a === "number") return -1;
  if (typeof b === "number") return 1;
  return a.localeCompare(b);
}
