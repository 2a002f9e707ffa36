// The list of slides: a page of names at a time, by the words in the filter.

import { ask, element, trying } from "./ask.js";

const of = (id) => document.getElementById(id);
const COUNT = 100;
const PAUSE_MS = 150;

export class Slides {
  constructor(open) {
    this.open = open;
    this.first = 0;
    of("words").addEventListener("input", () => {
      clearTimeout(this.waiting);
      this.waiting = setTimeout(() => this.list(0), PAUSE_MS);
    });
    of("earlier").addEventListener("click", () => this.list(this.first - COUNT));
    of("later").addEventListener("click", () => this.list(this.first + COUNT));
  }

  async list(first) {
    const words = of("words").value;
    const asked = `slides?first=${Math.max(0, first)}&count=${COUNT}&words=${encodeURIComponent(words)}`;
    this.asked = asked;
    const answer = await trying(() => ask(asked));
    if (!answer || this.asked !== asked) return;
    this.first = Math.max(0, first);
    this.names = answer.slides;
    const last = this.first + answer.slides.length;
    of("slide-count").textContent = `${answer.n} ${words.trim() ? "found" : "in all"}`;
    of("slide-range").textContent = answer.n > COUNT ? `${this.first + 1}–${last}` : "";
    of("earlier").hidden = of("later").hidden = answer.n <= COUNT;
    of("earlier").disabled = this.first === 0;
    of("later").disabled = last >= answer.n;
    of("slide-list").replaceChildren(...answer.slides.map((slide) => this.#item(slide)));
    this.current(this.number);
  }

  current(number) {
    this.number = number;
    for (const button of of("slide-list").querySelectorAll("button")) {
      const isIt = Number(button.dataset.number) === number;
      if (isIt) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }

  // Opens the slide so many places on in the list that is shown.
  step(by) {
    const names = this.names ?? [];
    const next = names[names.findIndex((slide) => slide.number === this.number) + by];
    if (next) this.open(next.number);
  }

  #item({ number, name }) {
    const item = element("li");
    const button = element("button", name);
    button.type = "button";
    button.title = name;
    button.dataset.number = number;
    button.addEventListener("click", () => this.open(number));
    item.append(button);
    return item;
  }
}
