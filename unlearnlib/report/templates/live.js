// Networks of unlearnlib.report.live: weights are unpacked once, then logits are computed image by image.
// Maps are Float32Arrays, channel by channel, row by row, as in PyTorch.
"use strict";
const live = (() => {
  // Base64 of little-endian half-precision numbers, as single precision.
  function unpacked(text) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Float32Array.from({length: bytes.length / 2}, (_, at) => number(view.getUint16(2 * at, true)));
  }

  function number(bits) {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
  }

  // Gives every layer its weights, which stand one layer after the other.
  function network(described) {
    const all = unpacked(described.weights);
    let at = 0;
    const take = (count) => all.subarray(at, at += count);
    return described.layers.map((layer) => {
      if (!layer.outputs) return layer;
      const weight = take(layer.outputs * layer.inputs * (layer.kernel ?? 1) ** 2);
      return {...layer, weight, bias: take(layer.outputs)};
    });
  }

  function convolution(map, {inputs, outputs, kernel, stride, padding, weight, bias}) {
    const side = (length) => Math.floor((length + 2 * padding - kernel) / stride) + 1;
    const {height, width} = map, rows = side(height), columns = side(width);
    const values = new Float32Array(outputs * rows * columns);
    for (let o = 0; o < outputs; o++) {
      const out = o * rows * columns;
      values.fill(bias[o], out, out + rows * columns);
      for (let i = 0; i < inputs; i++) {
        for (let y = 0; y < kernel; y++) {
          for (let x = 0; x < kernel; x++) {
            const w = weight[((o * inputs + i) * kernel + y) * kernel + x];
            // columns of the result for which the kernel's column lies on the map
            const first = Math.max(0, Math.ceil((padding - x) / stride));
            const last = Math.min(columns - 1, Math.floor((width - 1 + padding - x) / stride));
            for (let r = 0; r < rows; r++) {
              const from = r * stride + y - padding;
              if (from < 0 || from >= height) continue;
              const line = (i * height + from) * width + x - padding, to = out + r * columns;
              for (let c = first; c <= last; c++) values[to + c] += w * map.values[line + c * stride];
            }
          }
        }
      }
    }
    return {values, height: rows, width: columns};
  }

  function relu({values, height, width}) {
    return {values: values.map((value) => Math.max(0, value)), height, width};
  }

  function average({values, height, width}) {
    const area = height * width, means = new Float32Array(values.length / area);
    for (let c = 0; c < means.length; c++) {
      let sum = 0;
      for (let at = c * area; at < (c + 1) * area; at++) sum += values[at];
      means[c] = sum / area;
    }
    return {values: means, height: 1, width: 1};
  }

  function linear({values}, {inputs, outputs, weight, bias}) {
    const sums = Float32Array.from(bias);
    for (let o = 0; o < outputs; o++) {
      for (let i = 0; i < inputs; i++) sums[o] += weight[o * inputs + i] * values[i];
    }
    return {values: sums, height: 1, width: 1};
  }

  const kinds = {convolution, relu, average, linear};

  // Logits of one grey image, row by row, with values from 0 to 1.
  function logits(layers, values, height, width) {
    const image = {values, height, width};
    return layers.reduce((map, layer) => kinds[layer.kind](map, layer), image).values;
  }

  function softmax(logits) {
    const highest = Math.max(...logits), raised = Array.from(logits, (value) => Math.exp(value - highest));
    const sum = raised.reduce((a, b) => a + b, 0);
    return raised.map((value) => value / sum);
  }

  return {network, logits, softmax};
})();
