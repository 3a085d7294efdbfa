// One event, and what became of it: the bar that fills, how long it took, and who has not said anything.

import { bar, inWords, legend } from "./charts.js";
import { clock, count, make, put, seconds, some } from "./dom.js";
import { ask, part } from "./server.js";

const WAIT = 20; // seconds for which a question stays open until something changes
const PAGE = 8; // devices that are shown at a time
const OFTEN = 1000; // ms between two looks at the devices, however fast receipts come

/** A card that follows one event after the other. It asks only while it is seen, and as long as something may change. */
export function eventCard(title, level = "h2") {
	const heading = make(level, {}, title), facts = make("p", { class: "soft small" }), large = bar(true), colours = legend();
	const words = make("p", { class: "num", role: "status" }), latency = make("p", { class: "soft small num" });
	const rows = make("tbody"), more = make("button", { type: "button", class: "plain", onclick: () => devices(true) }, "More devices");
	const which = make("select", { "aria-label": "Devices in this state", onchange: () => devices() },
		["outstanding", "processed", "delivered", "failed", "expired", "cancelled", "pending", "sent"].map((state) => make("option", { value: state }, state)));
	const none = make("p", { class: "empty" });
	const table = make("table", {}, make("caption", {}, "Devices"), make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "device"), make("th", { scope: "col" }, "state"), make("th", { scope: "col" }, "status"))), rows);
	const recall = make("button", { type: "button", class: "bad", onclick: takeBack }, "Recall");
	const body = make("div", { class: "stack" }, facts, large.picture, words, colours.picture, latency, make("div", { class: "row" }, which, recall), table, none, more);
	const element = make("section", { class: "card", "aria-label": title }, heading, body);
	let followed, looked = 0, cursor, page = 0;

	function follow(channel, id) {
		followed?.abort.abort();
		followed = { channel, id, path: `/events/${part(channel)}/${part(id)}`, abort: new AbortController(), status: null };
		rows.replaceChildren();
		which.value = "outstanding";
		watch(followed);
	}

	function stop() {
		followed?.abort.abort();
		followed = undefined;
	}

	async function watch(mine) {
		const { signal } = mine.abort;
		try {
			for (let status; mine === followed; ) {
				const known = mine.status?.etag;
				status = await ask("GET", mine.path + (known ? `?wait=${WAIT}` : ""), { signal, headers: known ? { "If-None-Match": known } : {} });
				if (mine !== followed) return;
				if (status) {
					mine.status = status;
					show(status);
					if (page === 0 || !known) devices();
				}
				if (mine.status.complete || document.hidden) return;
			}
		} catch (trouble) {
			if (!signal.aborted) put(words, trouble.message);
		}
	}

	function show(status) {
		put(facts, `${status.channel} · ${status.type} · ${status.id} · ${clock(status.time)}${status.publisher ? ` · from ${status.publisher}` : ""}${status.recalled ? " · recalled" : ""}`);
		large.show(status);
		colours.show(status);
		put(words, status.audience ? `${inWords(status)}. ${status.complete ? "Everybody has answered." : status.outstanding ? `${some(status.outstanding, "device")} ${status.outstanding === 1 ? "owes" : "owe"} a receipt.` : "Nobody owes a receipt any more."}` : "Nobody was asked for a receipt.");
		const { p50, p90, p99 } = status.latency;
		put(latency, p50 == null ? "" : `answered within ${seconds(p50)} (half), ${seconds(p90)} (90 %), ${seconds(p99)} (99 %)`);
		recall.disabled = status.recalled || !status.outstanding;
	}

	async function devices(isMore = false) {
		const mine = followed, wait = looked + OFTEN - Date.now();
		if (!mine) return;
		if (!isMore && wait > 0) {
			mine.later ??= setTimeout(() => { mine.later = undefined; devices(); }, wait);
			return;
		}
		looked = Date.now();
		try {
			const told = await ask("GET", `${mine.path}/devices?state=${which.value}&limit=${PAGE}${isMore ? `&cursor=${part(cursor)}` : ""}`, { signal: mine.abort.signal });
			if (mine !== followed) return;
			page = isMore ? page + 1 : 0;
			cursor = told.cursor;
			const lines = told.devices.map((each) => make("tr", {},
				make("td", { class: "mono" }, each.device),
				make("td", {}, make("span", { class: `state ${each.state}` }, each.state), each.online ? "" : make("span", { class: "soft small" }, " away")),
				make("td", { class: "small" }, each.status == null ? "" : typeof each.status === "string" ? each.status : JSON.stringify(each.status))));
			rows.replaceChildren(...lines);
			table.hidden = !lines.length;
			more.hidden = !cursor;
			put(none, lines.length ? "" : which.value === "outstanding" ? "Nobody owes a receipt." : `No device is ${which.value}.`);
			none.hidden = lines.length > 0;
		} catch (trouble) {
			if (!mine.abort.signal.aborted) put(none, trouble.message);
		}
	}

	async function takeBack() {
		const mine = followed;
		if (!mine || !confirm(`Recall ${mine.id}? Who lacks it will not get it, who has it is told to forget it.`)) return;
		try {
			const { cancelled } = await ask("DELETE", mine.path);
			put(words, `Recalled; ${count(cancelled)} had not answered.`);
		} catch (trouble) {
			put(words, trouble.message);
		}
	}

	document.addEventListener("visibilitychange", () => { if (!document.hidden && followed && !followed.status?.complete) watch(followed = { ...followed, abort: new AbortController() }); });
	return { element, heading, follow, stop };
}
