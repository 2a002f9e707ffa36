// The page: slides, panes, layers, gallery and marks, and the keys.

import { ask, say, trying } from "./ask.js";
import { Gallery } from "./gallery.js";
import { Layers } from "./layers.js";
import { Marks } from "./marks.js";
import { Pane, tie } from "./pane.js";
import { Planes } from "./planes.js";
import { Slides } from "./slides.js";

const of = (id) => document.getElementById(id);
const LAYERS = { f: "foreground", t: "tiles", a: "map", n: "nuclei" };

const panes = [new Pane(of("pane-1")), new Pane(of("pane-2"))];
let active = panes[0];
let pointer = null; // {x, y} of level 0 under the mouse, or of the cell in the gallery
let facts = null;
let number = null;
let asked = null;

const start = await trying(() => ask("start"));
if (start) await begin();

async function begin() {
  const layers = new Layers(panes, remember);
  const gallery = new Gallery((x, y, side) => active.jump(x, y, side), (target) => { pointer = target; });
  const marks = new Marks(start.keys, start.marks_file, (standing) => {
    for (const pane of panes) pane.setMarks(standing);
  });
  const slides = new Slides(open);
  const planes = new Planes(panes);
  const showSecond = tie(...panes);
  for (const pane of panes) listen(pane);
  of("compare").addEventListener("click", () => compare(panes[1].section.hidden));
  document.addEventListener("keydown", pressed, true); // before Leaflet, which takes + for three steps
  if (start.runs.length) of("show-map").checked = true;

  await slides.list(0);
  const place = new URLSearchParams(location.hash.slice(1));
  await open(Number(place.get("slide") ?? 0));
  if (start.runs.length > 1) {
    compare(true);
    panes[0].whole();
  }
  if (place.has("z") && facts) {
    panes[0].map.setView(panes[0].at(+place.get("x"), +place.get("y")), +place.get("z"), { animate: false });
  }
  window.cytofm = { panes, opened: () => number };

  async function open(wanted) {
    say("");
    asked = wanted;
    const answer = await trying(() => ask(`slides/${wanted}`));
    if (asked !== wanted) return; // another one was asked for meanwhile
    slides.current(wanted);
    if (!answer) {
      facts = number = null; // keys must not mark what was shown before
      for (const each of [...panes, layers, planes, gallery]) each.clear();
      const named = (slides.names ?? []).find((slide) => slide.number === wanted);
      of("slide-name").textContent = named?.name ?? "";
      of("slide-facts").textContent = "cannot be shown; see below";
      return;
    }
    facts = answer;
    number = wanted;
    pointer = null;
    tellOf(facts);
    marks.show(number, facts.marks);
    for (const pane of panes) pane.show(number, facts, marks.colours);
    marks.show(number, facts.marks);
    planes.offer(facts);
    layers.offer(facts, start.runs);
    await gallery.offer(number, facts, start.runs);
  }

  function tellOf({ slide_id: name, size_px0: [width, height], mpp, n_tiles: n }) {
    of("slide-name").textContent = of("slide-name").title = name;
    of("slide-facts").textContent = `${width} × ${height} px · ${+mpp.toPrecision(4)} µm/px · ${n} tiles`;
    document.title = `${name} · cytofm view`;
  }

  function compare(two) {
    if (!facts) return say("There is no slide to show.", true);
    showSecond(two);
    of("compare").setAttribute("aria-pressed", String(two));
    if (!two) active = panes[0];
    layers.apply();
  }

  function pressed(event) {
    if (event.target.matches("input:not([type=checkbox]):not([type=range]), select, textarea")) return;
    const undoes = (event.ctrlKey || event.metaKey) && event.key === "z";
    if (event.altKey || ((event.ctrlKey || event.metaKey) && !undoes)) return;
    if (undoes || event.key === "u") marks.undo();
    else if (/^[0-9]$/.test(event.key)) mark(Number(event.key));
    else if (event.key in LAYERS) layers.toggle(LAYERS[event.key]);
    else if (event.key === "+" || event.key === "=") active.map.zoomIn(1);
    else if (event.key === "-") active.map.zoomOut(1);
    else if (event.key === "," || event.key === ".") planes.step(event.key === "." ? 1 : -1);
    else if (event.key === "b") planes.tiled();
    else if (event.key === "c") of("compare").click();
    else if (event.key === "[" || event.key === "]") slides.step(event.key === "]" ? 1 : -1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  function mark(key) {
    if (!facts) return;
    const place = pointer ?? active.place(active.map.getCenter());
    marks.mark(key, place, Number(of("nuclei").value || 0));
  }
}

function listen(pane) {
  pane.map.on("mousemove", (event) => { pointer = pane.facts && pane.place(event.latlng); active = pane; });
  pane.map.on("mouseout", () => { pointer = null; });
  pane.map.getContainer().addEventListener("focus", () => { active = pane; });
  pane.map.on("moveend", remember);
}

// Keeps the place in the address, so that loading the page again comes back to it.
function remember() {
  if (number === null) return;
  const { x, y } = panes[0].place(panes[0].map.getCenter());
  const place = { slide: number, z: panes[0].map.getZoom(), x: Math.round(x), y: Math.round(y) };
  history.replaceState(null, "", `#${new URLSearchParams(place)}`);
}
