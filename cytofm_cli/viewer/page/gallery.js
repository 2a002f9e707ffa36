// The gallery: the first cells or tiles of an order; a click goes there.

import { ask, element, option, trying } from "./ask.js";

const of = (id) => document.getElementById(id);
const COUNT = 60;

export class Gallery {
  constructor(jump, aim) {
    this.jump = jump;
    this.aim = aim; // told which cell the pointer or the focus is on
    of("ranking").addEventListener("change", () => this.fill());
    of("lowest").addEventListener("change", () => this.fill());
  }

  offer(number, facts, runs) {
    this.number = number;
    this.facts = facts;
    const select = of("ranking");
    const before = select.selectedOptions[0]?.textContent;
    select.replaceChildren(...facts.rankings.map((each, i) => option(i, each.title)));
    const titles = facts.rankings.map((each) => each.title);
    const wanted = titles.findIndex((title) => runs.some((run) => title.startsWith(`${run}: `)));
    select.value = Math.max(titles.indexOf(before), 0) || Math.max(wanted, 0);
    select.disabled = !titles.length;
    return this.fill();
  }

  clear() {
    this.facts = this.asked = null;
    of("gallery").replaceChildren();
  }

  async fill() {
    if (!this.facts) return;
    const list = of("gallery");
    const ranking = this.facts.rankings[of("ranking").value];
    if (!ranking) {
      list.replaceChildren(element("li", "Nothing to order: no nuclei and no attention."));
      return;
    }
    const asked = `slides/${this.number}/top/${of("ranking").value}?count=${COUNT}&lowest=${of("lowest").checked ? 1 : 0}`;
    this.asked = asked;
    const items = await trying(() => ask(asked));
    if (!items || this.asked !== asked) return;
    list.replaceChildren(...items.map((item, i) => this.#item(item, i, ranking.unit)));
    list.scrollTop = 0;
  }

  #item({ x, y, value }, i, unit) {
    const item = element("li");
    const button = element("button");
    const picture = element("img");
    const side = unit === "tile" ? this.facts.tile_px0 : this.facts.cell_px0;
    const text = Number(value.toPrecision(3)).toString();
    button.type = "button";
    button.dataset.x = x;
    button.dataset.y = y;
    picture.loading = "lazy";
    picture.alt = `${unit} ${i + 1} at ${Math.round(x)}, ${Math.round(y)}`;
    picture.src = `slides/${this.number}/crop.jpg?x=${x}&y=${y}&unit=${unit}`;
    button.append(picture, element("span", `${i + 1} · ${text}`));
    button.addEventListener("click", () => this.jump(x, y, side));
    for (const [on, target] of [["pointerenter", { x, y }], ["focus", { x, y }], ["pointerleave", null], ["blur", null]]) {
      button.addEventListener(on, () => this.aim(target));
    }
    item.append(button);
    return item;
  }
}
