"use strict";
(() => {
  const form = document.getElementById("filter");
  if (!form) return;
  const rows = Array.from(document.querySelectorAll("#images tbody tr"), (row) => ({
    row,
    result: row.cells[0].textContent,
    names: (row.cells[1].firstChild.textContent + "\n" + row.cells[2].textContent).toLowerCase(),
  }));
  const repository = document.getElementById("repository");
  const result = document.getElementById("result");
  const shown = document.getElementById("shown");
  const apply = () => {
    const part = repository.value.trim().toLowerCase();
    let count = 0;
    for (const one of rows) {
      const visible = one.names.includes(part) && (!result.value || one.result === result.value);
      one.row.hidden = !visible;
      count += visible;
    }
    shown.textContent = count + " of " + rows.length + " images";
  };
  form.addEventListener("input", apply);
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
})();
