/* The Camera tab's panel: where the camera goes, where depth comes from, and the keys and sticks that steer.

   The server answers every change with the depth's picture (kind "depth") and the way of the tracks (kind "fan"). While
   a stream runs, "camera" messages change its path and "steer" messages are what keys and sticks ask for at present. */

const REACH = 26;                        // CSS pixels around a handle
const INSET = 12;                        // CSS pixels that a handle at the picture's edge is drawn inside of it
const FAN = '#facc15', WALL = '#38bdf8';
const READING_MS = 60000;                // Safari begins to read a file that it saves after the click is over
const SETTLE_MS = 120;                   // sliders rest so long before the way is drawn anew
const KEYFRAMES = 'keyframes';
const AXES = {                           // key -> what it asks for: [part of the steer message, axis, sign]
  KeyD: ['move', 0, 1], KeyA: ['move', 0, -1], KeyQ: ['move', 1, 1], KeyE: ['move', 1, -1],
  KeyW: ['move', 2, 1], KeyS: ['move', 2, -1],
  ArrowUp: ['turn', 0, 1], ArrowDown: ['turn', 0, -1], ArrowRight: ['turn', 1, 1], ArrowLeft: ['turn', 1, -1],
  KeyX: ['zoom', 0, 1], KeyZ: ['zoom', 0, -1],
};
const NOTES = {
  planes: 'A box seen from within, and things that stand in it. Drag the two blue handles to the corners of its back '
    + 'wall; at the edge there is no ceiling, wall or floor.',
  upload: 'Your own map. Choose whether bright is near or far.',
};

const held = new Set();                  // codes of keys that are down
const handles = new Map();               // pointerId -> number of the back wall's corner that it holds
const sticks = { move: [0, 0], look: [0, 0] };
let ends = 'swing', method = 'planes', planes = null, vanishing = [0.5, 0.5], bright = false, lines = [];
let steered = '', settling = null, depthUrl = null;
let chosen = false, offered = null;      // whether the visitor chose the depth; a better one that has come meanwhile
let routeBefore = 'orbit';               // of the page before; a camera file's is there once that is

const number = name => Number(part(name).value);
const plan = () => ({ route: part('route').value, ends, speed: number('speed'), focal: number('focal') });

/* ---- what is chosen ---- */

function option(value, text) {
  const choice = document.createElement('option');
  Object.assign(choice, { value, textContent: text });
  return choice;
}

function changed() {
  showPlan();
  if (running()) {
    const { route, ends, speed } = plan();
    return link.send({ kind: 'camera', route, ends, speed });
  }
  clearTimeout(settling);
  settling = setTimeout(askFan, SETTLE_MS);
}

function askFan() {
  if (state === 'idle') link.send({ kind: 'fan', plan: plan() });
}

function showPlan() {
  part('speed-value').textContent = `${number('speed').toFixed(2)} ×`;
  part('focal-value').textContent = `${number('focal')} mm`;
  mark('button[data-ends]', 'aria-pressed', button => button.dataset.ends === ends);
}

function showDepth(header, blob) {
  ({ method } = header);
  [planes, vanishing, bright] = [header.planes ?? null, header.vanishing ?? vanishing, header.bright_is_near];
  URL.revokeObjectURL(depthUrl);
  part('depth').src = depthUrl = URL.createObjectURL(blob);
  const own = part('method').querySelector('[value="upload"]');
  if (method === 'upload' && !own) part('method').append(option('upload', 'Your depth map'));
  if (method !== 'upload') own?.remove();
  part('method').value = method;
  part('bright').hidden = method !== 'upload';
  part('bright').setAttribute('aria-pressed', String(bright));
  part('depth-note').textContent = NOTES[method] ?? '';
  dirty = true;
  calm();
  askFan();
}

function showKeyframes({ count, uploaded }) {
  calm();
  const route = part('route'), chosen = uploaded || [route.value, routeBefore].includes(KEYFRAMES);
  routeBefore = null;
  route.querySelector(`[value="${KEYFRAMES}"]`)?.remove();
  if (!count) return;
  route.append(option(KEYFRAMES, `Camera file, ${count} keyframes`));
  if (!chosen) return;                   // after a lost connection: something else was chosen before
  route.value = KEYFRAMES;
  changed();
}

function saveCameras({ text }) {
  const anchor = document.createElement('a'), url = URL.createObjectURL(new Blob([text], { type: 'application/json' }));
  Object.assign(anchor, { href: url, download: 'cameras.json' });
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(url), READING_MS);
}

function chooseDepth(message) {
  chosen = true;
  link.send(message);
}

function takeOffer() {
  if (offered && !chosen && state === 'idle') chooseDepth({ kind: 'depth', method: offered, bright_is_near: bright });
}

function upload(what, file) {
  if (!file) return;
  const [size, limit] = [Math.ceil(file.size / 2 ** 20), Math.floor(facts.max_bytes / 2 ** 20)];
  if (file.size > facts.max_bytes) return say(`The file has ${size} MB; at most ${limit} MB: shrink it`, 'error');
  chosen ||= what === 'depth';
  whenStopped(() => { link.send({ kind: 'upload', what }); link.socket.send(file); });
}

/* ---- handles of the back wall ---- */

function corners() {                     // top left and bottom right, in pixels of the picture, inside its edges
  const inset = INSET * extent.width / picture.clientWidth;
  return [[planes[0], planes[1]], [planes[2], planes[3]]].map(([x, y]) => [
    clamp(x * extent.width, inset, extent.width - inset), clamp(y * extent.height, inset, extent.height - inset)]);
}

function dragHandle(handle, { x, y }) {
  if (!planes) return;                   // another depth has come meanwhile
  const least = 0.06, inset = INSET * extent.width / picture.clientWidth;
  const share = (value, side) => value <= inset ? 0 : value >= side - inset ? 1 : value / side;
  const [u, v] = [share(x, extent.width), share(y, extent.height)];
  if (handle === 0) planes = [Math.min(u, planes[2] - least), Math.min(v, planes[3] - least), planes[2], planes[3]];
  else planes = [planes[0], planes[1], Math.max(u, planes[0] + least), Math.max(v, planes[1] + least)];
  planes = planes.map(value => clamp(value, 0, 1));
  lines = [];
}

function paintBox(pen, unit) {
  const { width, height } = extent, [x, y] = [vanishing[0] * width, vanishing[1] * height];
  const [left, top, right, bottom] = planes.map((share, i) => share * (i % 2 ? height : width));
  Object.assign(pen, { strokeStyle: WALL, lineWidth: 1.5 * unit, globalAlpha: 0.8 });
  pen.strokeRect(left, top, right - left, bottom - top);
  for (const [u, v] of [[left, top], [right, top], [left, bottom], [right, bottom]]) {
    const far = 2 * (width + height) / Math.max(1, Math.hypot(u - x, v - y));
    pen.beginPath();
    pen.moveTo(u, v);
    pen.lineTo(x + (u - x) * far, y + (v - y) * far);
    pen.stroke();
  }
  Object.assign(pen, { fillStyle: WALL, strokeStyle: '#fff', lineWidth: 3 * unit, globalAlpha: 1 });
  for (const [u, v] of corners()) {
    pen.beginPath();
    pen.arc(u, v, 9 * unit, 0, 2 * Math.PI);
    pen.fill();
    pen.stroke();
  }
}

function paintFan(unit) {
  for (const line of lines) {
    const points = Array.from({ length: line.length / 2 }, (_, i) => [line[2 * i], line[2 * i + 1]]);
    paintLine(points, FAN, 1.5 * unit, 0.75);
    pen.fillStyle = FAN;
    pen.fillRect(points[0][0] - 1.5 * unit, points[0][1] - 1.5 * unit, 3 * unit, 3 * unit);
  }
}

/* ---- steering ---- */

function wanted() {
  const steer = { move: [0, 0, 0], turn: [0, 0, 0], zoom: [0] };
  for (const code of held) {
    const [name, axis, sign] = AXES[code];
    steer[name][axis] += sign;
  }
  steer.move[0] += sticks.move[0];
  steer.move[2] -= sticks.move[1];
  steer.turn[1] += sticks.look[0];
  steer.turn[0] -= sticks.look[1];
  const bounded = values => values.map(v => Math.round(clamp(v, -1, 1) * 100) / 100);
  const [move, turn, zoom] = Object.values(steer).map(bounded);
  return { kind: 'steer', move, turn, zoom: zoom[0] };
}

const REST = JSON.stringify(wanted());   // what every stream begins with

function steer(now) {                    // one message when what is asked for has changed
  const message = wanted(), text = JSON.stringify(message);
  if (text === steered || !running()) return;
  steered = text;
  link.send({ ...message, t: now });
}

function release() {
  held.clear();
  for (const name of Object.keys(sticks)) letGo(name);
}

function letGo(name) {
  sticks[name] = [0, 0];
  part(`stick-${name}`).firstElementChild.style.transform = '';
}

function pushStick(name, event) {
  const box = part(`stick-${name}`).getBoundingClientRect(), reach = box.width / 2;
  if (!reach) return;                    // it was hidden under the thumb
  const away = [event.clientX - box.left - reach, event.clientY - box.top - reach];
  const far = Math.max(1, Math.hypot(...away) / reach);
  sticks[name] = away.map(v => v / far / reach);
  const knob = sticks[name].map(v => v * reach * 0.6);
  part(`stick-${name}`).firstElementChild.style.transform = `translate(${knob[0]}px, ${knob[1]}px)`;
}

function addStick(name) {
  const stick = part(`stick-${name}`);
  part('frame').append(stick);           // over the picture, under the thumbs
  stick.addEventListener('pointerdown', event => {
    event.preventDefault();
    stick.setPointerCapture(event.pointerId);
    pushStick(name, event);
  });
  stick.addEventListener('pointermove', event => {
    if (stick.hasPointerCapture(event.pointerId)) pushStick(name, event);
  });
  for (const kind of ['pointerup', 'pointercancel']) stick.addEventListener(kind, () => letGo(name));
}

function setAgain(before) {              // as on the page before
  for (const name of ['speed', 'focal']) part(name).value = before[name];
  ({ ends, chosen, route: routeBefore } = before);
}

/* ---- coming to life ---- */

if (past.panel) setAgain(past.panel);
addStick('move');
addStick('look');
part('route').onchange = changed;
for (const name of ['speed', 'focal']) part(name).oninput = changed;
onEach('button[data-ends]', button => { ends = button.dataset.ends; changed(); });
part('method').onchange = () => chooseDepth({ kind: 'depth', method: part('method').value, bright_is_near: bright });
part('bright').onclick = () => chooseDepth({ kind: 'depth', method, bright_is_near: !bright });
for (const [name, what] of [['depth', 'depth'], ['cameras', 'cameras']]) {
  part(`${name}-load`).onclick = () => part(`${name}-file`).click();
  part(`${name}-file`).onchange = event => { upload(what, event.target.files[0]); event.target.value = ''; };
}
part('cameras-save').onclick = () => link.send({ kind: 'save', plan: plan() });

panel.welcomed = ({ paths, methods }) => {
  const route = part('route'), file = route.querySelector(`[value="${KEYFRAMES}"]`);
  const before = route.value || routeBefore;
  route.replaceChildren(...paths.map(name => option(name, name[0].toUpperCase() + name.slice(1))));
  if (file) route.append(file);
  route.value = [...route.options].some(({ value }) => value === before) ? before : 'orbit';
  part('method').replaceChildren(...Object.entries(methods).map(([name, label]) => option(name, label)));
  showPlan();
};
panel.hear = message => {
  if (message.kind === 'fan') { lines = message.lines; dirty = true; }
  if (message.kind === 'keyframes') showKeyframes(message);
  if (message.kind === 'cameras') saveCameras(message);
  if (message.kind === 'ready') { offered = message.method; takeOffer(); }
};
panel.see = (header, blob) => { if (header.kind === 'depth') showDepth(header, blob); };
panel.shown = () => { lines = []; };
panel.entered = now => {
  for (const name of ['focal', 'method', 'depth-load', 'cameras-load', 'bright']) part(name).disabled = now !== 'idle';
  if (now === 'starting') steered = REST;
  if (now === 'idle') { release(); askFan(); takeOffer(); }
};
panel.keep = () => ({ ...plan(), chosen });
panel.idle = () => 'Press Start: the camera moves along its path, and you can still drag';
panel.starting = plan;
panel.file = file => {
  if (!file || !/\.(npy|exr|json)$/i.test(file.name)) return false;
  upload(/\.json$/i.test(file.name) ? 'cameras' : 'depth', file);
  return true;
};
panel.paint = (context, unit) => {
  if (state !== 'idle') return;
  paintFan(unit);
  if (planes) paintBox(context, unit);
};
panel.press = ({ x, y }, event) => {
  if (!planes || state !== 'idle') return false;
  const reach = REACH * extent.width / picture.clientWidth;
  const handle = corners().findIndex(([u, v]) => Math.hypot(u - x, v - y) < reach);
  if (handle >= 0) handles.set(event.pointerId, handle);
  return handle >= 0;
};
panel.move = (sample, event) => { dragHandle(handles.get(event.pointerId), sample); };
panel.lift = (sample, event) => {
  dragHandle(handles.get(event.pointerId), sample);
  handles.delete(event.pointerId);
  if (!planes || handles.size) return;
  chooseDepth({ kind: 'planes', sides: planes.map(side => Math.round(side * 1000) / 1000) });
};
panel.key = (event, down) => {
  if (!(event.code in AXES)) return false;
  if (down && !running()) return false;
  if (down) held.add(event.code); else held.delete(event.code);
  return true;
};
panel.released = release;
panel.tick = steer;
