"use strict";
// Which decoders are shown, where there are many: by name, by kind, one by one.
(() => {
  const MOST = 5; // pairs of tiles that the gallery shows at once

  function start(filter) {
    const section = filter.parentElement;
    const boxes = [...filter.querySelectorAll("input[type=checkbox]")];
    const kinds = [...filter.querySelectorAll("button[data-kind]")];
    const find = filter.querySelector("[data-find]");
    const parts = [...section.querySelectorAll("[data-d]")];
    const nameOf = (box) => box.closest("label").textContent.trim().toLowerCase();

    function show() {
      const words = find.value.trim().toLowerCase();
      const pressed = (kind) => kinds.every((b) => b.dataset.kind !== kind || b.getAttribute("aria-pressed") === "true");
      const shown = new Set();
      for (const box of boxes) {
        const there = pressed(box.dataset.kind) && `${nameOf(box)} ${box.dataset.kind}`.includes(words);
        box.closest("li").hidden = !there;
        if (there && box.checked) shown.add(box.value);
      }
      for (const part of parts) {
        const off = !shown.has(part.dataset.d);
        if (part instanceof SVGElement) part.classList.toggle("faded", off);
        else part.hidden = off;
      }
      filter.querySelector("output").textContent = `${shown.size} of ${boxes.length} shown`;
      fewer();
    }

    /** Of many, the gallery shows the baselines and the best. */
    function fewer() {
      const pairs = [...section.querySelectorAll("[data-pair]")].filter((pair) => !pair.hidden);
      pairs.sort((a, b) => a.dataset.rank - b.dataset.rank);
      for (const pair of pairs.slice(MOST)) pair.hidden = true;
      const note = section.querySelector("[data-fewer]");
      if (!note) return;
      note.hidden = pairs.length <= MOST;
      note.textContent = `Of ${pairs.length} chosen decoders ${MOST} are here: the baselines and the best. Choose fewer above to see others.`;
    }

    filter.hidden = false;
    find.addEventListener("input", show);
    for (const box of boxes) box.addEventListener("change", show);
    for (const button of kinds) {
      button.addEventListener("click", () => {
        button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
        show();
      });
    }
    for (const button of filter.querySelectorAll("[data-every]")) {
      button.addEventListener("click", () => {
        for (const box of boxes) box.checked = Boolean(button.dataset.every);
        if (button.dataset.every) {
          find.value = "";
          for (const kind of kinds) kind.setAttribute("aria-pressed", "true");
        }
        show();
      });
    }
    show();
  }

  for (const filter of document.querySelectorAll(".filter")) start(filter);
})();
