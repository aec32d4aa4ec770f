// Draws every chart in the theme of the page, again when the theme changes.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const root = document.documentElement;
const button = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");
const themes = read("themes");
const charts = read("charts");
const views = new Map();

// A page opened from a file may not be allowed to remember anything.
const remembered = (() => {
  try {
    return localStorage.getItem("qarat-theme");
  } catch {
    return null;
  }
})();
if (remembered in themes) root.dataset.theme = remembered;

const theme = () => root.dataset.theme ?? (system.matches ? "dark" : "light");

async function draw(holder, key, name) {
  views.get(key)?.finalize();
  const options = { mode: "vega-lite", renderer: "svg", actions: false, config: themes[name], tooltip: { theme: name } };
  // Drawing writes into the definition it is given, so it gets one of its own.
  views.set(key, await vegaEmbed(holder, structuredClone(charts[key]), options));
}

async function drawAll() {
  const name = theme();
  button.textContent = name === "dark" ? "Light" : "Dark";
  button.setAttribute("aria-label", `Switch to the ${name === "dark" ? "light" : "dark"} theme`);
  delete root.dataset.drawn;
  // What is folded away has no width to be drawn in.
  if (await drawThese(document.querySelectorAll("[data-chart]:not(details:not([open]) *)"), name)) {
    root.dataset.drawn = name;
  }
}

// Whether all were drawn before the theme changed again.
async function drawThese(holders, name) {
  for (const holder of holders) {
    try {
      await draw(holder, holder.dataset.chart, name);
    } catch (error) {
      holder.textContent = `This figure could not be drawn: ${error.message}. Its data are in the table below.`;
      console.error(holder.dataset.chart, error);
    }
    if (theme() !== name) return false;
  }
  return true;
}

for (const fold of document.querySelectorAll("details.fold")) {
  fold.addEventListener("toggle", () => fold.open && drawThese(fold.querySelectorAll("[data-chart]"), theme()));
}

button.hidden = false;
button.addEventListener("click", () => {
  root.dataset.theme = theme() === "dark" ? "light" : "dark";
  try {
    localStorage.setItem("qarat-theme", root.dataset.theme);
  } catch {
    // then it is asked again next time
  }
  drawAll();
});
system.addEventListener("change", () => root.dataset.theme ?? drawAll());
drawAll();
