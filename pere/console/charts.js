// Small pictures, each for one question. Each has words for whoever does not see it.

import { count, draw, make, put, seconds } from "./dom.js";

/** How full is it? A pear, of which the share that is answered is ripe. */
export function pear() {
	const body = "M60 32c-13 0-17 12-18 24-2 21-27 31-27 60 0 26 20 40 45 40s45-14 45-40c0-29-25-39-27-60-1-12-5-24-18-24Z";
	const juice = draw("path", { class: "pear-juice", d: "M0 0q15-7 30 0t30 0t30 0t30 0v140H0Z" });
	const picture = draw("svg", { class: "pear", viewBox: "0 0 120 160", "aria-hidden": "true" },
		draw("clipPath", { id: "pear-skin" }, draw("path", { d: body })),
		draw("path", { class: "pear-hollow", d: body }),
		draw("g", { "clip-path": "url(#pear-skin)" }, juice),
		draw("path", { class: "pear-line", d: body }),
		draw("path", { class: "mark-stem", d: "M60 34c0-12 3-20 11-27" }),
		draw("path", { class: "mark-leaf", d: "M66 24c7-14 24-18 40-12-7 15-24 20-40 12Z" }));
	const show = (share) => { juice.style.transform = `translateY(${share >= 1 ? 20 : 158 - 126 * share}px)`; };
	show(0);
	return { picture, show };
}

const STATES = ["processed", "delivered", "failed", "expired", "cancelled"];
const WORDS = { processed: "processed", delivered: "delivered", failed: "failed", expired: "expired", cancelled: "cancelled", owed: "nothing said yet" };

const unsaid = (counts) => (counts.pending ?? 0) + (counts.sent ?? 0);

export function inWords(event) {
	if (!event.audience) return "nobody was asked for a receipt";
	const said = STATES.filter((state) => event.counts[state]).map((state) => `${count(event.counts[state])} ${WORDS[state]}`);
	return `${said.join(", ") || "none"} of ${count(event.audience)}`;
}

/** What became of an event? A bar that fills. */
export function bar(isTall = false) {
	const pieces = STATES.map((state) => make("i", { class: state }));
	const picture = make("span", { class: isTall ? "bar tall" : "bar", role: "img", "aria-label": "no receipts" }, pieces);
	const show = (event) => {
		pieces.forEach((piece, place) => { piece.style.width = `${event.audience ? (100 * event.counts[STATES[place]]) / event.audience : 0}%`; });
		picture.setAttribute("aria-label", `Receipts: ${inWords(event)}`);
	};
	return { picture, show };
}

/** What do the colours mean, and how many are there of each? */
export function legend() {
	const numbers = Object.fromEntries([...STATES, "owed"].map((state) => [state, make("span", { class: "num" })]));
	const lines = [...STATES, "owed"].map((state) => make("li", {}, make("i", { class: `swatch-${state}` }), WORDS[state], numbers[state]));
	const show = (event) => [...STATES, "owed"].forEach((state, place) => {
		const number = state === "owed" ? unsaid(event.counts) : event.counts[state];
		lines[place].hidden = !number && !["processed", "owed"].includes(state);
		put(numbers[state], count(number));
	});
	return { picture: make("ul", { class: "legend" }, lines), show };
}

/** Is it more, or less, than a minute ago? */
export function spark() {
	const line = draw("path", { class: "spark-line" }), fill = draw("path", { class: "spark-fill" });
	const picture = draw("svg", { class: "spark", viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" }, fill, line);
	const show = (values) => {
		const most = Math.max(1e-9, ...values), points = values.map((value, place) => `${((100 * place) / Math.max(1, values.length - 1)).toFixed(1)} ${(28 - (25 * value) / most).toFixed(1)}`);
		if (points.length < 2) return;
		line.setAttribute("d", `M${points.join("L")}`);
		fill.setAttribute("d", `M0 30L${points.join("L")}L100 30Z`);
	};
	return { picture, show };
}

const EDGES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 86_400];

/** How long does an answer take? Columns on a scale in which each step is three times the one before. */
export function histogram() {
	const picture = draw("svg", { class: "chart", viewBox: "0 0 360 150", role: "img", "aria-label": "Round trips: none yet" });
	const show = (buckets) => {
		const all = buckets.reduce((sum, [, number]) => sum + number, 0);
		if (!all) return "";
		const columns = new Array(EDGES.length + 1).fill(0);
		for (const [value, number] of buckets) columns[EDGES.findIndex((edge) => value < edge) < 0 ? EDGES.length : EDGES.findIndex((edge) => value < edge)] += number;
		const first = Math.max(0, columns.findIndex((number) => number) - 1), last = Math.min(EDGES.length, columns.findLastIndex((number) => number) + 1);
		const shown = columns.slice(first, last + 1), most = Math.max(...shown), width = 360 / shown.length;
		const at = (share) => { let passed = 0; return buckets.find(([, number]) => (passed += number) >= share * all)[0]; };
		picture.replaceChildren(
			draw("line", { class: "axis", x1: 0, x2: 360, y1: 126.5, y2: 126.5 }),
			...shown.flatMap((number, place) => {
				const height = number ? Math.max(2, (110 * number) / most) : 0, edge = EDGES[first + place];
				return [
					draw("rect", { class: "column", x: place * width + 2, y: 126 - height, width: width - 4, height, rx: Math.min(4, height / 2) }),
					edge && place < shown.length - 1 && (shown.length < 9 || (last - first - place) % 2 === 0) && draw("text", { x: (place + 1) * width, y: 142, "text-anchor": "middle" }, seconds(edge).replace(".0", "")),
				].filter(Boolean);
			}));
		const words = `half within ${seconds(at(0.5))}, 99 % within ${seconds(at(0.99))}`;
		picture.setAttribute("aria-label", `Round trips of ${count(all)} receipts: ${words}`);
		return words;
	};
	return { picture, show };
}
