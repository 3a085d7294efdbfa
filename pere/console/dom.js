// Elements, and numbers and times as people read them. What comes from outside is only ever text: nothing here reads markup.

export function make(tag, attributes = {}, ...children) {
	return filled(document.createElement(tag), attributes, children);
}

export function draw(tag, attributes = {}, ...children) {
	return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(element, attributes, children) {
	for (const [name, value] of Object.entries(attributes)) {
		if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
		else if (value === true) element.setAttribute(name, "");
		else if (value !== false && value != null) element.setAttribute(name, value);
	}
	element.append(...children.flat().filter((child) => child != null && child !== false));
	return element;
}

/** Put a text into an element, if it is another one: who listens to the page is not told the same twice. */
export function put(element, text) {
	if (element.textContent !== String(text)) element.textContent = text;
}

const whole = new Intl.NumberFormat("en"), short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (number) => (number >= 100_000 ? short.format(number) : whole.format(number));
export const rate = (number) => (number >= 10 || number === 0 ? count(Math.round(number)) : number.toFixed(1));
export const some = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

export function seconds(value) {
	if (value == null) return "";
	if (value < 0.01) return `${(value * 1000).toFixed(1)} ms`;
	if (value < 1) return `${Math.round(value * 1000)} ms`;
	if (value < 60) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
	if (value < 3600) return `${Math.round(value / 60)} min`;
	return value < 172_800 ? `${Math.round(value / 3600)} h` : `${Math.round(value / 86_400)} d`;
}

export const bytes = (value) => (value < 1024 ? `${value} B` : value < 1 << 20 ? `${(value / 1024).toFixed(1)} KiB` : `${(value / (1 << 20)).toFixed(1)} MiB`);
export const clock = (time) => new Date(time).toLocaleTimeString("en", { hour12: false });
