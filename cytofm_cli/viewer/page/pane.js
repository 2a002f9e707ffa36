// One view of a slide: Leaflet in pixels of level 0, with layers that the server draws.

const NAMES = ["foreground", "tiles", "map", "nuclei"];
const MOST_MARKS = 600; // drawn at once; nearer, there are fewer in view
const NICE = [1, 2, 5];

export class Pane {
  constructor(section) {
    this.section = section;
    this.said = section.querySelector(".said");
    this.bar = section.querySelector(".scale span");
    this.map = L.map(section.querySelector(".map"), {
      crs: L.CRS.Simple, attributionControl: false, fadeAnimation: false, zoomAnimation: false,
      maxBoundsViscosity: 0.5, wheelPxPerZoomLevel: 120,
    });
    const cross = document.createElement("div");
    cross.className = "cross";
    this.map.getContainer().append(cross);
    this.marks = L.layerGroup().addTo(this.map);
    this.spot = L.layerGroup().addTo(this.map);
    this.layers = {};
    this.standing = [];
    this.map.on("moveend zoomend", () => this.#refresh());
    new ResizeObserver(() => this.fit()).observe(section);
  }

  // Shows a slide from the beginning, as a whole.
  show(number, facts, colours) {
    this.clear();
    this.facts = facts;
    this.number = number;
    this.colours = colours;
    const [width, height] = facts.size_px0;
    this.bounds = L.latLngBounds(this.at(0, height), this.at(width, 0));
    this.map.setMinZoom(-1).setMaxZoom(facts.deepest + 3);
    this.map.setMaxBounds(this.bounds.pad(0.6));
    this.fit();
    if (this.section.hidden) this.map.setView(this.bounds.getCenter(), 0, { animate: false });
    else this.whole();
    this.section.classList.toggle("dark", facts.dark);
    this.#put("slide", this.#square(""), 1, 100);
  }

  // Shows a focal plane; "" is what the tiles show.
  plane(query) {
    const url = this.#square(query);
    if (this.layers.slide && this.layers.slide._url !== url) this.layers.slide.setUrl(url);
  }

  #square(query) {
    return `slides/${this.number}/square/{z}/{x}/{y}.jpg${query}`;
  }

  // Shows nothing: the slide cannot be opened.
  clear() {
    for (const layer of Object.values(this.layers)) layer.remove();
    this.layers = {};
    this.facts = null;
    this.said.textContent = this.bar.textContent = "";
    this.spot.clearLayers();
    this.marks.clearLayers();
  }

  whole() {
    if (this.facts) this.map.fitBounds(this.bounds, { animate: false });
  }

  // Takes the size that it has on the page now; its middle stays.
  fit() {
    if (!this.section.hidden) this.map.invalidateSize({ animate: false });
  }

  at(x, y) {
    return this.map.unproject([x, y], this.facts.deepest);
  }

  place(latLng) {
    return this.map.project(latLng, this.facts.deepest);
  }

  // Sets which layers are seen, each {shown, opacity, query}.
  layer(name, { shown, opacity, query }) {
    const url = `slides/${this.number}/layer/${name}/{z}/{x}/{y}.png?${query}`;
    const there = this.layers[name];
    if (!shown) {
      there?.remove();
      delete this.layers[name];
    } else if (!there) {
      this.#put(name, url, opacity, 200 + NAMES.indexOf(name));
    } else {
      if (there._url !== url) there.setUrl(url);
      there.setOpacity(opacity);
    }
  }

  jump(x, y, side) {
    const size = this.map.getSize();
    const fits = Math.floor(Math.log2(Math.min(size.x, size.y) / (side * 3)));
    const zoom = Math.min(this.facts.deepest + Math.max(fits, -this.facts.deepest), this.facts.deepest + 1);
    this.map.setView(this.at(x, y), zoom, { animate: false });
    const half = side / 2;
    const box = [this.at(x - half, y - half), this.at(x + half, y + half)];
    this.spot.clearLayers();
    for (const [color, weight] of [["#ffffff", 4], ["#d00000", 2]]) {
      L.rectangle(box, { color, weight, fill: false, interactive: false }).addTo(this.spot);
    }
  }

  setMarks(standing) {
    this.standing = standing;
    this.#drawMarks();
  }

  #put(name, url, opacity, zIndex) {
    const { square_px: tileSize, deepest } = this.facts;
    this.layers[name] = L.tileLayer(url, {
      tileSize, opacity, zIndex, minNativeZoom: 0, maxNativeZoom: deepest, minZoom: -1,
      maxZoom: deepest + 3, bounds: this.bounds, noWrap: true, keepBuffer: 1,
    }).addTo(this.map);
  }

  #refresh() {
    if (!this.facts) return;
    this.#drawScale();
    this.#drawMarks();
  }

  #drawScale() {
    const umPerPx = this.facts.mpp * 2 ** (this.facts.deepest - this.map.getZoom());
    const most = 140 * umPerPx;
    const power = 10 ** Math.floor(Math.log10(most));
    const length = Math.max(...NICE.map((n) => n * power).filter((n) => n <= most));
    this.bar.style.width = `${length / umPerPx}px`;
    this.bar.textContent = length >= 1000 ? `${length / 1000} mm` : `${+length.toPrecision(3)} µm`;
  }

  #drawMarks() {
    this.marks.clearLayers();
    if (!this.facts) return;
    const view = this.map.getBounds().pad(0.1);
    const near = this.standing.filter((mark) => view.contains(this.at(mark.x, mark.y)));
    for (const mark of near.slice(-MOST_MARKS)) {
      const disc = document.createElement("b");
      disc.className = isDark(this.colours[mark.key]) ? "mark on-dark" : "mark";
      disc.style.backgroundColor = this.colours[mark.key];
      disc.textContent = mark.key;
      const icon = L.divIcon({ className: "", iconSize: [20, 20], html: disc });
      L.marker(this.at(mark.x, mark.y), { icon, interactive: false, keyboard: false }).addTo(this.marks);
    }
  }
}

// Moves two panes as one. Returns what shows or hides the second one, at the place of the first.
export function tie(one, other) {
  let busy = false;
  const follow = (from, to) => () => {
    if (busy || !to.facts || to.section.hidden || from.section.hidden) return;
    busy = true;
    to.map.setView(from.map.getCenter(), from.map.getZoom(), { animate: false });
    busy = false;
  };
  one.map.on("move", follow(one, other));
  other.map.on("move", follow(other, one));
  return (shown) => {
    busy = true;
    const [centre, zoom] = [one.map.getCenter(), one.map.getZoom()];
    other.section.hidden = !shown;
    one.fit();
    other.fit();
    for (const pane of shown ? [one, other] : [one]) pane.map.setView(centre, zoom, { animate: false });
    busy = false;
  };
}

function isDark(colour) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  return 0.3 * r + 0.59 * g + 0.11 * b < 115;
}
