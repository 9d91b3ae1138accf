// The page of unlearnlib.report.draw: a drawing board, every model's answer beside it, and a game.
// `live` runs the networks; the classes of the document are those of draw.html.j2 and spot.html.j2.
"use strict";
for (const box of document.querySelectorAll(".draw")) (() => {
  const PAUSE = 600; // milliseconds without a change before an answer is read out
  const WHILE_DRAWING = 120; // milliseconds between two answers
  const STROKE = 25, SOFT = 5; // pixels of the board, of the pen and of its edge
  const FAINT = 20; // of 255: what is less is no ink
  const DIGIT = 20; // pixels of the longer side of a digit; MNIST has it so

  const page = JSON.parse(box.querySelector("script").textContent);
  const {height, width, labels} = page.images;
  const pixels = Uint8Array.from(atob(page.images.pixels), (character) => character.charCodeAt(0));
  const models = page.models.map((model) => ({...model, network: live.network(model)}));
  const find = (name, inside = box) => inside.querySelector(`.${name}`);
  const make = (name, content = {}, ...children) => {
    const element = Object.assign(document.createElement(name), content);
    element.append(...children);
    return element;
  };

  // ------------------------------------------------------------------------------- the image

  const board = find("draw-canvas"), pen = board.getContext("2d", {willReadFrequently: true});
  const seen = find("draw-seen");
  let image = new Float32Array(height * width); // as the networks see it, 0 to 1
  let number = null; // of the test image that is shown, null for a drawing
  const listeners = []; // called with what has changed: true while a stroke goes on

  function testImage(which) {
    const values = pixels.subarray(which * height * width, (which + 1) * height * width);
    return Float32Array.from(values, (value) => value / 255);
  }

  function paint(canvas, values) {
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d", {willReadFrequently: true}), shown = context.createImageData(width, height);
    values.forEach((value, at) => shown.data.set([255, 255, 255, 255 * value], 4 * at));
    context.putImageData(shown, 0, 0);
  }

  // What MNIST did to its digits: scaled to 20x20 with their shape kept, and moved so that the centre
  // of mass is that of the image. Every pixel is the mean of the square of the board that it covers.
  function centred() {
    const side = board.width, ink = pen.getImageData(0, 0, side, side).data;
    const at = (x, y) => (x < 0 || y < 0 || x >= side || y >= side ? 0 : ink[4 * (y * side + x) + 3]);
    let left = side, right = -1, top = side, bottom = -1, mass = 0, massX = 0, massY = 0;
    for (let y = 0; y < side; y++) {
      for (let x = 0; x < side; x++) {
        const value = at(x, y);
        if (value <= FAINT) continue;
        [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
        mass += value, massX += value * x, massY += value * y;
      }
    }
    const values = new Float32Array(height * width);
    if (!mass) return values;
    const step = Math.max(right - left + 1, bottom - top + 1) / DIGIT;
    const part = Math.max(1, Math.round(step)); // samples of a pixel's square, each way
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++) {
        let sum = 0;
        for (let n = 0; n < part * part; n++) {
          const x = column - Math.floor(width / 2) - 0.5 + ((n % part) + 0.5) / part;
          const y = row - Math.floor(height / 2) - 0.5 + (Math.floor(n / part) + 0.5) / part;
          sum += at(Math.round(massX / mass + x * step), Math.round(massY / mass + y * step));
        }
        values[row * width + column] = sum / (part * part) / 255;
      }
    }
    return values;
  }

  function changed(drawing = false) {
    paint(seen, image);
    for (const listener of listeners) listener(drawing);
  }

  function wipe() {
    pen.clearRect(0, 0, board.width, board.height);
    mark(null);
  }

  function mark(which) {
    number = which;
    strip.forEach((button, at) => button.setAttribute("aria-pressed", String(at === which)));
    find("draw-hint").hidden = drawn;
  }

  function pick(which) {
    drawn = false;
    wipe();
    mark(which);
    image = testImage(which);
    const small = make("canvas");
    paint(small, image);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, 0, 0, board.width, board.height);
    changed();
  }

  // ------------------------------------------------------------------------------ by hand

  let drawn = false, last = null, before = 0, took = 0;

  function place(event) {
    const frame = board.getBoundingClientRect(), scale = board.width / frame.width;
    return [(event.clientX - frame.left) * scale, (event.clientY - frame.top) * scale];
  }

  function stroke(events) {
    Object.assign(pen, {lineWidth: STROKE - SOFT, lineCap: "round", lineJoin: "round", strokeStyle: "#fff"});
    Object.assign(pen, {shadowColor: "#fff", shadowBlur: SOFT});
    for (const event of events) {
      const next = place(event);
      pen.beginPath();
      pen.moveTo(...last);
      pen.lineTo(...next);
      pen.stroke();
      last = next;
    }
    pen.shadowBlur = 0;
  }

  function ask(drawing) {
    const now = performance.now();
    if (drawing && now - before < Math.max(WHILE_DRAWING, 2 * took)) return; // the pen comes first
    image = centred();
    changed(drawing);
    before = performance.now();
    took = before - now;
  }

  board.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    board.setPointerCapture(event.pointerId);
    drawn = true;
    if (number !== null) wipe();
    mark(null);
    last = place(event);
    stroke([event]);
    ask(true);
  });
  board.addEventListener("pointermove", (event) => {
    if (!last) return;
    const all = event.getCoalescedEvents?.() ?? [];
    stroke(all.length ? all : [event]);
    ask(true);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    board.addEventListener(end, () => {
      if (last) ask(false);
      last = null;
    });
  }
  find("draw-clear").addEventListener("click", () => {
    drawn = false;
    wipe();
    image = new Float32Array(height * width);
    changed();
  });

  const strip = labels.map((label, which) => {
    const of = labels.slice(0, which + 1).filter((one) => one === label).length;
    const canvas = make("canvas"), name = `Test image of class ${page.classes[label]}, number ${of}`;
    paint(canvas, testImage(which));
    const button = make("button", {type: "button", ariaLabel: name, ariaPressed: "false"}, canvas);
    button.addEventListener("click", () => pick(which));
    return button;
  });
  find("draw-strip").append(...strip);

  // ---------------------------------------------------------------------------- the answers

  const empty = () => image.every((value) => !value);
  const percent = (probability) => String(Math.round(100 * probability));
  const top = (answer) => answer.indexOf(Math.max(...answer));
  const says = (answer) => `${page.classes[top(answer)]} (${percent(Math.max(...answer))} %)`;
  const called = (model) => (model.gold ? `${model.title}, gold` : model.title);
  const answerOf = (model) => live.softmax(live.logits(model.network, image, height, width));

  // A bar with its number above; fill(answer, k) sets it, and without an answer empties it.
  function bar() {
    const value = make("span", {className: "draw-value"}), level = make("span", {className: "draw-bar"});
    const fill = (answer, k) => {
      value.textContent = answer ? percent(answer[k]) : "";
      value.classList.toggle("least", !answer || answer[k] < 0.005);
      value.classList.toggle("most", Boolean(answer) && k === top(answer));
      level.style.setProperty("--part", answer ? answer[k].toFixed(3) : 0);
    };
    return {parts: [value, level], fill};
  }

  const cell = (name, role, ...content) => {
    const element = make(name, {}, ...content);
    element.setAttribute("role", role);
    return element;
  };
  const gone = (k) => page.forgotten.includes(k);
  const noted = (element, k) => (element.classList.toggle("gone", gone(k)), element);
  const heads = page.classes.map((name, k) => noted(cell("th", "columnheader", name), k));
  const rows = models.map((model) => {
    const bars = page.classes.map(bar);
    const cells = bars.map(({parts}, k) => noted(cell("td", "cell", ...parts), k));
    const row = cell("tr", "row", cell("th", "rowheader", called(model)), ...cells);
    row.style.setProperty("--method", model.colour || "var(--ink)");
    row.classList.toggle("gold", model.gold);
    return {model, bars, row};
  });
  const table = cell("table", "table",
    cell("thead", "rowgroup", cell("tr", "row", cell("th", "columnheader", "model"), ...heads)),
    cell("tbody", "rowgroup", ...rows.map(({row}) => row)));
  table.setAttribute("aria-label", "Probability of each class in percent, by model");
  table.style.setProperty("--classes", page.classes.length);
  const told = make("p", {className: "draw-told"}), read = make("p", {className: "draw-read"});
  read.setAttribute("role", "status");
  find("draw-answers").append(told, table, read);

  // In a sentence what the original and gold say, and how many of the others agree with gold.
  function verdict(answers) {
    const of = (test) => answers.find(({model}) => test(model));
    const original = of((model) => !model.gold && !model.unlearned), gold = of((model) => model.gold);
    const others = answers.filter(({model}) => model.unlearned);
    const parts = [];
    if (original) parts.push(`The original says ${says(original.answer)}.`);
    if (gold) parts.push(`Gold, which never saw what was to be forgotten, says ${says(gold.answer)}.`);
    if (gold && others.length) {
      const same = others.filter(({answer}) => top(answer) === top(gold.answer)).length;
      parts.push(`${same} of the ${others.length} others name the same class as gold.`);
    }
    return parts.join(" ");
  }

  let waiting = 0;
  function answer() {
    clearTimeout(waiting);
    const none = empty();
    const answers = none ? [] : models.map((model) => ({model, answer: answerOf(model)}));
    rows.forEach(({bars}, at) => bars.forEach(({fill}, k) => fill(answers[at]?.answer, k)));
    told.textContent = none ? "Draw a digit, or pick a test image." : verdict(answers);
    waiting = setTimeout(() => {
      read.textContent = answers.map(({model, answer}) => `${called(model)}: ${says(answer)}`).join("; ");
    }, PAUSE);
  }
  listeners.push(answer);

  // ------------------------------------------------------------------------------- the game

  function game(spot) {
    const gold = models.find((model) => model.gold), others = models.filter((model) => model.unlearned);
    if (!gold || !others.length) return;
    const random = generator(page.seed);
    const sides = [...spot.querySelectorAll(".spot-model")].map((side) => ({
      name: find("spot-name", side), guess: find("spot-guess", side), bars: page.classes.map(bar), side,
    }));
    const shown = find("spot-image", spot), said = find("spot-said", spot), next = find("spot-next", spot);
    let deck = [], pair = [], open = false, right = 0, asked = 0;

    for (const {side, bars} of sides) {
      const lines = bars.map(({parts}, k) => noted(make("li", {}, ...parts, page.classes[k]), k));
      find("spot-bars", side).append(make("ol", {}, ...lines));
    }

    function show() {
      paint(shown, image);
      sides.forEach(({bars}, at) => {
        const answer = empty() ? null : answerOf(pair[at]);
        bars.forEach(({fill}, k) => fill(answer, k));
      });
    }

    function deal() {
      if (!deck.length) deck = shuffled(others, random);
      const other = deck.pop();
      pair = random() < 0.5 ? [gold, other] : [other, gold];
      open = true;
      said.textContent = asked ? `${right} of ${asked} right so far.` : "";
      next.hidden = true;
      sides.forEach(({name, guess, side}, at) => {
        name.textContent = `Model ${"AB"[at]}`;
        guess.disabled = false;
        side.style.removeProperty("--method");
        side.classList.remove("true", "false");
      });
      show();
    }

    function judge(guessed) {
      if (!open) return;
      open = false;
      asked += 1;
      right += pair[guessed].gold;
      sides.forEach(({name, guess, side}, at) => {
        name.textContent = `Model ${"AB"[at]}: ${pair[at].gold ? "gold, retrained" : pair[at].title}`;
        guess.disabled = true;
        side.style.setProperty("--method", pair[at].colour || "var(--ink)");
        if (at === guessed) side.classList.add(String(pair[at].gold));
      });
      const truth = pair.findIndex((model) => model.gold), other = pair[1 - truth];
      said.textContent = `${pair[guessed].gold ? "Right" : "No"}: ${"AB"[truth]} was retrained, ${"AB"[1 - truth]} is `
        + `${other.title}. ${right} of ${asked} right. ${attacker(other)}`;
      next.hidden = false;
      next.focus({preventScroll: true});
    }

    // How soon either knows the class again: what one sees who has the model and some images.
    function attacker(other) {
      const times = [gold, other].map(({relearned}) => relearned);
      if (times.every((time) => time === null)) return "";
      const [golden, its] = times.map((time) => (time === null ? `more than ${page.most}` : String(time)));
      return `An attacker who trains both on images of the class sees more: ${other.title} knows it `
        + `again after ${its} ${its === "1" ? "mini-batch" : "mini-batches"}, gold after ${golden}.`;
    }

    sides.forEach(({guess}, at) => guess.addEventListener("click", () => judge(at)));
    next.addEventListener("click", () => {
      deal();
      sides[0].guess.focus({preventScroll: true});
    });
    find("spot-other", spot).addEventListener("click", () => pick(Math.floor(random() * labels.length)));
    listeners.push((drawing) => drawing || show());
    find("spot-without", spot).hidden = true;
    find("spot-live", spot).hidden = false;
    deal();
  }

  function shuffled(items, random) {
    const order = [...items];
    for (let at = order.length - 1; at > 0; at--) {
      const other = Math.floor(random() * (at + 1));
      [order[at], order[other]] = [order[other], order[at]];
    }
    return order;
  }

  // Mulberry32: numbers from 0 to 1 from a seed.
  function generator(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let mixed = Math.imul(state ^ (state >>> 15), state | 1);
      mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
    };
  }

  // -------------------------------------------------------------------------------- the start

  box.classList.add("on");
  find("draw-live").hidden = false;
  pick(Math.max(0, labels.findIndex(gone)));
  for (const spot of document.querySelectorAll(".spot")) game(spot);
})();
