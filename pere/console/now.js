// What happens now: how much is answered, how much there is, the newest events, how long answers take, and where most listen.

import { bar, histogram, pear, spark } from "./charts.js";
import { clock, count, make, put, rate, seconds, some } from "./dom.js";
import { eventCard } from "./event.js";

const KEPT = 60; // figures of which a curve is made

export function now(view) {
	const gauge = pear(), share = make("strong", { class: "share num" }, "–"), caption = make("p", { class: "soft" }, "of the receipts for the newest events are in");
	const figures = Object.fromEntries([
		["feeds", "open feeds"], ["devices", "devices online"], ["owed", "receipts owed"], ["events", "events a second"], ["deliveries", "deliveries a second"], ["receipts", "receipts a second"],
	].map(([name, words]) => [name, { words, number: make("dd", { class: "num" }, "–"), note: make("dd") }]));
	const curves = { events: spark(), deliveries: spark(), receipts: spark() };
	for (const [name, curve] of Object.entries(curves)) figures[name].note.append(curve.picture);
	const list = make("ul", { class: "events" }), nothing = make("p", { class: "empty" }, "No events yet. ", make("a", { href: "#try" }, "Push one."));
	const trips = histogram(), words = make("p", { class: "soft small num" }, "No receipts yet.");
	const channels = make("tbody"), known = make("p", { class: "soft small" }), detail = eventCard("What became of it");
	detail.element.hidden = true;
	const held = make("span", { class: "soft small", hidden: true }, "held while you choose");
	const rows = new Map();
	let before, chosen;
	const history = { events: [], deliveries: [], receipts: [] };

	view.append(
		make("div", { class: "headline" }, make("h1", { id: "now-title", tabindex: "-1" }, "Now")),
		make("div", { class: "now" },
			make("section", { class: "card hero", "aria-label": "At a glance" },
				gauge.picture, make("div", {}, share, caption),
				make("dl", { class: "figures" }, Object.values(figures).map(({ words, number, note }) => make("div", {}, make("dt", {}, words), number, note)))),
			make("section", { class: "card", "aria-labelledby": "recent-title" }, make("div", { class: "row titled" }, make("h2", { id: "recent-title" }, "Newest events"), held), nothing, list),
			make("div", { class: "stack" }, detail.element,
				make("section", { class: "card", "aria-labelledby": "trips-title" }, make("h2", { id: "trips-title" }, "Round trips"), words, trips.picture),
				make("section", { class: "card", "aria-labelledby": "channels-title" }, make("h2", { id: "channels-title" }, "Channels"), known,
					make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Channels" }, make("table", {}, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "channel"), make("th", { scope: "col", class: "right" }, "feeds"), make("th", { scope: "col", class: "right" }, "devices"))), channels))))));

	function show(told) {
		const asked = told.recent.reduce((sum, event) => sum + event.audience, 0), owed = told.recent.reduce((sum, event) => sum + event.outstanding, 0);
		gauge.show(asked ? 1 - owed / asked : 0);
		put(share, asked ? `${(Math.floor(1000 * (1 - owed / asked)) / 10).toFixed(owed ? 1 : 0)} %` : "–");
		put(caption, asked ? `of the receipts for the ${told.recent.length === 1 ? "newest event" : `newest ${told.recent.length} events`} are in` : "Nobody has been asked for a receipt yet");
		put(figures.feeds.number, count(told.feeds.open));
		put(figures.feeds.note, told.feeds.behind ? `${count(told.feeds.behind)} catching up` : told.feeds.receipts ? `and ${some(told.feeds.receipts, "feed")} of receipts` : "all up to date");
		put(figures.devices.number, count(told.devices.online));
		put(figures.devices.note, `of ${count(told.devices.registered)} registered`);
		put(figures.owed.number, count(told.receipts.outstanding));
		put(figures.owed.note, told.receipts.oldest ? `the oldest for ${seconds((Date.parse(told.time) - Date.parse(told.receipts.oldest)) / 1000)}` : "none is waited for");
		speeds(told);
		events(told.recent);
		put(words, trips.show(told.roundtrip) || "No receipts yet.");
		put(known, `${some(told.channels.known, "channel")}${told.channels.busiest.length ? ", of which these have the most feeds" : ", and nobody listens"}`);
		channels.parentElement.hidden = !told.channels.busiest.length;
		channels.replaceChildren(...told.channels.busiest.slice(0, 8).map((each) => make("tr", {}, make("td", {}, each.channel), make("td", { class: "right num" }, count(each.feeds)), make("td", { class: "right num" }, count(each.devices)))));
	}

	function speeds(told) {
		const at = Date.parse(told.time) / 1000;
		const totals = { events: told.events.accepted, deliveries: told.events.deliveries + told.events.replayed, receipts: told.receipts.accepted + told.receipts.late };
		// A server that was started anew counts from nothing.
		if (before && at > before.at && totals.events >= before.totals.events)
			for (const name of Object.keys(totals)) {
				const speed = Math.max(0, (totals[name] - before.totals[name]) / (at - before.at));
				history[name] = [...history[name], speed].slice(-KEPT);
				put(figures[name].number, rate(speed));
				curves[name].show(history[name]);
			}
		before = { at, totals };
	}

	function events(recent) {
		// Whoever is about to choose one is not to have another one pushed under their hand.
		const isHeld = rows.size > 0 && list.matches(":hover, :focus-within");
		held.hidden = !isHeld;
		if (isHeld) {
			for (const event of recent) rows.get(event.id)?.show(event);
			return;
		}
		const shown = new Set(recent.map((event) => event.id));
		for (const [id, row] of rows) if (!shown.has(id)) { row.element.remove(); rows.delete(id); }
		nothing.hidden = recent.length > 0;
		recent.forEach((event, place) => {
			const row = rows.get(event.id) ?? newRow(event);
			row.show(event);
			// Only what is new is put in, so that the focus stays where it is.
			if (list.children[place] !== row.element) list.insertBefore(row.element, list.children[place] ?? null);
		});
	}

	function newRow({ id, channel, type, time, publisher }) {
		const filling = bar(), tally = make("span", { class: "tally num" }), left = make("span", { class: "when num" });
		const button = make("button", { type: "button", class: "event", "aria-pressed": "false", onclick: () => choose(channel, id) },
			make("span", { class: "what" }, channel, make("span", {}, type === "message" ? "" : ` ${type}`)), tally, filling.picture,
			make("span", { class: "when num" }, `${clock(time)}${publisher ? ` · from ${publisher}` : ""}`), left);
		const row = { element: make("li", {}, button), button, show };
		function show(event) {
			filling.show(event);
			put(tally, event.audience ? `${count(event.audience - event.outstanding)} / ${count(event.audience)}` : "no receipts");
			put(left, event.recalled ? "recalled" : event.outstanding ? `${count(event.outstanding)} owed` : event.counts.failed ? `${count(event.counts.failed)} failed` : event.complete && event.audience ? "complete" : "");
		}
		rows.set(id, row);
		return row;
	}

	function choose(channel, id) {
		rows.get(chosen)?.button.setAttribute("aria-pressed", "false");
		chosen = chosen === id ? undefined : id;
		rows.get(chosen)?.button.setAttribute("aria-pressed", "true");
		detail.element.hidden = !chosen;
		if (!chosen) return detail.stop();
		detail.follow(channel, id);
		if (matchMedia("(max-width: 62rem)").matches) detail.element.scrollIntoView({ block: "start" });
	}

	return { show, leave: () => {} };
}
