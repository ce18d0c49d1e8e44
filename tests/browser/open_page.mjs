// Opens an HTML file in a headless browser in both colour schemes and says what came of it, as JSON:
//     node open_page.mjs FILE [PICTURE]
// With PICTURE, each scheme's page is kept as PICTURE-light.png and PICTURE-dark.png.
import { pathToFileURL } from "node:url";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

const [file, picture] = process.argv.slice(2);
const executablePath = await chromium.executablePath();
const browser = await puppeteer.launch({ executablePath, headless: "shell", args: ["--no-sandbox", "--disable-gpu"] });
const said = { version: await browser.version(), schemes: {} };
for (const scheme of ["light", "dark"]) {
  const page = await browser.newPage();
  const seen = { console: [], requests: [] };
  page.on("console", (message) => seen.console.push(`${message.type()}: ${message.text()}`));
  page.on("pageerror", (error) => seen.console.push(`uncaught: ${error.message}`));
  page.on("request", (request) => seen.requests.push(request.url()));
  await page.setViewport({ width: 800, height: 900 });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.goto(pathToFileURL(file).href, { waitUntil: "networkidle0" });
  Object.assign(seen, await page.evaluate(look));
  seen.tips = [];
  for (const svg of await page.$$("figure svg")) {
    await svg.evaluate((element) => element.scrollIntoView({ block: "center" }));
    const mark = await svg.$("[data-tip]");
    const box = await mark.boundingBox();
    await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
    seen.tips.push(await page.$eval("#tip", (tip) => (tip.hidden ? "" : tip.textContent)));
  }
  if (picture) await page.screenshot({ path: `${picture}-${scheme}.png`, fullPage: true });
  said.schemes[scheme] = seen;
  await page.close();
}
await browser.close();
console.log(JSON.stringify(said));

// What a person would see of the plots: sizes and texts in pixels, colours as painted.
function look() {
  const style = (element) => getComputedStyle(element);
  const plots = [...document.querySelectorAll("figure")].map((figure) => {
    const svg = figure.querySelector("svg");
    const box = svg.getBoundingClientRect();
    const scale = box.width / svg.viewBox.baseVal.width;
    const texts = [...svg.querySelectorAll("text")];
    const unseen = texts.filter((text) => {
      const place = text.getBoundingClientRect();
      return place.left < 0 || place.right > innerWidth || place.width === 0;
    });
    const lines = [...svg.querySelectorAll("path")].filter((path) => /[1-9]/.test(path.getAttribute("d") ?? ""));
    return {
      name: figure.id,
      width: box.width,
      height: box.height,
      lines: lines.length,
      texts: texts.map((text) => text.textContent),
      unseen: unseen.map((text) => text.textContent),
      smallest: Math.min(...texts.map((text) => parseFloat(style(text).fontSize) * scale)),
      colors: [...new Set(lines.map((line) => style(line).stroke))],
    };
  });
  return {
    plots,
    width: document.documentElement.scrollWidth,
    background: style(document.body).backgroundColor,
    ink: style(document.body).color,
    identifiers: [...document.querySelectorAll("[id]")].map((element) => element.id),
  };
}
