"use strict";
// The interactive viewer: what its controls do. All that it shows lies in this page; where a
// browser cannot unpack it, the viewer steps aside and the still pictures remain.
async function startViewer(panel) {
  const control = (name) => document.getElementById(`viewer-${name}`);
  const facts = JSON.parse(control("facts").textContent);
  const scans = new Map();
  const windows = new Map(facts.scans.map((scan) => [scan.name, scan.window]));
  const [map, codes, numbers] = await Promise.all([
    volumes.numbers("map", Uint8Array),
    volumes.numbers("codes", Uint16Array),
    volumes.numbers("numbers", Uint16Array),
  ]);
  const view = {
    ...facts, map, codes, numbers,
    position: facts.start,
    step: facts.own,
    threshold: facts.steps[facts.own].threshold,
    mirrored: false,
    kept: new Map(),  // candidate -> whether the mask holds it, where another confidence is chosen
    show: { mask: true, leftOut: true, numbers: true },
    toWorld: (at) => [0, 1, 2].map((row) =>
      facts.affine[row].reduce((sum, value, axis) => sum + value * (axis < 3 ? at[axis] : 1), 0)),
  };
  const canvases = new Map(Object.keys(PLANES).map((name) => [name, control(name)]));
  const scanNow = () => facts.scans.find((scan) => scan.name === control("scan").value);

  // --- drawing ---
  const busy = (is) => control("stage").setAttribute("aria-busy", is);
  let [waiting, loading] = [false, 0];
  function redraw() {
    if (waiting) return;
    waiting = true;
    busy(true);
    requestAnimationFrame(() => {
      waiting = false;
      busy(loading > 0);
      canvases.forEach((canvas, name) => canvas.hidden || slices.draw(canvas, name, view));
      control("position").textContent = describe();
    });
  }

  function describe() {
    const [i, j, k] = view.position;
    const index = i + view.shape[0] * (j + view.shape[1] * k);
    const { name, low, high } = scanNow();
    const value = low + (view.scan[index] / 255) * (high - low);
    const [x, y, z] = view.toWorld(view.position).map((mm) => mm.toFixed(0));
    const found = facts.findings.find((each) => each.id === numbers[index]);
    const inMask = view.kept.get(numbers[index]) ?? (facts.patterns[codes[index]] >>> view.step) & 1;
    const words = [`x ${x}, y ${y}, z ${z} mm`, `${name} ${value.toPrecision(3)}`, `map ${(map[index] / 100).toFixed(2)}`];
    const sure = found?.confidence == null ? "" : `, confidence ${found.confidence.toFixed(2)}`;
    const reason = view.kept.get(found?.id) ?? !found?.reason ? "" : found.reason || "its confidence is lower";
    if (found && !reason) words.push(`lesion ${found.id}${sure}`);
    if (found && reason) words.push(`${found.id}${sure}, left out: ${reason}`);
    if (!found && inMask) words.push("in the mask");
    return words.join("; ");
  }

  // All planes have one scale, so that they can be compared.
  function layout() {
    const shown = [...canvases].filter(([, canvas]) => !canvas.hidden);
    const sizes = shown.map(([name]) => {
      const { right, up } = PLANES[name];
      return [view.shape[right] * view.spacing[right], view.shape[up] * view.spacing[up]];
    });
    const stage = control("stage");
    const gap = 6;
    const inRow = shown.length > 1 && stage.clientWidth < 640 ? 2 : shown.length;
    const wide = sizes.slice(0, inRow).reduce((sum, [width]) => sum + width, 0);
    const high = Math.max(...sizes.map(([, height]) => height));
    const room = shown.length > 1 ? 480 : 640;
    const scale = Math.min((stage.clientWidth - gap * (inRow - 1)) / wide, room / high);
    shown.forEach(([, canvas], number) => {
      const [width, height] = sizes[number].map((mm) => Math.floor(mm * scale));
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
      canvas.width = Math.round(width * (devicePixelRatio || 1));
      canvas.height = Math.round(height * (devicePixelRatio || 1));
    });
    redraw();
  }

  // --- where one looks ---
  function moveTo(position) {
    view.position = position.map((at, axis) =>
      Math.min(view.shape[axis] - 1, Math.max(0, Math.round(at))));
    redraw();
  }

  function moveBy(axis, steps) {
    moveTo(view.position.map((at, each) => (each === axis ? at + steps : at)));
  }

  function follow(canvas, name) {
    const plane = PLANES[name];
    const sign = () => (slices.isMirrored(plane, view) ? -1 : 1);
    const point = (event) => {
      const box = canvas.getBoundingClientRect();
      const column = ((event.clientX - box.left) / box.width) * view.shape[plane.right] - 0.5;
      const row = ((event.clientY - box.top) / box.height) * view.shape[plane.up] - 0.5;
      const position = [...view.position];
      position[plane.right] = sign() < 0 ? view.shape[plane.right] - 1 - column : column;
      position[plane.up] = view.shape[plane.up] - 1 - row;
      moveTo(position);
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      point(event);
    });
    canvas.addEventListener("pointermove", (event) => event.buttons & 1 && point(event));
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas) return;  // else the page scrolls
      event.preventDefault();
      moveBy(plane.across, event.deltaY < 0 ? 1 : -1);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const step = {
        ArrowLeft: [plane.right, -sign()], ArrowRight: [plane.right, sign()],
        ArrowUp: [plane.up, 1], ArrowDown: [plane.up, -1],
        PageUp: [plane.across, 1], PageDown: [plane.across, -1],
      }[event.key];
      if (!step) return;
      event.preventDefault();
      moveBy(...step);
    });
  }

  // --- controls ---
  function chooseThreshold() {
    view.step = Number(control("threshold").value);
    const { threshold, volume_ml: ml, lesions, left_out_ml: leftOut, command } = facts.steps[view.step];
    view.threshold = threshold;
    const least = chooseConfidence();
    const own = view.step === facts.own && least === null;
    const moved = facts.findings.filter((each) => view.kept.get(each.id) === Boolean(each.reason));
    const sum = (value) => moved.reduce((total, each) => total + (each.reason ? 1 : -1) * value(each), 0);
    const [more, number] = [sum((each) => each.ml), lesions + sum(() => 1)];
    const text = `${Math.max(0, ml + more).toFixed(2)} ml in ${number} ${number === 1 ? "lesion" : "lesions"}, `
      + `${Math.max(0, leftOut - more).toFixed(2)} ml left out`;
    control("threshold-value").textContent = threshold.toFixed(2);
    control("volume").textContent = own ? `${text} (this result)` : text;
    control("threshold").setAttribute("aria-valuetext", `${threshold.toFixed(2)}: ${text}`);
    control("command").textContent = least === null ? command : command
      .replace(/ --min-confidence \S+/, "").replace(/ --force$/, ` --min-confidence ${least} --force`);
    control("copied").textContent = "";
    moveTick(control("colors"), threshold);
    redraw();
  }

  // Candidates are those of the result's threshold, so with another one there is nothing to choose.
  function chooseConfidence() {
    const field = control("confidence");
    view.kept = new Map();
    if (!field) return null;
    field.disabled = view.step !== facts.own;
    if (field.disabled || !field.checkValidity() || field.value === "") return null;
    const least = Number(field.value);
    if (least === facts.least_confidence) return null;
    facts.findings.forEach((each) => each.judged && view.kept.set(each.id, each.confidence >= least));
    return least;
  }

  function moveTick(bar, threshold) {
    const x = 10 + 200 * threshold;
    bar.querySelectorAll("line").forEach((line) => {
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
    });
    const label = bar.querySelector("text.at-threshold");
    label.setAttribute("x", x);
    label.textContent = threshold.toFixed(2);
  }

  async function chooseScan() {
    const { name } = scanNow();
    loading++;
    busy(true);
    if (!scans.has(name)) scans.set(name, await volumes.scan(name, facts.shape, facts.probe));
    loading--;
    view.scan = scans.get(scanNow().name) ?? scans.get(name);  // another may be chosen by now
    showWindow();
  }

  function showWindow() {
    const { name, low, high, window: usual } = scanNow();
    const [black, white] = windows.get(name);
    const width = high - low;
    view.limits = [black, white].map((value) => (255 * (value - low)) / width);
    const set = (id, value, min, max) => {
      Object.assign(control(id), { min, max, step: width / 200, value });
      control(`${id}-value`).textContent = Number(value.toPrecision(3));
    };
    set("level", (black + white) / 2, low, high);
    set("window", white - black, width / 100, width);
    control("window-reset").disabled = black === usual[0] && white === usual[1];
    redraw();
  }

  function chooseWindow() {
    const [level, width] = [Number(control("level").value), Number(control("window").value)];
    windows.set(scanNow().name, [level - width / 2, level + width / 2]);
    showWindow();
  }

  function on(id, event, action) {
    control(id).addEventListener(event, action);
  }
  on("scan", "change", chooseScan);
  on("level", "input", chooseWindow);
  on("window", "input", chooseWindow);
  on("window-reset", "click", () => {
    windows.set(scanNow().name, scanNow().window);
    showWindow();
  });
  on("threshold", "input", chooseThreshold);
  control("confidence")?.addEventListener("input", chooseThreshold);
  on("threshold-reset", "click", () => {
    control("threshold").value = facts.own;
    if (control("confidence")) control("confidence").value = facts.least_confidence;
    chooseThreshold();
  });
  on("copy", "click", () => copyText(control("command")));
  on("plane", "change", () => {
    const chosen = control("plane").value;
    canvases.forEach((canvas, name) => { canvas.hidden = chosen !== "three" && chosen !== name; });
    layout();
  });
  on("map-opacity", "input", () => {
    view.opacity = Number(control("map-opacity").value);
    redraw();
  });
  for (const [id, part] of [["mask-shown", "mask"], ["left-out-shown", "leftOut"], ["numbers-shown", "numbers"]]) {
    on(id, "change", () => {
      view.show[part] = control(id).checked;
      redraw();
    });
  }
  on("side", "change", () => {
    view.mirrored = control("side").value === "right";
    memory.set("side", control("side").value);
    redraw();
  });

  if (memory.get("side") === "right") control("side").value = "right";
  view.mirrored = control("side").value === "right";
  view.opacity = Number(control("map-opacity").value);
  canvases.forEach(follow);
  await chooseScan();
  panel.hidden = false;
  layout();
  chooseThreshold();
  new ResizeObserver(layout).observe(control("stage"));
  panel.dataset.state = "drawn";

  const toVoxel = (mm) => {
    const [a, b, c] = facts.inverse;
    return [a, b, c].map((row) => row[0] * mm[0] + row[1] * mm[1] + row[2] * mm[2] + row[3]);
  };
  document.querySelectorAll("button[data-point]").forEach((button) => {
    button.hidden = false;
    button.addEventListener("click", () => {
      moveTo(toVoxel(JSON.parse(button.dataset.point)));
      panel.scrollIntoView({ block: "nearest" });
    });
  });
}
