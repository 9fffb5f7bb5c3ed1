"use strict";
// The gallery: one crop for all tiles, moved and zoomed by wheel, drag, pinch, buttons and keys.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const MOST = 32;
  const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

  function start(root) {
    const images = data.galleries[Number(root.dataset.gallery)].images;
    const viewer = root.querySelector(".viewer");
    const tiles = [...viewer.querySelectorAll(".tile")];
    const status = root.querySelector(".status");
    let image = images[0];
    // The crop: z times as large as the whole image, around (x, y), both in 0 to 1 of it.
    const crop = { z: 1, x: 0.5, y: 0.5 };

    const pixelZoom = () => Math.max(1, image.width / tiles[0].clientWidth);
    const most = () => Math.max(MOST, 4 * pixelZoom());

    function draw() {
      crop.z = clamp(crop.z, 1, most());
      const margin = 0.5 / crop.z;
      crop.x = clamp(crop.x, margin, 1 - margin);
      crop.y = clamp(crop.y, margin, 1 - margin);
      viewer.style.setProperty("--z", crop.z);
      viewer.style.setProperty("--tx", 0.5 - crop.x * crop.z);
      viewer.style.setProperty("--ty", 0.5 - crop.y * crop.z);
      viewer.classList.toggle("zoomed", crop.z > 1);
      viewer.classList.toggle("pixels", (crop.z * tiles[0].clientWidth) / image.width > 1.5);
      root.querySelector(".level").textContent = `${crop.z < 10 ? crop.z.toFixed(1) : Math.round(crop.z)}×`;
    }

    /** Zoom by a factor so that the point (u, v) of a tile, in 0 to 1, stays where it is. */
    function zoom(factor, u = 0.5, v = 0.5) {
      const z = clamp(crop.z * factor, 1, most());
      crop.x += (u - 0.5) * (1 / crop.z - 1 / z);
      crop.y += (v - 0.5) * (1 / crop.z - 1 / z);
      crop.z = z;
      draw();
    }

    function move(du, dv) {
      crop.x += du / crop.z;
      crop.y += dv / crop.z;
      draw();
    }

    function go(z, x, y) {
      Object.assign(crop, { z, x, y });
      draw();
    }

    function show(number) {
      image = images[number];
      for (const button of root.querySelectorAll("[data-image]")) {
        button.setAttribute("aria-pressed", String(Number(button.dataset.image) === number));
      }
      root.querySelector("[data-name]").textContent = image.id;
      root.querySelector("[data-why]").textContent = `${image.why}, ${image.width} × ${image.height} px`;
      for (const photo of viewer.querySelectorAll(".photo")) photo.src = image.image;
      viewer.querySelector("[data-tile=truth] .labels").src = image.truth;
      for (const pair of viewer.querySelectorAll("[data-pair]")) {
        const tile = image.tiles[Number(pair.dataset.pair)];
        pair.querySelector(".labels").src = tile.prediction;
        pair.querySelector(".errors").src = tile.errors;
        const score = pair.querySelector("[data-score]");
        score.textContent = tile.score === null ? "" : `BIoU ${tile.score.toFixed(1)}`;
      }
      for (const tile of tiles) tile.style.aspectRatio = `${image.width} / ${image.height}`;
      go(1, 0.5, 0.5);
      status.textContent = `Image ${number + 1} of ${images.length}: ${image.id}, ${image.why}`;
    }

    const actions = {
      in: () => zoom(1.5),
      out: () => zoom(1 / 1.5),
      fit: () => go(1, 0.5, 0.5),
      pixel: () => go(pixelZoom(), crop.x, crop.y),
      focus: () => go(Math.max(4, pixelZoom()), ...image.focus),
    };
    const keys = {
      "+": actions.in, "=": actions.in, "-": actions.out, "0": actions.fit,
      ArrowLeft: () => move(-0.1, 0), ArrowRight: () => move(0.1, 0),
      ArrowUp: () => move(0, -0.1), ArrowDown: () => move(0, 0.1),
    };

    for (const button of root.querySelectorAll("[data-image]")) {
      button.querySelector("img").src = images[Number(button.dataset.image)].image;
      button.addEventListener("click", () => show(Number(button.dataset.image)));
    }
    for (const button of root.querySelectorAll("[data-zoom]")) {
      button.addEventListener("click", () => {
        actions[button.dataset.zoom]();
        status.textContent = `Zoom ${crop.z.toFixed(1)}`;
      });
    }
    root.querySelector("[data-opacity]").addEventListener("input", (event) => {
      viewer.style.setProperty("--labels", event.target.value / 100);
    });
    viewer.addEventListener("keydown", (event) => {
      const action = keys[event.key];
      if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      action();
    });

    const place = (tile, event) => {
      const box = tile.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    viewer.addEventListener("wheel", (event) => {
      const tile = event.target.closest(".tile");
      // The page scrolls until the viewer is in use.
      if (!tile || !(event.ctrlKey || document.activeElement === viewer)) return;
      event.preventDefault();
      zoom(Math.exp(-clamp(event.deltaY, -100, 100) * 0.004), ...place(tile, event));
    }, { passive: false });

    const fingers = new Map(); // pointer -> place in the tile
    for (const tile of tiles) {
      tile.addEventListener("pointerdown", (event) => {
        tile.setPointerCapture(event.pointerId);
        fingers.set(event.pointerId, place(tile, event));
        viewer.focus({ preventScroll: true });
      });
      tile.addEventListener("pointermove", (event) => {
        const [u, v] = place(tile, event);
        viewer.style.setProperty("--px", u);
        viewer.style.setProperty("--py", v);
        viewer.classList.toggle("pointing", event.pointerType === "mouse" && !fingers.size);
        const before = fingers.get(event.pointerId);
        if (!before) return;
        if (fingers.size === 2) {
          const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
          const apart = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]);
          zoom(apart([u, v]) / Math.max(apart(before), 1e-3), (u + other[0]) / 2, (v + other[1]) / 2);
        }
        move((before[0] - u) / fingers.size, (before[1] - v) / fingers.size);
        fingers.set(event.pointerId, [u, v]);
      });
      const end = (event) => fingers.delete(event.pointerId);
      tile.addEventListener("pointerup", end);
      tile.addEventListener("pointercancel", end);
      tile.addEventListener("pointerleave", () => viewer.classList.remove("pointing"));
    }
    addEventListener("resize", draw);
    show(0);
  }

  for (const root of document.querySelectorAll("[data-gallery]")) start(root);
})();
