// Marks: keys 1 to 9 give the cell under the pointer a class. The server saves before it answers.

import { element, say, tell, trying } from "./ask.js";

const of = (id) => document.getElementById(id);

export class Marks {
  constructor(keys, file, shown) {
    this.file = file;
    this.shown = shown; // told the marks of the slide
    this.names = Object.fromEntries(keys.map((each) => [each.key, each.name]));
    this.colours = Object.fromEntries(keys.map((each) => [each.key, each.colour]));
    of("legend").replaceChildren(...keys.map((each) => this.#legend(each)));
    of("undo").addEventListener("click", () => this.undo());
  }

  show(number, standing) {
    this.number = number;
    of("save-geojson").href = `slides/${number}/marks.geojson`;
    this.#set(standing);
  }

  // Marks the place; `nuclei` is the number of those that are shown.
  async mark(key, place, nuclei) {
    const number = this.number;
    const body = { x: place.x, y: place.y, key, nuclei };
    const answer = await trying(() => tell(`slides/${number}/mark`, body));
    if (!answer) return;
    if (number === this.number) this.#set(answer.marks);
    const what = key ? `Marked as ${this.names[key] || key}` : "Mark taken away";
    say(`${what} at ${Math.round(answer.mark.x)}, ${Math.round(answer.mark.y)}; saved.`);
  }

  async undo() {
    const answer = await trying(() => tell("undo", {}));
    if (!answer) return;
    if (!answer.undone) return say("Nothing to undo.");
    const { key, x, y, slide_id: slide } = answer.undone;
    if (answer.slide === this.number) this.#set(answer.marks);
    say(`Undone: ${this.names[key] || key} at ${Math.round(x)}, ${Math.round(y)} of ${slide}.`);
  }

  #set(standing) {
    const n = standing.length;
    of("marks-count").textContent = `${n} on this slide, kept in ${this.file.split("/").at(-1)}`;
    of("marks-count").title = this.file;
    this.shown(standing);
  }

  #legend({ key, name, colour }) {
    const item = element("li");
    const swatch = element("i");
    const input = element("input");
    swatch.style.backgroundColor = colour;
    input.value = name;
    input.maxLength = 100;
    input.setAttribute("aria-label", `Class of key ${key}`);
    input.addEventListener("change", async () => {
      const wanted = input.value.trim();
      const answer = wanted && (await trying(() => tell("name", { key, name: wanted })));
      if (answer) say(`Key ${key} is ${answer.name}; saved.`);
      if (answer) this.names[key] = answer.name;
      input.value = this.names[key];
    });
    item.append(element("b", String(key)), swatch, input);
    return item;
  }
}
