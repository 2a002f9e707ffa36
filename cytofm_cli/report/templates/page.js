"use strict";
(() => {
  const outlines = document.getElementById("outlines");
  if (outlines) outlines.addEventListener("change", () => document.body.classList.toggle("plain", !outlines.checked));
  const controls = document.getElementById("controls");
  if (controls) { controls.hidden = false; controls.addEventListener("submit", (event) => event.preventDefault()); }
  const table = document.getElementById("table");
  if (!table) return;

  const PAGE = 100;
  const byId = (id) => document.getElementById(id);
  const text = (row) => Array.from(row.rows[0].cells, (cell) => cell.textContent).join(" ").toLowerCase();
  let rows = Array.from(table.tBodies);
  const words = new Map(rows.map((row) => [row, text(row)]));
  let shown = rows, page = 0;

  const open = (row, wanted) => {
    const button = row.querySelector(".open");
    if (!button) return;
    row.classList.toggle("closed", !wanted);
    const large = row.querySelector(".large");  // the same pictures again, kept once in the file
    if (wanted && large && !large.childElementCount) row.querySelectorAll(".pics img").forEach((picture) => large.append(picture.cloneNode()));
    button.setAttribute("aria-expanded", String(wanted));
  };

  const draw = () => {
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    page = Math.min(page, pages - 1);
    shown.forEach((row, at) => row.classList.toggle("off", Math.floor(at / PAGE) !== page));
    byId("count").textContent = shown.length === rows.length ? `${rows.length} slides` : `${shown.length} of ${rows.length} slides`;
    byId("pager").hidden = pages === 1;
    byId("page").textContent = `page ${page + 1} of ${pages}`;
    byId("back").disabled = page === 0;
    byId("next").disabled = page === pages - 1;
  };

  const filter = () => {
    const find = byId("find").value.trim().toLowerCase(), only = byId("only").value;
    shown = rows.filter((row) => {
      const kept = (!only || row.classList.contains(only)) && (!find || words.get(row).includes(find));
      row.classList.toggle("out", !kept);
      return kept;
    });
    page = 0;
    draw();
  };

  const collator = new Intl.Collator("en", { numeric: true });
  const sort = (header) => {
    const at = header.cellIndex, down = header.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = new Map(rows.map((row) => {
      const cell = row.rows[0].cells[at], value = cell.dataset.v;
      return [row, value === undefined ? cell.textContent.trim() : value === "" ? null : Number(value)];
    }));
    const sign = down ? -1 : 1;
    rows.sort((a, b) => {
      const x = key.get(a), y = key.get(b);
      if (x === null || y === null) return (x === null) - (y === null);  // what is not known comes last
      return sign * (typeof x === "number" && typeof y === "number" ? x - y : collator.compare(x, y));
    });
    const all = document.createDocumentFragment();
    for (const row of rows) all.append(row);
    table.append(all);
    filter();
  };

  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest(".sort");
    if (button) { sort(button.closest("th")); button.focus(); }
  });
  table.addEventListener("click", (event) => {
    const button = event.target.closest(".open");
    if (button) { const row = button.closest("tbody"); open(row, row.classList.contains("closed")); }
  });
  byId("find").addEventListener("input", filter);
  byId("only").addEventListener("change", filter);
  byId("open-all").addEventListener("click", () => shown.filter((row) => !row.classList.contains("off")).forEach((row) => open(row, true)));
  byId("close-all").addEventListener("click", () => rows.forEach((row) => open(row, false)));
  byId("back").addEventListener("click", () => { page -= 1; draw(); });
  byId("next").addEventListener("click", () => { page += 1; draw(); });

  rows.forEach((row, at) => open(row, at === 0 && rows.length > 0));
  filter();
})();
