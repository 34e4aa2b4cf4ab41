"use strict";
(() => {
  const tip = document.getElementById("tip");
  const element = (name, text, kind) => {
    const made = document.createElement(name);
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const binAt = (edges, x) => {
    let low = 0, high = edges.length - 2;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (edges[middle] <= x) low = middle; else high = middle - 1;
    }
    return low;
  };
  for (const plot of document.querySelectorAll(".plot")) {
    const source = document.querySelector(`script[data-for="${plot.dataset.chart}"]`);
    const field = plot.querySelector(".field"), cursor = plot.querySelector(".cursor");
    let chart = null;
    const show = (event) => {
      chart = chart || JSON.parse(source.textContent);
      const box = field.getBoundingClientRect();
      const x = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      const bin = binAt(chart.x, x);
      tip.replaceChildren(element("b", chart.labels[bin]));
      for (const [name, colour, values] of chart.lines) {
        const line = element("div", "");
        line.append(element("i", "", colour), `${name} `, element("b", values[bin]));
        tip.append(line);
      }
      tip.hidden = false;
      cursor.style.display = "block";
      cursor.style.left = `${100 * x}%`;
      const left = event.clientX + 16 + tip.offsetWidth > innerWidth ? event.clientX - 16 - tip.offsetWidth : event.clientX + 16;
      tip.style.left = `${Math.max(4, left)}px`;
      tip.style.top = `${Math.max(4, event.clientY - tip.offsetHeight - 12)}px`;
    };
    const hide = () => { tip.hidden = true; cursor.style.display = "none"; };
    field.addEventListener("pointermove", show);
    field.addEventListener("pointerdown", show);
    field.addEventListener("pointerleave", hide);
  }
})();
