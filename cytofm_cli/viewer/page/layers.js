// The panel of layers: what is seen over the slide, of which nuclei and which run.

import { element, option } from "./ask.js";

const of = (id) => document.getElementById(id);
const NAMES = ["foreground", "tiles", "map", "nuclei"];

export class Layers {
  constructor(panes, changed) {
    this.panes = panes;
    this.changed = changed;
    for (const name of NAMES) {
      of(`show-${name}`).addEventListener("change", () => this.apply());
      of(`opacity-${name}`).addEventListener("input", () => this.apply());
    }
    for (const id of ["nuclei", "map-1", "map-2"]) {
      of(id).addEventListener("change", () => this.apply());
    }
  }

  toggle(name) {
    const box = of(`show-${name}`);
    if (!box.disabled) box.click();
  }

  // Offers what a slide has; `runs` are those that the command named.
  offer(facts, runs) {
    this.facts = facts;
    of("nuclei").replaceChildren(...facts.nuclei.map((kind, i) => option(i, `${kind.title} (${kind.n})`)));
    of("nuclei-field").hidden = !facts.nuclei.length;
    const columns = facts.maps.flatMap((map, m) => map.columns.map((title, k) => [m, k, map, title]));
    [1, 2].forEach((pane) => {
      const select = of(`map-${pane}`);
      const before = select.selectedOptions[0]?.textContent;
      select.replaceChildren(...columns.map(([m, k, map, title]) => option(`${m}.${k}`, `${map.run} (${map.unit}): ${title}`)));
      const first = this.#first(columns, runs, pane);
      const kept = [...select.options].find((each) => each.textContent === before);
      select.value = kept ? kept.value : first;
    });
    of("map-1-field").hidden = !columns.length;
    this.#allow("nuclei", facts.nuclei.length);
    this.#allow("map", columns.length);
    this.#allow("foreground", facts.has_foreground);
    this.#note(facts, runs);
    this.apply();
  }

  clear() {
    this.facts = null;
    of("notes").replaceChildren();
    of("classes").replaceChildren();
  }

  apply() {
    if (!this.facts) return;
    const two = !this.panes[1].section.hidden;
    of("map-2-field").hidden = !two || !this.facts.maps.length;
    const shown = (name) => of(`show-${name}`).checked && !of(`show-${name}`).disabled;
    of("ramp").hidden = !shown("map");
    this.panes.forEach((pane, i) => {
      const [number, column] = (of(`map-${i + 1}`).value || "0.0").split(".");
      const queries = { map: `number=${number}&of=${column}`, nuclei: `number=${of("nuclei").value || 0}` };
      for (const name of NAMES) {
        const opacity = of(`opacity-${name}`).value / 100;
        const seen = shown(name) && !pane.section.hidden && pane.facts;
        if (pane.facts) pane.layer(name, { shown: seen, opacity, query: queries[name] ?? "" });
      }
      const map = this.facts.maps[number];
      const answer = map?.predicted ? ` · predicted ${map.predicted}` : "";
      pane.said.textContent = shown("map") && map ? `${map.run}: ${map.columns[column]}${answer}` : "";
    });
    this.#classes();
    this.changed();
  }

  #first(columns, runs, pane) {
    const wanted = runs[pane - 1] ?? runs[0];
    const names = [...new Set(columns.map(([, , map]) => map.run))];
    const run = names.includes(wanted) ? wanted : names[Math.min(pane, names.length) - 1];
    const first = columns.find(([, , map]) => map.run === run);
    return first ? `${first[0]}.${first[1]}` : "";
  }

  #allow(name, has) {
    of(`show-${name}`).disabled = !has;
    of(`opacity-${name}`).disabled = !has;
  }

  #note(facts, runs) {
    const there = new Set(facts.maps.map((map) => map.run));
    const missing = runs.filter((run) => !there.has(run));
    const told = missing.map((run) => `RUN ${run} has left no attention here: \`cytofm mil score\` does.`);
    of("notes").replaceChildren(...[...facts.notes, ...told].map((text) => element("p", text)));
  }

  #classes() {
    const kind = this.facts.nuclei[of("nuclei").value || 0];
    of("classes").replaceChildren(...(kind?.classes ?? []).map((each) => {
      const item = element("li");
      const swatch = element("i");
      swatch.style.backgroundColor = each.colour;
      item.append(swatch, `${each.name} `, element("small", String(each.n)));
      return item;
    }));
  }
}
