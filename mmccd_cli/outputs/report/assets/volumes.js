"use strict";
// The report's images, unpacked from the page itself. Each becomes one array of numbers, in which
// the first axis (to the right) runs fastest, then the second (to the front), then the third (up).
const volumes = {
  bytes(name) {
    const packed = atob(document.getElementById(`viewer-${name}`).textContent.trim());
    return Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  },

  async numbers(name, Type) {
    const plain = new Blob([this.bytes(name)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Type(await new Response(plain).arrayBuffer());
  },

  // A scan from the picture of its slices; see `slices_jpeg` in viewer.py.
  async scan(name, [width, height, depth], probe) {
    const blob = new Blob([this.bytes(`scan-${name}`)], { type: "image/jpeg" });
    const picture = await createImageBitmap(blob);
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [picture.width, picture.height];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(picture, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    const grey = (x, y) => pixels[4 * (y * canvas.width + x)];
    const inProbe = canvas.height - probe / 2;
    if (grey(2, inProbe) < 230 || grey(canvas.width - 3, inProbe) > 25) {
      throw new Error("the browser does not let a page read its own pictures");
    }
    const columns = canvas.width / width;
    const volume = new Uint8Array(width * height * depth);
    let index = 0;
    for (let k = 0; k < depth; k++) {
      const [left, top] = [(k % columns) * width, Math.floor(k / columns) * height];
      for (let j = 0; j < height; j++) {
        for (let i = 0; i < width; i++) volume[index++] = grey(left + i, top + j);
      }
    }
    return volume;
  },
};
