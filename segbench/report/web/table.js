"use strict";
// Tables: sorting, the per-class view, downloads; and which metric the plots show.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);

  const value = (row, column) => {
    const cell = row.cells[column];
    if (column === 0) return cell.textContent.trim();
    return cell.dataset.v === undefined ? null : Number(cell.dataset.v);
  };

  const compare = (a, b, sign) => {
    if (a === null || b === null) return (a === null) - (b === null); // holes stay last
    return sign * (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
  };

  function sortBy(button) {
    const heading = button.closest("th");
    const table = heading.closest("table");
    const opposite = { ascending: "descending", descending: "ascending" };
    const order = opposite[heading.getAttribute("aria-sort")] || button.dataset.first;
    for (const other of table.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
    const body = table.tBodies[0];
    const sign = order === "ascending" ? 1 : -1;
    const column = heading.cellIndex;
    const rows = [...body.rows].sort((a, b) => compare(value(a, column), value(b, column), sign));
    body.append(...rows);
    const status = table.closest(".tables").querySelector(".status");
    status.textContent = `Sorted by ${button.textContent.trim()}, ${order}`;
  }

  function save(name, text = data.files[name], type = "text/plain") {
    const url = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
    const link = document.createElement("a");
    link.href = url;
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  for (const button of document.querySelectorAll(".sort")) button.addEventListener("click", () => sortBy(button));
  for (const button of document.querySelectorAll("[data-file]")) {
    button.addEventListener("click", () => save(button.dataset.file));
  }

  for (const button of document.querySelectorAll("[data-svg]")) {
    button.addEventListener("click", () => {
      const copy = button.closest(".plot").querySelector("svg").cloneNode(true);
      const [, , width, height] = copy.getAttribute("viewBox").split(" ");
      copy.setAttribute("width", `${width}pt`);
      copy.setAttribute("height", `${height}pt`);
      const text = new XMLSerializer().serializeToString(copy);
      save(button.dataset.svg, text.replace(/var\(([\w-]+)\)/g, (_, name) => data.colours[name]), "image/svg+xml");
    });
  }

  for (const button of document.querySelectorAll("[data-copy]")) {
    const paragraph = button.parentElement.querySelector("p");
    const status = button.parentElement.querySelector("[role=status]");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(paragraph.textContent);
        status.textContent = "Copied.";
      } catch {
        getSelection().selectAllChildren(paragraph);
        status.textContent = "Selected: copy it by the keyboard.";
      }
    });
  }

  for (const section of document.querySelectorAll(".tables")) {
    const pick = section.querySelector("[data-pick]");
    const chosen = () => section.querySelector("[data-choice=view] input:checked").value;
    const show = () => {
      const view = chosen();
      pick.closest("label").hidden = view !== "classes";
      for (const table of section.querySelectorAll("[data-view]")) {
        table.hidden = table.dataset.view !== view || (view === "classes" && table.dataset.metric !== pick.value);
      }
      for (const button of section.querySelectorAll("[data-download]")) {
        button.disabled = !(fileOf(button) in data.files);
      }
    };
    const fileOf = (button) => {
      const metric = pick.selectedOptions[0];
      return chosen() === "means" || !metric
        ? `${data.stem}.${button.dataset.download}`
        : `${data.stem}-${metric.dataset.slug}-classes.${button.dataset.download}`;
    };
    for (const input of section.querySelectorAll("[data-choice=view] input")) input.addEventListener("change", show);
    pick.addEventListener("change", show);
    for (const button of section.querySelectorAll("[data-download]")) {
      button.addEventListener("click", () => save(fileOf(button)));
    }
    show();
  }

  for (const choice of document.querySelectorAll("[data-choice=metric]")) {
    const show = () => {
      const metric = choice.querySelector("input:checked").value;
      for (const plot of choice.closest(".block").querySelectorAll(".plot[data-metric]")) {
        plot.hidden = plot.dataset.metric !== metric;
      }
    };
    choice.addEventListener("change", show);
    show();
  }
})();
