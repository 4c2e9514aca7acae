"use strict";
// Draws one plane of a view: scan, map, outlines, numbers, crosshair, sides and a scale bar.
// A view is what `viewer.js` keeps: arrays on one grid, and what of them is to be seen.
const PLANES = {
  axial: { across: 2, right: 0, up: 1, sides: ["L", "R"], axis: "z" },
  coronal: { across: 1, right: 0, up: 2, sides: ["L", "R"], axis: "y" },
  sagittal: { across: 0, right: 1, up: 2, sides: ["P", "A"], axis: "x" },
};
const slices = {
  MASK: "rgb(64, 255, 200)",
  LEFT_OUT: "rgb(215, 215, 215)",
  BARS_MM: [10, 20, 50, 100],

  isMirrored: (plane, view) => view.mirrored && plane.right === 0,

  // Voxel coordinates along a plane's axes to pixels of its drawing, and back; x to the right, y down.
  toPixel(plane, view, [right, up]) {
    const [width, height] = [view.shape[plane.right], view.shape[plane.up]];
    return [this.isMirrored(plane, view) ? width - 1 - right : right, height - 1 - up];
  },

  draw(canvas, name, view) {
    const plane = PLANES[name];
    const [width, height] = [view.shape[plane.right], view.shape[plane.up]];
    const cut = this.cut(plane, view, width, height);
    const context = canvas.getContext("2d");
    const scale = [canvas.width / width, canvas.height / height];
    context.imageSmoothingEnabled = true;
    context.drawImage(cut.picture, 0, 0, canvas.width, canvas.height);
    const ratio = devicePixelRatio || 1;
    if (view.show.leftOut) this.outline(context, cut.leftOut, width, scale, this.LEFT_OUT, 1.2 * ratio);
    if (view.show.mask) this.outline(context, cut.mask, width, scale, this.MASK, 1.6 * ratio);
    this.crosshair(context, plane, view, scale);
    if (view.show.numbers) this.writeNumbers(context, cut.places, scale, ratio);
    this.writeSides(context, name, view, ratio);
    this.scaleBar(context, (canvas.width / width) / view.spacing[plane.right], ratio);
  },

  // The pixels of a cut, which of them lie in the mask or were left out, and where numbers go.
  cut(plane, view, width, height) {
    const strides = [1, view.shape[0], view.shape[0] * view.shape[1]];
    const picture = new OffscreenCanvas(width, height);
    const context = picture.getContext("2d");
    const image = context.createImageData(width, height);
    const [mask, leftOut] = [new Uint8Array(width * height), new Uint8Array(width * height)];
    const places = new Map();
    const mirrored = this.isMirrored(plane, view);
    const [black, white] = view.limits;
    const limit = 100 * view.threshold;
    let pixel = 0;
    for (let y = 0; y < height; y++) {
      let index = view.position[plane.across] * strides[plane.across]
        + (height - 1 - y) * strides[plane.up] + (mirrored ? width - 1 : 0) * strides[plane.right];
      const step = mirrored ? -strides[plane.right] : strides[plane.right];
      for (let x = 0; x < width; x++, pixel++, index += step) {
        const value = view.map[index];
        const grey = 255 * Math.min(1, Math.max(0, (view.scan[index] - black) / (white - black)));
        const opacity = view.opacity * Math.min(1, value / 60);
        for (let c = 0; c < 3; c++) {
          image.data[4 * pixel + c] = (1 - opacity) * grey + opacity * view.palette[value][c];
        }
        image.data[4 * pixel + 3] = 255;
        const number = view.numbers[index];
        mask[pixel] = view.kept.get(number) ?? (view.patterns[view.codes[index]] >>> view.step) & 1;
        leftOut[pixel] = !mask[pixel] && value > limit;
        if (number && (mask[pixel] ? view.show.mask : leftOut[pixel] && view.show.leftOut)) {
          const place = places.get(number);
          if (place?.y === y) place.x = x;
          else if (!place) places.set(number, { x, y, kept: mask[pixel] });
        }
      }
    }
    context.putImageData(image, 0, 0);
    return { picture, mask, leftOut, places };
  },

  // Lines along the edges of the pixels, which say exactly what is in and what is out.
  outline(context, inside, width, [sx, sy], color, lineWidth) {
    const height = inside.length / width;
    const path = new Path2D();
    const line = (x0, y0, x1, y1) => {
      path.moveTo(x0 * sx, y0 * sy);
      path.lineTo(x1 * sx, y1 * sy);
    };
    for (let y = 0, pixel = 0; y < height; y++) {
      for (let x = 0; x < width; x++, pixel++) {
        if (!inside[pixel]) continue;
        if (!x || !inside[pixel - 1]) line(x, y, x, y + 1);
        if (x === width - 1 || !inside[pixel + 1]) line(x + 1, y, x + 1, y + 1);
        if (!y || !inside[pixel - width]) line(x, y, x + 1, y);
        if (y === height - 1 || !inside[pixel + width]) line(x, y + 1, x + 1, y + 1);
      }
    }
    for (const [style, extra] of [["rgba(0, 0, 0, 0.55)", 2], [color, 0]]) {
      context.strokeStyle = style;
      context.lineWidth = lineWidth + extra;
      context.stroke(path);
    }
  },

  crosshair(context, plane, view, [sx, sy]) {
    const at = [view.position[plane.right], view.position[plane.up]];
    const [column, row] = this.toPixel(plane, view, at);
    const [x, y, gap] = [(column + 0.5) * sx, (row + 0.5) * sy, 8 * (devicePixelRatio || 1)];
    context.strokeStyle = "rgba(110, 190, 255, 0.75)";
    context.lineWidth = 1;
    context.beginPath();
    [[0, y, x - gap, y], [x + gap, y, context.canvas.width, y], [x, 0, x, y - gap],
      [x, y + gap, x, context.canvas.height]].forEach(([x0, y0, x1, y1]) => {
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
    });
    context.stroke();
  },

  text(context, text, x, y, { align = "left", color = "#ebebeb", size = 13, ratio = 1 } = {}) {
    context.font = `600 ${size * ratio}px system-ui, sans-serif`;
    context.textAlign = align;
    context.textBaseline = "middle";
    context.lineJoin = "round";
    context.lineWidth = 3 * ratio;
    context.strokeStyle = "#000";
    context.strokeText(text, x, y);
    context.fillStyle = color;
    context.fillText(text, x, y);
  },

  writeNumbers(context, places, [sx, sy], ratio) {
    for (const [number, { x, y, kept }] of places) {
      const left = Math.min((x + 1) * sx + 2 * ratio, context.canvas.width - 18 * ratio);
      const color = kept ? this.MASK : this.LEFT_OUT;
      this.text(context, String(number), left, Math.max(y * sy, 26 * ratio), { color, ratio });
    }
  },

  writeSides(context, name, view, ratio) {
    const plane = PLANES[name];
    const sides = this.isMirrored(plane, view) ? [...plane.sides].reverse() : plane.sides;
    const { width, height } = context.canvas;
    const large = { size: 15, ratio };
    this.text(context, sides[0], 5 * ratio, height / 2, large);
    this.text(context, sides[1], width - 5 * ratio, height / 2, { ...large, align: "right" });
    const mm = view.toWorld(view.position)[plane.across].toFixed(0);
    this.text(context, `${name}, ${plane.axis} = ${mm} mm`, 6 * ratio, 12 * ratio, { ratio });
  },

  scaleBar(context, pixelsPerMm, ratio) {
    const { width, height } = context.canvas;
    const mm = this.BARS_MM.filter((each) => each * pixelsPerMm < 0.3 * width).pop();
    if (!mm) return;
    const [right, bottom] = [width - 10 * ratio, height - 9 * ratio];
    for (const [color, rim] of [["#000", ratio], ["#ebebeb", 0]]) {
      context.fillStyle = color;
      const [long, high] = [mm * pixelsPerMm + 2 * rim, 2 * ratio + 2 * rim];
      context.fillRect(right - mm * pixelsPerMm - rim, bottom - rim, long, high);
    }
    this.text(context, `${mm / 10} cm`, right, bottom - 9 * ratio, { align: "right", size: 11, ratio });
  },
};
