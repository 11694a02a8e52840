// Elements from data. Text only ever becomes text: nothing here reads markup.

export const find = (id) => document.getElementById(id);

// h("button", {class: "quiet", onclick: f, disabled: true}, "words", otherElement)
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-") && value != null) element.setAttribute(name, String(value));
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// What a terminal or a browser could take for a command becomes visible; direction marks are contained by dir="auto".
export const clean = (text) => String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, "\ufffd");

export const oneLine = (text) => clean(String(text).replace(/\s+/g, " ")).trim();

export const short = (text, length) => {
  const line = oneLine(text);
  return line.length <= length ? line : `${line.slice(0, length - 1).trimEnd()}…`;
};

const numbers = new Intl.NumberFormat("en");
export const count = (number, one, many = `${one}s`) => `${numbers.format(number)} ${number === 1 ? one : many}`;

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
