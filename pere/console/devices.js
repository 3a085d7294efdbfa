// Who is there, page by page: never all at once, for there may be ten thousand.

import { count, make, put } from "./dom.js";
import { ask, part } from "./server.js";

const PAGE = 50;

export function devices(view) {
	const rows = make("tbody"), number = make("p", { role: "status" }), from = make("input", { type: "text", id: "devices-from", autocomplete: "off", spellcheck: "false" });
	const first = make("button", { type: "button", class: "plain", onclick: () => list("") }, "First page"), next = make("button", { type: "button", class: "plain", onclick: () => list(after) }, "Next page");
	let after = "";
	view.append(
		make("div", { class: "headline" }, make("h1", { id: "devices-title", tabindex: "-1" }, "Devices"), number),
		make("section", { class: "card stack", "aria-label": "Devices by name" },
			make("form", { class: "row", onsubmit: (event) => { event.preventDefault(); list(from.value.trim()); } },
				make("label", { for: "devices-from" }, "After this name"), make("div", {}, from), make("button", { type: "submit", class: "main" }, "Look")),
			make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Devices" },
				make("table", {}, make("thead", {}, make("tr", {}, ["device", "is", "feeds", "channels and patterns"].map((words) => make("th", { scope: "col" }, words)))), rows)),
			make("div", { class: "row" }, first, next)));

	async function list(name) {
		try {
			const told = await ask("GET", `/admin/devices?limit=${PAGE}&after=${part(name)}`);
			after = told.after ?? "";
			next.disabled = !told.after;
			rows.replaceChildren(...told.devices.map((each) => {
				const wanted = [...each.channels, ...each.patterns];
				return make("tr", {}, make("td", { class: "mono name" }, each.device), make("td", {}, make("span", { class: `state ${each.online ? "on" : "off"}` }, each.online ? "online" : "away")),
					make("td", { class: "num" }, each.feeds), make("td", {}, wanted.slice(0, 5).join(", ") + (wanted.length > 5 ? ` and ${count(wanted.length - 5)} more` : "")));
			}));
			if (!told.devices.length) rows.append(make("tr", {}, make("td", { colspan: 4, class: "empty" }, "There is no device after it.")));
		} catch (trouble) {
			rows.replaceChildren(make("tr", {}, make("td", { colspan: 4, class: "bad-news" }, trouble.message)));
		}
	}

	return { show: (told) => put(number, `${count(told.devices.online)} online of ${count(told.devices.registered)} registered`), enter: () => list(""), leave: () => rows.replaceChildren() };
}
