"""What the page at / does: sends a form as JSON and shows the reply."""

from electra_fast.inspection_shades import SHADES, VERDICT

# Text only ever goes in by textContent. Places in replies count characters; JavaScript counts halves of some.
_BODY = r"""
const element = (tag, options = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...children);
  return made;
};
const percent = (p) => (p < 0.001 ? "<0.1%" : p > 0.999 ? ">99.9%" : (100 * p).toFixed(1) + "%");
const shade = (p) => BOUNDS.filter((bound) => p >= bound).length - 1;

const said = (text) => element("p", { className: "main", textContent: text, dir: "auto" });

function bars(title, rows, best) {
  const body = element("tbody");
  for (const [name, probability] of rows) {
    const meter = element("meter", { min: 0, max: 1, value: probability, ariaHidden: "true" });
    body.append(element("tr", { className: name === best ? "best" : "" },
      element("th", { scope: "row", textContent: name, dir: "auto" }),
      element("td", { className: "bar" }, meter),
      element("td", { className: "figure", textContent: percent(probability) })));
  }
  const head = element("tr", {}, element("th", { scope: "col", textContent: title }),
    element("td", { className: "bar" }), element("th", { scope: "col", textContent: "Probability" }));
  return element("table", {}, element("thead", {}, head), body);
}

// Spans {start, end, type} of a text, in characters; those that overlap one before are left to the list below the text.
function marked(text, spans) {
  const characters = [...text];
  const kinds = [...new Set(spans.map((span) => span.type))].sort();
  const paragraph = element("p", { className: "text", dir: "auto" });
  let place = 0;
  for (const span of [...spans].sort((a, b) => a.start - b.start)) {
    if (span.start < place) continue;
    paragraph.append(characters.slice(place, span.start).join(""));
    const mark = element("mark", { className: "k" + (kinds.indexOf(span.type) % 6) });
    mark.append(characters.slice(span.start, span.end).join(""));
    if (span.type) mark.append(element("small", { textContent: " " + span.type }));
    paragraph.append(mark);
    place = span.end;
  }
  paragraph.append(characters.slice(place).join(""));
  return paragraph;
}

function inspection(item) {
  const characters = [...item.text];
  const paragraph = element("p", { className: "text", dir: "auto" });
  let place = 0;
  for (const [first, last] of item.words) {
    const tokens = item.tokens.slice(first, last);
    paragraph.append(characters.slice(place, tokens[0].start).join(""));
    if (item.cuts.includes(tokens[0].start)) paragraph.append("| ");
    const figures = tokens.map((token) => percent(token.probability)).join(" ");
    const word = element("span", { className: "w", tabIndex: paragraph.querySelector(".w") ? -1 : 0 });
    place = tokens[0].start;
    for (const token of tokens) {
      const replaced = token.probability >= VERDICT ? " r" : "";
      word.append(element("span", {
        className: "s" + shade(token.probability) + replaced,
        textContent: characters.slice(Math.max(place, token.start), token.end).join(""),
      }));
      place = Math.max(place, token.end);
    }
    word.append(element("span", { className: "figures", textContent: " " + figures + " " }));
    paragraph.append(word);
  }
  paragraph.append(characters.slice(place).join(""));
  const replaced = item.tokens.filter((token) => token.probability >= VERDICT).length;
  const verdict = replaced === 0 ? "No token looks replaced." :
    replaced === 1 ? "One token looks replaced, underlined." : replaced + " tokens look replaced, underlined.";
  const how = "The stronger the shade, the likelier that a word was replaced. For a word's figures point at it, " +
    "tap it, or go there with the Tab and arrow keys.";
  return [said(verdict), paragraph, element("p", { className: "about", textContent: how })];
}

function answers(item, example) {
  const parts = [said(item.text === "" ? "There is no answer in the text." : item.text)];
  if (item.start !== null && item.text !== "") {
    parts.push(marked(example.context, [{ start: item.start, end: item.start + [...item.text].length, type: "" }]));
  }
  const best = item.n_best.slice(0, 5).map((answer) => [answer.text, answer.probability]);
  if (best.length) parts.push(bars("Answers", best, item.text));
  return parts;
}

function tagged(item, example) {
  if (item.entities && example.text !== undefined) {
    const found = item.entities.length === 1 ? "One entity." : item.entities.length + " entities.";
    return [said(found), marked(example.text, item.entities)];
  }
  const text = item.tokens.join(" ");
  let place = 0;
  const spans = item.tokens.map((token, index) => {
    const start = place;
    place += [...token].length + 1;
    return { start, end: place - 1, type: item.tags[index] };
  });
  return [marked(text, spans)];
}

function events(item, example) {
  if (!item.events.length) return [said("No event.")];
  return item.events.flatMap((event) => {
    const spans = [{ ...event.trigger, type: event.type }, ...event.arguments.map((a) => ({ ...a, type: a.role }))];
    return [said(event.type), marked(example.text, spans)];
  });
}

function show(item, example) {
  if (item.n_best) return answers(item, example);
  if (item.words) return inspection(item);
  if (item.tags) return tagged(item, example);
  if (item.events) return events(item, example);
  if (item.choice !== undefined) {
    const rows = example.choices ? example.choices.map((choice, index) => [choice, item.probabilities[index]]) : [];
    return [said(item.choice), bars("Choices", rows, item.choice)];
  }
  if (item.probabilities) {
    const rows = Object.entries(item.probabilities).sort((a, b) => b[1] - a[1]);
    return [said(item.label), bars("Labels", rows, item.label)];
  }
  if (item.score !== undefined) return [said(String(Number(item.score.toPrecision(6))))];
  if (item.vector) return [said("A vector of " + item.vector.length + " numbers.")];
  if (item.vectors) return [said(item.vectors.length + " vectors of " + item.vectors[0].length + " numbers.")];
  return [said(item.text !== undefined ? item.text : "An answer that this page can't show: see below.")];
}

function read(form, about) {
  const example = {};
  for (const { key, kind, optional } of about.fields) {
    const value = form.elements[key].value;
    if (kind === "json") return JSON.parse(value);
    if (kind === "lines") example[key] = value.split("\n").filter((line) => line.trim());
    else if (value.trim() || !optional) example[key] = value;
  }
  return example;
}

async function ask(form) {
  const about = JSON.parse(form.dataset.about);
  const button = form.querySelector("button");
  const reply = form.parentElement.querySelector(".reply");
  const details = form.parentElement.querySelector("details");
  if (button.ariaDisabled === "true") return;
  const fail = (message) => {
    details.hidden = true;
    reply.replaceChildren(element("p", { className: "error", textContent: message }));
  };
  let example;
  try {
    example = read(form, about);
  } catch (error) {
    return fail("This is no JSON: " + error.message);
  }
  button.ariaDisabled = "true";
  try {
    const sent = about.asks === "texts" ? example.text ?? "" : example;
    const response = await fetch(about.route, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ [about.asks]: [sent] }),
    });
    const text = await response.text();
    let value;
    try { value = JSON.parse(text); } catch { value = { error: text }; }
    if (!response.ok) return fail((value.error || response.statusText) + (value.id ? " (" + value.id + ")" : ""));
    const item = value[about.answers][0];
    // Where a task names its columns otherwise, they are found by their place in the form.
    const [first, second, third] = about.fields.map(({ key }) => example[key]);
    const named = { text: first, question: first, context: second, choices: third, ...example };
    reply.replaceChildren(...show(item, named));
    details.querySelector("pre").textContent = JSON.stringify(value, null, 2);
    details.hidden = false;
  } catch (error) {
    fail("The service does not answer. Is it still running? (" + error.message + ")");
  } finally {
    button.ariaDisabled = null;
  }
}

addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const word = document.activeElement.closest(".w");
  if (!step || !word || event.altKey || event.ctrlKey || event.metaKey) return;
  const words = [...word.parentElement.querySelectorAll(".w")];
  const ahead = getComputedStyle(word).direction === "rtl" ? -step : step;
  const next = words[words.indexOf(word) + ahead];
  if (!next) return;
  event.preventDefault();
  next.focus();
});

for (const form of document.forms) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask(form);
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}

// A link may fill in the first form that has its fields: ?text=... asks at once.
const given = new URLSearchParams(location.search);
for (const form of document.forms) {
  const fields = [...form.elements].filter((field) => field.name && given.has(field.name));
  for (const field of fields) field.value = given.get(field.name);
  if (fields.length) {
    ask(form);
    break;
  }
}
"""

_BOUNDS = [shade.percent / 100 for shade in SHADES]
SCRIPT = f'"use strict";\nconst BOUNDS = {_BOUNDS}, VERDICT = {VERDICT};{_BODY}'
