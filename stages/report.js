"use strict";
// Everything shown comes from the JSON block and is set as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { summary, cameras, people, curves } = data;

  // ---- arrays -------------------------------------------------------------------------------------
  const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer;
  const unpack = ({ shape, base64, step }) => ({
    shape, values: Float32Array.from(new Int16Array(bytes(base64)), (x) => (x === -32768 ? NaN : x * step)),
  });
  const rows = ({ shape, values }) => {
    const n = shape[shape.length - 1];
    return Array.from({ length: values.length / n }, (_, i) => values.subarray(i * n, (i + 1) * n));
  };
  const curveRows = (curve) => {
    const mean = rows(unpack(curve.mean));
    const low = curve.low ? rows(unpack(curve.low)) : mean;
    const high = curve.high ? rows(unpack(curve.high)) : mean;
    return mean.map((m, i) => ({ mean: m, low: low[i], high: high[i] }));
  };
  const first = new Int32Array(bytes(curves.first_frame.base64)); // frame of each bin
  const bins = first.length;
  // Everybody's bins, one person's after the other's: the first and the one after the last, and where they begin.
  const spans = new Int32Array(bytes(curves.spans.base64));
  let ahead = 0;
  const owned = people.map((_, p) => {
    const [from, to] = [spans[2 * p], spans[2 * p + 1]];
    const own = { from, to, at: ahead };
    ahead += to - from;
    return own;
  });
  /** The values of a person of a row of all people's, in all bins. */
  const personal = (row, { from, to, at }) => {
    const all = new Float32Array(bins).fill(NaN);
    all.set(row.subarray(at, at + to - from), from);
    return all;
  };
  const personalCurve = (curve, own) => ({ mean: personal(curve.mean, own), low: personal(curve.low, own), high: personal(curve.high, own) });
  const joints = unpack(curves.joints).values; // (all people's bins, joints, 3)
  const joint = (p, b, j) => {
    const { from, to, at } = owned[p];
    if (b < from || b >= to) return [NaN, NaN, NaN];
    const i = ((at + b - from) * data.parents.length + j) * 3;
    return [joints[i], joints[i + 1], joints[i + 2]];
  };
  const binned = data.frames > bins;

  // ---- page elements ------------------------------------------------------------------------------
  const el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "style") Object.assign(node.style, value);
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== null && value !== undefined) node.setAttribute(key, value);
    }
    for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
    return node;
  };
  const number = (x, digits = 1) => (x === null || x === undefined || Number.isNaN(x) ? "–" : x.toFixed(digits));
  const clock = (s, span = data.frames / data.fps) => {
    if (data.frames / data.fps < 100) return `${s.toFixed(span < 10 ? 2 : 1)} s`;
    const whole = Math.round(s);
    const seconds = span < 10 ? (s % 60).toFixed(1).padStart(4, "0") : String(whole % 60).padStart(2, "0");
    const text = `${String(Math.floor(((span < 10 ? s : whole) % 3600) / 60)).padStart(2, "0")}:${seconds}`;
    return whole >= 3600 ? `${Math.floor(whole / 3600)}:${text}` : text;
  };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // Okabe and Ito's colours, which the colour-blind can tell apart; a wheel of hues where there are more.
  const okabe = ["#2286cd", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8E7CC3"];
  const colour = (i, n) => (n <= okabe.length ? okabe[i] : `hsl(${Math.round((360 * i) / n)} 65% 50%)`);
  const cameraColour = (v) => colour(v, cameras.length);

  // ---- the moment that all plots show ---------------------------------------------------------------
  let frame = 0;
  const whole = [0, Math.max(1, data.frames - 1)];
  let view = whole; // first and last frame of all plots over time
  let marked = null; // the stretch that is being dragged out, to look closer
  const watchers = [];
  const drawings = [];
  let asked = false;
  const redraw = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; drawings.forEach((d) => d.paint()); });
  };
  const binOf = (f) => Math.min(bins - 1, Math.max(0, Math.floor((f * bins) / data.frames)));
  const show = (f, from) => {
    frame = Math.min(data.frames - 1, Math.max(0, Math.round(f)));
    watchers.forEach((watch) => watch(from));
    redraw();
  };
  const zoom = (from, to) => {
    const [a, b] = [Math.max(whole[0], Math.round(from)), Math.min(whole[1], Math.round(to))];
    view = b - a < 4 ? view : [a, b];
    watchers.forEach((watch) => watch(video));
    redraw();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  /** A canvas that is `height` CSS pixels high and redrawn when its width changes. */
  const canvas = (cls, label, height, draw) => {
    const node = el("canvas", { class: cls, role: "img", "aria-label": label });
    let width = 0;
    const paint = () => {
      if (!width) return;
      const ratio = window.devicePixelRatio || 1;
      const h = typeof height === "function" ? height(width) : height;
      if (node.width !== Math.round(width * ratio) || node.height !== Math.round(h * ratio)) {
        node.width = Math.round(width * ratio);
        node.height = Math.round(h * ratio);
        node.style.height = `${h}px`;
      }
      const g = node.getContext("2d");
      g.setTransform(ratio, 0, 0, ratio, 0, 0);
      g.clearRect(0, 0, width, h);
      g.font = "11.5px system-ui, sans-serif";
      draw(g, width, h);
    };
    new ResizeObserver(([entry]) => { width = entry.contentRect.width; redraw(); }).observe(node);
    drawings.push({ node, paint });
    return node;
  };
  /** Draw no longer what has been taken off the page. */
  const forget = () => drawings.splice(0, drawings.length, ...drawings.filter((d) => d.node.isConnected));

  // ---- hovering -------------------------------------------------------------------------------------
  const tip = el("div", { class: "tip", hidden: "" });
  const hideTip = () => { tip.hidden = true; };
  const showTip = (event, title, lines) => {
    tip.replaceChildren(
      el("div", { class: "dim" }, title),
      ...lines.map(([name, value, tint]) =>
        el("div", {}, el("span", { style: tint ? { color: tint } : {} }, name), el("b", {}, value))),
    );
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - height - 8))}px`;
  };
  const moment = (b) => {
    const end = b + 1 < bins ? first[b + 1] : data.frames;
    const span = end - first[b] > 1 ? `frames ${first[b]}–${end - 1}` : `frame ${first[b]}`;
    return `${span} · ${clock(first[b] / data.fps)}`;
  };
  /** Hover tells values, a click goes to that moment, a drag looks closer. `at(event)` is the share of the width. */
  const follow = (node, at, values) => {
    let from = null;
    const frameAt = (e) => view[0] + at(e) * (view[1] - view[0]);
    const far = (e) => from !== null && Math.abs(e.clientX - from.x) > 5;
    node.addEventListener("pointerdown", (e) => { from = { x: e.clientX, frame: frameAt(e) }; node.setPointerCapture(e.pointerId); });
    node.addEventListener("pointerup", (e) => {
      if (far(e)) zoom(Math.min(from.frame, frameAt(e)), Math.max(from.frame, frameAt(e)));
      else if (from) show(frameAt(e));
      from = marked = null;
      redraw();
    });
    node.addEventListener("pointercancel", () => { from = marked = null; redraw(); });
    node.addEventListener("dblclick", () => zoom(...whole));
    node.addEventListener("pointerleave", hideTip);
    node.addEventListener("pointermove", (e) => {
      if (far(e)) { marked = [from.frame, frameAt(e)]; redraw(); }
      const b = binOf(frameAt(e));
      showTip(e, moment(b), values(b, e));
    });
  };

  // ---- axes -----------------------------------------------------------------------------------------
  const stepOf = (low, high, count) => {
    const raw = (high - low) / Math.max(1, count);
    const power = 10 ** Math.floor(Math.log10(raw));
    return power * [1, 2, 5, 10].find((s) => s * power >= raw * 0.999);
  };
  const multiples = (step, low, high) => {
    const found = [];
    for (let k = Math.ceil(low / step - 1e-6); k * step <= high + step * 1e-6; k++) found.push(k * step);
    return found;
  };
  /** Seconds between marks: of a second, a minute and an hour the parts that people count in. */
  const clockStep = (span, count) => {
    const raw = span / Math.max(1, count);
    return raw < 10 ? stepOf(0, span, count) : [10, 15, 30, 60, 120, 300, 600, 900, 1800].find((s) => s >= raw) || 3600 * Math.ceil(raw / 3600);
  };
  const timeAxis = (g, left, right, y, top) => {
    const [start, end] = view.map((f) => f / data.fps);
    g.fillStyle = css("--dim");
    g.textAlign = "center";
    g.textBaseline = "top";
    for (const t of multiples(clockStep(end - start, Math.max(2, (right - left) / 95)), start, end)) {
      const x = left + ((right - left) * (t - start)) / (end - start);
      if (top !== null) { g.strokeStyle = css("--grid"); line(g, [[x, top], [x, y]]); }
      g.fillText(clock(t, end - start), Math.min(Math.max(x, left + 12), right - 14), y + 5);
    }
  };
  const line = (g, points) => {
    g.beginPath();
    points.forEach(([x, y], i) => (i ? g.lineTo(x, y) : g.moveTo(x, y)));
    g.stroke();
  };
  /** The shown moment, and the stretch that is being dragged out. */
  const playhead = (g, left, right, top, bottom) => {
    const x = (f) => left + ((right - left) * (f - view[0])) / (view[1] - view[0]);
    if (marked) {
      g.fillStyle = `rgba(${css("--heat")}, .18)`;
      g.fillRect(x(Math.min(...marked)), top, Math.abs(x(marked[1]) - x(marked[0])), bottom - top);
    }
    if (frame < view[0] || frame > view[1]) return;
    g.strokeStyle = css("--text");
    g.globalAlpha = 0.55;
    g.lineWidth = 1;
    line(g, [[x(frame), top], [x(frame), bottom]]);
    g.globalAlpha = 1;
  };

  // ---- curves over time -----------------------------------------------------------------------------
  const LEFT = 44, RIGHT = 8, TOP = 8, BOTTOM = 22;
  /** First and last bin of each of at most so many groups that cover the view. */
  const grouped = (columns) => {
    const [a, b] = view.map(binOf);
    const n = Math.max(1, Math.min(b - a + 1, Math.floor(columns)));
    return Array.from({ length: n }, (_, k) => [a + Math.floor((k * (b - a + 1)) / n), a + Math.floor(((k + 1) * (b - a + 1)) / n) - 1]);
  };
  /** Least, mean and greatest of a series in each group; null where it has no value. */
  const thinned = (s, groups) => groups.map(([a, b]) => {
    let [low, high, sum, count] = [Infinity, -Infinity, 0, 0];
    for (let i = a; i <= b; i++) {
      if (Number.isNaN(s.mean[i])) continue;
      if (s.low[i] < low) low = s.low[i];
      if (s.high[i] > high) high = s.high[i];
      sum += s.mean[i];
      count++;
    }
    return count ? { frame: first[a], low, mean: sum / count, high } : null;
  });
  /** series: [{name, colour, dash, mean, low, high}]; a jump by more than `jump` is not joined. */
  const chart = (label, unit, series, height, digits = 1, jump = Infinity) => {
    const off = new Set();
    const draw = (g, w, h) => {
      const [l, r, t, b] = [LEFT, w - RIGHT, TOP, h - BOTTOM];
      const groups = grouped(r - l);
      const shown = series.filter((s) => !off.has(s)).map((s) => ({ ...s, points: thinned(s, groups) }));
      let [least, most] = [Infinity, -Infinity];
      for (const p of shown.flatMap((s) => s.points)) if (p) { least = Math.min(least, p.low); most = Math.max(most, p.high); }
      if (most < least) [least, most] = [0, 1];
      // From 0, unless that is far away.
      if (most > 0 && least < 2 * (most - least)) least = Math.min(least, 0);
      if (least < 0 && -most < 2 * (most - least)) most = Math.max(most, 0);
      if (most === least) most = least + 1;
      const step = stepOf(least, most, Math.max(2, (b - t) / 30));
      const roof = Math.ceil(most / step - 1e-6) * step;
      const marks = multiples(step, least, roof);
      const x = (f) => l + ((r - l) * (f - view[0])) / (view[1] - view[0]);
      const y = (v) => b - ((b - t) * (v - least)) / (roof - least);
      g.lineWidth = 1;
      timeAxis(g, l, r, b, t);
      g.textAlign = "right";
      g.textBaseline = "middle";
      for (const v of marks) {
        g.strokeStyle = css("--grid");
        line(g, [[l, y(v)], [r, y(v)]]);
        g.fillStyle = css("--dim");
        g.fillText(step < 1 ? v.toFixed(step < 0.1 ? 2 : 1) : String(Math.round(v)), l - 7, y(v));
      }
      g.save();
      g.beginPath(); g.rect(l - 1, 0, r - l + 2, h); g.clip();
      for (const { points, colour, dash } of shown) {
        g.fillStyle = g.strokeStyle = colour;
        g.lineJoin = "round";
        for (let i = 0; i < points.length; i++) {
          let end = i;
          const joined = (k) => k === i || Math.abs(points[k].mean - points[k - 1].mean) <= jump;
          while (end < points.length && points[end] && joined(end)) end++;
          if (end === i) continue; // a gap is left open
          const part = points.slice(i, end);
          if (part.length > 1 && part.some((p) => p.high > p.low)) {
            g.globalAlpha = 0.25;
            g.beginPath();
            for (const p of part) g.lineTo(x(p.frame), y(p.high));
            for (const p of part.reverse()) g.lineTo(x(p.frame), y(p.low));
            g.fill();
            g.globalAlpha = 1;
            part.reverse();
          }
          g.lineWidth = 1.4;
          g.setLineDash(dash || []);
          if (part.length === 1) { g.beginPath(); g.arc(x(part[0].frame), y(part[0].mean), 1.6, 0, 7); g.fill(); }
          else line(g, part.map((p) => [x(p.frame), y(p.mean)]));
          g.setLineDash([]);
          i = end - 1;
        }
      }
      g.restore();
      playhead(g, l, r, t, b);
    };
    const node = canvas("plot", label, height, draw);
    const at = (e) => {
      const box = node.getBoundingClientRect();
      return Math.min(1, Math.max(0, (e.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT)));
    };
    follow(node, at, (b) => series.filter((s) => !off.has(s)).map((s) => {
      const range = binned && !Number.isNaN(s.mean[b]) ? ` (${number(s.low[b], digits)} to ${number(s.high[b], digits)})` : "";
      return [s.name, `${number(s.mean[b], digits)}${range} ${unit}`, s.colour];
    }));
    const legend = el("div", { class: "legend" }, series.map((s) => {
      const button = el("button", {
        type: "button", "aria-pressed": "true", title: s.title || s.name,
        onclick: () => {
          if (off.has(s)) off.delete(s); else off.add(s);
          button.setAttribute("aria-pressed", String(!off.has(s)));
          redraw();
        },
      }, el("i", { style: s.dash ? { background: "none", height: "0", borderRadius: "0", borderTop: `3px dashed ${s.colour}` } : { background: s.colour } }), el("span", {}, s.name));
      return button;
    }));
    return { node, legend };
  };

  const card = (cls, title, note, ...children) =>
    el("section", { class: `card ${cls}` },
      el("div", { class: "head" }, el("h2", {}, title), note ? (typeof note === "string" ? el("span", { class: "dim" }, note) : note) : null),
      ...children);

  // ---- coverage -------------------------------------------------------------------------------------
  const coverage = () => {
    const seen = rows(unpack(curves.keypoints_seen));
    const pictures = rows(unpack(curves.pictures));
    const [fitted, unsure] = [curves.fitted, curves.unsure].map((c) => { const { values } = unpack(c); return owned.map((own) => personal(values, own)); });
    const names = [...cameras.map((c) => c.name), ...people.map((p) => (people.length > 1 ? `person ${p.id}` : "fit"))];
    const high = names.length > 24 ? 12 : 22;
    const height = names.length * (high + 3) + BOTTOM + 6;
    const side = (g) => Math.min(180, Math.max(...names.map((n) => g.measureText(n).width)) + (people.length > 1 ? 28 : 14));
    let left = 80;
    const draw = (g, w, h) => {
      left = side(g);
      const right = w - RIGHT;
      const heat = css("--heat");
      const groups = grouped(right - left);
      const mean = (values, [a, b]) => { let n = 0; for (let i = a; i <= b; i++) n += values[i] || 0; return n / (b - a + 1); };
      const x = (f) => left + ((right - left) * (f - view[0])) / (view[1] - view[0] + 1);
      names.forEach((name, row) => {
        const y = row * (high + 3) + (row >= cameras.length ? 6 : 0);
        g.save();
        g.beginPath(); g.rect(0, y, left - 6, high); g.clip();
        g.fillStyle = css("--text"); g.textAlign = "left"; g.textBaseline = "middle";
        const person = people.length > 1 ? people[row - cameras.length] : undefined;
        g.fillText(name, person ? 14 : 0, y + high / 2 + 0.5);
        if (person) { g.fillStyle = person.colour; g.fillRect(0, y + high / 2 - 5, 10, 10); }
        g.restore();
        for (const group of groups) {
          const x0 = Math.max(left, x(first[group[0]])), x1 = Math.min(right, x(group[1] + 1 < bins ? first[group[1] + 1] : data.frames));
          if (row < cameras.length) {
            if (mean(pictures[row], group) < 0.5) g.fillStyle = css("--none");
            else g.fillStyle = `rgba(${heat}, ${0.06 + 0.94 * mean(seen[row], group)})`;
          } else {
            const p = row - cameras.length;
            const [f, c] = [mean(fitted[p], group), mean(unsure[p], group)];
            const doubted = f < 0.5 && c > 0 && c >= 0.5 - f;
            g.fillStyle = f < 0.5 && !doubted ? css("--none") : person ? person.colour : doubted ? okabe[1] : css("--good");
            g.globalAlpha = person && doubted ? 0.4 : 1;
          }
          g.fillRect(x0, y, x1 - x0 + 0.35, high);
          g.globalAlpha = 1;
        }
      });
      timeAxis(g, left, right, h - BOTTOM, null);
      playhead(g, left, right, 0, h - BOTTOM);
    };
    const node = canvas("plot", "Coverage: camera by time", height, draw);
    follow(node, (e) => {
      const box = node.getBoundingClientRect();
      return Math.min(1, Math.max(0, (e.clientX - box.left - left) / (box.width - left - RIGHT)));
    }, (b, e) => {
      const y = e.clientY - node.getBoundingClientRect().top;
      const row = Math.min(names.length - 1, Math.floor(y / (high + 3)));
      if (row >= cameras.length) {
        const p = row - cameras.length;
        return [["fitted", `${number(100 * fitted[p][b], 0)} %`], ["not accepted", `${number(100 * unsure[p][b], 0)} %`]];
      }
      return [[names[row], `${number(100 * seen[row][b], 0)} % of keypoints`], ["picture", pictures[row][b] === 1 ? "yes" : pictures[row][b] ? `${number(100 * pictures[row][b], 0)} %` : "none"]];
    });
    const key = (background, text) => el("button", { type: "button", tabindex: "-1", style: { cursor: "default" } },
      el("i", { style: { background, height: "10px" } }), el("span", {}, text));
    const legend = el("div", { class: "legend" },
      key("linear-gradient(90deg, rgba(var(--heat), .06), rgb(var(--heat)))", "keypoints seen, 0 to 100 %"), key("var(--none)", "no picture / no pose"),
      key(people.length > 1 ? people[0].colour : "var(--good)", "fitted"), key(people.length > 1 ? `${people[0].colour}66` : okabe[1], "bridged over a gap, or too far off"));
    return card("w12", "Coverage", legend, node);
  };

  // ---- cameras and people in space ------------------------------------------------------------------
  const space = () => {
    const add = (a, b, s = 1) => a.map((x, i) => x + s * b[i]);
    const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
    const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
    const up = data.up;
    const beside = Math.abs(up[0]) > 0.5 ? [0, 1, 0] : [1, 0, 0];
    const level = add(beside, up, -dot(beside, up));
    const e1 = level.map((x) => x / Math.hypot(...level));
    const e2 = cross(up, e1);
    const paths = owned.map(({ from, to }, p) => Array.from({ length: to - from }, (_, k) => joint(p, from + k, 0)));
    const known = paths.flat().filter((x) => !Number.isNaN(x[0]));
    const all = [...cameras.map((c) => c.centre), ...known];
    const middle = (points) => [0, 1, 2].map((i) => {
      const v = points.map((p) => p[i]).sort((a, b) => a - b);
      return v.length ? (v[0] + v[v.length - 1]) / 2 : 0;
    });
    let floor = Infinity;
    for (let i = 0; i < joints.length; i += 3) {
      const h = joints[i] * up[0] + joints[i + 1] * up[1] + joints[i + 2] * up[2];
      if (h < floor) floor = h;
    }
    if (!Number.isFinite(floor)) floor = Math.min(...all.map((p) => dot(p, up))) - 1;
    const target = middle([...all, ...all.map((p) => add(p, up, floor - dot(p, up)))]);
    let radius = 0.5; // of everything, about the middle
    for (const p of all) radius = Math.max(radius, Math.hypot(...add(p, target, -1)));
    // A frustum is a tenth of the scene, large enough to see where a camera looks.
    const frusta = cameras.map((c) => c.corners.map((q) => add(c.centre, add(q, c.centre, -1), (0.28 * radius) / data.frustum_m)));
    const step = radius > 12 ? 5 : 1;
    let [turn, tilt, zoom] = [0.6, 0.5, 1];
    const draw = (g, w, h) => {
      const away = add(add(e1.map((x) => x * Math.cos(turn) * Math.cos(tilt)), e2, Math.sin(turn) * Math.cos(tilt)), up, Math.sin(tilt));
      const right = add(e1.map((x) => -x * Math.sin(turn)), e2, Math.cos(turn));
      const over = cross(away, right);
      const far = radius * 3.2;
      const scale = (Math.min(w, h * 1.5) / 2 / radius) * far * 0.86 * zoom;
      const put = (p) => {
        const d = add(p, target, -1);
        const z = Math.max(far * 0.05, far - dot(d, away));
        return [w / 2 + (scale * dot(d, right)) / z, 0.42 * h - (scale * dot(d, over)) / z];
      };
      // the floor, in squares of a metre, or of five where it is large
      const n = Math.ceil(radius / step);
      const base = add(target, up, floor - dot(target, up));
      g.strokeStyle = css("--line");
      g.lineWidth = 1;
      for (let k = -n; k <= n; k++) {
        for (const [a, b] of [[e1, e2], [e2, e1]]) {
          const from = add(base, a, k * step);
          line(g, [put(add(from, b, -n * step)), put(add(from, b, n * step))]);
        }
      }
      cameras.forEach((c, v) => {
        g.strokeStyle = g.fillStyle = cameraColour(v);
        const [o, ...q] = [c.centre, ...frusta[v]].map(put);
        g.lineWidth = 1.5;
        g.globalAlpha = 0.16;
        g.beginPath(); q.forEach(([x, y], i) => (i ? g.lineTo(x, y) : g.moveTo(x, y))); g.fill();
        g.globalAlpha = 1;
        for (let i = 0; i < 4; i++) { line(g, [o, q[i]]); line(g, [q[i], q[(i + 1) % 4]]); }
        g.lineWidth = 3; line(g, [q[0], q[1]]); // the picture's upper edge
        g.fillStyle = css("--text"); g.textAlign = "center"; g.textBaseline = "bottom";
        const name = c.name.length > 24 ? `${c.name.slice(0, 23)}…` : c.name;
        g.fillText(name, o[0], Math.min(o[1], ...q.map((x) => x[1])) - 5);
      });
      const now = binOf(frame);
      people.forEach((person, p) => {
        const tint = people.length > 1 ? person.colour : css("--accent");
        g.strokeStyle = tint;
        g.lineWidth = 1.6;
        const { from } = owned[p];
        for (let i = 0; i + 1 < paths[p].length; i++) {
          g.globalAlpha = from + i < now ? 0.9 : 0.35;
          if (!Number.isNaN(paths[p][i][0]) && !Number.isNaN(paths[p][i + 1][0])) line(g, [put(paths[p][i]), put(paths[p][i + 1])]);
        }
        g.globalAlpha = 1;
        if (Number.isNaN(joint(p, now, 0)[0])) return;
        g.lineCap = "round";
        g.lineWidth = 3;
        g.strokeStyle = css("--text");
        data.parents.forEach((parent, j) => {
          if (parent >= 0) line(g, [put(joint(p, now, parent)), put(joint(p, now, j))]);
        });
        g.fillStyle = tint;
        data.parents.forEach((_, j) => { const [x, y] = put(joint(p, now, j)); g.beginPath(); g.arc(x, y, 2.4, 0, 7); g.fill(); });
        g.lineCap = "butt";
      });
    };
    const node = canvas("space", "Cameras and the person's path in space", (w) => alongside() || Math.min(560, w * 0.6), draw);
    // Down to where the video beside it ends.
    const alongside = () => {
      if (!video || innerWidth <= 980) return 0;
      return Math.max(240, video.getBoundingClientRect().bottom - node.getBoundingClientRect().top);
    };
    if (video) new ResizeObserver(redraw).observe(video);
    node.tabIndex = 0;
    let held = null;
    node.addEventListener("pointerdown", (e) => { held = [e.clientX, e.clientY]; node.setPointerCapture(e.pointerId); node.focus({ preventScroll: true }); });
    node.addEventListener("pointermove", (e) => {
      if (!held) return;
      turn -= (e.clientX - held[0]) * 0.008;
      tilt = Math.min(1.55, Math.max(-0.6, tilt + (e.clientY - held[1]) * 0.008));
      held = [e.clientX, e.clientY];
      redraw();
    });
    for (const end of ["pointerup", "pointercancel"]) node.addEventListener(end, () => { held = null; });
    const closer = (by) => { zoom = Math.min(12, Math.max(0.4, zoom * by)); redraw(); };
    node.addEventListener("wheel", (e) => {
      if (document.activeElement !== node) return; // the page scrolls until the plot has been clicked
      e.preventDefault();
      closer(Math.exp(-e.deltaY * 0.0015));
    }, { passive: false });
    node.addEventListener("keydown", (e) => {
      const step = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[e.key];
      if (step) { turn += step[0]; tilt = Math.min(1.55, Math.max(-0.6, tilt + step[1])); e.preventDefault(); redraw(); }
      if (e.key === "+") closer(1.2);
      if (e.key === "-") closer(1 / 1.2);
    });
    return card(data.mosaic ? "w5" : "w12", "Cameras and path", `squares of ${step} m · drag to turn; click, then scroll to zoom`, node);
  };

  // ---- video ----------------------------------------------------------------------------------------
  let video = null;
  const mosaic = () => {
    if (!data.mosaic) return null;
    video = el("video", { controls: "", muted: "", preload: "auto", playsinline: "", src: data.mosaic });
    const box = card("w7", "All views", data.mosaic, video);
    video.addEventListener("error", () => {
      video.replaceWith(el("div", { class: "empty" }, `${data.mosaic} is not beside this page, or this browser cannot play it.`));
      video = null;
    });
    const fromVideo = () => { if (video && !video.seeking) show(video.currentTime * data.fps, video); };
    const tick = () => { if (video && !video.paused) { fromVideo(); requestAnimationFrame(tick); } };
    video.addEventListener("play", tick);
    video.addEventListener("seeked", fromVideo);
    watchers.push((from) => {
      // half a frame in: the middle of the frame's time, whatever the player rounds
      if (video && from !== video && video.readyState) video.currentTime = (frame + 0.5) / data.fps;
    });
    return box;
  };

  // ---- tables ---------------------------------------------------------------------------------------
  const table = (head, body) => el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, head.map((h) => el("th", h.startsWith("<") ? { class: "l" } : {}, h.replace(/^</, ""))))),
    el("tbody", {}, body.map((row) => el("tr", {}, row.map((cell, i) => el("td", head[i].startsWith("<") ? { class: "l" } : {}, cell)))))));

  const rig = () => card("w12", "Cameras from above and from the side", null, el("div", { class: "rig" },
    data.rig.map((src, i) => el("img", { src, alt: `the cameras ${i ? "from the side" : "from above"}` }))));

  const stills = () => data.stills.length ? card("w12", "Where detections and fit differ most", null,
    el("div", { class: "stills" }, data.stills.map(({ camera, frame, person, error_px, src }) => el("figure", {},
      el("img", { src, alt: `${camera}, frame ${frame}: keypoints as detected and as fitted` }),
      el("figcaption", {}, el("b", {}, camera), `, frame ${frame}${people.length > 1 ? `, person ${person}` : ""}: ${error_px}\u00a0px`)))),
    el("p", { class: "note" }, "The frame of each camera with the largest reprojection error, around that person. Rings: keypoints as detected, the brighter the surer; dots and bones: as fitted, a dot from green to red by its distance from the ring. A ring beside the body is the detector's mistake, a dot beside it the fit's. Of all frames: run_pipeline.py render OUT --mode skeleton.")) : "";

  const cameraTable = () => {
    const missing = summary.missing || {};
    const name = (c, v) => el("span", {}, el("i", { style: { display: "inline-block", width: "10px", height: "10px", borderRadius: "3px", background: cameraColour(v), marginRight: "8px" } }), c.name);
    const errors = table(
      ["camera", "picture", "reprojection px", "mm", "verdict", "triangulation px", "mm", "verdict"],
      summary.cameras.map((c, v) => {
        const agree = (summary.triangulation || {})[c.name] || {};
        return [name(c, v), cameras[v].size.join("×"), number(c.reprojection_median_px), number(c.reprojection_median_mm), c.verdict ?? "–",
          number(agree.residual_px), number(agree.residual_mm), agree.verdict ?? "–"];
      }));
    const views = table(
      ["camera", "keypoints", "person seen", "not seen", "of these no picture", "sides put right", "<why the person is not there"],
      summary.cameras.map((c, v) => {
        const why = Object.entries((missing[c.name] || {}).frames || {}).map(([reason, count]) => {
          const example = missing[c.name].examples[reason];
          return `${reason} ${count}${example ? ` (first: ${example})` : ""}`;
        }).join(", ");
        return [name(c, v), String(c.keypoints), String(c.frames_with_person), String(c.frames_without_person),
          String(c.frames_without_picture), String(c.sides_exchanged ?? "–"), why || "–"];
      }));
    return card("w12", "Cameras", null, errors,
      Object.values(summary.meanings || {}).map((text) => el("p", { class: "note" }, text)), views);
  };

  const peopleTable = () => {
    if (people.length < 2) return "";
    return card("w12", "People", null, table(
      ["person", "<from, to", "height, m", "frames fitted", "bridged", "too far off", "no pose", "acceleration, mm/frame²"],
      summary.people.map((p, i) => {
        const name = el("span", {}, el("i", { style: { display: "inline-block", width: "10px", height: "10px", borderRadius: "3px", background: people[i].colour, marginRight: "8px" } }), p.id);
        return [name, p.frames ? `${clock(p.first_frame / data.fps)} to ${clock((p.first_frame + p.frames - 1) / data.fps)}` : "–", people[i].height_m ? people[i].height_m.toFixed(2) : "–",
          `${p.frames_fitted} (${number((100 * p.frames_fitted) / p.frames, 0)} %)`, String(p.frames_bridged), String(p.frames_far_off), String(p.frames_without_pose), number(p.jitter_mm, 2)];
      })));
  };

  const timing = () => {
    const stages = summary.stages || [];
    const longest = Math.max(1e-9, ...stages.map((s) => s.total));
    const tints = [["busy", "var(--accent)"], ["starved", "var(--none)"], ["blocked", okabe[1]]];
    const legend = el("div", { class: "legend" }, tints.map(([name, background]) =>
      el("button", { type: "button", tabindex: "-1", style: { cursor: "default" } }, el("i", { style: { background, height: "10px" } }), el("span", {}, name))));
    return card("w8", "Where the time went, seconds", legend,
      table(["stage", "<", "busy", "starved", "blocked", "batches"], stages.map((s) => [
        s.name,
        el("div", { class: "stack" }, tints.map(([key, background]) => el("i", { style: { background, width: `${(100 * s[key]) / longest}%` } }))),
        number(s.busy), number(s.starved), number(s.blocked), String(s.items)])),
      el("p", { class: "note" }, `The last run took ${number(summary.seconds_taken)} s in all. Starved: waiting for input; blocked: waiting for the next stage.`));
  };

  const shape = () => card("w4", "Shape", null, people.length ? people.map((p) => {
    const title = people.length > 1 ? `person ${p.id}` : "";
    if (!p.betas) return el("p", { class: "dim" }, `${title} no shape yet`);
    const most = Math.max(2, ...p.betas.map(Math.abs));
    return el("div", {},
      el("h3", {}, `${title}${title ? ": " : ""}${p.height_m.toFixed(2)} m tall in the rest pose`),
      el("div", { class: "betas" }, p.betas.map((b, i) => {
        const size = (48 * Math.abs(b)) / most;
        return el("div", { title: `beta ${i}: ${b}` }, el("u"), el("i", { style: { top: `${b > 0 ? 50 - size : 50}px`, height: `${Math.max(1, size)}px` } }),
          el("s", {}, b.toFixed(1)), el("b", {}, `β${i}`));
      })));
  }) : nobody(), el("p", { class: "note" }, `Body model ${(summary.body || {}).name || "–"}; betas are in standard deviations.`));

  const settings = () => {
    const list = (entries) => el("dl", {}, entries.flatMap(([k, v]) => [el("dt", {}, k), el("dd", {}, typeof v === "string" ? v : JSON.stringify(v))]));
    const set = (value) => value !== null && value !== undefined;
    const flat = (value, at = "") => Object.entries(value).flatMap(([k, v]) =>
      v && typeof v === "object" && !Array.isArray(v) ? flat(v, `${at}${k}.`) : set(v) ? [[at + k, v]] : []);
    const parts = Object.entries(summary.config || {});
    const plain = parts.filter(([, v]) => set(v) && typeof v !== "object");
    return [
      card("w8", "Configuration", null, plain.length ? list(plain) : null,
        parts.filter(([, v]) => v && typeof v === "object").map(([name, value]) => el("details", {}, el("summary", {}, name), list(flat(value))))),
      card("w4", "Software", null, list([...Object.entries(summary.versions || {}), ["body", `${(summary.body || {}).name} (${String((summary.body || {}).sha256 || "").slice(0, 12)})`],
        ["keypoints", (summary.format || {}).name || "–"], ["how", (summary.format || {}).how || "–"], ["regressor", summary.regressor || "–"]])),
    ];
  };

  // ---- the page -------------------------------------------------------------------------------------
  const median = (values) => { const v = values.filter((x) => x !== null).sort((a, b) => a - b); return v.length ? v[v.length >> 1] : null; };
  const tile = (value, unit, label) => el("div", { class: "tile" }, el("b", {}, value, unit ? [" ", el("small", {}, unit)] : null), el("span", {}, label));
  const fittedFrames = summary.people.reduce((n, p) => n + p.frames_fitted, 0);
  const wantedFrames = Math.max(1, summary.people.reduce((n, p) => n + p.frames, 0));
  const title = String(summary.recording).split(/[\\/]/).filter(Boolean).pop() || "recording";

  const page = document.getElementById("page");
  const nobody = () => el("div", { class: "empty" }, "Nobody has been fitted yet.");
  const angleRows = curveRows(curves.angles_deg);
  const angleNames = Object.keys(data.angles);
  /** Joint angles that share a plot: left and right of one, or those of two parts of the trunk. */
  const angleGroups = () => {
    const groups = new Map();
    const part = /^(hip|knee|ankle)/;
    angleNames.forEach((name, i) => {
      const [, owner, rest] = name.match(/^([a-z]+)_(.+)$/);
      const sided = owner === "left" || owner === "right";
      const section = !sided ? "Trunk" : part.test(rest) ? "Legs" : "Arms";
      const title = sided ? rest.replaceAll("_", " ") : `${{ pelvis: "pelvis and trunk", trunk: "pelvis and trunk", spine: "spine and neck", neck: "spine and neck" }[owner] || owner}: ${rest}`;
      if (!groups.has(section)) groups.set(section, new Map());
      const plots = groups.get(section);
      if (!plots.has(title)) plots.set(title, []);
      plots.get(title).push({ i, name: owner, title: data.angles[name] });
    });
    return ["Legs", "Arms", "Trunk"].filter((s) => groups.has(s)).map((s) => [s, groups.get(s)]);
  };
  const angles = () => {
    if (!people.length || !angleNames.length) return card("w12", "Joint angles", null, nobody());
    const host = el("div");
    const fill = (p) => host.replaceChildren(...angleGroups().flatMap(([section, plots]) => [
      el("h3", { class: "section" }, section),
      el("div", { class: "small" }, [...plots].map(([title, members]) => {
        const series = members.map(({ i, name, title }, k) => ({ name, title, colour: okabe[k], dash: k ? [5, 3] : null, ...personalCurve(angleRows[i], owned[p]) }));
        const { node, legend } = chart(`${title} over time`, "°", series, 140, 0, 180);
        return el("div", {}, el("div", { class: "head" }, el("h3", {}, title), legend), node);
      })),
    ]), el("p", { class: "note" }, "Degrees; 0 in an upright stance with hanging arms. Flexion bends forwards, at the knee backwards; an ankle's is dorsiflexion. Each legend's tooltip defines its angle; the store has all of them as people/<id>/angles."));
    fill(0);
    const choose = people.length > 1
      ? el("select", { "aria-label": "person", onchange: (e) => { fill(Number(e.target.value)); forget(); redraw(); } }, people.map((p, i) => el("option", { value: i }, `person ${p.id}`)))
      : "degrees";
    return card("w12", "Joint angles", choose, host);
  };

  const errors = curveRows(curves.reprojection_px).map((c, v) => ({ name: cameras[v].name, colour: cameraColour(v), ...c }));
  const errorChart = chart("Reprojection error over time", "px", errors, 260);
  const [accelerations] = curveRows(curves.acceleration_mm);
  const jitter = owned.map((own, p) => ({
    name: people.length > 1 ? `person ${people[p].id}` : "all joints", colour: people.length > 1 ? people[p].colour : okabe[0], ...personalCurve(accelerations, own) }));
  const jitterChart = chart("Joint acceleration over time", "mm/frame²", jitter, 200, 2);

  const warnings = [...(summary.warnings || [])];
  if (!summary.complete) warnings.push("The run is not complete: run the same command again to continue.");
  for (const p of summary.people) {
    const who = people.length > 1 ? `person ${p.id}: ` : "";
    const kinds = [[p.frames_bridged, "bridged over gaps"], [p.frames_far_off, "too far off their keypoints"], [p.frames_without_pose, "without a pose"]];
    const told = kinds.filter(([count]) => count).map(([count, what]) => `${count} ${what}`);
    if (told.length) warnings.push(`${who}of ${p.frames} frames, ${told.join(", ")}.`);
  }

  /** Residual of each camera when its clock alone is off by a lag: a sharp valley is a clock that is well known. */
  const clocks = () => {
    const { how, cameras: set, curves: found } = summary.sync || {};
    if (!found || !found.lag_s.length) return "";
    const lines = Object.entries(found.cameras);
    const [low, high] = [found.lag_s[0], found.lag_s[found.lag_s.length - 1]];
    const top = 1.05 * Math.max(...lines.flatMap(([, line]) => line.filter((y) => y !== null)), 1e-9);
    const plot = canvas("curve", "Residual over lag of each camera", 200, (g, width, height) => {
      const [left, bottom] = [44, height - 22];
      const x = (s) => left + ((s - low) / (high - low)) * (width - left - 8);
      const y = (v) => bottom - (v / top) * (bottom - 8);
      g.strokeStyle = css("--grid");
      g.fillStyle = css("--dim");
      for (let i = 0; i <= 4; i++) {
        const lag = low + (i / 4) * (high - low);
        g.strokeRect(x(lag), 8, 0, bottom - 8);
        g.textAlign = i === 0 ? "left" : i === 4 ? "right" : "center";
        g.fillText(`${lag.toFixed(2)} s`, x(lag), height - 6);
      }
      g.textAlign = "right";
      for (let i = 0; i <= 2; i++) g.fillText(((i / 2) * top).toFixed(0), left - 6, y((i / 2) * top) + 4);
      for (const [name, line] of lines) {
        g.strokeStyle = cameraColour(cameras.findIndex((c) => c.name === name));
        g.lineWidth = 1.5;
        g.beginPath();
        let on = false;
        line.forEach((v, i) => {
          if (v === null) { on = false; return; }
          if (on) g.lineTo(x(found.lag_s[i]), y(v)); else g.moveTo(x(found.lag_s[i]), y(v));
          on = true;
        });
        g.stroke();
      }
    });
    const rows = Object.entries(set).map(([name, c]) => {
      const v = cameras.findIndex((camera) => camera.name === name);
      const sure = c.sigma_s === null || c.sigma_s === undefined ? "–" : `${(1000 * c.sigma_s).toFixed(0)} ms`;
      return [el("b", { style: { color: cameraColour(v) } }, name), `${c.offset_s.toFixed(3)} s`, c.drift_ppm ? `${c.drift_ppm.toFixed(0)} ppm` : "–", sure, c.method || "–"];
    });
    return card("w12", `Clocks: residual over lag, ${found.unit}`, null, plot,
      table(["camera", "starts at", "drift", "sure to", "by"], rows),
      el("p", { class: "note" }, `${how[0].toUpperCase()}${how.slice(1)}. Each line is the residual of one camera when its clock alone is off by a lag from where it was found.`));
  };

  page.append(
    el("header", {},
      el("div", {}, el("h1", {}, title), el("p", { class: "path" }, summary.recording),
        el("p", { class: "dim" }, `${cameras.length} cameras · ${data.frames} frames · ${clock(summary.seconds)} · ${data.rate} fps`)),
      el("p", { class: "brand" }, data.software)),
    el("div", { class: "tiles" },
      tile(number(summary.reprojection_median_px), "px",
        `reprojection error${summary.verdict ? `, ${number(summary.reprojection_median_mm)} mm: ${summary.verdict}` : ""}`),
      tile(number((100 * fittedFrames) / wantedFrames, fittedFrames === wantedFrames ? 0 : 1), "%", "of frames fitted"),
      tile(number(median(summary.people.map((p) => p.jitter_mm)), 2), "mm/frame²", "joint acceleration"),
      tile(people[0] && people[0].height_m ? people[0].height_m.toFixed(2) : "–", "m", people.length > 1 ? `height of person ${people[0].id}` : "height"),
      tile(summary.seconds_taken ? number(data.frames / summary.seconds_taken) : "–", "frames/s", (summary.videos || []).length ? "reconstruction and drawing" : "reconstruction")),
    warnings.length ? el("div", { class: "warnings" }, el("h2", {}, "Warnings"), el("ul", {}, warnings.map((w) => el("li", {}, w)))) : "",
    el("div", { class: "grid" },
      mosaic() || "", space(),
      card("w12", "Reprojection error, px", errorChart.legend, errorChart.node,
        binned ? el("p", { class: "note" }, `Lines are means, bands reach from the least to the greatest value: ${data.frames} frames share ${bins} points.`) : ""),
      stills(), coverage(), peopleTable(), angles(),
      card("w12", "Joint acceleration (jitter), mm/frame²", people.length > 1 ? jitterChart.legend : null, jitterChart.node),
      cameraTable(), rig(), clocks(), timing(), shape(), ...settings()),
  );

  // ---- play -----------------------------------------------------------------------------------------
  const slider = el("input", { type: "range", min: 0, max: Math.max(1, data.frames - 1), value: 0, "aria-label": "frame", oninput: (e) => show(Number(e.target.value)) });
  const told = el("output");
  let playing = false;
  let last = 0;
  const advance = (now) => {
    if (!playing) return;
    const next = frame + Math.floor(((now - last) * data.fps) / 1000);
    if (next !== frame) {
      last = now;
      show(next >= data.frames - 1 ? 0 : next);
    }
    requestAnimationFrame(advance);
  };
  const button = el("button", { class: "play", type: "button", "aria-label": "play", onclick: () => {
    if (video) { if (video.paused) video.play(); else video.pause(); return; }
    playing = !playing;
    last = performance.now();
    button.textContent = playing ? "❚❚" : "▶";
    requestAnimationFrame(advance);
  } }, "▶");
  if (video) {
    video.muted = true;
    video.addEventListener("play", () => { button.textContent = "❚❚"; });
    video.addEventListener("pause", () => { button.textContent = "▶"; });
  }
  const wide = el("button", { class: "wide", type: "button", hidden: "", onclick: () => zoom(...whole) });
  watchers.push(() => {
    slider.value = frame;
    told.textContent = `frame ${frame} · ${clock(frame / data.fps)}`;
    wide.hidden = view[0] === whole[0] && view[1] === whole[1];
    wide.textContent = `frames ${view[0]}–${view[1]}: show all`;
  });
  page.append(el("div", { class: "bar" }, button, slider, wide, told),
    el("footer", {}, `Made by ${data.software}. Click on a plot to go to that moment; drag over it to look closer, double-click to see all of it again.`), tip);
  show(0, video);
})();
