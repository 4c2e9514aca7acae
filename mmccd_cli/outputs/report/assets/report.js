"use strict";
// The interactive viewer. All that it shows lies in this file; without WebGL 2 it steps aside,
// and the still pictures remain.
(() => {
  const OUTLINE = 1;  // opacity of the mask's outline
  const panel = document.getElementById("viewer");
  const say = (text) => {
    const message = document.getElementById("viewer-message");
    message.textContent = text;
    message.hidden = !text;
  };

  function hasWebGL() {
    const context = document.createElement("canvas").getContext("webgl2");
    if (!context) return false;
    context.getExtension("WEBGL_lose_context")?.loseContext();
    return true;
  }

  async function unpacked(id) {
    const packed = atob(document.getElementById(id).textContent.trim());
    const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(plain);
  }

  async function loadLibrary() {
    const script = document.createElement("script");
    script.textContent = await (await unpacked("viewer-code")).text();
    document.head.append(script);
    if (!globalThis.niivue) throw new Error("the browser did not run the viewer's code");
    return globalThis.niivue;
  }

  async function makeImage(library, name, options) {
    const buffer = await (await unpacked(`viewer-${name}`)).arrayBuffer();
    const image = await library.NVImage.new(buffer, `${name}.nii`, options.colormap, options.opacity);
    image.cal_min = options.low;
    image.cal_max = options.high;
    return image;
  }

  async function start() {
    const facts = JSON.parse(document.getElementById("viewer-facts").textContent);
    const library = await loadLibrary();
    const view = new library.Niivue({
      logLevel: "silent",
      dragAndDropEnabled: false,
      scrollRequiresFocus: true,
      isNearestInterpolation: false,
      isSliceMM: false,
      multiplanarShowRender: library.SHOW_RENDER.NEVER,
      multiplanarLayout: library.MULTIPLANAR_TYPE.AUTO,
      atlasOutline: OUTLINE,
      crosshairWidth: 0.8,
      crosshairWidthUnit: "mm",
      showAllOrientationMarkers: true,
      crosshairColor: [0.4, 0.75, 1, 0.8],
      fontColor: [0.9, 0.9, 0.9, 1],
      fontMinPx: 15,
      loadingText: "",
    });
    view.addColormap("mmccd_map", {
      R: [70, 180, 240, 255, 255],
      G: [0, 20, 90, 180, 250],
      B: [40, 40, 20, 30, 160],
      A: [0, 90, 180, 200, 210],
      I: [0, 64, 128, 191, 255],
    });
    const canvas = document.getElementById("viewer-canvas");
    panel.hidden = false;
    await view.attachToCanvas(canvas);
    const opacity = Number(document.getElementById("viewer-map-opacity").value);
    // The mask itself is nearly clear, so that the map shows inside its outline.
    const images = [
      await makeImage(library, "reference", { colormap: "gray", opacity: 1, low: 0, high: 255 }),
      await makeImage(library, "map", { colormap: "mmccd_map", opacity, low: 12, high: 255 }),
      await makeImage(library, "mask", { colormap: "gray", opacity: 0.02, low: 0, high: 1 }),
    ];
    images[2].setColormapLabel({
      R: [0, 64], G: [0, 255], B: [0, 200], A: [0, 255], I: [0, 1], labels: ["", "mask"],
    });
    images.forEach((image) => view.addVolume(image));
    view.setInterpolation(false);
    connect(view, library, canvas, facts);
    panel.dataset.state = "drawn";
  }

  function connect(view, library, canvas, facts) {
    const control = (id) => document.getElementById(id);
    const readout = control("viewer-position");
    view.onLocationChange = (place) => {
      const [x, y, z] = place.mm;
      const value = place.values?.[1]?.value;
      const map = Number.isFinite(value) ? `, map ${(value / 255).toFixed(2)}` : "";
      readout.textContent = `x ${x.toFixed(0)}, y ${y.toFixed(0)}, z ${z.toFixed(0)} mm${map}`;
    };
    const goTo = (point) => {
      view.scene.crosshairPos = view.mm2frac(point, 0, true);  // true: exact for oblique scans
      view.drawScene();
      view.createOnLocationChange();
    };
    const planes = {
      three: library.SLICE_TYPE.MULTIPLANAR,
      axial: library.SLICE_TYPE.AXIAL,
      coronal: library.SLICE_TYPE.CORONAL,
      sagittal: library.SLICE_TYPE.SAGITTAL,
    };
    control("viewer-plane").addEventListener("change", (event) =>
      view.setSliceType(planes[event.target.value]));
    control("viewer-map-opacity").addEventListener("input", (event) =>
      view.setOpacity(1, Number(event.target.value)));
    control("viewer-mask-shown").addEventListener("change", (event) =>
      view.setAtlasOutline(event.target.checked ? OUTLINE : 0));
    control("viewer-side").addEventListener("change", (event) =>
      view.setRadiologicalConvention(event.target.value === "right"));
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowDown: [0, -1, 0],
        ArrowUp: [0, 1, 0], PageDown: [0, 0, -1], PageUp: [0, 0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      view.moveCrosshairInVox(...step);
    }, true);
    document.querySelectorAll("button[data-point]").forEach((button) => {
      button.hidden = false;
      button.addEventListener("click", () => {
        goTo(JSON.parse(button.dataset.point));
        panel.scrollIntoView({ block: "nearest" });
      });
    });
    goTo(facts.start);
  }

  if (!panel) return;
  if (!hasWebGL() || typeof DecompressionStream === "undefined") {
    panel.dataset.state = "fallback";
    say("This browser shows no WebGL 2, which the interactive viewer needs. "
      + "The still pictures below show the same.");
    return;
  }
  start().catch((problem) => {
    panel.hidden = true;
    panel.dataset.state = "fallback";
    say(`The interactive viewer could not start (${problem.message}). `
      + "The still pictures below show the same.");
  });
})();
