// The focal planes of a slide: a slider, and "as tiled", which is what all other steps see.

const of = (id) => document.getElementById(id);
const TILED = { best: "sharpest plane of each tile", fuse: "all planes fused" };

export class Planes {
  constructor(panes) {
    this.panes = panes;
    of("plane").addEventListener("input", () => {
      of("plane-tiled").checked = false;
      this.#apply();
    });
    of("plane-tiled").addEventListener("change", () => this.#apply());
  }

  // Offers the planes of a slide, shown as it was tiled.
  offer({ planes }) {
    this.planes = planes;
    of("planes").hidden = !planes;
    if (!planes) return;
    of("plane").max = planes.n - 1;
    of("plane").value = planes.middle;
    of("plane-tiled").checked = true;
    const tiled = TILED[planes.tiles] ?? planes.tiles.replace(":", " ");
    of("plane-tiled-name").textContent = `${planes.tiles === "best" ? "Best" : "As tiled"}: ${tiled}`;
    this.#apply();
  }

  clear() {
    this.planes = null;
    of("planes").hidden = true;
  }

  // Goes up or down by planes; from "as tiled" to the one that the slider stands at.
  step(by) {
    if (!this.planes) return;
    if (!of("plane-tiled").checked) of("plane").value = Number(of("plane").value) + by;
    of("plane-tiled").checked = false;
    this.#apply();
  }

  tiled() {
    if (this.planes) of("plane-tiled").click();
  }

  #apply() {
    const tiled = of("plane-tiled").checked;
    const number = Number(of("plane").value);
    const height = this.planes.um ? `, ${+this.planes.um[number].toPrecision(4)} µm` : "";
    const name = `plane ${number} of 0 to ${this.planes.n - 1}${height}`;
    of("plane-name").textContent = tiled ? "" : name;
    of("plane").setAttribute("aria-valuetext", tiled ? "as tiled" : name);
    for (const pane of this.panes) if (pane.facts) pane.plane(tiled ? "" : `?plane=${number}`);
  }
}
