for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const numeric = head.classList.contains("num");
    const down = head.getAttribute("aria-sort") !== (numeric ? "descending" : "ascending") ? numeric : !numeric;
    const key = row => row.cells[column].dataset.v;
    const order = numeric
      ? (a, b) => parseFloat(key(a).replace("inf", "Infinity")) - parseFloat(key(b).replace("inf", "Infinity"))
      : (a, b) => key(a).localeCompare(key(b), undefined, {numeric: true});
    const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? -1 : 1) * order(a, b));
    rows.forEach(row => row.classList.remove("break"));
    table.tBodies[0].append(...rows);
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
  }));
}
