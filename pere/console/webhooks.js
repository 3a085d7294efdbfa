// Who is told by webhook, how that goes, and what was given up.

import { clock, count, make, put, seconds, some } from "./dom.js";
import { ask, part } from "./server.js";

const JSON_BODY = { "Content-Type": "application/json" };

export function webhooks(view) {
	const list = make("div", { class: "stack" }), told = make("p", { role: "status", class: "hint" }), url = make("input", { type: "url", id: "webhook-url", placeholder: "https://", autocomplete: "off", required: true });
	const kinds = make("select", { id: "webhook-types" }, make("option", { value: "" }, "when events are completed or expire"), make("option", { value: "pere.receipt.batch" }, "of every receipt, in batches"),
		make("option", { value: "pere.device.connected,pere.device.disconnected" }, "when devices come and go"));
	view.append(
		make("div", { class: "headline" }, make("h1", { id: "webhooks-title", tabindex: "-1" }, "Webhooks"), make("p", {}, "Notices that PERE sends to your own servers, signed, at least once. What is not taken is tried again for about a day, and then lies here.")),
		make("div", { class: "twin" }, list,
			make("form", { class: "card stack", "aria-labelledby": "webhook-title", onsubmit: add }, make("h2", { id: "webhook-title" }, "Add an endpoint"),
				make("div", {}, make("label", { for: "webhook-url" }, "Address"), url), make("div", {}, make("label", { for: "webhook-types" }, "It is told"), kinds),
				make("div", { class: "row" }, make("button", { type: "submit", class: "main" }, "Add")), told)));

	const say = (words, isBad = false) => { told.className = isBad ? "bad-news" : "hint"; put(told, words); };
	const trying = (act) => async (event) => {
		event?.preventDefault();
		try { await act(); } catch (trouble) { say(trouble.message, true); }
	};

	function add(event) {
		return trying(async () => {
			const made = await ask("POST", "/webhooks", { headers: JSON_BODY, body: JSON.stringify({ url: url.value, ...(kinds.value && { types: kinds.value.split(",") }) }) });
			say(`Added. Its secret is told only now: ${made.secret}`);
			url.value = "";
			await load();
		})(event);
	}

	async function load() {
		const { webhooks } = await ask("GET", "/webhooks");
		list.replaceChildren(...webhooks.map(card));
		if (!webhooks.length) list.append(make("section", { class: "card" }, make("h2", {}, "Endpoints"), make("p", { class: "empty" }, "There are none.")));
	}

	function card(endpoint) {
		const path = `/webhooks/${part(endpoint.id)}`, letters = make("div", { class: "stack" }), isOff = ["paused", "disabled"].includes(endpoint.state);
		const button = (words, act, look = "plain", isIdle = false) => make("button", { type: "button", class: look, disabled: isIdle, onclick: trying(act) }, words);
		const facts = [["waiting", count(endpoint.queued)], ["given up", count(endpoint.dead)], ["failures in a row", count(endpoint.failures)]];
		return make("section", { class: "card stack", "aria-label": `Endpoint ${endpoint.url}` },
			make("div", { class: "row" }, make("span", { class: `state ${endpoint.state}` }, endpoint.state), make("h2", { class: "mono" }, endpoint.url)),
			make("p", { class: "soft small" }, `${endpoint.types.map((type) => type.replace("pere.", "")).join(", ")} · ${endpoint.channels?.length ? endpoint.channels.join(", ") : "all channels"}`),
			endpoint.trouble && make("p", { class: "bad-news small" }, endpoint.trouble),
			make("dl", { class: "figures" }, facts.map(([words, number]) => make("div", {}, make("dt", {}, words), make("dd", { class: "num" }, number)))),
			make("div", { class: "row" },
				button("Test", async () => {
					say("Asking it…");
					const { answered, status, trouble, seconds: took } = await ask("POST", `${path}/test`);
					say(answered ? `It answered ${status} within ${seconds(took)}.` : `It did not take it: ${trouble}`, !answered);
					await load();
				}),
				button(isOff ? "Resume" : "Pause", async () => { await ask("PATCH", path, { headers: JSON_BODY, body: JSON.stringify({ state: isOff ? "active" : "paused" }) }); await load(); }),
				button("Dead letters", () => dead(path, letters), "plain", !endpoint.dead),
				button("Replay all", async () => { const { replayed } = await ask("POST", `${path}/replay`); say(`${some(replayed, "notice")} on the way again.`); await load(); }, "plain", !endpoint.dead)),
			letters);
	}

	async function dead(path, place, after = "") {
		const page = await ask("GET", `${path}/dead?limit=10${after && `&after=${part(after)}`}`);
		place.replaceChildren(
			make("table", {}, make("caption", {}, "Given up, oldest first"), make("thead", {}, make("tr", {}, ["made", "type", "attempts", "why"].map((words) => make("th", { scope: "col" }, words)))),
				make("tbody", {}, page.dead.map((letter) => make("tr", {}, make("td", { class: "num" }, clock(Number(letter.id.split("-")[0]))), make("td", {}, letter.type.replace("pere.", ""), letter.count > 1 ? ` (${count(letter.count)})` : ""),
					make("td", { class: "num" }, letter.attempts), make("td", {}, letter.trouble ?? ""))))),
			page.after && make("button", { type: "button", class: "plain", onclick: trying(() => dead(path, place, page.after)) }, "Next ones") || "");
	}

	return { show: () => {}, enter: () => trying(load)(), leave: () => {} };
}
