// Reading a curve: a line follows the pointer, and the legend shows the values under it. Without this the page is whole.
"use strict";
document.documentElement.classList.add("scripted");
for (const figure of document.querySelectorAll("figure.panel")) {
  const { x: [left, right], plot: [from, to, width], unit, seen, curves } = JSON.parse(figure.querySelector("script").textContent);
  const svg = figure.querySelector("svg"), cursor = svg.querySelector(".cursor"), at = figure.querySelector(".at");
  const values = [...figure.querySelectorAll(".legend b")];
  const rest = values.map((value) => value.textContent), note = at.textContent;
  const nearest = (points, x) => points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const place = Math.min(to, Math.max(from, ((event.clientX - box.left) / box.width) * width));
    const wanted = left + ((place - from) / (to - from)) * (right - left);
    const known = curves.flat();
    if (!known.length) return;
    const pairs = nearest(known, wanted)[0];
    cursor.setAttribute("transform", `translate(${from + ((pairs - left) / (right - left)) * (to - from)} 0)`);
    cursor.setAttribute("visibility", "visible");
    at.textContent = `${Math.round(pairs).toLocaleString("en")} ${seen}`;
    curves.forEach((points, i) => { if (points.length) values[i].textContent = nearest(points, pairs)[1] + unit; });
  };
  const hide = () => {
    cursor.setAttribute("visibility", "hidden");
    at.textContent = note;
    values.forEach((value, i) => { value.textContent = rest[i]; });
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}
