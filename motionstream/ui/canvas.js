/* The live canvas in the browser. Gradio runs this once, with `element`, `trigger`, `props` and `watch` in scope.

   Gradio's own channel carries two things: the value {token} (watch) and the 'start' event (trigger), whose
   pending request is the visitor's place on the machine. All else runs over one WebSocket: control messages up
   (JSON), pictures down (binary: uint32 little endian header length, JSON header, JPEG). Coordinates are pixels of the
   generated frame (`extent`); frames and the picture canvas may be larger than that. Parts: Player, panel, gestures,
   painting, Link, page. A tab's own script (PANEL.js) is put in near the end, in a block of its own, and sees all that is here. */
'use strict';

const COLOURS = { drag: '#22c55e', hold: '#ef4444', pin: '#ef4444', path: '#3b82f6' };
const JITTER_MS = 30;                    // first frame after a gap waits this long for its followers
const TRAIL_MS = 900;                    // a drag's visible tail
const RECONNECT_MS = 1500;
const DOUBLE_CLICK_MS = 500;             // between its two halves, at most
const BROKEN_MS = 10000;                 // after a connection is lost, Gradio's script may load the page anew
const HIDDEN_MS = 15000;                 // a page out of sight for so long makes room for others
const SHRUNK_SIDE = 2048;               // pixels of a photo that is larger than the server takes
const WORD = /\p{L}+/gu;                 // of a prompt, as the server finds them
const KEPT = 'motionstream';             // in the session storage: what a page that has gone leaves to the one after it
const STALE_PAGE = 4401;                 // WebSocket close code: the server does not know this page's token
const HINTS = {
  offline: '',
  idle: 'Press Start, then drag anything in the picture',
  starting: 'Starting …',
  live: 'Drag the picture',
  paused: 'Paused: pins, paths and drags made now act together on resume',
  stopping: 'Finishing the clip …',
};
const BADGES = {
  offline: 'Connecting', idle: 'Ready', starting: 'Starting', live: 'Live', paused: 'Paused', stopping: 'Stopping',
};

const part = name => element.querySelector(`[data-ms="${name}"]`);
const extent = { width: 1, height: 1 };  // of the picture, in the pixels in which places are told
const root = part('root'), picture = part('picture'), overlay = part('overlay'), poster = part('poster');
const closing = new AbortController();   // takes the listeners on document away with the component
const median = values => [...values].sort((a, b) => a - b)[(values.length - 1) >> 1];
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/* ---- Player: frames come in bursts of a chunk, leave one by one at an even pace ---- */

class Player {
  constructor(context, onPaint, onAck) {
    Object.assign(this, { context, onPaint, onAck });
    this.reset(16);
  }

  reset(fps) {
    (this.queue || []).forEach(entry => entry.bitmap?.close());
    Object.assign(this, {
      queue: [], interval: 1000 / fps, period: 1000 / fps, due: 0, dry: true, paused: false,
      frame: 0, turned: {}, newest: -1, chunk: -1, acked: -1, seconds: [], margin: 120,
    });
  }

  async push(header, blob) {
    const entry = { header, bitmap: null };
    if (!this.queue.length) this.due = Math.max(this.due, performance.now() + JITTER_MS);
    this.queue.push(entry);
    this.newest = header.frame;
    if (header.index === 0) this.measure(header);
    entry.bitmap = await createImageBitmap(blob);
  }

  measure(header) {                      // a machine slower than playback: slower and even beats fast and halting
    this.seconds = [...this.seconds.slice(-2), header.seconds];
    this.period = Math.max(this.interval, 1080 * median(this.seconds) / header.count);
  }

  tick(now) {
    if (this.paused) return;
    if (!this.queue.length) {
      if (!this.dry && now > this.due + this.period / 2) {   // ran dry: ask earlier from now on
        this.dry = true;
        this.margin = Math.min(this.margin + 40, 600);
      }
      return;
    }
    if (now >= this.due && this.queue[0].bitmap) this.paint(now);
    this.acknowledge(now);
  }

  paint(now) {
    const { header, bitmap } = this.queue.shift();
    this.context.drawImage(bitmap, 0, 0, this.context.canvas.width, this.context.canvas.height);
    bitmap.close();
    this.due = now + this.period - Math.min(now - this.due, 0.7 * this.period);   // catches up, but not in a rush
    this.frame = header.frame;
    this.turned = header.turned;         // radians, of the grids that have, by their controls' ids
    this.chunk = header.chunk;
    this.dry = false;
    this.onPaint(header);
  }

  acknowledge(now) {                     // as late as generation allows: the next chunk then knows the newest drags
    if (this.chunk <= this.acked) return;
    const left = this.due + this.queue.length * this.period - now;
    if (left > 1000 * Math.max(...this.seconds) + this.margin) return;
    this.acked = this.chunk;
    this.margin = Math.max(80, this.margin * 0.97);
    this.onAck(this.chunk);
  }
}

/* ---- panel: what a tab brings of its own fills these in ---- */

const panel = {
  starting: () => ({}),                  // goes with the start, as JSON; null refuses it (and says why itself)
  entered: state => {},                  // after each change of state: idle, starting, live, paused, ...
  idle: () => '',                        // what to do first, if not to press Start
  hear: message => {},                   // a JSON message of the server that is none of the canvas's own
  see: (header, blob) => {},             // a picture message of the server that is none of the canvas's own
  welcomed: facts => {},                 // connected, maybe again
  shown: header => {},                   // another picture lies on the canvas; header: of the server's message
  paint: (pen, unit) => {},              // the overlay, in pixels of the picture; unit: one CSS pixel
  press: (sample, event) => false,       // pointer down at {x, y, t, frame}; true takes this pointer over
  move: (sample, event) => {},           // a pointer that was taken over
  lift: (sample, event) => {},
  key: (event, down) => false,           // key down or up while nothing is typed; true takes the key over
  released: () => {},                    // all keys count as up: the page has lost the focus
  tick: now => {},                       // every animation frame
  keep: () => ({}),                      // JSON for `past.panel` on the page after this one
  file: (file, chosen) => false,         // dropped, pasted or, if chosen, a photo; true takes it over, else a picture
};

/* ---- state ---- */

function stored(action) {                // null where the browser allows no storage, as in some embedded pages
  try { return action(sessionStorage); } catch { return null; }
}

function inherited(storage) {
  const text = storage.getItem(KEPT);
  storage.removeItem(KEPT);              // a copy of this page must not take the seats of a page in use
  return JSON.parse(text);
}

const kept = window.motionstreamKept ??= stored(inherited) ?? {};   // {token, open: SEAT, broken, SEAT: {...}}
const past = kept[props.seat] ?? {};     // what this canvas was like on the page before

let state = 'offline', tool = 'drag', release = 'hold', nextId = 1, runs = past.runs ?? 0, token = null;
let controls = [];                       // pins, paths and held drags, oldest first
let initial = [];                        // those that were there at Start: Stop brings them back
let afterStop = null;                    // what to do once the running stream has ended
let asked = 0;                           // pictures that the server was asked for: no start before they are here
let choices = 0;                         // pictures chosen so far: of two the newer counts, whichever is ready first
let onCanvas = past.number ?? null;      // number of the picture that is shown, or that `controls` are for
let leaving = null, lostAt = -Infinity;  // timer of a page out of sight; when the connection broke last
let playPressed = -Infinity;             // when the button over the picture was pressed
let hover = null, dirty = true, facts = { fps: 16, vocabulary: {} };
let latencies = [], speeds = [], lastInput = -Infinity;
const drags = new Map();                 // pointerId -> drag in progress
const taken = new Set();                 // pointerIds that the panel has taken over
const running = () => state === 'starting' || state === 'live' || state === 'paused';
const grid = () => ({ spacing: Number(part('spacing').value), size: Number(part('size').value) });

function enter(next) {
  const refused = state === 'starting' && next === 'live' && wrong();   // some of what came with the start
  state = root.dataset.state = next;
  part('badge').textContent = BADGES[next];
  part('start').textContent = running() ? 'Stop' : 'Start';
  showStart();
  part('pause').textContent = next === 'paused' ? 'Resume' : 'Pause';
  part('pause').disabled = next !== 'live' && next !== 'paused';
  if (!refused) say(hint());
  dirty = true;
  panel.entered(next);
}

function ask(send) {                     // for a picture; it comes, or an error does
  asked++;
  showStart();
  send();
}

function answered() {
  asked = Math.max(0, asked - 1);
  showStart();
}

function showStart() {
  part('start').disabled = state === 'offline' || state === 'stopping' || state === 'idle' && asked > 0;
}

function say(text, tone = 'hint') {
  part('message').textContent = text && text[0].toUpperCase() + text.slice(1);
  part('strip').dataset.tone = tone;
}

const hint = () => state === 'idle' && panel.idle() || HINTS[state];
const wrong = () => part('strip').dataset.tone === 'error';

function calm() {                        // what went wrong is over with the next thing that is done
  if (wrong()) say(hint());
}

function showStill() {                   // a new stream starts from the picture, so show the picture
  if (state === 'idle') poster.hidden = !poster.src;
}

const player = new Player(picture.getContext('2d'), painted, chunk => link.send({ kind: 'ack', chunk }));

function painted(header) {
  if (state === 'starting') {
    offerClip(null);                     // not before: a start that is refused leaves the clip of the stream before
    enter('live');
  }
  poster.hidden = true;
  dirty = true;
  part('counter').textContent = header.frame;
  if (header.index !== 0) return;
  speeds = [...speeds.slice(-4), header.count / header.seconds];
  part('fps').textContent = median(speeds).toFixed(0);
  if (header.input === null || header.input <= lastInput) return;
  lastInput = header.input;
  latencies = [...latencies.slice(-4), performance.now() - header.input];
  part('latency').textContent = `${(median(latencies) / 1000).toFixed(2)} s`;
}

/* ---- start, pause, stop ---- */

function start() {
  if (state !== 'idle') return;
  if (asked) return say('The picture is on its way: start when it is here', 'error');
  const own = panel.starting();
  if (own === null) return;
  const messages = [{ kind: 'release', mode: release }];
  for (const control of controls) messages.push({ kind: 'grid', ...control.grid }, { ...wire(control), frame: 0 });
  initial = controls.map(control => Object.assign(control, { since: 0, mode: release }));
  latencies = []; speeds = []; lastInput = -Infinity;
  part('latency').textContent = part('fps').textContent = '–';
  player.reset(facts.fps);
  link.held = [];
  enter('starting');
  messages.push({ kind: 'grid', ...grid() });
  trigger('start', { run: ++runs, prompt: part('prompt').value, messages, panel: own });
}

function stop() {
  if (!running()) return;
  link.held = null;
  link.send({ kind: 'stop', run: runs });     // numbered: it may overtake its own start
  enter('stopping');
  player.reset(facts.fps);
}

function pause() {
  if (state !== 'live' && state !== 'paused') return;
  player.paused = player.dry = state === 'live';
  lastInput = performance.now();         // what was done before has waited for the visitor, not for the machine
  link.send({ kind: 'pause', value: player.paused });
  enter(player.paused ? 'paused' : 'live');
}

function ended(text, failed) {
  player.reset(facts.fps);
  link.held = null;
  drags.clear();
  controls = initial = initial.filter(control => controls.includes(control));
  for (const control of controls) Object.assign(control, { at: null, over: false });   // what a drag did to it
  enter('idle');
  if (text) say(text, failed ? 'error' : 'hint');
  sayReady();
  const next = afterStop;
  afterStop = null;
  next?.();
}

function whenStopped(action) {           // a new picture ends the stream of the old one first
  if (state === 'offline') return say('Not connected to the server yet', 'error');
  if (state === 'idle') return action();
  afterStop = action;
  stop();
}

function offerClip(clip) {
  const button = part('download');
  button.setAttribute('aria-disabled', String(!clip));
  if (!clip) return button.removeAttribute('href');
  button.href = home() + clip.url;
  button.download = clip.name;
  sayReady();
}

function sayReady() {                    // clip and end come in any order; only what is said to everybody gives way
  if (state !== 'idle' || !part('download').href || part('message').textContent !== hint()) return;
  say('The clip is ready: Download saves it, Start begins anew');
}

/* ---- gestures: pointer events become control messages ---- */

const wire = ({ kind, id, x, y, points, seconds, frame }) =>
  kind === 'path' ? { kind, id, points, seconds, frame } : { kind: 'pin', id, x, y, frame };

function sample(event) {
  const box = picture.getBoundingClientRect();
  const x = (event.clientX - box.left) * extent.width / box.width;
  const y = (event.clientY - box.top) * extent.height / box.height;
  return { x, y, t: event.timeStamp, frame: player.frame };
}

function full() {                        // whether there is no room for one more, and says so
  const count = controls.length + drags.size, none = count >= facts.max_controls;
  if (none) say(`There are ${count} pins, paths and drags, the most there can be: remove some`, 'error');
  return none;
}

function add(control) {
  if (control.kind !== 'hold' && full()) return;   // a drag that is held had its place before
  controls.push(control);
  control.id ??= nextId++;
  control.grid ??= grid();
  Object.assign(control, { frame: player.frame, since: player.newest + 1, mode: release });
  dirty = true;
  if (running() && control.kind !== 'hold') link.send(wire(control));
}

function press(event) {
  if (event.button !== 0 || state === 'offline' || state === 'stopping') return;
  event.preventDefault();
  if (event.timeStamp - playPressed < DOUBLE_CLICK_MS) return;   // it was meant for the button that was here
  picture.focus({ preventScroll: true });
  calm();
  showStill();
  const first = sample(event);
  if (panel.press(first, event)) {
    picture.setPointerCapture(event.pointerId);
    taken.add(event.pointerId);
    dirty = true;
    return;
  }
  if (tool === 'pin') return add({ kind: 'pin', x: first.x, y: first.y });
  if (tool === 'drag' && state === 'idle')
    return say('Press Start first, or choose Path to draw a motion in advance', 'error');
  const drag = { id: nextId++, tool, grid: grid(), trail: [first], pending: [], first, led: [] };
  if (tool === 'drag') {
    regrab(first);
    if (full()) return;
    drag.led = around(first).map(control => ({ control, at: control.at = place(control) }));
    const takes = drag.led.map(({ control }) => control.id);
    link.send({ kind: 'drag', id: drag.id, phase: 'start', samples: [first], takes });
  }
  picture.setPointerCapture(event.pointerId);
  drags.set(event.pointerId, drag);
  dirty = true;
}

function regrab({ x, y }) {              // what is grabbed again must not be held where it was left
  const reach = ({ spacing, size }) => Math.max(spacing * size, Math.min(extent.width, extent.height) / 6);
  const near = control => Math.hypot(control.x - x, control.y - y) < reach(control.grid);
  const met = control => state !== 'paused' || control.since <= player.newest;  // while paused nothing has got there yet
  const held = controls.filter(control => control.kind === 'hold' && near(control) && met(control));
  for (const { id } of held) link.send({ kind: 'remove', id });
  controls = controls.filter(control => !held.includes(control));
}

function gone(ids) {                     // what held a thing that was grabbed again elsewhere
  controls = controls.filter(control => !ids.includes(control.id));
  dirty = true;
}

function around({ x, y }) {              // paths that move alike move one thing: between them, a drag has all of it in hand
  const way = ({ points, since, seconds }) =>
    JSON.stringify([since, seconds, points.map(([x, y]) => [Math.round(x - points[0][0]), Math.round(y - points[0][1])])]);
  const paths = controls.filter(control => control.kind === 'path' && !over(control));
  const held = [...drags.values()].flatMap(({ led }) => led);
  const within = (value, axis, alike) => {
    const reach = alike.flatMap(control => [-1, 1].map(
      side => place(control)[axis] + side * control.grid.spacing * (control.grid.size - 1) / 2));
    return Math.min(...reach) <= value && value <= Math.max(...reach);
  };
  return paths.filter(path => {
    const alike = paths.filter(other => way(other) === way(path));
    return !held.some(({ control }) => control === path) && within(x, 0, alike) && within(y, 1, alike);
  });
}

function move(event) {
  hover = event.pointerType === 'touch' ? null : sample(event);
  dirty = true;
  if (taken.has(event.pointerId)) return panel.move(sample(event), event);
  const drag = drags.get(event.pointerId);
  if (!drag) return;
  const events = event.getCoalescedEvents?.() ?? [];
  const samples = (events.length ? events : [event]).map(sample);
  drag.trail.push(...samples);
  drag.pending.push(...samples);
  const { x, y } = samples.at(-1);
  for (const { control, at } of drag.led) control.at = [at[0] + x - drag.first.x, at[1] + y - drag.first.y];
}

function lift(event) {
  if (taken.delete(event.pointerId)) {
    dirty = true;
    return panel.lift(sample(event), event);
  }
  const drag = drags.get(event.pointerId);
  if (!drag) return;
  drags.delete(event.pointerId);
  dirty = true;
  if (drag.tool === 'path') return finishPath(drag);
  link.send({ kind: 'drag', id: drag.id, phase: 'end', samples: [...drag.pending, sample(event)] });
  const { x, y } = sample(event);
  if (release === 'hold') add({ kind: 'hold', id: drag.id, x, y, grid: drag.grid });
  else for (const { control } of drag.led) control.over = true;
}

function finishPath({ trail, grid }) {
  const [first, last] = [trail[0], trail.at(-1)];
  if (trail.length < 2 || Math.hypot(last.x - first.x, last.y - first.y) < 1 && trail.length < 8)
    return say('Draw a path: press, move, release', 'error');
  const duration = last.t - first.t, count = clamp(Math.round(duration / 60), 2, 64);
  const points = Array.from({ length: count }, (_, i) => along(trail, first.t + duration * i / (count - 1)));
  add({ kind: 'path', points, seconds: clamp(duration / 1000, 0.5, 8), grid });
}

function along(trail, t) {               // where the pointer was at time t, linear between samples
  const after = Math.max(1, trail.findIndex(point => point.t >= t));
  const [a, b] = [trail[after - 1], trail[after]];
  const u = b.t > a.t ? clamp((t - a.t) / (b.t - a.t), 0, 1) : 1;
  return [a.x + (b.x - a.x) * u, a.y + (b.y - a.y) * u];
}

function flushDrags() {                  // one message a drag and animation frame
  for (const drag of drags.values()) {
    if (drag.tool === 'path' || !drag.pending.length) continue;
    link.send({ kind: 'drag', id: drag.id, phase: 'move', samples: drag.pending });
    drag.pending = [];
    const oldest = performance.now() - TRAIL_MS;
    drag.trail = drag.trail.filter((point, i, all) => point.t >= oldest || i === all.length - 1);
  }
}

function undo() {
  const control = controls.pop();
  dirty = true;
  calm();
  showStill();
  if (!control) return say('Nothing to undo');
  if (running()) link.send({ kind: 'remove', id: control.id });
}

function clear() {
  controls = [];
  drags.clear();
  dirty = true;
  calm();
  showStill();
  if (running()) link.send({ kind: 'clear' });
}

/* ---- painting what is grabbed, over the picture ---- */

const pen = overlay.getContext('2d');

function paintOverlay() {
  const ratio = window.devicePixelRatio || 1;
  const width = Math.round(picture.clientWidth * ratio), height = Math.round(picture.clientHeight * ratio);
  if (overlay.width !== width || overlay.height !== height) Object.assign(overlay, { width, height });
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, width, height);
  const scale = width / extent.width;
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  const unit = ratio / scale;            // one CSS pixel
  pen.save();
  panel.paint(pen, unit);
  pen.restore();
  if (running() || !poster.hidden) for (const control of controls) paintControl(control, unit);
  for (const drag of drags.values()) {
    const last = drag.trail.at(-1), colour = COLOURS[drag.tool];
    paintLine(drag.trail.map(point => [point.x, point.y]), colour, 2.5 * unit, 0.7);
    paintGrid(last.x, last.y, drag.grid, colour, unit, 1, player.turned[drag.id]);
  }
  if (hover && !drags.size && !taken.size && COLOURS[tool] && (tool !== 'drag' || running()))
    paintGrid(hover.x, hover.y, grid(), COLOURS[tool], unit, 0.55);
}

function paintControl(control, unit) {
  const colour = COLOURS[control.kind], turn = player.turned[control.id];
  if (control.kind !== 'path') return paintGrid(control.x, control.y, control.grid, colour, unit, 1, turn);
  if (over(control)) return;
  if (!control.at) {
    paintLine(control.points, colour, 3 * unit, done(control) < 1 ? 0.9 : 0.35);
    paintArrow(control.points, colour, unit, done(control) < 1 ? 0.9 : 0.35);
  }
  paintGrid(...place(control), control.grid, colour, unit, 1, turn);
}

const done = ({ since, seconds }) => running() ? clamp((player.frame - since) / (seconds * facts.fps), 0, 1) : 0;
const over = control =>                  // of a path: whether it has let go
  control.over || control.mode === 'let_go' && !control.at && done(control) === 1;
const place = control => control.at ?? partway(control.points, done(control));   // of a path's grid

function partway(points, share) {        // the point after `share` of a polyline's length
  const lengths = points.slice(1).map(([x, y], i) => Math.hypot(x - points[i][0], y - points[i][1]));
  let left = share * lengths.reduce((sum, length) => sum + length, 0), i = 0;
  while (i < lengths.length - 1 && left > lengths[i]) left -= lengths[i++];
  const [a, b] = [points[i], points[i + 1]], u = lengths[i] ? Math.min(1, left / lengths[i]) : 0;
  return [a[0] + (b[0] - a[0]) * u, a[1] + (b[1] - a[1]) * u];
}

function paintGrid(x, y, { spacing, size }, colour, unit, alpha, turn = 0) {
  const right = spacing * Math.cos(turn), down = spacing * Math.sin(turn);   // to the next dot of a row
  pen.globalAlpha = alpha;
  pen.fillStyle = colour;
  pen.strokeStyle = '#fff';
  pen.lineWidth = 1.5 * unit;
  const radius = size > 1 ? clamp(spacing / 4, 2.5 * unit, 5 * unit) : 5 * unit;
  for (let row = 0; row < size; row++) for (let column = 0; column < size; column++) {
    const [across, along] = [column - (size - 1) / 2, row - (size - 1) / 2];
    pen.beginPath();
    pen.arc(x + across * right - along * down, y + across * down + along * right, radius, 0, 2 * Math.PI);
    pen.fill();
    pen.stroke();
  }
  pen.globalAlpha = 1;
}

function paintLine(points, colour, width, alpha) {
  if (points.length < 2) return;
  pen.globalAlpha = alpha;
  Object.assign(pen, { strokeStyle: colour, lineWidth: width, lineJoin: 'round', lineCap: 'round' });
  pen.beginPath();
  points.forEach(([x, y]) => pen.lineTo(x, y));
  pen.stroke();
  pen.globalAlpha = 1;
}

function paintArrow(points, colour, unit, alpha) {
  const [x, y] = points.at(-1), before = points.findLast(p => Math.hypot(p[0] - x, p[1] - y) > 4 * unit) ?? points[0];
  const angle = Math.atan2(y - before[1], x - before[0]);
  const wing = side => [x - 12 * unit * Math.cos(angle + side), y - 12 * unit * Math.sin(angle + side)];
  paintLine([wing(0.5), [x, y], wing(-0.5)], colour, 3 * unit, alpha);
}

/* ---- Link: the WebSocket ---- */

function home() {                        // where the server is, found as Gradio's own script does it
  const root = new URL(window.gradio_config?.root ?? location.pathname, location.href);
  const origin = root.hostname === location.hostname ? location.origin : root.origin;   // proxies hide port and TLS
  return (origin + root.pathname).replace(/\/$/, '');
}

const link = {
  socket: null,
  held: null,                            // messages made before the server has opened the stream's mailbox

  connect() {
    const url = `${home().replace(/^http/, 'ws')}/motionstream/live/${props.seat}`;
    const shown = ['motionstream', token, kept.token].filter(Boolean);   // in a header: URLs end up in logs
    const socket = this.socket = new WebSocket(url, [...new Set(shown)]);
    socket.binaryType = 'arraybuffer';
    let last = Promise.resolve();        // one message after the other, though a picture takes time to decode
    socket.onmessage = ({ data }) => {
      last = last.then(() => typeof data === 'string' ? hear(JSON.parse(data)) : see(data)).catch(reportError);
    };
    socket.onclose = event => {
      if (socket !== this.socket || closing.signal.aborted) return;
      lostAt = performance.now();
      const wasRunning = running() || state === 'stopping';
      if (wasRunning) ended('', false);
      asked = 0;
      enter('offline');
      if (event.code === STALE_PAGE) return say('The server does not know this page any more: reload the page', 'error');
      const lost = wasRunning ? 'The connection was lost and the stream has ended' : 'No connection';
      say(`${lost}: reconnecting`, 'error');
      setTimeout(() => this.connect(), RECONNECT_MS);
    };
  },

  send(message) {
    if (this.held) this.held.push(message);
    else if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  },

  begun() {
    const held = this.held ?? [];
    this.held = null;
    for (const message of held) this.send(message);
  },
};

function hear(message) {
  if (message.kind === 'welcome') welcome(message);
  if (message.kind === 'error') { answered(); say(message.text, 'error'); }
  if (message.kind === 'note') say(message.text);
  if (message.kind === 'gone') gone(message.ids);
  if (message.kind === 'read') heed(message.text);
  if (message.kind === 'download') offerClip(message);
  if (message.kind === 'begun' && message.run === runs) link.begun();
  if (message.kind === 'ended' && (message.run ?? runs) === runs && (running() || state === 'stopping'))
    ended(message.text, message.failed);   // not again, where both a stop and its start answer
  panel.hear(message);
}

function heed(text) {                    // what the model passes over of the prompt; what it did before is mended
  if (text) say(text, 'prompt');
  else if (part('strip').dataset.tone === 'prompt') say(hint());
}

function see(data) {
  const length = new DataView(data).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  const blob = new Blob([new Uint8Array(data, 4 + length)], { type: 'image/jpeg' });
  if (header.kind === 'picture') return showPicture(header, blob);
  if (header.kind !== 'frame') return panel.see(header, blob);
  if (running() && header.run === runs) player.push(header, blob);   // others belong to a stream that was stopped
}

function welcome(message) {
  facts = message;
  kept.token = token;                    // the seats of the page before are this page's now
  if (runs && state === 'offline') link.send({ kind: 'stop', run: runs });   // its start may come after a lost connection
  part('chips').replaceChildren(...Object.keys(message.vocabulary).map(chip));
  setPrompt(part('prompt').value);       // a lost connection has left the prompt
  part('examples').replaceChildren(...message.examples.map(example));
  panel.welcomed(message);
}

async function showPicture(header, blob) {
  const bitmap = await createImageBitmap(blob);
  stop();                                // a stream of the picture before, if one runs in spite of all
  answered();
  const { width, height, times } = header;
  Object.assign(extent, { width, height });
  Object.assign(picture, { width: times * width, height: times * height });
  picture.getContext('2d').drawImage(bitmap, 0, 0, picture.width, picture.height);
  bitmap.close();
  URL.revokeObjectURL(poster.src);
  poster.src = URL.createObjectURL(blob);
  poster.hidden = false;
  const shown = times > 1 ? `, shown at ${picture.width} × ${picture.height}` : '';
  part('facts').textContent = `${facts.text} · picture ${width} × ${height}${shown}`;
  part('frame').style.setProperty('--ms-aspect', `${width} / ${height}`);
  part('frame').style.setProperty('--ms-ratio', width / height);
  player.reset(facts.fps);
  const again = header.number === onCanvas;   // after a lost connection: what was made for it is still there
  onCanvas = header.number;
  if (!again) setControls(header);
  mark('.ms-example', 'aria-pressed', button => button.dataset.name === header.name);
  if (state !== 'stopping') enter('idle');
  panel.shown(header);
  if (controls.length && !again) say('Press Start to play the blue paths, or drag it your own way');
  if (kept.broken && element.offsetParent !== null) sayAnew(again);
}

function sayAnew(again) {
  kept.broken = false;
  const rest = again ? 'all is as it was before the stream' : 'the picture could not be kept';
  say(`The connection broke and the page was loaded anew: ${rest}`);
}

function setControls(header) {           // those that come with a picture
  controls = initial = [];
  if (header.grid) setGrid(header.grid);
  if (header.prompt !== undefined) setPrompt(header.prompt);
  (header.paths ?? []).forEach(({ points, seconds }) => add({ kind: 'path', points, seconds }));
  (header.pins ?? []).forEach(([x, y]) => add({ kind: 'pin', x, y }));
}

/* ---- the page around the canvas ---- */

function example({ name, title, thumbnail }) {
  const button = document.createElement('button'), image = document.createElement('img');
  Object.assign(button, { type: 'button', className: 'ms-example', title });
  Object.assign(image, { src: thumbnail, alt: title });
  button.dataset.name = name;
  button.append(image);
  button.onclick = () => {
    choices++;
    whenStopped(() => ask(() => link.send({ kind: 'example', name })));
  };
  return button;
}

function chip(effect) {
  const button = document.createElement('button');
  Object.assign(button, { type: 'button', className: 'ms-chip', textContent: effect });
  button.onclick = () => {
    const text = part('prompt').value, without = text.replace(WORD, word => names(word, effect) ? '' : word);
    setPrompt(tidy(without === text ? `${text}, ${effect}` : without));
    sendPrompt();
  };
  return button;
}

const names = (word, effect) => facts.vocabulary[effect].includes(word.toLowerCase());   // as the server reads it
const tidy = text => text.split(/[,;]/).map(piece => piece.trim().replace(/\s+/g, ' ')).filter(Boolean).join(', ');

function setPrompt(text) {
  part('prompt').value = text;
  const words = text.match(WORD) ?? [];
  mark('.ms-chips .ms-chip', 'aria-pressed', button => words.some(word => names(word, button.textContent)));
}

function sendPrompt() {
  setPrompt(part('prompt').value);
  link.send({ kind: 'read', text: part('prompt').value });   // answers with the words that mean nothing to the model
  if (running()) link.send({ kind: 'prompt', text: part('prompt').value });
}

function setGrid({ spacing, size }) {
  part('spacing').value = spacing;
  part('size').value = size;
  showGrid();
}

function showGrid() {
  const { spacing, size } = grid();
  part('size-value').textContent = `${size} × ${size}`;
  part('spacing-value').textContent = `${spacing} px`;
  dirty = true;
}

async function offerFile(file, chosen = false) {
  if (!file || !await readable(file) || panel.file(file, chosen)) return;
  const choice = ++choices, reading = () => say('Reading the picture …');
  ask(reading);                          // already: a large one takes its time, and a start would use the one before
  const photo = await shrunk(file).finally(answered);
  if (choice !== choices || panel.file(photo, true)) return;   // by now the panel may be busy with another file
  const [size, limit] = [Math.ceil(photo.size / 2 ** 20), Math.floor(facts.max_bytes / 2 ** 20)];
  if (photo.size > facts.max_bytes)
    return say(`The file has ${size} MB; at most ${limit} MB: resize the picture`, 'error');
  whenStopped(() => ask(() => { reading(); link.socket.send(photo); }));
}

async function readable(file) {          // a WebSocket that is given what cannot be read breaks
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    say('The file cannot be read: choose one that is no folder, and still there', 'error');
    return false;
  }
}

async function shrunk(file) {            // cameras make larger photos than the server takes, iPhones some it cannot read
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    return file;                         // the server says what is wrong with it
  }
  const { width, height } = bitmap, side = Math.max(width, height), scale = Math.min(1, SHRUNK_SIDE / side);
  const fits = side <= facts.max_side && file.size <= facts.max_bytes;
  if (fits && !/^image\/hei[cf]/.test(file.type)) return file;
  const [columns, rows] = [width, height].map(pixels => Math.max(1, Math.round(scale * pixels)));
  const small = new OffscreenCanvas(columns, rows), context = small.getContext('2d');
  Object.assign(context, { fillStyle: '#fff', imageSmoothingQuality: 'high' });
  context.fillRect(0, 0, columns, rows);   // under what is transparent
  context.drawImage(bitmap, 0, 0, columns, rows);
  bitmap.close();
  return small.convertToBlob({ type: 'image/jpeg', quality: 0.92 });
}

function mark(selector, attribute, test) {
  for (const button of element.querySelectorAll(selector)) button.setAttribute(attribute, String(test(button)));
}

function onEach(selector, action) {
  for (const button of element.querySelectorAll(selector)) button.onclick = () => action(button);
}

function setTool(value) {
  tool = root.dataset.tool = value;
  mark('button[data-tool]', 'aria-pressed', button => button.dataset.tool === value);
  dirty = true;
}

function setRelease(value) {
  release = value;
  mark('button[data-release]', 'aria-pressed', button => button.dataset.release === value);
  if (running()) link.send({ kind: 'release', mode: value });
}

function measureScreen() {               // as it is held: an iPhone tells its sides as if it were always upright
  const sides = [screen.availWidth, screen.availHeight].sort((a, b) => a - b);
  const wide = screen.orientation?.type.startsWith('landscape') ?? screen.availWidth > screen.availHeight;
  root.style.setProperty('--ms-screen', `${sides[wide ? 0 : 1]}px`);
}

function keyUp(event) {
  if (event.key === 'Meta') panel.released();   // of keys let go while it is down macOS says nothing
  if (element.offsetParent !== null) panel.key(event, false);
}

function keyDown(event) {
  const composing = event.isComposing || event.keyCode === 229;   // Safari ends it before the Enter that ends it
  if (composing || element.offsetParent === null || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === part('prompt') && event.key === 'Enter' && !event.shiftKey) {
    event.preventDefault();
    if (!event.repeat) sendPrompt();
    return;
  }
  if (event.repeat && event.key === 'Enter' && event.target.closest('button')) return event.preventDefault();
  if (event.target.closest('input, textarea, select, button, a, [contenteditable]')) return;
  if (panel.key(event, true)) return event.preventDefault();
  if (event.key !== 'Enter' && event.key !== ' ') return;
  event.preventDefault();                // of a key that is held down too: it would scroll the page
  if (event.repeat) return;
  if (event.key === ' ') pause();
  else if (running()) stop();
  else start();
}

function listen() {
  picture.addEventListener('pointerdown', press);
  picture.addEventListener('pointermove', move);
  picture.addEventListener('pointerup', lift);
  picture.addEventListener('pointercancel', lift);
  picture.addEventListener('pointerleave', () => { hover = null; dirty = true; });
  picture.addEventListener('contextmenu', event => event.preventDefault());
  part('start').onclick = event => {
    if (event.detail > 1) return;        // the rest of a double click, which means one
    if (running()) stop(); else start();
  };
  part('play').onclick = event => { playPressed = event.timeStamp; start(); };
  Object.assign(part('pause'), { onclick: pause });
  Object.assign(part('undo'), { onclick: undo });
  Object.assign(part('clear'), { onclick: clear });
  onEach('button[data-tool]', button => setTool(button.dataset.tool));
  onEach('button[data-release]', button => setRelease(button.dataset.release));
  part('upload').onclick = () => part('file').click();
  part('file').onchange = event => { offerFile(event.target.files[0], true); event.target.value = ''; };
  part('prompt').onchange = sendPrompt;
  for (const name of ['size', 'spacing']) {
    part(name).oninput = showGrid;
    part(name).onchange = () => { if (running()) link.send({ kind: 'grid', ...grid() }); };
  }
  root.addEventListener('click', event => {   // so that Space, pressed next, pauses and does not click again
    if (event.detail > 0 && event.target.closest('button')) picture.focus({ preventScroll: true });
  });
  let pointed = false;                   // whether a list or slider is being set with the pointer, not with keys
  root.addEventListener('pointerdown', () => { pointed = true; });
  root.addEventListener('keydown', () => { pointed = false; });
  root.addEventListener('change', event => {   // then the keys are for the stream again
    if (pointed && event.target.matches('select, input[type=range]')) picture.focus({ preventScroll: true });
  });
  const stage = part('stage'), signal = closing.signal;
  root.addEventListener('dragover', event => {
    if (!event.dataTransfer.types.includes('Files')) return;   // text, for the prompt
    event.preventDefault();
    stage.dataset.drop = '';
  });
  root.addEventListener('dragleave', () => { delete stage.dataset.drop; });
  root.addEventListener('drop', event => {
    delete stage.dataset.drop;
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    offerFile(event.dataTransfer.files[0]);
  });
  document.addEventListener('keydown', keyDown, { signal });
  document.addEventListener('keyup', keyUp, { signal });
  window.addEventListener('blur', () => panel.released(), { signal });
  window.addEventListener('resize', measureScreen, { signal });
  document.addEventListener('paste', event => {   // copied text may bring a picture of itself along
    const typed = event.target.closest('textarea, input:not([type=range])');
    if (element.offsetParent && !typed) offerFile(event.clipboardData.files[0]);
  }, { signal });
  document.addEventListener('visibilitychange', () => {
    clearTimeout(leaving);
    if (!document.hidden) return stored(storage => storage.removeItem(KEPT));
    leaving = setTimeout(stop, HIDDEN_MS);
    keep();                              // phones drop pages out of sight without a word
  }, { signal });
  window.addEventListener('pagehide', keep, { signal });
  new ResizeObserver(() => { dirty = true; }).observe(picture);
}

/* ---- what a page leaves to the one after it ---- */

function keep() {
  const still = running() || state === 'stopping' ? initial.filter(control => controls.includes(control)) : controls;
  kept[props.seat] = {
    runs, number: onCanvas, prompt: part('prompt').value, grid: grid(), release, panel: panel.keep(),
    controls: still.map(({ kind, x, y, points, seconds, grid }) => ({ kind, x, y, points, seconds, grid })),
  };
  if (element.offsetParent !== null)
    Object.assign(kept, { open: props.seat, broken: performance.now() - lostAt < BROKEN_MS });
  stored(storage => storage.setItem(KEPT, JSON.stringify(kept)));
}

function restore() {                     // before the picture comes: another one takes the controls away again
  if (!past.grid) return;
  setPrompt(past.prompt);
  setGrid(past.grid);
  setRelease(past.release);
  past.controls.forEach(add);
}

function openAgain() {                   // the tab that the page before was left at, unless one was opened meanwhile
  const first = document.querySelector('[role=tab][data-tab-id]');
  if (first?.getAttribute('aria-selected') === 'true')
    document.querySelector(`[role=tab][data-tab-id="${kept.open}"]`)?.click();
  delete kept.open;
}

function everyFrame() {
  if (!element.isConnected) {            // the component was taken off the page
    closing.abort();
    return link.socket?.close();
  }
  player.tick(performance.now());
  if (element.offsetParent === null) stop();   // its tab was left: the place is for what is looked at
  flushDrags();
  panel.tick(performance.now());
  if (dirty) { dirty = false; paintOverlay(); }
  requestAnimationFrame(everyFrame);
}

function valueChanged() {
  const value = props.value ?? {};
  if (value.token && value.token !== token) {
    token = value.token;
    link.connect();
    openAgain();
  }
}

/* panel */
listen();
measureScreen();
setTool(tool);
setRelease(release);
showGrid();
restore();
enter('offline');
say('Connecting …');
watch('value', valueChanged);
valueChanged();                          // a tab that is opened later finds its value there
everyFrame();
