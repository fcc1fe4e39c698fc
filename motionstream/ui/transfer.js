/* The Motion transfer tab's panel: the clip with its tracks, or the visitor's camera, and what to take from it.

   The server sends the clip's frames one by one as it tracks them (kind "preview"): they are played here whatever the
   clip's format. The webcam's pictures go up as control messages while a stream runs. Places are shares of the clip's
   frame or of the picture. */

const PART = 2 ** 20;                    // bytes of a clip in one message
const TRAIL = 8;                         // frames
const HANDLES = ['#f59e0b', '#a855f7'];  // of the two points that "align" lays on each other
const SETTLE_MS = 300;                   // settings rest so long before the clip is tracked anew
const VALUES = {                         // part -> setting
  'clip-start': 'start', 'clip-seconds': 'seconds', 'clip-grid': 'grid', amplify: 'amplify', tracker: 'tracker',
};
const WEBCAM_SIDE = 320;
const MOST_BUFFERED = 2 ** 16;           // bytes that may wait to be sent

const motion = element.querySelector('.ms-motion'), clip = part('clip'), brush = clip.getContext('2d');
const camera = { stream: null, opening: false, away: false, video: document.createElement('video'), sent: 0 };
let source = 'clip', image = 'clip', fit = 'crop', loaded = null;   // loaded: what the server says of the clip
let ownPhoto = false;                    // whether the visitor has brought a photo, to be moved by clips
let frames = [], playing = 0, played = 0;                           // previews; the one shown; when
let sending = null;                      // the upload that goes on: {file, socket, begun}
let job = { number: past.panel?.job ?? 0, state: 'done' };  // the newest "track": under way ('sent'), 'done' or 'cancelled'
let again = false;                       // whether to do it again where a start or a lost connection cancels it
let region = null, drawing = null, settling = null;
const held = new Map();                  // pointerId -> [number of a pair, 0: its point on the clip, 1: on the picture]
let pairs = [[[0.3, 0.5], [0.3, 0.5]], [[0.7, 0.5], [0.7, 0.5]]];   // each: in the clip, in the picture; both shares

const number = name => Number(part(name).value);
const pressed = name => part(name).getAttribute('aria-pressed') === 'true';
const settings = () => ({
  start: number('clip-start'), seconds: number('clip-seconds'), grid: number('clip-grid'), amplify: number('amplify'),
  reverse: pressed('reverse'), loop: pressed('loop'), fit, region: drawing ? drawing.before : region,
  pairs: pairs.map(pair => pair.flat()), tracker: part('tracker').value,
});

/* ---- clip: upload, tracking, preview ---- */

function sendClip(file) {
  if (file.size > facts.max_clip_bytes)
    return say(`The clip has ${Math.ceil(file.size / PART)} MB; at most ${facts.max_clip_bytes / PART} MB`, 'error');
  calm();
  sending = { file, socket: link.socket, begun: false };
  progress(0, 'Uploading …');
  link.send({ kind: 'clip', bytes: file.size });   // the server says "send", or what is wrong
}

async function sendParts(upload) {
  if (!upload || upload.begun) return;   // cancelled meanwhile, maybe for another one
  upload.begun = true;
  setSource('clip');
  const { file, socket } = upload, going = () => sending === upload && socket.readyState === WebSocket.OPEN;
  for (let at = 0; at < file.size && going(); at += PART) {
    progress(at / file.size, 'Uploading …');
    socket.send(file.slice(at, at + PART));
    while (socket.bufferedAmount > 2 * PART && going()) await new Promise(resolve => setTimeout(resolve, 30));
  }
  if (going()) progress(1, 'Reading the clip …');
}

function cancel() {                      // an upload or the tracking
  if (sending) progress(null);
  sending = null;
  again = false;
  link.send({ kind: 'cancel' });
}

function refused() {
  if (sending && !sending.begun) {       // the clip of before is still there, and may be being tracked
    sending = null;
    return progress(null);
  }
  if (sending) cancel();
  if (job.state === 'sent') job.state = 'cancelled';   // it may be that
}

function forget() {
  [loaded, frames, region, drawing] = [null, [], null, null];
  motion.querySelector('.ms-clip').toggleAttribute('data-empty', true);
  part('clip-other').hidden = true;
  showRegion();
}

function opened(message) {
  loaded = message;
  sending = null;
  const seconds = message.seconds ?? facts.max_seconds;
  Object.assign(part('clip-start'), { max: Math.max(0, Math.floor((seconds - 0.5) * 10) / 10), value: 0 });
  part('clip-seconds').max = clamp(Math.ceil(seconds * 10) / 10, 0.5, facts.max_seconds);
  part('clip-seconds').value = Math.min(seconds, 10);
  image = ownPhoto ? 'own' : 'clip';
  part('clip-other').hidden = false;
  if (message.again) openedAgain();
  showSettings();
  track();
}

function openedAgain() {                 // the page before has uploaded it; the picture that it moves is still to come
  if (past.panel) ({ image, region } = past.panel);
  setAgain();
  showRegion();
  job.state = 'cancelled';
  again = true;
}

function setAgain() {                    // as on the page before
  if (!past.panel) return;
  for (const [name, key] of Object.entries(VALUES)) part(name).value = past.panel[key];
  for (const name of ['reverse', 'loop']) part(name).setAttribute('aria-pressed', String(past.panel[name]));
  choose('fit', past.panel.fit, value => { fit = value; });
  pairs = past.panel.pairs.map(([x, y, u, v]) => [[x, y], [u, v]]);
  ownPhoto = past.panel.ownPhoto;
}

function track() {                       // also shows the picture that is to be animated
  clearTimeout(settling);
  settling = null;
  if (!loaded || source !== 'clip' || state !== 'idle') return;
  job = { number: job.number + 1, state: 'sent', quiet: again };   // what is said at a stream's end is to be read
  again = false;
  const wanted = { settings: settings(), image, previews: !frames.length };
  const send = () => link.send({ kind: 'track', ...wanted, number: job.number });
  if (image === 'clip' && pressed('reverse')) send(); else ask(send);   // in reverse the frame comes once it is tracked
}

function trackAgain() {
  if (again && job.state === 'cancelled') track();
}

function changed() {
  showSettings();
  clearTimeout(settling);
  settling = setTimeout(track, SETTLE_MS);
}

function progress(share, text = '') {
  part('progress').hidden = share === null;
  part('progress-bar').value = share ?? 0;
  part('progress-text').textContent = text;
}

function tracking({ done, total, left, tracker }) {
  if (!done) frames = [];
  if (tracker) part('tracker-note').textContent = facts.trackers[tracker];
  const time = left > 90 ? `${Math.ceil(left / 60)} min` : `${Math.ceil(left)} s`;
  progress(done / total, done ? `Tracking ${done} of ${total}, ${time} left` : 'Tracking …');
}

function tracked({ number, cancelled, tracks, frames: count }) {
  progress(null);
  if (number === job.number) job.state = cancelled ? 'cancelled' : 'done';
  trackAgain();
  if (cancelled || job.quiet || state !== 'idle' || source !== 'clip') return;
  const what = count === 1 ? 'only one frame and no motion' : tracks ? '' : 'nothing to follow';
  if (what) say(`There is ${what} here: choose another part or another video`, 'error');
  else say('Press Start: the clip moves the picture, and you can still drag');
}

function preview(header, blob) {
  if (header.index === 0) {
    frames = [];
    if (source === 'clip') shape(header);
  }
  frames.push({ ...header, blob });
}

function shape({ width, height }) {
  const frame = part('clip-frame');
  Object.assign(clip, { width, height });
  frame.style.setProperty('--ms-clip', `${width} / ${height}`);
  frame.style.maxWidth = `${340 * width / height}px`;
  frame.removeAttribute('data-empty');
}

async function playClip(now) {
  if (!frames.length || running() || now - played < 1000 / facts.fps) return;
  played = now;
  const shown = frames;
  playing = (playing + 1) % shown.length;
  const order = pressed('reverse') ? shown.length - 1 - playing : playing;
  const bitmap = await createImageBitmap(shown[order].blob);
  if (shown === frames && source === 'clip') {
    brush.drawImage(bitmap, 0, 0, clip.width, clip.height);
    paintTracks(order);
    paintMarks();
  }
  bitmap.close();
}

function paintTracks(newest) {
  const places = new Map();              // id -> [x, y, ...], oldest first
  for (const { points } of frames.slice(Math.max(0, newest - TRAIL), newest + 1))
    for (let i = 0; i < points.length; i += 3) {
      if (!places.has(points[i])) places.set(points[i], []);
      places.get(points[i]).push(points[i + 1], points[i + 2]);
    }
  const { points } = frames[newest];
  for (let i = 0; i < points.length; i += 3) {
    const trail = places.get(points[i]);
    brush.strokeStyle = brush.fillStyle = `hsl(${points[i] * 137 % 360} 90% 62%)`;
    brush.beginPath();
    for (let k = 0; k < trail.length; k += 2) brush.lineTo(trail[k], trail[k + 1]);
    brush.stroke();
    brush.fillRect(points[i + 1] - 1.5, points[i + 2] - 1.5, 3, 3);
  }
}

/* ---- places on the clip: a region, and two points to align ---- */

function place(event) {
  const box = clip.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

function near(spots, [x, y], width, height, reach) {       // number of the spot within reach, or -1
  const distances = spots.map(spot => Math.hypot((spot[0] - x) * width, (spot[1] - y) * height));
  const least = Math.min(...distances);
  return least < reach ? distances.indexOf(least) : -1;
}

function clipPress(event) {
  if (motion.querySelector('[data-empty]') || running() || event.button !== 0 || drawing) return;
  clip.setPointerCapture(event.pointerId);
  const box = clip.getBoundingClientRect();
  const handle = fit === 'align' ? near(pairs.map(pair => pair[0]), place(event), box.width, box.height, 24) : -1;
  if (handle >= 0) return held.set(event.pointerId, [handle, 0]);
  drawing = { pointer: event.pointerId, before: region };
  region = [place(event)];
}

function clipMove(event) {
  if (held.has(event.pointerId)) pairs[held.get(event.pointerId)[0]][0] = place(event).map(v => clamp(v, 0, 1));
  else if (drawing?.pointer === event.pointerId && region.length < 200) {
    const [x, y] = region.at(-1), [u, v] = place(event).map(value => clamp(value, 0, 1));
    if (Math.hypot(u - x, v - y) > 0.015) region.push([u, v]);
  }
}

function clipLift(event) {
  if (held.delete(event.pointerId) || drawing?.pointer !== event.pointerId) return;
  if (region.length < 6) return undraw(event);             // a click: nothing was drawn
  drawing = null;
  showRegion();
  track();
}

function undraw(event) {
  if (held.delete(event.pointerId) || drawing?.pointer !== event.pointerId) return;
  [region, drawing] = [drawing.before, null];
}

function showRegion() {
  part('region-clear').hidden = !region;
}

function paintMarks() {
  if (region?.length > 1) {
    brush.beginPath();
    region.forEach(([x, y]) => brush.lineTo(x * clip.width, y * clip.height));
    if (!drawing) brush.closePath();
    Object.assign(brush, { lineWidth: 2, strokeStyle: '#fff' });
    brush.stroke();
    brush.lineWidth = 1;
  }
  if (fit === 'align') pairs.forEach(([[x, y]], i) => paintHandle(brush, x * clip.width, y * clip.height, i, 1));
}

function paintHandle(context, x, y, i, unit) {
  context.beginPath();
  context.arc(x, y, 8 * unit, 0, 2 * Math.PI);
  Object.assign(context, { lineWidth: 3 * unit, strokeStyle: '#fff', fillStyle: HANDLES[i] });
  context.fill();
  context.stroke();
  context.lineWidth = 1;
}

/* ---- webcam ---- */

async function openCamera() {
  if (!navigator.mediaDevices) return say('This page may not use a camera: it needs https', 'error');
  if (camera.stream || camera.opening) return;
  camera.opening = true;
  let stream;
  try {
    const video = { width: { ideal: 640 }, height: { ideal: 480 }, facingMode: 'user' };
    stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
  } catch (error) {
    return say(`The camera cannot be used: ${error.message}`, 'error');
  } finally {
    camera.opening = false;
  }
  camera.stream = stream;
  if (source !== 'webcam') return closeCamera();   // left before the permission was given
  Object.assign(camera.video, { srcObject: stream, muted: true, playsInline: true });
  await camera.video.play();
  if (camera.stream !== stream) return;
  fitCamera();
  stream.getTracks()[0].onended = () => {            // unplugged, or no longer allowed; not when we stop it
    closeCamera();
    say('The camera has gone: choose Webcam again', 'error');
  };
  say('Press Start and move: the picture moves with you');
}

function fitCamera() {                   // also when a phone is turned
  const { videoWidth, videoHeight } = camera.video, scale = WEBCAM_SIDE / Math.max(videoWidth, videoHeight);
  if (!camera.stream || !videoWidth) return;
  shape({ width: Math.round(videoWidth * scale), height: Math.round(videoHeight * scale) });
}

function closeCamera() {
  camera.stream?.getTracks().forEach(track => track.stop());
  camera.stream = null;
}

function playCamera(now) {
  if (!camera.stream || now - played < 1000 / facts.fps) return;
  played = now;
  brush.setTransform(-1, 0, 0, 1, clip.width, 0);   // as in a mirror
  brush.drawImage(camera.video, 0, 0, clip.width, clip.height);
  brush.setTransform(1, 0, 0, 1, 0, 0);
  link.held = link.held?.filter(({ kind }) => kind !== 'webcam') ?? null;
  const behind = link.socket.bufferedAmount > MOST_BUFFERED;   // acks and Stop would wait behind pictures
  if ((state === 'starting' || state === 'live') && !behind)
    link.send({ kind: 'webcam', jpeg: clip.toDataURL('image/jpeg', 0.7).split(',')[1], t: now });
  paintMarks();
}

/* ---- the panel's own controls ---- */

function setSource(value) {
  if (running()) return;
  const back = source === 'webcam' && value === 'clip';
  if (value !== source) {                // a region is of what it was drawn on
    [region, drawing] = [null, null];
    showRegion();
  }
  source = motion.dataset.source = value;
  mark('button[data-source]', 'aria-pressed', button => button.dataset.source === value);
  part('clip-frame').toggleAttribute('data-empty', value === 'clip' && !loaded);
  part('clip-upload').hidden = value !== 'clip';
  if (value === 'clip') {
    closeCamera();
    if (frames.length) shape(frames[0]);
    if (back) track();                   // it may have come, or have been set otherwise, meanwhile
  } else openCamera();
}

function choose(attribute, value, set) {
  set(value);
  mark(`button[data-${attribute}]`, 'aria-pressed', button => button.dataset[attribute] === value);
  dirty = true;
}

function showSettings() {
  part('clip-start-value').textContent = `${number('clip-start').toFixed(1)} s`;
  part('clip-seconds-value').textContent = `${number('clip-seconds').toFixed(1)} s`;
  part('clip-grid-value').textContent = `${number('clip-grid')} wide`;
  part('amplify-value').textContent = `${number('amplify').toFixed(2)} ×`;
  choose('image', image, () => {});
}

function flip(name) {
  part(name).setAttribute('aria-pressed', String(!pressed(name)));
}

camera.video.onresize = fitCamera;
part('clip-upload').onclick = part('clip-other').onclick = () => part('clip-file').click();
part('clip-file').onchange = event => {
  const file = event.target.files[0];
  if (file && !panel.file(file)) say('That is a picture: choose a video, or "Upload a photo" to have it moved', 'error');
  event.target.value = '';
};
part('progress-cancel').onclick = () => { cancel(); calm(); };
part('region-clear').onclick = () => { region = null; showRegion(); track(); };
part('reverse').onclick = () => { flip('reverse'); track(); };
part('loop').onclick = () => flip('loop');
part('tracker').onchange = () => {
  part('tracker-note').textContent = facts.trackers[part('tracker').value] ?? '';
  track();
};
part('amplify').oninput = showSettings;
for (const name of ['clip-start', 'clip-seconds', 'clip-grid']) {
  part(name).oninput = showSettings;
  part(name).onchange = changed;
}
onEach('button[data-source]', button => setSource(button.dataset.source));
onEach('button[data-fit]', button => choose('fit', button.dataset.fit, value => { fit = value; }));
onEach('button[data-image]', button => choose('image', button.dataset.image, value => { image = value; track(); }));
clip.addEventListener('pointerdown', clipPress);
clip.addEventListener('pointermove', clipMove);
clip.addEventListener('pointerup', clipLift);
clip.addEventListener('pointercancel', undraw);
clip.addEventListener('lostpointercapture', undraw);       // after a lift too, when nothing is being drawn any more

panel.welcomed = () => {
  part('clip-seconds').max = Math.min(part('clip-seconds').max, facts.max_seconds);
  progress(null);
  if (job.state !== 'sent') return;
  job.state = 'cancelled';               // with the connection
  again = true;
};
panel.file = (file, chosen) => {
  if (sending) return say('A clip is being uploaded: wait for it, or cancel it', 'error') ?? true;
  if (chosen || file.type.startsWith('image/') && file.type !== 'image/gif') return false;
  whenStopped(() => sendClip(file));
  return true;
};
panel.keep = () => ({ ...settings(), image, ownPhoto, job: job.number });
panel.idle = () => source === 'clip' && !loaded ? 'Choose a video: its motion moves the picture' : '';
panel.entered = now => {
  const settings = 'input[type=range], select, [data-source], [data-fit], [data-image], [data-ms=reverse], '
    + '[data-ms=loop], [data-ms=region-clear]';
  for (const control of motion.querySelectorAll(settings)) control.disabled = now !== 'idle';
  trackAgain();
};
panel.hear = message => {
  if (message.kind === 'send') {          // the server has dropped the clip before
    forget();
    if (sending) sendParts(sending); else link.send({ kind: 'cancel' });
  }
  if (message.kind === 'clip' && !(message.again && loaded)) opened(message);
  if (message.kind === 'unchanged') answered();
  if (message.kind === 'tracking') tracking(message);
  if (message.kind === 'tracked') tracked(message);
  if (message.kind === 'error') refused();
};
panel.see = (header, blob) => { if (header.kind === 'preview') preview(header, blob); };
panel.shown = header => {
  if (header.image !== 'clip') ownPhoto = !header.name;
  choose('image', header.image ?? 'own', value => { image = value; });
  if (!sending || sending.socket === link.socket) return;
  sending = null;
  forget();
  say('The connection was lost during the upload: choose the video again', 'error');
};
panel.starting = () => {
  if (sending) return say('A clip is being uploaded: wait for it, or cancel it', 'error') ?? null;
  if (source === 'clip' && !loaded) return say('Choose a video first, or the webcam', 'error') ?? null;
  if (source === 'webcam' && !camera.stream) return say('The camera is off: allow the page to use it', 'error') ?? null;
  const unknown = pressed('reverse') && job.state !== 'done';   // the last frame is known once that is
  if (source === 'clip' && image === 'clip' && (settling || unknown)) {   // the picture is still the old settings'
    if (settling || job.state === 'cancelled') track();
    return say('The picture is on its way: start when it is here', 'error') ?? null;
  }
  again = source === 'clip' && job.state === 'sent';
  progress(null);
  return { source, settings: settings() };
};
panel.tick = now => {
  if (element.offsetParent === null) {
    camera.away ||= camera.stream !== null;
    return closeCamera();
  }
  if (camera.away && source === 'webcam') openCamera();   // the visitor has come back
  camera.away = false;
  if (source === 'webcam') playCamera(now); else playClip(now);
};
panel.paint = (pen, unit) => {
  if (fit !== 'align' || running()) return;
  pairs.forEach(([, [x, y]], i) => paintHandle(pen, x * extent.width, y * extent.height, i, unit));
};
panel.press = ({ x, y }, event) => {
  if (fit !== 'align' || running()) return false;
  const at = [x / extent.width, y / extent.height], reach = 24 * extent.width / picture.clientWidth;
  const handle = near(pairs.map(pair => pair[1]), at, extent.width, extent.height, reach);
  if (handle >= 0) held.set(event.pointerId, [handle, 1]);
  return handle >= 0;
};
panel.move = ({ x, y }, event) => {
  pairs[held.get(event.pointerId)[0]][1] = [clamp(x / extent.width, 0, 1), clamp(y / extent.height, 0, 1)];
};
panel.lift = (sample, event) => { held.delete(event.pointerId); };
setSource('clip');
choose('fit', fit, () => {});
setAgain();
showSettings();
